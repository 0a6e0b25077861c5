//! What the controller orders.

use std::time::Duration;

use agent_operator::{
    domain::{
        Assignment, Credential, Epoch, PreflightOrder, PreflightReport, RunKey,
        assignment::TaskBudget,
        preflight::{Finding, Problem},
    },
    telemetry::{
        audit::{self, Act},
        logs,
    },
};
use tokio::sync::mpsc;

use super::{Outgoing, Runner, RunnerError};
use crate::{
    clock,
    ledger::{Entry, NoRoom, Stored},
    link::contract::ToGateway,
    scrub::Watchlist,
    steps::{
        event::Event,
        machine::Machine,
        moment::Moment,
        record::{Facts, Record},
    },
};

/// Answer to an assignment that is not refused, for metrics.
pub(crate) const ACCEPTED: &str = "accepted";

/// Refusals of an assignment, beside those of the ledger.
pub(crate) mod refusal {
    pub(super) const STALE_EPOCH: &str = "StaleEpoch";
    pub(super) const WRONG_NODE: &str = "WrongNode";
    pub(in super::super) const CONFLICT: &str = "Conflict";
    pub(super) const NO_CAPACITY: &str = "NoCapacity";

    /// All of them.
    pub(crate) const ALL: [&str; 4] = [STALE_EPOCH, WRONG_NODE, CONFLICT, NO_CAPACITY];
}

/// Reason and sentence of a refusal.
pub(super) type Refusal = (&'static str, String);

fn no_room(why: NoRoom) -> Refusal {
    (why.kind(), why.to_string())
}

impl Runner {
    pub(super) fn assign(
        &mut self,
        assignment: Assignment,
        credentials: Vec<Credential>,
        first: bool,
    ) -> Result<(), RunnerError> {
        let (run, epoch) = (assignment.key(), assignment.epoch);
        let budget = assignment.budget;
        let mut refused = self.judge(&assignment)?;
        let known = self.machines.contains_key(&run);
        if refused.is_none() && !known && self.must_look_first(&run, first) {
            self.look_first(assignment, credentials);
            return Ok(());
        }
        if refused.is_none() {
            let released = known && self.is_released_by(&assignment);
            if released {
                self.step(&run, Event::Released(Box::new(assignment)))?;
            } else if known {
                self.step(&run, Event::EpochRaised(epoch))?;
                self.budget(run.clone(), epoch, budget)?;
            } else {
                refused = self.accept(assignment)?;
            }
            self.pass_credentials(run.clone(), credentials);
            if released {
                // Behind the credentials, so that the step finds them there.
                self.step(&run, Event::MayOpen)?;
            }
        }
        let answer = refused.as_ref().map_or(ACCEPTED, |(reason, _)| reason);
        self.metrics.assigned(answer);
        let refused = refused.map(|(reason, message)| (reason.to_owned(), message));
        self.say(Outgoing::AssignmentAck { run, epoch, refused });
        Ok(())
    }

    /// Whether the attempt is held at its gate, and this tells it to begin.
    fn is_released_by(&self, assignment: &Assignment) -> bool {
        let known = self.machines.get(&assignment.key());
        known.is_some_and(|machine| machine.facts.assignment.held) && !assignment.held
    }

    /// Why an assignment is refused, whatever room there is; none when it is new, or equal to one that is
    /// known.
    fn judge(&mut self, assignment: &Assignment) -> Result<Option<Refusal>, RunnerError> {
        if !self.obey(assignment.epoch)? {
            let message = format!("epoch {} is below {}", assignment.epoch, self.highest_epoch);
            return Ok(Some((refusal::STALE_EPOCH, message)));
        }
        if assignment.node != self.settings.node {
            let message = format!("this is node {}", self.settings.node);
            return Ok(Some((refusal::WRONG_NODE, message)));
        }
        if let Some(machine) = self.machines.get(&assignment.key()) {
            let known = &machine.facts.assignment;
            // Epoch and budget may have moved on; everything else belongs to the run's identity.
            let mut same =
                Assignment { epoch: known.epoch, budget: known.budget, ..assignment.clone() };
            if known.held || assignment.held {
                // What it works on is known when its turn comes. An order to hold that comes behind
                // the word to begin is late, and changes nothing.
                same.held = known.held;
                same.work.clone_from(&known.work);
                same.repository.clone_from(&known.repository);
                // The chart's values, which may have changed in between.
                same.start_deadline_seconds = known.start_deadline_seconds;
                same.grace_seconds = known.grace_seconds;
            }
            let message = "the run is known with other contents".to_owned();
            return Ok((same != *known).then_some((refusal::CONFLICT, message)));
        }
        Ok(None)
    }

    /// Why nothing new is taken on; none while there is room.
    fn full(&self) -> Option<Refusal> {
        if self.live() >= self.settings.slots {
            let message = format!("all {} slots are taken", self.settings.slots);
            return Some((refusal::NO_CAPACITY, message));
        }
        self.ledger.check_room().err().map(no_room)
    }

    /// Takes an assignment on; why not, if there is no room. What is only taken up again asks for none:
    /// a refusal is believed to mean that there is no pod.
    pub(super) fn accept(
        &mut self,
        assignment: Assignment,
    ) -> Result<Option<Refusal>, RunnerError> {
        let run = assignment.key();
        let _within = logs::attempt(&assignment).entered();
        let full = self.full();
        if full.is_some() {
            return Ok(full);
        }
        // Its output could not be kept, and nobody would learn what is missing.
        let streams = self.workers.streams().attempt(&assignment.run, assignment.attempt);
        if let Some(full) = streams.err().and_then(|error| NoRoom::of_streams(&error)) {
            return Ok(Some(no_room(full)));
        }
        tracing::info!(attempt = %assignment.attempt, "assigned");
        let one_time_hash = self.new_token(&run)?;
        let at = Moment::new(clock::now(), &self.boot_id);
        let fact = Record::Accepted {
            assignment: Box::new(assignment.clone()),
            one_time_hash: one_time_hash.clone(),
            at: at.clone(),
        };
        let accepted = Entry::Attempt { run: run.clone(), fact: Box::new(fact) };
        if self.keep(&[accepted], true)? == Stored::Waiting {
            // It may reach the disk later, and must not come back to life then.
            self.keep(&[Entry::Dropped { run: run.clone() }], true)?;
            self.tokens.remove(&run);
            self.workers.streams().discard(&run);
            return Ok(Some(no_room(NoRoom::Unwritable)));
        }
        let act = Act::Assigned { node: assignment.node.as_str(), epoch: assignment.epoch };
        audit::record(&assignment, &act);
        let facts = Facts::accepted(assignment, one_time_hash, at);
        self.machines.insert(run.clone(), Machine::new(facts));
        self.step(&run, Event::Accepted)?;
        Ok(None)
    }

    pub(super) fn credentials(
        &mut self,
        run: RunKey,
        epoch: Epoch,
        credentials: Vec<Credential>,
    ) -> Result<(), RunnerError> {
        if self.obey(epoch)? {
            self.pass_credentials(run, credentials);
        }
        Ok(())
    }

    /// Hands credentials on. They are never kept: what cannot be handed on is asked for again.
    pub(super) fn pass_credentials(&mut self, run: RunKey, credentials: Vec<Credential>) {
        let takes = |machine: &&Machine| !machine.finished() && !machine.facts.assignment.held;
        let machine = self.machines.get(&run).filter(takes);
        let Some(machine) = machine.filter(|_| !credentials.is_empty()) else { return };
        // What stays here of them is enough to find them in the log, and not to use them.
        let at = &machine.facts.assignment;
        match self.workers.streams().attempt(&at.run, at.attempt) {
            Ok(streams) => streams.watch_for(Watchlist::of(&credentials)),
            Err(error) => tracing::warn!(%error, "secrets are not looked for in this log"),
        }
        let message = ToGateway::Credentials { run: run.clone(), credentials };
        if self.tell_gateway(message) {
            self.needing.remove(&run);
        } else {
            self.needing.insert(run);
        }
    }

    pub(super) fn budget(
        &mut self,
        run: RunKey,
        epoch: Epoch,
        budget: Option<TaskBudget>,
    ) -> Result<(), RunnerError> {
        let obeyed = self.obey(epoch)?;
        let machine = self.machines.get(&run).filter(|machine| obeyed && !machine.finished());
        if machine.is_some_and(|machine| machine.facts.assignment.budget != budget) {
            // Kept, so that a gateway that is away or starts anew learns of it with the attempt.
            self.step(&run, Event::BudgetChanged(budget))?;
            self.tell_gateway(ToGateway::Budget { run, budget });
        }
        Ok(())
    }

    /// Passes a preflight on to the gateway. Nothing of it is kept here: whatever gets lost on the
    /// way, the controller asks for again.
    pub(super) fn preflight(
        &mut self,
        order: Box<PreflightOrder>,
        credentials: Vec<Credential>,
    ) -> Result<(), RunnerError> {
        if !self.obey(order.key.epoch)? {
            return Ok(());
        }
        let key = order.key.clone();
        if !self.tell_gateway(ToGateway::Preflight { order, credentials }) {
            let message = format!("the gateway of node {} is not connected", self.settings.node);
            let findings = vec![Finding { problem: Problem::NodeTrouble, message }];
            let report = PreflightReport { key, findings, notes: Vec::new() };
            self.say(Outgoing::Preflight(Box::new(report)));
        }
        Ok(())
    }

    pub(super) fn permit(&mut self, epoch: Epoch, valid: Duration) -> Result<(), RunnerError> {
        if self.obey(epoch)? {
            let valid_millis = u64::try_from(valid.as_millis()).unwrap_or(u64::MAX);
            self.tell_gateway(ToGateway::Permit { epoch, valid_millis });
        }
        Ok(())
    }

    pub(super) fn session_up(
        &mut self,
        epoch: Epoch,
        outgoing: mpsc::Sender<Outgoing>,
    ) -> Result<(), RunnerError> {
        if !self.obey(epoch)? {
            // Dropping the queue ends the session; a controller of an old term is not talked to.
            return Ok(());
        }
        self.session = Some(outgoing);
        self.metrics.session_up.set(1);
        self.resend_reports();
        self.ask_for_credentials();
        Ok(())
    }

    /// Asks for what the gateway lacks, once the gateway is there to take it.
    pub(super) fn ask_for_credentials(&mut self) {
        if self.link.is_none() || self.session.is_none() {
            return;
        }
        let machines = &self.machines;
        let wants = |machine: &Machine| !machine.finished() && !machine.facts.assignment.held;
        self.needing.retain(|run| machines.get(run).is_some_and(wants));
        if !self.needing.is_empty() {
            let runs = self.needing.iter().cloned().collect();
            self.say(Outgoing::NeedCredentials(runs));
        }
    }
}
