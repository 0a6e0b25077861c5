//! I9 to I12: nothing is left, nothing leaks, nobody dies, every task ends.

use super::{Event, Fact, Invariant, Violation, outcomes::is_end, violation};

pub(super) fn check(events: &[Event]) -> Vec<Violation> {
    let mut found: Vec<Violation> =
        events.iter().filter_map(|event| accused_of_itself(&event.fact)).collect();
    found.extend(open_tasks(events));
    found
}

/// Facts that must not be there at all.
fn accused_of_itself(fact: &Fact) -> Option<Violation> {
    match fact {
        Fact::Left { what } => Some(violation(Invariant::I9, format!("{what} is left"))),
        Fact::Leaked { place } => Some(violation(Invariant::I10, format!("a secret in {place}"))),
        Fact::Died { process } => {
            Some(violation(Invariant::I11, format!("{process} ended by itself")))
        }
        _ => None,
    }
}

fn open_tasks(events: &[Event]) -> Vec<Violation> {
    let mut found = Vec::new();
    for event in events {
        let Fact::TaskMade { task, .. } = &event.fact else { continue };
        if !has_ended(events, task) && !is_gone(events, task) {
            found.push(violation(Invariant::I12, format!("{task} never ended")));
        }
    }
    found
}

fn has_ended(events: &[Event], task: &str) -> bool {
    events.iter().any(|event| match &event.fact {
        Fact::TaskRecorded { task: of, phase, .. } => of == task && is_end(phase),
        _ => false,
    })
}

/// Whether somebody deleted the task.
pub(super) fn is_gone(events: &[Event], task: &str) -> bool {
    let gone = |fact: &Fact| matches!(fact, Fact::TaskGone { task: of } if of == task);
    events.iter().any(|event| gone(&event.fact))
}
