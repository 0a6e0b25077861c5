//! Carries out what becomes of attempts that the ledger has lost: gathers what others know of one, has it
//! [settled](super::super::stranger), and does what follows.

use agent_operator::{
    domain::{Assignment, Credential, RunKey, RunRef},
    telemetry::logs,
};

use super::{ACCEPTED, Outgoing, Runner, RunnerError, refusal};
use crate::{
    clock,
    ledger::Entry,
    link::contract::{Survivor, ToGateway},
    steps::{
        event::{CreateFailure, Event},
        guard::Guarded,
        machine::Machine,
        record::{Facts, Record},
        stranger::{GatewayMemory, Here, Leftover, Look, Order, Settled, Stranger, TakenUp},
    },
};

/// Most strangers of one node: as many as it can have attempts, several times over.
const STRANGERS_MAX: usize = 4096;

impl Runner {
    /// The watch shows a pod of ours without an entry.
    pub(super) fn stranger_seen(&mut self, run: &RunKey, at: Option<&RunRef>) {
        let Some(at) = at else { return };
        if self.strangers.contains_key(run) {
            // Its run may have ended meanwhile; our finalizer would hold the pod for ever.
            self.workers.look(run.clone(), at);
            return;
        }
        self.metrics.drop_one("unknown_attempt");
        if self.note_stranger(run).is_some() {
            tracing::warn!(run = at.name, "a pod of ours is not in the ledger; looking at its run");
            self.workers.look(run.clone(), at);
        }
    }

    fn note_stranger(&mut self, run: &RunKey) -> Option<&mut Stranger> {
        if self.strangers.len() >= STRANGERS_MAX && !self.strangers.contains_key(run) {
            tracing::error!(run_uid = %run.uid, "too many attempts without an entry in the ledger");
            return None;
        }
        Some(self.strangers.entry(run.clone()).or_default())
    }

    /// Whether an assignment without an entry has to be compared with what is there before it is carried
    /// out: a ledger that was lost, of this life or of one before, may have had the entry, and whoever
    /// gives the order may not know yet that the run has ended. Not if the run was made for this `first`
    /// order, for then no life of this supervisor can have heard of it.
    pub(super) fn must_look_first(&self, run: &RunKey, first: bool) -> bool {
        !first || self.strangers.contains_key(run) || self.leaving.holds(run)
    }

    /// Keeps the controller's order until the look is done; the answer comes then.
    pub(super) fn look_first(&mut self, assignment: Assignment, credentials: Vec<Credential>) {
        let (run, at) = (assignment.key(), assignment.run.clone());
        if let Some(stranger) = self.note_stranger(&run) {
            stranger.order = Some(Order { assignment, credentials, refused: false });
            self.workers.look(run, &at);
        }
    }

    /// The gateway still has attempts of before: those that the ledger does not know are kept and
    /// described, everything else is dropped by `Synced`.
    pub(super) fn ask_for_survivors(&mut self) {
        if !self.facts_missing {
            return;
        }
        let lost: Vec<_> =
            self.gateway_knows.iter().filter(|run| self.may_be_adopted(run)).cloned().collect();
        for run in lost {
            self.tell_gateway(ToGateway::Describe { run });
        }
    }

    /// Whether the gateway has kept an attempt that the ledger may have lost.
    pub(super) fn may_be_adopted(&self, run: &RunKey) -> bool {
        self.facts_missing && self.gateway_knows.contains(run) && !self.machines.contains_key(run)
    }

    /// The gateway describes an attempt that it has kept.
    pub(super) fn survivor(&mut self, survivor: Box<Survivor>) {
        let (run, at) = (survivor.assignment.key(), survivor.assignment.run.clone());
        if self.machines.contains_key(&run) {
            return;
        }
        if let Some(stranger) = self.note_stranger(&run) {
            stranger.survivor = Some(survivor);
            self.workers.look(run, &at);
        }
    }

    /// Run and pod were looked at.
    pub(super) fn looked(&mut self, run: &RunKey, look: Box<Look>) -> Result<(), RunnerError> {
        let Some(stranger) = self.strangers.get_mut(run) else { return Ok(()) };
        stranger.look = Some(look);
        if std::mem::take(&mut stranger.look_again)
            && let Some(at) = stranger.run()
        {
            self.workers.look(run.clone(), &at);
        }
        self.settle_stranger(run)
    }

    /// The outcome is on record for good. Of an attempt without an entry that may be news: a report of a
    /// life before this one can be recorded after its run was looked at, and nothing else tells of it.
    pub(super) fn forget(&mut self, run: &RunKey) -> Result<(), RunnerError> {
        if let Some(stranger) = self.strangers.get_mut(run) {
            match stranger.run() {
                Some(at) => self.workers.look(run.clone(), &at),
                None => stranger.look_again = true,
            }
        }
        self.step(run, Event::Forget)
    }

    /// Takes every stranger as far as what is known allows.
    pub(super) fn settle_strangers(&mut self) -> Result<(), RunnerError> {
        let runs: Vec<_> = self.strangers.keys().cloned().collect();
        runs.iter().try_for_each(|run| self.settle_stranger(run))
    }

    /// What the gateway has of the attempt, as far as it has said so.
    fn gateway_memory(&self, run: &RunKey) -> GatewayMemory {
        match self.link {
            None => GatewayMemory::Unknown,
            Some(_) if self.gateway_knows.contains(run) => GatewayMemory::Keeps,
            Some(_) => GatewayMemory::Nothing,
        }
    }

    fn settle_stranger(&mut self, run: &RunKey) -> Result<(), RunnerError> {
        if self.machines.contains_key(run) {
            self.strangers.remove(run);
            return Ok(());
        }
        let Some(stranger) = self.strangers.get(run) else { return Ok(()) };
        if let Some(epoch) = stranger.live_run(run).map(|found| found.epoch) {
            self.obey(epoch)?;
        }
        let Some(mut stranger) = self.strangers.remove(run) else { return Ok(()) };
        let (node, boot_id) = (&self.settings.node, &self.boot_id);
        let gateway = self.gateway_memory(run);
        let here = Here { node, boot_id, gateway, now: clock::now() };
        // It remains a stranger, or this is its end as one.
        match stranger.settle(run, &here) {
            Settled::Unseen => {}
            Settled::Misplaced(node) => {
                tracing::error!(run_uid = %run.uid, %node, "a pod of ours is on the wrong node");
            }
            Settled::Guarded(guarded) => self.guard_stranger(run, guarded)?,
            Settled::Foreign { difference, guarded } => {
                self.refuse_foreign(&mut stranger, difference);
                self.guard_stranger(run, guarded)?;
            }
            Settled::Unwanted(pod) => {
                self.dismiss(run, pod);
                return Ok(());
            }
            Settled::Adopted(taken) => return self.adopt(run, stranger, taken),
            Settled::Assigned(assignment) => {
                self.guards.release(run);
                let refused = self.accept(assignment)?;
                self.answer(stranger.order, refused);
                return Ok(());
            }
            Settled::Podless { taken, failure } => {
                return self.end_without_pod(run, stranger, taken, failure);
            }
            Settled::Nothing => {
                self.guards.release(run);
                if stranger.survivor.is_some() {
                    self.tell_gateway(ToGateway::Revoke { run: run.clone() });
                }
                return Ok(());
            }
        }
        self.strangers.insert(run.clone(), stranger);
        Ok(())
    }

    /// A pod is not adopted. The order stays: once its run has ended, or is to end, the pod has to be
    /// released all the same.
    fn refuse_foreign(&mut self, stranger: &mut Stranger, difference: String) {
        if stranger.order.as_ref().is_some_and(|order| order.refused) {
            return;
        }
        let _within = stranger.assignment().map(|of| logs::attempt(of).entered());
        tracing::error!(difference, "a pod is not adopted");
        self.metrics.drop_one("foreign_pod");
        let Some(order) = &mut stranger.order else { return };
        order.refused = true;
        let (run, epoch) = (order.assignment.key(), order.assignment.epoch);
        self.metrics.assigned(refusal::CONFLICT);
        let refused = Some((refusal::CONFLICT.to_owned(), difference));
        self.say(Outgoing::AssignmentAck { run, epoch, refused });
    }

    fn guard_stranger(
        &mut self,
        run: &RunKey,
        guarded: Option<Guarded>,
    ) -> Result<(), RunnerError> {
        if let Some(guarded) = guarded {
            self.guards.hold(run.clone(), guarded)?;
        }
        Ok(())
    }

    /// Nobody wants this attempt any more.
    fn dismiss(&mut self, run: &RunKey, pod: Option<Leftover>) {
        self.guards.release(run);
        self.tell_gateway(ToGateway::Revoke { run: run.clone() });
        let Some(Leftover { run: at, uid, task }) = pod else { return };
        tracing::warn!(
            namespace = at.namespace,
            task,
            run = at.name,
            "a pod without a live run is taken away"
        );
        self.workers.drop_pod(run, &at, uid.clone());
        self.workers.remove_finalizer(run, &at, uid);
    }

    fn adopt(
        &mut self,
        run: &RunKey,
        stranger: Stranger,
        taken: TakenUp,
    ) -> Result<(), RunnerError> {
        let _within = logs::attempt(&taken.assignment).entered();
        let one_time_hash = taken.one_time_hash.clone();
        tracing::info!(tokens_lost = taken.tokens_lost, "a lost attempt is adopted");
        self.take_up(run, taken)?;
        self.metrics.adopted.inc();
        self.step(run, Event::Restarted { one_time_hash })?;
        self.answer(stranger.order, None);
        if let Some(end) = stranger.end {
            self.end(run, end)?;
        }
        if self.unheard.contains(run) {
            // A new link begins with all that was not acknowledged.
            self.link = None;
        }
        Ok(())
    }

    /// Journals an attempt that others remember, and makes its machine.
    fn take_up(&mut self, run: &RunKey, taken: TakenUp) -> Result<(), RunnerError> {
        let TakenUp { assignment, one_time_hash, accepted: at, then, .. } = taken;
        let accepted = Record::Accepted {
            assignment: Box::new(assignment.clone()),
            one_time_hash: one_time_hash.clone(),
            at: at.clone(),
        };
        let entry =
            |fact: &Record| Entry::Attempt { run: run.clone(), fact: Box::new(fact.clone()) };
        let entries: Vec<_> = std::iter::once(&accepted).chain(&then).map(entry).collect();
        self.keep(&entries, true)?;
        let mut facts = Facts::accepted(assignment, one_time_hash, at);
        for record in &then {
            facts.apply(record);
        }
        self.machines.insert(run.clone(), Machine::new(facts));
        Ok(())
    }

    fn end_without_pod(
        &mut self,
        run: &RunKey,
        stranger: Stranger,
        taken: TakenUp,
        failure: CreateFailure,
    ) -> Result<(), RunnerError> {
        self.guards.release(run);
        self.take_up(run, taken)?;
        if let Some(end) = stranger.end {
            self.end(run, end)?;
        }
        self.step(run, Event::PodCreateFailed(failure))?;
        self.answer(stranger.order, None);
        Ok(())
    }

    /// Answers the controller, if it is the one who asked and has no answer yet that still holds.
    fn answer(&mut self, order: Option<Order>, refused: Option<(&'static str, String)>) {
        let Some(Order { assignment, credentials, refused: before }) = order else { return };
        let (run, epoch) = (assignment.key(), assignment.epoch);
        if before && refused.is_none() {
            // It counts as known there since.
            return self.pass_credentials(run, credentials);
        }
        self.metrics.assigned(refused.as_ref().map_or(ACCEPTED, |(reason, _)| reason));
        if refused.is_none() {
            self.pass_credentials(run.clone(), credentials);
        }
        let refused = refused.map(|(reason, message)| (reason.to_owned(), message));
        self.say(Outgoing::AssignmentAck { run, epoch, refused });
    }
}
