//! What the ledger holds, as the opening of a session tells it.

use agent_operator::domain::{RunKey, RunPhase};

use super::{Known, Runner, Snapshot};
use crate::steps::machine::Machine;

/// Most attempts named whose end the controller has acknowledged: with the longest names (about 450
/// bytes each) they take up half of a message. There are more only where thousands of runs of one node
/// outlast their end; their turn comes as the first are forgotten.
const ACKNOWLEDGED_MAX: usize = 4096;

impl Runner {
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            known: known(self.machines.iter(), ACKNOWLEDGED_MAX),
            highest_epoch: self.highest_epoch,
            delivery: self.settings.delivery.or(self.found_delivery),
            running: self.live(),
        }
    }
}

/// The attempts that the controller has something to say about: all whose end it has not acknowledged,
/// and of the others those that it has not told to forget. That word comes once; where it was lost with
/// the session, or nobody was left to give it, the controller gives it again for what is named.
fn known<'a>(
    machines: impl Iterator<Item = (&'a RunKey, &'a Machine)>,
    acknowledged_max: usize,
) -> Vec<Known> {
    let (mut acknowledged, mut named): (Vec<_>, Vec<_>) =
        machines.partition(|(_, machine)| machine.facts.acked);
    acknowledged.retain(|(_, machine)| machine.facts.forgotten.is_none());
    // The oldest first: their runs are the likeliest to be gone.
    acknowledged.sort_by_key(|(_, machine)| {
        machine.facts.outcome.as_ref().map(|outcome| outcome.completed_at)
    });
    named.extend(acknowledged.into_iter().take(acknowledged_max));
    let known = named.into_iter().map(|(key, machine)| Known {
        run: machine.facts.assignment.run.clone(),
        key: key.clone(),
        epoch: machine.facts.assignment.epoch,
        phase: phase(machine),
    });
    known.collect()
}

fn phase(machine: &Machine) -> RunPhase {
    match &machine.facts.outcome {
        Some(outcome) => outcome.phase(),
        None if machine.sight.stuck => RunPhase::Unknown,
        None if machine.facts.opened.is_some() => RunPhase::Running,
        None => RunPhase::Pending,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use agent_operator::domain::report::LogSummary;

    use super::*;
    use crate::{
        steps::{moment::Moment, record::Record, verdict},
        testing::{at, boot_id, facts},
    };

    /// An attempt that ended at this second.
    fn ended(second: i64, then: &[Record]) -> (RunKey, Machine) {
        let mut facts = facts();
        facts.assignment.run.uid = format!("run-{second}").as_str().into();
        let log = LogSummary { bytes: 0, gaps: 0 };
        let outcome = verdict::outcome(&facts, verdict::Seen::default(), log, at(second).wall);
        facts.apply(&Record::Finished { outcome: Box::new(outcome) });
        for record in then {
            facts.apply(record);
        }
        (facts.assignment.key(), Machine::new(facts))
    }

    fn named(machines: &BTreeMap<RunKey, Machine>, acknowledged_max: usize) -> Vec<String> {
        let known = known(machines.iter(), acknowledged_max);
        known.into_iter().map(|known| known.run.uid.to_string()).collect()
    }

    #[test]
    fn an_attempt_is_named_until_the_controller_has_said_that_it_may_be_forgotten() {
        let forgotten = Record::Forgotten { at: Moment::new(at(9), &boot_id()) };
        let machines = BTreeMap::from([
            ended(1, &[]),
            ended(2, &[Record::Acked]),
            ended(3, &[Record::Acked, forgotten]),
        ]);
        assert_eq!(named(&machines, 10), ["run-1", "run-2"]);
    }

    #[test]
    fn of_those_that_are_acknowledged_the_oldest_are_named_and_of_the_others_all() {
        let machines = BTreeMap::from([
            ended(1, &[]),
            ended(3, &[Record::Acked]),
            ended(4, &[Record::Acked]),
            ended(20, &[Record::Acked]),
            ended(5, &[]),
        ]);
        assert_eq!(named(&machines, 2), ["run-1", "run-5", "run-3", "run-4"]);
    }
}
