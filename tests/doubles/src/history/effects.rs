//! I5 to I8: what reaches people (logs, pull requests), the API server's rest, and the budgets.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Event, Fact, Invariant, Retries, Rules, Violation, attempts::Run, outcomes::is_end, violation,
};

/// Reasons that are charged to the agent or the code.
const APPLICATION: [&str; 6] =
    ["AgentFailed", "VerifyFailed", "TimedOut", "OOMKilled", "NoChanges", "PushRefused"];
/// Reasons that are charged to the machines.
const INFRASTRUCTURE: [&str; 2] = ["Disrupted", "ExitCodeUnknown"];
/// Reasons that are charged to model and forge.
const PROVIDER: [&str; 1] = ["ProviderUnavailable"];

pub(super) fn check(
    events: &[Event],
    runs: &BTreeMap<String, Run>,
    rules: &Rules,
) -> Vec<Violation> {
    let mut found = logs(events);
    found.extend(rest(events));
    found.extend(pull_requests(events));
    found.extend(late_commits(events));
    found.extend(budgets(events, runs, rules));
    found
}

/// What a reader has been told of one log.
#[derive(Default)]
struct Told {
    next: u64,
    gap: bool,
}

fn logs(events: &[Event]) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut told: BTreeMap<&str, Told> = BTreeMap::new();
    for event in events {
        match &event.fact {
            Fact::Row { run, row } => {
                let log = told.entry(run).or_default();
                if *row < log.next {
                    let what = format!("{run}: row {row} came again or too late");
                    found.push(violation(Invariant::I5, what));
                } else if *row > log.next && !log.gap {
                    let what = format!("{run}: rows {} to {row} are missing", log.next);
                    found.push(violation(Invariant::I5, what));
                }
                *log = Told { next: log.next.max(row + 1), gap: false };
            }
            Fact::Gap { run } => told.entry(run).or_default().gap = true,
            Fact::Read { run, rows } => {
                let log = told.entry(run).or_default();
                if log.next < *rows && !log.gap {
                    let what = format!("{run}: the log ends at row {} of {rows}", log.next);
                    found.push(violation(Invariant::I5, what));
                }
            }
            _ => {}
        }
    }
    found
}

fn rest(events: &[Event]) -> Vec<Violation> {
    let quiet: Vec<_> = events
        .iter()
        .filter_map(|event| match event.fact {
            Fact::Quiet { until } => Some((event.at, until)),
            _ => None,
        })
        .collect();
    let disturbing = |event: &Event| {
        let Fact::Wrote { by, what } = &event.fact else { return None };
        let disturbs = quiet.iter().any(|(from, until)| (*from..*until).contains(&event.at));
        disturbs.then(|| violation(Invariant::I6, format!("{by}: {what} with nothing to do")))
    };
    events.iter().filter_map(disturbing).collect()
}

fn pull_requests(events: &[Event]) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut pulls: BTreeMap<&str, BTreeSet<i64>> = BTreeMap::new();
    for event in events {
        if let Fact::PullRequest { task, number } = &event.fact {
            pulls.entry(task).or_default().insert(*number);
        }
    }
    for (task, numbers) in &pulls {
        if numbers.len() > 1 {
            let what = format!("{task} has pull requests {numbers:?}");
            found.push(violation(Invariant::I7, what));
        }
    }
    for (task, (phase, _)) in last_records(events) {
        if phase == "Complete" && !pulls.contains_key(task) {
            found.push(violation(Invariant::I7, format!("{task} is complete and has none")));
        }
    }
    found
}

/// What was given up must not move the work branch afterwards: what a pull request shows is the work
/// of the attempts that count.
fn late_commits(events: &[Event]) -> Vec<Violation> {
    let mut given_up = BTreeSet::new();
    let mut found = Vec::new();
    for event in events {
        match &event.fact {
            Fact::Recorded { run, phase, .. } if phase == "Failed" => {
                given_up.insert(run);
            }
            Fact::Published { run } if given_up.contains(run) => {
                let what = format!("{run} moved the work branch after it was given up");
                found.push(violation(Invariant::I7, what));
            }
            _ => {}
        }
    }
    found
}

/// The last status of each task.
fn last_records(events: &[Event]) -> BTreeMap<&str, (&str, Retries)> {
    let mut last = BTreeMap::new();
    for event in events {
        if let Fact::TaskRecorded { task, phase, retries } = &event.fact {
            last.insert(task.as_str(), (phase.as_str(), *retries));
        }
    }
    last
}

/// Failures of a task by budget, as its runs tell them; only those of runs `such`.
fn failures(task: &str, runs: &BTreeMap<String, Run>, such: impl Fn(&str) -> bool) -> Retries {
    let mut failed = Retries::default();
    let tried = |run: &Run| run.task == task && !run.waited_in_vain();
    let of_task = runs.iter().filter(|(name, run)| tried(run) && such(name));
    let outcomes = of_task.filter_map(|(_, run)| run.outcome());
    for outcome in outcomes.filter(|outcome| outcome.phase == "Failed") {
        let reason = outcome.reason.as_deref().unwrap_or_default();
        let charged = |reasons: &[&str]| u32::from(reasons.contains(&reason));
        failed.application += charged(&APPLICATION);
        failed.infrastructure += charged(&INFRASTRUCTURE);
        failed.provider += charged(&PROVIDER);
    }
    failed
}

fn budgets(events: &[Event], runs: &BTreeMap<String, Run>, rules: &Rules) -> Vec<Violation> {
    let mut found = Vec::new();
    let limits = events.iter().filter_map(|event| match &event.fact {
        Fact::TaskMade { task, retries_max } => Some((task.as_str(), *retries_max)),
        _ => None,
    });
    let limits: BTreeMap<&str, u32> = limits.collect();
    let gone = |run: &str| {
        events.iter().any(|event| matches!(&event.fact, Fact::RunGone { run: of } if of == run))
    };
    for (task, (phase, retries)) in last_records(events) {
        let failed = failures(task, runs, |_| true);
        // A run that somebody deleted may have had its failure on record nowhere else.
        let kept = failures(task, runs, |run| !gone(run));
        // The failure that ends a task is not retried.
        let last = u32::from(phase == "Failed");
        let (tries, infrastructure) = (limits.get(task).copied(), rules.infrastructure_retries);
        for (budget, of, limit) in [
            ("application", (|all: Retries| all.application) as fn(Retries) -> u32, tries),
            ("infrastructure", |all: Retries| all.infrastructure, Some(infrastructure)),
            ("provider", |all: Retries| all.provider, None),
        ] {
            let (counted, failed, kept) = (of(retries), of(failed), of(kept));
            if limit.is_some_and(|limit| counted > limit) {
                let what = format!("{task}: {counted} retries of the {budget}, limit {limit:?}");
                found.push(violation(Invariant::I8, what));
            }
            if is_end(phase) && (counted > failed || kept > counted + last) {
                let what = format!("{task}: {counted} {budget} retries for {failed} failures");
                found.push(violation(Invariant::I8, what));
            }
        }
    }
    found
}
