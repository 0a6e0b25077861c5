//! Attempts that the ledger has lost (see [`crate::ledger`]): taken up again from what the API
//! server, the gateway's memory and the controller say together. Never by creating a pod for a run
//! that had one, and never by a guess.
//!
//! | known besides the ledger | outcome |
//! |---|---|
//! | pod, live run, order (from the gateway or the controller) that makes this very pod | adopted: journalled as if it had never been lost |
//! | pod, live run, no order yet | its deadline is guarded; the controller hands the order out again |
//! | pod and an order that would make another | fails closed: guarded, counted, not adopted |
//! | adopted and started, but its tokens are lost with the gateway's memory | ends as `Disrupted`, also when its time is over: it may have ended long ago, by a loss of power |
//! | pod, no such run or one with an outcome | pod deleted and released |
//! | no pod, run had started | `ExitCodeUnknown` |
//! | no pod, run pending | an ordinary assignment |
//! | an order to end it behind the order itself | ends for that, with or without a pod; nothing is made for it |
//! | the run was made for this very order | the same, without a look: there is nothing to be lost |
//!
//! The deadline comes from the gateway's own clock where it remembers an open gate, else from the
//! start time in the run's status, else, unless the gateway has kept the gate closed, from the start of
//! the container.

use agent_operator::{
    domain::{Assignment, Credential, Epoch, Reason, RunKey, RunPhase, RunRef, names},
    telemetry::logs,
};
use k8s_openapi::api::core::v1::Pod;

use super::{ACCEPTED, End, Outgoing, Runner, RunnerError};
use crate::{
    clock,
    ledger::Entry,
    link::contract::{Survivor, ToGateway},
    pod::{
        adoption::{RunOnServer, container_started_at, judge_for, opened_at},
        client::{Adoption, owned},
        digest::digest,
    },
    steps::{
        event::{CreateFailure, Event},
        guard::Guarded,
        machine::{self, Machine},
        moment::{Moment, Now},
        record::{Facts, Record, Stop},
    },
};

/// Most strangers of one node: as many as it can have attempts, several times over.
const STRANGERS_MAX: usize = 4096;
/// Why an adopted attempt cannot go on.
const TOKENS_LOST: &str = "the node lost its records of the attempt, and its tokens with them";

/// Run and pod as the API server has them now.
#[derive(Debug)]
pub struct Look {
    /// The run; none when there is none of this name.
    pub run: Option<RunOnServer>,
    /// The pod; none when there is none of this name.
    pub pod: Option<Pod>,
}

/// The controller's order for a stranger.
struct Order {
    assignment: Assignment,
    credentials: Vec<Credential>,
}

/// An attempt that is here, or should be, without an entry in the ledger.
#[derive(Default)]
pub(super) struct Stranger {
    order: Option<Order>,
    survivor: Option<Box<Survivor>>,
    look: Option<Box<Look>>,
    /// The look that is under way was begun before there was news.
    look_again: bool,
    /// It is to end, whatever there is of it.
    pub(super) end: Option<End>,
}

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
            stranger.order = Some(Order { assignment, credentials });
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

    fn settle_stranger(&mut self, run: &RunKey) -> Result<(), RunnerError> {
        if self.machines.contains_key(run) {
            self.strangers.remove(run);
            return Ok(());
        }
        let Some(look) = self.strangers.get(run).and_then(|stranger| stranger.look.as_ref()) else {
            return Ok(());
        };
        let of_run = look.run.clone().filter(|found| found.uid == run.uid);
        let Some(server) = of_run.filter(|found| !found.phase.is_terminal()) else {
            self.dismiss(run);
            return Ok(());
        };
        self.obey(server.epoch)?;
        if server.node != self.settings.node || server.attempt != run.attempt {
            tracing::error!(run_uid = %run.uid, node = %server.node, "a pod of ours is on the wrong node");
            return Ok(());
        }
        // Whether the tokens survived is known only with the gateway at hand; what ends needs none.
        let Some(stranger) = self.strangers.remove(run) else { return Ok(()) };
        let untold = self.gateway_knows.contains(run) && stranger.survivor.is_none();
        let waits = stranger.end.is_none() && (self.link.is_none() || untold);
        let pod = stranger.look.as_ref().and_then(|look| look.pod.clone());
        match pod {
            Some(pod) if waits || !stranger.has_order() => {
                self.guard_stranger(run, &server, &stranger, &pod)?;
                self.strangers.insert(run.clone(), stranger);
                Ok(())
            }
            Some(pod) => self.adopt(run, &server, stranger, &pod),
            None => self.without_pod(run, &server, stranger),
        }
    }

    /// Nobody wants this attempt any more.
    fn dismiss(&mut self, run: &RunKey) {
        let Some(look) = self.strangers.remove(run).and_then(|stranger| stranger.look) else {
            return;
        };
        self.guards.release(run);
        self.tell_gateway(ToGateway::Revoke { run: run.clone() });
        let Some(pod) = look.pod else { return };
        let Some(at) = digest(&pod).run else { return };
        let uid = digest(&pod).uid;
        let task = pod.metadata.labels.as_ref().and_then(|labels| labels.get(names::LABEL_TASK));
        tracing::warn!(
            namespace = at.namespace,
            task,
            run = at.name,
            "a pod without a live run is taken away"
        );
        self.workers.drop_pod(run, &at, uid.clone());
        self.workers.remove_finalizer(run, &at, uid);
    }

    /// Keeps the deadline of a pod that nobody has given an order for yet.
    fn guard_stranger(
        &mut self,
        run: &RunKey,
        server: &RunOnServer,
        stranger: &Stranger,
        pod: &Pod,
    ) -> Result<(), RunnerError> {
        let now = clock::now();
        let opened = self.opened(server, stranger, pod, now);
        let (Some(opened), Some(timeout)) = (opened, server.timeout) else { return Ok(()) };
        let digest = digest(pod);
        let guarded = Guarded {
            at: opened.boot.plus(timeout),
            order: machine::timeout_order(timeout.as_secs(), agent_operator::domain::limits::GRACE),
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            pod: pod.metadata.name.clone().unwrap_or_default(),
            uid: digest.uid,
        };
        self.guards.hold(run.clone(), guarded)?;
        Ok(())
    }

    /// When the step's clock began; none while it has not, as far as anybody knows.
    fn opened(
        &self,
        server: &RunOnServer,
        stranger: &Stranger,
        pod: &Pod,
        now: Now,
    ) -> Option<Moment> {
        let survivor = stranger.survivor.as_ref();
        if let Some(left) = survivor.and_then(|survivor| survivor.open_remaining()) {
            let timeout = survivor?.assignment.timeout();
            return Some(Moment::ago(now, timeout.saturating_sub(left), &self.boot_id));
        }
        // The gateway has kept it closed, and nobody has told of an opening.
        if survivor.is_some() && server.started_at.is_none() {
            return None;
        }
        let wall = match server.phase {
            RunPhase::Running | RunPhase::Unknown => {
                opened_at(server.started_at, container_started_at(pod))?
            }
            // Its gate may have opened unseen; the gateway would know, and had it not, the runner
            // cannot go on.
            _ if stranger.has_order() => return None,
            _ => container_started_at(pod)?,
        };
        Some(Moment::at_wall(wall, now, &self.boot_id))
    }

    fn adopt(
        &mut self,
        run: &RunKey,
        server: &RunOnServer,
        mut stranger: Stranger,
        pod: &Pod,
    ) -> Result<(), RunnerError> {
        let Some(mut assignment) = stranger.assignment() else { return Ok(()) };
        let _within = logs::attempt(&assignment).entered();
        // To be ended, it has to be the run's and nothing else.
        let of_run = owned(pod, &run.uid).filter(|_| stranger.end.is_some());
        let judged = of_run.map(|(uid, one_time_hash)| Adoption::Ours { uid, one_time_hash });
        let (uid, one_time_hash) = match judged.unwrap_or_else(|| judge_for(pod, &assignment)) {
            Adoption::Ours { uid, one_time_hash } => (uid, one_time_hash),
            Adoption::Foreign(difference) => {
                tracing::error!(difference, "a pod is not adopted");
                self.metrics.drop_one("foreign_pod");
                self.guard_stranger(run, server, &stranger, pod)?;
                self.answer(stranger.order.take(), Some(("Conflict", difference)));
                // Once its run has ended it has to be released all the same.
                self.strangers.insert(run.clone(), stranger);
                return Ok(());
            }
        };
        let now = clock::now();
        let opened = self.opened(server, &stranger, pod, now);
        // A late order to hold does not close what is open.
        assignment.held &= opened.is_none();
        let accepted = opened.clone().unwrap_or_else(|| Moment::new(now, &self.boot_id));
        let redemption =
            stranger.survivor.as_ref().and_then(|survivor| survivor.redemption.clone());
        let tokens_lost = opened.is_some() && redemption.is_none();
        let mut records = vec![Record::Accepted {
            assignment: Box::new(assignment.clone()),
            one_time_hash: one_time_hash.clone(),
            at: accepted,
        }];
        records.push(Record::PodCreated { uid });
        records.extend(redemption.map(Record::Redeemed));
        records.extend(opened.map(|at| Record::GateOpened { at }));
        if tokens_lost && stranger.end.is_none() {
            let at = Moment::new(now, &self.boot_id);
            let stop = Stop::new(Reason::Disrupted, TOKENS_LOST.to_owned(), at, assignment.grace());
            records.push(Record::Stopping(stop));
        }
        if let Some(survivor) = &stranger.survivor {
            let (usage, refusals) = (survivor.usage, survivor.refusals.clone());
            records.push(Record::Counters { usage, refusals });
        }
        self.take_up(run, &records)?;
        tracing::info!(tokens_lost, "a lost attempt is adopted");
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
    fn take_up(&mut self, run: &RunKey, records: &[Record]) -> Result<(), RunnerError> {
        let entry =
            |fact: &Record| Entry::Attempt { run: run.clone(), fact: Box::new(fact.clone()) };
        let entries: Vec<_> = records.iter().map(entry).collect();
        self.keep(&entries, true)?;
        if let Some(Record::Accepted { assignment, one_time_hash, at }) = records.first() {
            let mut facts =
                Facts::accepted(assignment.as_ref().clone(), one_time_hash.clone(), at.clone());
            for record in records {
                facts.apply(record);
            }
            self.machines.insert(run.clone(), Machine::new(facts));
        }
        Ok(())
    }

    /// There is no pod: a run that had one must not get another.
    fn without_pod(
        &mut self,
        run: &RunKey,
        server: &RunOnServer,
        stranger: Stranger,
    ) -> Result<(), RunnerError> {
        self.guards.release(run);
        let began = server.phase != RunPhase::Pending || stranger.survivor.is_some();
        let known = stranger.assignment();
        let Stranger { order, survivor, end, .. } = stranger;
        let Some(assignment) = known.filter(|_| order.is_some() || end.is_some()) else {
            if survivor.is_some() {
                self.tell_gateway(ToGateway::Revoke { run: run.clone() });
            }
            return Ok(());
        };
        if !began && end.is_none() {
            let refused = self.accept(assignment)?;
            self.answer(order, refused);
            return Ok(());
        }
        let at = Moment::new(clock::now(), &self.boot_id);
        let one_time_hash = names::sha256_hex(run.to_string().as_bytes());
        let assignment = Box::new(assignment);
        self.take_up(run, &[Record::Accepted { assignment, one_time_hash, at }])?;
        if let Some(end) = end {
            self.end(run, end)?;
        }
        let failure = if began { CreateFailure::Vanished } else { CreateFailure::Aborted };
        self.step(run, Event::PodCreateFailed(failure))?;
        self.answer(order, None);
        Ok(())
    }

    /// Answers the controller, if it is the one who asked.
    fn answer(&mut self, order: Option<Order>, refused: Option<(&'static str, String)>) {
        let Some(Order { assignment, credentials }) = order else { return };
        let (run, epoch): (_, Epoch) = (assignment.key(), assignment.epoch);
        self.metrics.assigned(refused.as_ref().map_or(ACCEPTED, |(reason, _)| reason));
        if refused.is_none() {
            self.pass_credentials(run.clone(), credentials);
        }
        let refused = refused.map(|(reason, message)| (reason.to_owned(), message));
        self.say(Outgoing::AssignmentAck { run, epoch, refused });
    }
}

impl Stranger {
    fn has_order(&self) -> bool {
        self.order.is_some() || self.survivor.is_some()
    }

    /// Its run, as far as anybody has named it.
    fn run(&self) -> Option<RunRef> {
        let shown = || self.look.as_ref().and_then(|look| digest(look.pod.as_ref()?).run);
        self.assignment().map(|assignment| assignment.run).or_else(shown)
    }

    /// What is to be done, by the controller where it has spoken, else by the gateway's memory.
    pub(super) fn assignment(&self) -> Option<Assignment> {
        let ordered = self.order.as_ref().map(|order| order.assignment.clone());
        ordered.or_else(|| self.survivor.as_ref().map(|survivor| survivor.assignment.clone()))
    }
}
