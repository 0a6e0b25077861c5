//! Orders to end an attempt, also one that the ledger has lost: such an order waits until it is known
//! what there is of the attempt, so that its outcome is never on record while its pod runs.

use agent_operator::domain::{Epoch, RunKey};

use super::{Runner, RunnerError};
use crate::steps::event::{End, Event};

impl Runner {
    pub(super) fn cancel(
        &mut self,
        run: &RunKey,
        epoch: Epoch,
        end: End,
    ) -> Result<(), RunnerError> {
        if !self.obey(epoch)? {
            return Ok(());
        }
        if self.machines.contains_key(run) {
            return self.end(run, end);
        }
        // The order to compare with what is there came before this one. Without it nobody knows what to
        // compare, and a run that is gone needs no outcome.
        let stranger = self.strangers.get_mut(run);
        let Some((stranger, at)) = stranger.and_then(|stranger| {
            let at = stranger.assignment()?.run.clone();
            Some((stranger, at))
        }) else {
            self.metrics.drop_one("unknown_attempt");
            return Ok(());
        };
        stranger.end.get_or_insert(end);
        self.workers.look(run.clone(), &at);
        Ok(())
    }

    /// Ends an attempt that has its machine.
    pub(super) fn end(&mut self, run: &RunKey, end: End) -> Result<(), RunnerError> {
        let Some(machine) = self.machines.get(run) else { return Ok(()) };
        let End { reason, message, grace } = end;
        let grace = grace.unwrap_or_else(|| machine.facts.assignment.grace());
        self.step(run, Event::CancelOrdered { reason, message, grace })
    }
}
