//! A clean history breaks nothing, and each planted fault breaks exactly its own promise.

mod effects;

use std::time::Duration;

use jiff::Timestamp;

use super::{Fact, History, Invariant, Retries, Rules, Witnesses, check, latest_end};

const RULES: Rules = Rules {
    grace: Duration::from_secs(10),
    slack: Duration::from_secs(1),
    skew: Duration::ZERO,
    infrastructure_retries: 3,
    witnesses: Witnesses { reports: false, prompt_writes: true },
};
const TASK: &str = "task";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).expect("a moment")
}

fn assigned(run: &str, node: &str) -> Fact {
    let timeout = Duration::from_mins(1);
    let (run, task, node) = (run.into(), TASK.into(), node.into());
    Fact::Assigned { run, task, node, timeout, epoch: 7, prepared: false }
}

fn started(run: &str, pod: &str, node: &str) -> Fact {
    Fact::Started { run: run.into(), pod: pod.into(), node: node.into() }
}

fn ended(run: &str, pod: &str, exit_code: i32) -> Fact {
    Fact::Ended { run: run.into(), pod: pod.into(), exit_code: Some(exit_code) }
}

/// A terminal record; the gate opened at second `opened`.
fn recorded(run: &str, reason: &str, exit_code: Option<i32>, opened: i64) -> Fact {
    let phase = if reason == "Completed" { "Succeeded" } else { "Failed" };
    let (phase, reason) = (phase.to_owned(), Some(reason.to_owned()));
    let (run, opened) = (run.to_owned(), Some(at(opened)));
    Fact::Recorded { run, phase, reason, exit_code, opened, began: true }
}

fn running(run: &str, opened: i64) -> Fact {
    let (run, phase, opened) = (run.to_owned(), "Running".to_owned(), Some(at(opened)));
    Fact::Recorded { run, phase, reason: None, exit_code: None, opened, began: true }
}

fn task_recorded(phase: &str, application: u32, infrastructure: u32) -> Fact {
    let retries = Retries { application, infrastructure, provider: 0 };
    Fact::TaskRecorded { task: TASK.into(), phase: phase.into(), retries }
}

fn row(run: &str, row: u64) -> Fact {
    Fact::Row { run: run.into(), row }
}

/// A task with two steps: the first fails once for the machine, all end well.
fn clean() -> Vec<(i64, Fact)> {
    vec![
        (0, Fact::TaskMade { task: TASK.into(), retries_max: 1 }),
        (1, assigned("plan-1", "a")),
        (2, started("plan-1", "p1", "a")),
        (3, running("plan-1", 3)),
        (9, ended("plan-1", "p1", 137)),
        (10, recorded("plan-1", "Disrupted", Some(137), 3)),
        (11, assigned("plan-2", "b")),
        (12, started("plan-2", "p2", "b")),
        (20, ended("plan-2", "p2", 0)),
        (21, recorded("plan-2", "Completed", Some(0), 13)),
        (22, assigned("implement-1", "a")),
        (23, started("implement-1", "p3", "a")),
        (30, ended("implement-1", "p3", 0)),
        (31, recorded("implement-1", "Completed", Some(0), 24)),
        (32, task_recorded("Complete", 0, 1)),
        (40, Fact::Quiet { until: at(50) }),
        (50, Fact::PullRequest { task: TASK.into(), number: 4 }),
        (51, row("plan-2", 0)),
        (51, row("plan-2", 1)),
        (51, Fact::Read { run: "plan-2".into(), rows: 2 }),
    ]
}

/// What is broken in a clean history after `plant`.
fn broken(plant: impl FnOnce(&mut Vec<(i64, Fact)>)) -> Vec<Invariant> {
    let mut facts = clean();
    plant(&mut facts);
    let mut history = History::default();
    for (second, fact) in facts {
        history.push(at(second), fact);
    }
    let mut broken: Vec<Invariant> =
        check(&history, &RULES).into_iter().map(|violation| violation.invariant).collect();
    broken.dedup();
    broken
}

/// The index of the first fact that `is` what is looked for.
fn index(facts: &[(i64, Fact)], is: impl Fn(&Fact) -> bool) -> usize {
    facts.iter().position(|(_, fact)| is(fact)).expect("it is in the clean history")
}

fn is_end_of(run: &str) -> impl Fn(&Fact) -> bool {
    move |fact| matches!(fact, Fact::Ended { run: of, .. } if of == run)
}

fn is_record_of(run: &str) -> impl Fn(&Fact) -> bool {
    move |fact| matches!(fact, Fact::Recorded { run: of, phase, .. } if of == run && phase != "Running")
}

#[test]
fn a_clean_history_breaks_nothing_whatever_the_order_in_which_it_was_written_down() {
    assert_eq!(broken(|_| {}), []);
    assert_eq!(broken(|facts| facts[..16].reverse()), []);
}

#[test]
fn i1_a_second_pod_of_a_run() {
    let second = |f: &mut Vec<(i64, Fact)>| {
        f.push((14, started("plan-2", "p9", "b")));
        f.push((16, ended("plan-2", "p9", 0)));
    };
    assert_eq!(broken(second), [Invariant::I1]);
}

#[test]
fn i1_a_container_that_is_started_again_in_the_same_pod() {
    let again = |f: &mut Vec<(i64, Fact)>| {
        f.push((24, started("plan-2", "p2", "b")));
        f.push((25, ended("plan-2", "p2", 0)));
    };
    // It also lives beside the next step.
    assert_eq!(broken(again), [Invariant::I1]);
}

#[test]
fn i1_a_replacement_that_starts_while_the_old_attempt_runs() {
    // The old one ends, and is recorded, only after its successor has started.
    let overlap = |f: &mut Vec<(i64, Fact)>| {
        let end = index(f, is_end_of("plan-1"));
        f[end].0 = 15;
        let record = index(f, is_record_of("plan-1"));
        f[record].0 = 16;
    };
    assert_eq!(broken(overlap), [Invariant::I1]);
}

#[test]
fn i1_what_runs_on_a_fenced_node_does_not_count() {
    let fenced = |f: &mut Vec<(i64, Fact)>| {
        let end = index(f, is_end_of("plan-1"));
        f[end].0 = 15;
        f.push((8, Fact::Fenced { node: "a".into() }));
    };
    assert_eq!(broken(fenced), []);
    let fenced_late = |f: &mut Vec<(i64, Fact)>| {
        let end = index(f, is_end_of("plan-1"));
        f[end].0 = 15;
        f.push((13, Fact::Fenced { node: "a".into() }));
    };
    assert_eq!(broken(fenced_late), [Invariant::I1, Invariant::I2]);
    let fenced_long_before = |f: &mut Vec<(i64, Fact)>| {
        let end = index(f, is_end_of("plan-1"));
        f[end].0 = 15;
        f.insert(0, (0, Fact::Fenced { node: "a".into() }));
        f.insert(1, (0, Fact::Trusted { node: "a".into() }));
    };
    assert_eq!(broken(fenced_long_before), [Invariant::I1, Invariant::I2]);
}

#[test]
fn i1_what_a_node_is_given_while_it_is_fenced_does_not_count() {
    let given_meanwhile = |f: &mut Vec<(i64, Fact)>| {
        let end = index(f, is_end_of("plan-1"));
        f[end].0 = 15;
        f.insert(0, (0, Fact::Fenced { node: "a".into() }));
        f.push((21, Fact::Trusted { node: "a".into() }));
    };
    assert_eq!(broken(given_meanwhile), []);
}

#[test]
fn i1_a_container_that_nobody_assigned_or_elsewhere_or_too_early() {
    let nobody = |f: &mut Vec<(i64, Fact)>| f.push((60, started("ghost", "p9", "a")));
    assert_eq!(broken(nobody), [Invariant::I1]);
    let elsewhere = |f: &mut Vec<(i64, Fact)>| {
        let start = index(f, |fact| matches!(fact, Fact::Started { run, .. } if run == "plan-2"));
        f[start].1 = started("plan-2", "p2", "a");
    };
    assert_eq!(broken(elsewhere), [Invariant::I1]);
    let early = |f: &mut Vec<(i64, Fact)>| {
        let order = index(f, |fact| matches!(fact, Fact::Assigned { run, .. } if run == "plan-2"));
        f[order].0 = 13;
    };
    assert_eq!(broken(early), [Invariant::I1]);
}

#[test]
fn i1_a_decision_of_a_term_that_is_over() {
    let stale = |f: &mut Vec<(i64, Fact)>| {
        let order = index(f, |fact| matches!(fact, Fact::Assigned { run, .. } if run == "plan-2"));
        if let Fact::Assigned { epoch, .. } = &mut f[order].1 {
            *epoch = 6;
        }
    };
    assert_eq!(broken(stale), [Invariant::I1]);
}

#[test]
fn i2_an_outcome_that_changes() {
    let changed = |f: &mut Vec<(i64, Fact)>| {
        f.push((33, recorded("plan-2", "AgentFailed", Some(0), 13)));
    };
    assert_eq!(broken(changed), [Invariant::I2]);
    let repeated = |f: &mut Vec<(i64, Fact)>| {
        f.push((33, recorded("plan-2", "Completed", Some(0), 13)));
    };
    assert_eq!(broken(repeated), []);
}

#[test]
fn i2_an_outcome_before_the_end_of_the_container() {
    let early = |f: &mut Vec<(i64, Fact)>| {
        let record = index(f, is_record_of("plan-2"));
        f[record].0 = 19;
    };
    assert_eq!(broken(early), [Invariant::I2]);
}

#[test]
fn a_witness_that_is_late_by_no_more_than_the_skew_accuses_nobody() {
    let mut history = History::default();
    for (second, fact) in clean() {
        // The outcome comes a second before the end that it follows.
        let early = is_record_of("plan-2")(&fact);
        history.push(at(if early { 19 } else { second }), fact);
    }
    let late = |seconds| Rules { skew: Duration::from_secs(seconds), ..RULES };
    assert_eq!(check(&history, &late(1)), []);
    assert_eq!(check(&history, &late(0)).len(), 1);
}

#[test]
fn i2_a_run_of_a_finished_task_without_an_outcome() {
    let missing = |f: &mut Vec<(i64, Fact)>| {
        f.remove(index(f, is_record_of("plan-2")));
    };
    assert_eq!(broken(missing), [Invariant::I2]);
    let deleted = |f: &mut Vec<(i64, Fact)>| {
        f.remove(index(f, is_record_of("plan-2")));
        f.push((26, Fact::RunGone { run: "plan-2".into() }));
    };
    assert_eq!(broken(deleted), []);
}

#[test]
fn i3_a_code_that_the_runtime_did_not_see() {
    let guessed = |f: &mut Vec<(i64, Fact)>| {
        let record = index(f, is_record_of("plan-1"));
        f[record].1 = recorded("plan-1", "Disrupted", Some(1), 3);
    };
    assert_eq!(broken(guessed), [Invariant::I3]);
    let invented = |f: &mut Vec<(i64, Fact)>| {
        let end = index(f, is_end_of("plan-2"));
        f[end].1 = ended("plan-2", "p2", 137);
    };
    assert_eq!(broken(invented), [Invariant::I3]);
}

#[test]
fn i3_a_success_without_a_code_and_an_unknown_code_that_is_known() {
    for (reason, code) in [("Completed", None), ("ExitCodeUnknown", Some(0))] {
        let planted = |f: &mut Vec<(i64, Fact)>| {
            let record = index(f, is_record_of("plan-2"));
            f[record].1 = recorded("plan-2", reason, code, 13);
        };
        assert!(broken(planted).contains(&Invariant::I3), "{reason} {code:?}");
    }
}

#[test]
fn i3_a_contradicted_report_of_a_runner_that_nobody_killed() {
    let contradicted = |run: &'static str| {
        move |f: &mut Vec<(i64, Fact)>| f.push((35, Fact::Contradicted { run: run.to_owned() }))
    };
    assert_eq!(broken(contradicted("plan-2")), [Invariant::I3]);
    // The runtime saw that this one was killed.
    assert_eq!(broken(contradicted("plan-1")), []);
}

#[test]
fn i3_where_the_runtime_has_lost_the_code_the_runners_word_stands() {
    let lost = |f: &mut Vec<(i64, Fact)>| {
        let end = index(f, is_end_of("plan-1"));
        let (run, pod) = ("plan-1".to_owned(), "p1".to_owned());
        f[end].1 = Fact::Ended { run, pod, exit_code: None };
    };
    assert_eq!(broken(lost), []);
}

#[test]
fn i3_where_all_reports_are_heard_a_lost_code_is_not_made_up() {
    let rules = Rules { witnesses: Witnesses { reports: true, ..RULES.witnesses }, ..RULES };
    let judged = |reported: Option<i32>, seen: Option<i32>| {
        let mut history = History::default();
        for (second, fact) in clean() {
            let fact = match fact {
                Fact::Ended { run, pod, .. } if run == "plan-2" => {
                    Fact::Ended { run, pod, exit_code: seen }
                }
                other => other,
            };
            history.push(at(second), fact);
        }
        if let Some(exit_code) = reported {
            history.push(at(19), Fact::Reported { run: "plan-2".into(), exit_code });
        }
        check(&history, &rules).iter().map(|violation| violation.invariant).collect::<Vec<_>>()
    };
    assert_eq!(judged(None, None), [Invariant::I3]);
    assert_eq!(judged(Some(0), None), []);
    // Killed after its report: the report decides. Any other code on record is a guess.
    assert_eq!(judged(Some(0), Some(137)), []);
    assert_eq!(judged(Some(1), Some(137)), [Invariant::I3]);
}

#[test]
fn i4_a_gate_that_the_sandbox_saw_open_counts_before_the_record() {
    // A minute, ten seconds of grace, one of slack: 75 for a gate at 4.
    let late = |opened: i64| {
        move |f: &mut Vec<(i64, Fact)>| {
            f.push((opened, Fact::Opened { run: "implement-1".into(), gone: Duration::ZERO }));
            let end = index(f, is_end_of("implement-1"));
            f[end].0 = 90;
            let record = index(f, is_record_of("implement-1"));
            f[record].0 = 90;
        }
    };
    assert_eq!(broken(late(24)), []);
    assert_eq!(broken(late(4)), [Invariant::I4]);
}

#[test]
fn i4_a_step_that_its_deadline_ends_before_it_is_due() {
    // Gate at 24, a minute; a hundredth of it and a second may be missing.
    let ended_for_its_deadline = |second: i64| {
        move |f: &mut Vec<(i64, Fact)>| {
            let end = index(f, is_end_of("implement-1"));
            f[end] = (second, ended("implement-1", "p3", 143));
            let record = index(f, is_record_of("implement-1"));
            f[record] = (second, recorded("implement-1", "TimedOut", Some(143), 24));
            f.retain(|(_, fact)| !matches!(fact, Fact::TaskRecorded { .. }));
            f.push((second, task_recorded("Complete", 1, 1)));
        }
    };
    assert_eq!(broken(ended_for_its_deadline(84)), []);
    assert_eq!(broken(ended_for_its_deadline(83)), []);
    assert_eq!(broken(ended_for_its_deadline(82)), [Invariant::I4]);
}

#[test]
fn i4_what_was_gone_when_the_sandbox_heard_of_its_gate_was_its_own_time() {
    // Heard at 44; with the twenty seconds before it, the minute is over at 84.
    let heard = |gone: u64| {
        move |f: &mut Vec<(i64, Fact)>| {
            let gone = Duration::from_secs(gone);
            f.push((44, Fact::Opened { run: "implement-1".into(), gone }));
            let end = index(f, is_end_of("implement-1"));
            f[end] = (84, ended("implement-1", "p3", 143));
            let record = index(f, is_record_of("implement-1"));
            f[record] = (84, recorded("implement-1", "TimedOut", Some(143), 24));
            f.retain(|(_, fact)| !matches!(fact, Fact::TaskRecorded { .. }));
            f.push((84, task_recorded("Complete", 1, 1)));
        }
    };
    assert_eq!(broken(heard(20)), []);
    assert_eq!(broken(heard(0)), [Invariant::I4]);
}

#[test]
fn i4_a_container_that_ends_too_late_or_never() {
    // Gate at 24, a minute, ten seconds of grace, one of slack: 95.
    let late = |second: i64| {
        move |f: &mut Vec<(i64, Fact)>| {
            let end = index(f, is_end_of("implement-1"));
            f[end].0 = second;
            let record = index(f, is_record_of("implement-1"));
            f[record].0 = second;
        }
    };
    assert_eq!(broken(late(95)), []);
    assert_eq!(broken(late(96)), [Invariant::I4]);
    let never = |f: &mut Vec<(i64, Fact)>| {
        f.remove(index(f, is_end_of("implement-1")));
        f.remove(index(f, is_record_of("implement-1")));
        f.push((25, running("implement-1", 24)));
        f.push((200, row("plan-2", 2)));
    };
    assert_eq!(broken(never), [Invariant::I2, Invariant::I4]);
}

#[test]
fn the_latest_end_is_measured_from_deadline_and_grace() {
    let mut history = History::default();
    for (second, fact) in clean() {
        history.push(at(second), fact);
    }
    assert_eq!(latest_end(&history, &RULES), None);
    let rules = Rules { grace: Duration::ZERO, ..RULES };
    let mut late = History::default();
    for (second, fact) in clean() {
        let moved = if is_end_of("implement-1")(&fact) { 85 } else { second };
        late.push(at(moved), fact);
    }
    assert_eq!(latest_end(&late, &rules), Some(Duration::from_secs(1)));
}

/// The clean history, with the second step's pod made during the first.
fn made_ahead(facts: &mut Vec<(i64, Fact)>) {
    facts.retain(|(_, fact)| {
        !matches!(fact, Fact::Assigned { run, .. } | Fact::Started { run, .. } if run == "implement-1")
    });
    let mut ahead = assigned("implement-1", "b");
    if let Fact::Assigned { prepared, .. } = &mut ahead {
        *prepared = true;
    }
    facts.push((14, ahead));
    facts.push((15, started("implement-1", "p3", "b")));
}

#[test]
fn a_pod_that_waits_behind_its_gate_is_no_live_attempt() {
    assert_eq!(broken(made_ahead), []);
}

#[test]
fn two_open_gates_are_two_live_attempts_however_their_pods_were_made() {
    let early = |facts: &mut Vec<(i64, Fact)>| {
        made_ahead(facts);
        let opened = Fact::Opened { run: "implement-1".into(), gone: Duration::ZERO };
        facts.push((18, opened));
    };
    assert_eq!(broken(early), [Invariant::I1]);
}

#[test]
fn a_pod_that_was_not_made_ahead_lives_from_its_start() {
    let early = |facts: &mut Vec<(i64, Fact)>| {
        made_ahead(facts);
        for (_, fact) in facts {
            if let Fact::Assigned { prepared, .. } = fact {
                *prepared = false;
            }
        }
    };
    assert_eq!(broken(early), [Invariant::I1]);
}

#[test]
fn what_was_made_ahead_and_never_began_uses_no_budget() {
    let lost = |facts: &mut Vec<(i64, Fact)>| {
        let mut ahead = assigned("test-1", "b");
        if let Fact::Assigned { prepared, .. } = &mut ahead {
            *prepared = true;
        }
        let mut outcome = recorded("test-1", "Disrupted", None, 0);
        if let Fact::Recorded { opened, began, .. } = &mut outcome {
            (*opened, *began) = (None, false);
        }
        facts.extend([(25, ahead), (26, outcome)]);
    };
    assert_eq!(broken(lost), []);
}
