//! A clean history breaks nothing, and each planted fault breaks exactly its own promise.

use std::time::Duration;

use jiff::Timestamp;

use super::{Fact, History, Invariant, Retries, Rules, check, latest_end};

const RULES: Rules = Rules {
    grace: Duration::from_secs(10),
    slack: Duration::from_secs(1),
    skew: Duration::ZERO,
    infrastructure_retries: 3,
};
const TASK: &str = "task";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).expect("a moment")
}

fn assigned(run: &str, node: &str) -> Fact {
    let timeout = Duration::from_mins(1);
    Fact::Assigned { run: run.into(), task: TASK.into(), node: node.into(), timeout, epoch: 7 }
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
    Fact::Recorded { run, phase, reason, exit_code, opened }
}

fn running(run: &str, opened: i64) -> Fact {
    let (run, phase, opened) = (run.to_owned(), "Running".to_owned(), Some(at(opened)));
    Fact::Recorded { run, phase, reason: None, exit_code: None, opened }
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
fn i3_where_the_runtime_has_lost_the_code_the_runners_word_stands() {
    let lost = |f: &mut Vec<(i64, Fact)>| {
        let end = index(f, is_end_of("plan-1"));
        let (run, pod) = ("plan-1".to_owned(), "p1".to_owned());
        f[end].1 = Fact::Ended { run, pod, exit_code: None };
    };
    assert_eq!(broken(lost), []);
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

#[test]
fn i5_rows_that_are_missing_doubled_or_out_of_order() {
    let plant = |rows: &'static [u64]| {
        move |f: &mut Vec<(i64, Fact)>| {
            f.retain(|(_, fact)| !matches!(fact, Fact::Row { .. } | Fact::Read { .. }));
            f.extend(rows.iter().map(|number| (51, row("plan-2", *number))));
            f.push((51, Fact::Read { run: "plan-2".into(), rows: 3 }));
        }
    };
    assert_eq!(broken(plant(&[0, 1, 2])), []);
    for rows in [&[0, 2][..], &[0, 1, 1, 2], &[0, 2, 1], &[0, 1], &[1, 2], &[]] {
        assert_eq!(broken(plant(rows)), [Invariant::I5], "{rows:?}");
    }
}

#[test]
fn i5_a_gap_stands_for_the_rows_in_its_place_only() {
    let plant = |gap_after: usize| {
        move |f: &mut Vec<(i64, Fact)>| {
            f.retain(|(_, fact)| !matches!(fact, Fact::Row { .. } | Fact::Read { .. }));
            let mut told = vec![row("plan-2", 0), row("plan-2", 2), row("plan-2", 3)];
            told.insert(gap_after, Fact::Gap { run: "plan-2".into() });
            f.extend(told.into_iter().map(|fact| (51, fact)));
        }
    };
    assert_eq!(broken(plant(1)), []);
    assert_eq!(broken(plant(0)), [Invariant::I5]);
    assert_eq!(broken(plant(2)), [Invariant::I5]);
}

#[test]
fn i6_a_write_while_there_is_nothing_to_do() {
    let wrote = |second| {
        move |f: &mut Vec<(i64, Fact)>| {
            let (by, what) = ("controller".to_owned(), "patch agentruns/status".to_owned());
            f.push((second, Fact::Wrote { by, what }));
        }
    };
    assert_eq!(broken(wrote(45)), [Invariant::I6]);
    assert_eq!(broken(wrote(39)), []);
    assert_eq!(broken(wrote(50)), []);
}

#[test]
fn i7_a_second_pull_request_or_none_for_a_complete_task() {
    let pull = |number| Fact::PullRequest { task: TASK.into(), number };
    assert_eq!(broken(|f| f.push((52, pull(5)))), [Invariant::I7]);
    assert_eq!(broken(|f| f.push((52, pull(4)))), []);
    let none = |f: &mut Vec<(i64, Fact)>| {
        f.retain(|(_, fact)| !matches!(fact, Fact::PullRequest { .. }));
    };
    assert_eq!(broken(none), [Invariant::I7]);
}

#[test]
fn i8_failures_that_are_charged_to_the_other_budget_or_not_at_all() {
    let counts = |application, infrastructure| {
        move |f: &mut Vec<(i64, Fact)>| {
            let end = index(f, |fact| matches!(fact, Fact::TaskRecorded { .. }));
            f[end].1 = task_recorded("Complete", application, infrastructure);
        }
    };
    assert_eq!(broken(counts(0, 1)), []);
    assert_eq!(broken(counts(1, 0)), [Invariant::I8]);
    assert_eq!(broken(counts(0, 0)), [Invariant::I8]);
    assert_eq!(broken(counts(0, 2)), [Invariant::I8]);
}

#[test]
fn i8_more_retries_than_the_budget_has() {
    let failing = |failures: u32| {
        move |f: &mut Vec<(i64, Fact)>| {
            f.truncate(1);
            for attempt in 1..=failures {
                let (run, pod) = (format!("plan-{attempt}"), format!("p{attempt}"));
                let second = i64::from(attempt) * 10;
                f.push((second, assigned(&run, "a")));
                f.push((second + 1, started(&run, &pod, "a")));
                f.push((second + 3, ended(&run, &pod, 1)));
                f.push((second + 4, recorded(&run, "AgentFailed", Some(1), second + 2)));
            }
            f.push((99, task_recorded("Failed", failures - 1, 0)));
        }
    };
    // One retry is allowed: two attempts.
    assert_eq!(broken(failing(2)), []);
    assert_eq!(broken(failing(3)), [Invariant::I8]);
}

#[test]
fn the_summary_counts_what_is_there() {
    let mut history = History::default();
    history.push(at(1), row("r", 0));
    history.push(at(1), row("r", 1));
    history.push(at(2), Fact::Gap { run: "r".into() });
    assert_eq!(history.summary(), "1 gaps, 2 log rows");
}
