//! I5 to I12, and what is told of a history as a whole.

use super::*;

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
fn i7_a_commit_of_an_attempt_that_was_given_up() {
    let published = |run: &'static str, second| {
        move |f: &mut Vec<(i64, Fact)>| f.push((second, Fact::Published { run: run.into() }))
    };
    assert_eq!(broken(published("plan-1", 12)), [Invariant::I7]);
    assert_eq!(broken(published("plan-1", 8)), []);
    assert_eq!(broken(published("plan-2", 22)), []);
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
    // The only record of a failure may go with a run that somebody deletes.
    let deleted = |f: &mut Vec<(i64, Fact)>| {
        counts(0, 0)(f);
        f.push((15, Fact::RunGone { run: "plan-1".into() }));
    };
    assert_eq!(broken(deleted), []);
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
fn i8_a_budget_that_is_exceeded_by_a_task_that_has_not_ended() {
    let exceeded = |f: &mut Vec<(i64, Fact)>| {
        f.truncate(1);
        f.push((5, task_recorded("Planning", 2, 0)));
        f.push((9, Fact::TaskGone { task: TASK.into() }));
    };
    assert_eq!(broken(exceeded), [Invariant::I8]);
}

#[test]
fn i9_i10_i11_what_must_not_be_there_at_all() {
    let (what, place, process) = ("pod p1", "the log of plan-1", "controller");
    let planted = [
        (Invariant::I9, Fact::Left { what: what.into() }),
        (Invariant::I10, Fact::Leaked { place: place.into() }),
        (Invariant::I11, Fact::Died { process: process.into() }),
    ];
    for (invariant, fact) in planted {
        assert_eq!(broken(|f| f.push((60, fact))), [invariant]);
    }
    assert_eq!(broken(|f| f.push((60, Fact::Note { what: what.into() }))), []);
}

#[test]
fn i12_a_task_that_never_ends_unless_somebody_deleted_it() {
    let open = |f: &mut Vec<(i64, Fact)>| {
        f.remove(index(f, |fact| matches!(fact, Fact::TaskRecorded { .. })));
    };
    assert_eq!(broken(open), [Invariant::I12]);
    let deleted = |f: &mut Vec<(i64, Fact)>| {
        open(f);
        f.push((60, Fact::TaskGone { task: TASK.into() }));
    };
    assert_eq!(broken(deleted), []);
}

#[test]
fn an_assignment_of_an_older_term_may_come_late_where_writes_are_held_up() {
    let mut history = History::default();
    for (second, fact) in clean() {
        let fact = match fact {
            Fact::Assigned { run, task, node, timeout, prepared, .. } if run == "plan-2" => {
                Fact::Assigned { run, task, node, timeout, epoch: 6, prepared }
            }
            other => other,
        };
        history.push(at(second), fact);
    }
    let witnesses = |prompt_writes| Witnesses { prompt_writes, ..RULES.witnesses };
    assert_eq!(check(&history, &Rules { witnesses: witnesses(false), ..RULES }), []);
    assert_eq!(check(&history, &Rules { witnesses: witnesses(true), ..RULES }).len(), 1);
}

#[test]
fn the_text_has_a_line_for_each_fact_in_the_order_of_time() {
    let mut history = History::default();
    history.push(at(3), Fact::Note { what: "later".into() });
    history.push(at(1), row("r", 0));
    let text = history.text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(
        lines,
        [r#"    0.000 Row { run: "r", row: 0 }"#, r#"    2.000 Note { what: "later" }"#]
    );
    assert_eq!(history.count(|fact| matches!(fact, Fact::Note { .. })), 1);
}

#[test]
fn the_summary_counts_what_is_there() {
    let mut history = History::default();
    history.push(at(1), row("r", 0));
    history.push(at(1), row("r", 1));
    history.push(at(2), Fact::Gap { run: "r".into() });
    assert_eq!(history.summary(), "1 gaps, 2 log rows");
}
