//! I2, I3 and I4: one outcome, the runtime's exit code, and an end in time.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;

use super::{
    Event, Fact, Invariant, Rules, Violation,
    attempts::{Fences, Run, fences},
    violation,
};

/// Exit codes above it stand for a signal.
const SIGNALLED: i32 = 128;
/// The exit code of a main process that SIGKILL ended.
const KILLED: i32 = SIGNALLED + 9;

pub(super) fn check(
    events: &[Event],
    runs: &BTreeMap<String, Run>,
    rules: &Rules,
) -> Vec<Violation> {
    let fences = fences(events);
    let mut found = Vec::new();
    for (name, run) in runs {
        found.extend(changed(name, run));
        found.extend(before_its_end(name, run, &fences, rules.skew));
        found.extend(exit_code(name, run, rules.witnesses.reports));
        found.extend(contradicted(name, run));
    }
    found.extend(missing(events, runs));
    for (name, late) in lateness(runs, rules) {
        if late > rules.slack {
            let what = format!("{name} ended {late:.1?} after deadline and grace");
            found.push(violation(Invariant::I4, what));
        }
    }
    found.extend(never_ended(events, runs, rules));
    found.extend(runs.iter().filter_map(|(name, run)| early(name, run, rules)));
    found
}

/// A step that its deadline ended got the time that it was promised. Clocks may differ by a hundredth.
fn early(name: &str, run: &Run, rules: &Rules) -> Option<Violation> {
    run.outcome().filter(|outcome| outcome.reason.as_deref() == Some("TimedOut"))?;
    let timeout = run.assigned.as_ref()?.timeout;
    let ends = run.containers.iter().filter_map(|container| container.ended);
    // What ended by itself while its supervisor was away is found after its deadline.
    let stopped = |code: Option<i32>| code.is_none_or(|code| code > SIGNALLED);
    let end = ends.max_by_key(|(at, _)| *at).filter(|(_, code)| stopped(*code))?.0;
    let ran = Duration::try_from(end.duration_since(run.opened()?)).unwrap_or_default();
    let promised = timeout.saturating_sub(timeout / 100 + rules.slack);
    (ran < promised).then(|| {
        violation(Invariant::I4, format!("{name} was ended after {ran:.1?} of its {timeout:?}"))
    })
}

fn changed(name: &str, run: &Run) -> Vec<Violation> {
    let Some(first) = run.outcome() else { return Vec::new() };
    let words = |record: &super::attempts::Record| {
        let reason = record.reason.clone().unwrap_or_default();
        format!("{} {reason} {:?}", record.phase, record.exit_code)
    };
    let later = run.records.iter().skip_while(|record| !record.is_terminal()).skip(1);
    later
        .filter(|record| words(record) != words(first))
        .map(|record| {
            let what = format!("{name} went from {} to {}", words(first), words(record));
            violation(Invariant::I2, what)
        })
        .collect()
}

/// The outcome waits for the end of the container, but for what a fence has cut off.
fn before_its_end(name: &str, run: &Run, fences: &Fences<'_>, skew: Duration) -> Option<Violation> {
    let outcome = run.outcome()?;
    let live = run.containers.iter().find(|container| container.lives_at(outcome.at, skew))?;
    let cut_off = fences.cut_off(run, live, outcome.at);
    (!cut_off).then(|| {
        let what = format!("{name} got its outcome while its container was running");
        violation(Invariant::I2, what)
    })
}

/// Runs of finished tasks without an outcome; those of a deleted task went with it.
fn missing(events: &[Event], runs: &BTreeMap<String, Run>) -> Vec<Violation> {
    let mut finished: Vec<&str> = events
        .iter()
        .filter_map(|event| match &event.fact {
            Fact::TaskRecorded { task, phase, .. } if is_end(phase) => Some(task.as_str()),
            _ => None,
        })
        .collect();
    finished.retain(|task| !super::ends::is_gone(events, task));
    let deleted = |name: &str| {
        let gone = |fact: &Fact| matches!(fact, Fact::RunGone { run } if run == name);
        events.iter().any(|event| gone(&event.fact))
    };
    runs.iter()
        .filter(|(_, run)| finished.contains(&run.task.as_str()) && run.outcome().is_none())
        .filter(|(name, _)| !deleted(name))
        .map(|(name, _)| violation(Invariant::I2, format!("{name} has no outcome")))
        .collect()
}

/// Whether a task is over in this phase.
pub(super) fn is_end(phase: &str) -> bool {
    matches!(phase, "Complete" | "Failed")
}

/// The code on record is one that runtime or runner told. A runner that has reported may be killed
/// before it exits: its report stands, and the other code is shown as a contradiction.
fn exit_code(name: &str, run: &Run, all_reports: bool) -> Option<Violation> {
    let outcome = run.outcome()?;
    let ends = run.containers.iter().filter_map(|container| container.ended);
    let seen: Vec<Option<i32>> = ends.map(|(_, code)| code).collect();
    let reported = &run.reported;
    // Where the runtime has lost the code, the runner's word stands, whether or not we heard it.
    let unheard = seen.contains(&None) && !all_reports;
    let wrong = match outcome.exit_code {
        Some(code) if !seen.contains(&Some(code)) && !reported.contains(&code) && !unheard => {
            format!(
                "{name} has exit code {code} on record, the runtime saw {seen:?}, the runner said {reported:?}"
            )
        }
        None if outcome.phase == "Succeeded" => format!("{name} succeeded without an exit code"),
        Some(code) if outcome.phase == "Succeeded" && code != 0 => {
            format!("{name} succeeded with exit code {code}")
        }
        Some(code) if outcome.reason.as_deref() == Some("ExitCodeUnknown") => {
            format!("{name} has an unknown exit code, and {code} on record")
        }
        _ => return None,
    };
    Some(violation(Invariant::I3, wrong))
}

/// A runner that nobody kills exits as it has reported. One that was killed may have reported before, and
/// a code that the runtime itself has lost is none to agree with.
fn contradicted(name: &str, run: &Run) -> Option<Violation> {
    let ends = run.containers.iter().filter_map(|container| container.ended);
    let seen: Vec<Option<i32>> = ends.map(|(_, code)| code).collect();
    let killed = seen.iter().any(|code| code.is_none_or(|code| code == KILLED));
    (run.contradicted && !killed).then(|| {
        let what = format!("{name} has contradicting exit codes, and nobody killed it: {seen:?}");
        violation(Invariant::I3, what)
    })
}

/// How much later than deadline and grace each container ended; only those that were late at all.
pub(super) fn lateness(runs: &BTreeMap<String, Run>, rules: &Rules) -> Vec<(String, Duration)> {
    let late = |(name, run): (&String, &Run)| {
        let due = due(run, rules)?;
        let end = run.containers.iter().filter_map(|container| container.ended).map(|(at, _)| at);
        let late = Duration::try_from(end.max()?.duration_since(due)).ok()?;
        Some((name.clone(), late))
    };
    runs.iter().filter_map(late).collect()
}

fn due(run: &Run, rules: &Rules) -> Option<Timestamp> {
    run.opened()?.checked_add(run.assigned.as_ref()?.timeout + rules.grace).ok()
}

fn never_ended(events: &[Event], runs: &BTreeMap<String, Run>, rules: &Rules) -> Vec<Violation> {
    let Some(last) = events.last().map(|event| event.at) else { return Vec::new() };
    let overdue = |run: &Run| {
        let limit = due(run, rules).and_then(|due| due.checked_add(rules.slack).ok());
        limit.is_some_and(|limit| {
            limit < last && run.containers.iter().any(|container| container.ended.is_none())
        })
    };
    runs.iter()
        .filter(|(_, run)| overdue(run))
        .map(|(name, _)| violation(Invariant::I4, format!("{name} never ended")))
        .collect()
}
