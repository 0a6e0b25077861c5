//! The state machine of one attempt: (state, event, now) > (state, effects). Pure: no clock, no I/O,
//! no randomness. Every fact goes through [`Record`]s, so that replaying the journal gives the same
//! state as having lived through it.

use std::{net::IpAddr, time::Duration};

use agent_operator::{
    attempt::StopOrder,
    domain::{
        Reason, StartFault, Usage,
        ids::BootId,
        report::{Refusal, RunState, Started},
    },
};

use super::{
    egress,
    event::{Context, Effect, Event, PodDigest, Timer},
    guard::Guarded,
    hindrance::Hindrance,
    moment::{BootTime, Moment, Now},
    record::{Facts, Record, Stop},
    verdict,
};
use crate::{link::contract::Redemption, streams::LogEnd};

mod ending;
mod gate;
mod pod;

/// How long the scheduler may fail to place a pod that is pinned to this node.
pub const UNSCHEDULABLE_GRACE: Duration = Duration::from_secs(10);
/// How long a deleted pod may take to end (the kubelet's own retries included) before it is stuck.
pub const STUCK_AFTER: Duration = Duration::from_mins(1);
/// How long a supervisor that comes back after a step's deadline waits for a result that its gateway
/// may hold, and for the kubelet's record. A gateway that runs tells it within moments; one that does
/// not answer was most likely restarted too, and has none. The end of the step does not wait:
/// [`Machine::guarded`] sees to it.
pub const HEARING: Duration = Duration::from_secs(2);

/// Report number of 'running': one fixed number for each state makes repeats harmless.
pub const SEQUENCE_RUNNING: u64 = 1;
/// Report number of 'unknown'.
pub const SEQUENCE_UNKNOWN: u64 = 2;
/// Report number of the outcome.
pub const SEQUENCE_FINISHED: u64 = 3;
/// Report number of 'exit records differ'.
pub const SEQUENCE_MISMATCH: u64 = 4;
/// Report number of 'waiting' with the first fault; each kind of fault has a number of its own, so
/// that the acknowledgement of one is not taken for that of another.
const SEQUENCE_WAITING: u64 = 16;

/// What this process has seen and the journal need not keep.
#[allow(clippy::struct_excessive_bools, reason = "independent observations, no hidden state")]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sight {
    /// The pod's address.
    pub ip: Option<IpAddr>,
    /// The agent container's id.
    pub container_id: Option<String>,
    /// What keeps the pod from running.
    pub waiting: Option<Hindrance>,
    /// Kind of the hindrance that was last told to the controller.
    pub waiting_told: Option<StartFault>,
    /// The controller has that report.
    pub waiting_acked: bool,
    /// The controller has the report that the exit records differ.
    pub mismatch_acked: bool,
    /// The scheduler cannot place the pod, and a timer runs.
    pub unschedulable: bool,
    /// The pod was seen on a node.
    pub scheduled: bool,
    /// Somebody else deleted the pod.
    pub deleted_outside: bool,
    /// Reason of the pod's disruption.
    pub disruption: Option<String>,
    /// A deletion was ordered by us.
    pub delete_ordered: bool,
    /// The pod object does not exist.
    pub pod_gone: bool,
    /// Nothing of the container runs.
    pub cgroup_empty: bool,
    /// The pod is not made yet and creation is under way.
    pub creating: bool,
    /// The attempt was accepted by an earlier life of the supervisor.
    pub taken_over: bool,
    /// The watch showed a pod of this attempt before its creation was answered.
    pub early: Option<Box<PodDigest>>,
    /// Our finalizer was ordered off the pod, and is until it is done: once is enough.
    pub released: bool,
    /// The controller has the report that the step runs.
    pub running_acked: bool,
    /// The attempt is stuck and that was reported.
    pub stuck: bool,
    /// How far the closing of the pod's network has come.
    pub egress: egress::Progress,
    /// Found after its deadline, and not everybody has been heard yet: see [`HEARING`].
    pub hearing: bool,
    /// The gateway has nothing to tell of it.
    pub gateway_heard: bool,
    /// Its pod was looked at.
    pub pod_heard: bool,
}

/// One attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// What is on disk.
    pub facts: Facts,
    /// What is not.
    pub sight: Sight,
}

/// Collects the effects of one step and applies records as they are made.
struct Step<'a> {
    machine: &'a mut Machine,
    context: &'a Context<'a>,
    effects: Vec<Effect>,
}

impl Machine {
    /// A machine over the facts of the journal.
    pub fn new(facts: Facts) -> Self {
        Self { facts, sight: Sight::default() }
    }

    /// Whether the outcome is on record.
    pub fn finished(&self) -> bool {
        self.facts.outcome.is_some()
    }

    /// The step's deadline; none before the gate has opened.
    pub fn deadline(&self) -> Option<BootTime> {
        let opened = self.facts.opened.as_ref()?;
        Some(opened.boot.plus(self.facts.assignment.timeout()))
    }

    /// The tokens that somebody may still have; those of a step that ran before the node restarted are
    /// nobody's. A gateway that was told of them would vouch for the step where the ledger is lost, too.
    pub fn redemption(&self, boot_id: &BootId) -> Option<&Redemption> {
        let opened = self.facts.opened.as_ref();
        self.facts.redemption.as_ref().filter(|_| opened.is_none_or(|opened| opened.is_of(boot_id)))
    }

    /// What must have ended by the deadline, whatever becomes of this machine; none before the gate
    /// has opened and after the outcome.
    pub fn guarded(&self) -> Option<Guarded> {
        let at = self.deadline().filter(|_| !self.finished())?;
        let assignment = &self.facts.assignment;
        Some(Guarded {
            at,
            order: timeout_order(assignment.timeout_seconds, assignment.grace()),
            namespace: assignment.run.namespace.clone(),
            pod: verdict::pod_name(&self.facts),
            uid: self.facts.pod_uid.clone()?,
        })
    }

    /// What is known of the end of the container's log; none before the outcome.
    pub fn log_end(&self) -> Option<LogEnd> {
        let facts = &self.facts;
        let never_opened = facts.opened.is_none();
        self.finished().then(|| LogEnd {
            printed: facts.result.as_ref().and_then(|result| result.printed),
            recorded: facts.exit.is_some() || self.sight.pod_gone || never_opened,
        })
    }

    /// The order that the runner is under, with the grace left at `now`.
    pub fn stop_order(&self, now: Now) -> Option<StopOrder> {
        let stop = self.facts.stop.as_ref()?;
        let left = grace_end(stop).since(now.boot);
        Some(StopOrder {
            reason: stop.reason,
            message: stop.message.clone(),
            grace_millis: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// The reports that the controller has not acknowledged.
    pub fn unacked(&self) -> Vec<(u64, RunState)> {
        let mut reports = Vec::new();
        if let Some(state) = self.mismatch().filter(|_| !self.sight.mismatch_acked) {
            reports.push((SEQUENCE_MISMATCH, state));
        }
        if let Some(outcome) = &self.facts.outcome {
            if !self.facts.acked {
                reports.push((SEQUENCE_FINISHED, RunState::Finished(outcome.clone())));
            }
            return reports;
        }
        if let Some(started) = self.started().filter(|_| !self.sight.running_acked) {
            reports.push((SEQUENCE_RUNNING, RunState::Running(started)));
        }
        if let Some(report) = self.waiting().filter(|_| !self.sight.waiting_acked) {
            reports.push(report);
        }
        if self.sight.stuck {
            reports.push((SEQUENCE_UNKNOWN, self.stuck_state()));
        }
        reports
    }

    /// The report on what keeps the pod from running, once it was made.
    fn waiting(&self) -> Option<(u64, RunState)> {
        let told = self.sight.waiting_told.filter(|_| self.facts.opened.is_none())?;
        let waiting = self.sight.waiting.as_ref().filter(|waiting| waiting.fault == told)?;
        let kind = StartFault::ALL.iter().position(|fault| *fault == told).unwrap_or_default();
        let sequence = SEQUENCE_WAITING.saturating_add(u64::try_from(kind).unwrap_or_default());
        Some((sequence, RunState::Waiting(waiting.trouble())))
    }

    /// The report that the kubelet's record contradicts the runner's.
    fn mismatch(&self) -> Option<RunState> {
        let (reported, recorded) =
            verdict::mismatch(&self.facts).filter(|_| self.facts.forgotten.is_none())?;
        Some(RunState::ExitMismatch { reported, recorded })
    }

    fn stuck_state(&self) -> RunState {
        let pod = verdict::pod_name(&self.facts);
        RunState::Unknown { message: format!("pod {pod} was deleted but does not end") }
    }

    fn started(&self) -> Option<Started> {
        let opened = self.facts.opened.as_ref()?;
        Some(Started {
            pod_name: verdict::pod_name(&self.facts),
            pod_uid: self.facts.pod_uid.clone()?,
            started_at: opened.wall,
            sandbox: verdict::sandbox(&self.facts),
        })
    }

    /// Takes one event.
    pub fn step(&mut self, event: Event, context: &Context<'_>) -> Vec<Effect> {
        let mut step = Step { machine: self, context, effects: Vec::new() };
        step.take(event);
        step.effects
    }
}

/// The order to a runner whose step is over its deadline.
pub fn timeout_order(timeout_seconds: u64, grace: Duration) -> StopOrder {
    StopOrder {
        reason: Reason::TimedOut,
        message: timeout_message(timeout_seconds),
        grace_millis: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX),
    }
}

fn timeout_message(seconds: u64) -> String {
    format!("did not end within its timeout of {seconds} s")
}

fn grace_end(stop: &Stop) -> BootTime {
    stop.at.boot.plus(Duration::from_millis(stop.grace_millis))
}

impl Step<'_> {
    fn facts(&self) -> &Facts {
        &self.machine.facts
    }

    fn record(&mut self, record: Record) {
        self.machine.facts.apply(&record);
        self.effects.push(Effect::Journal(record));
    }

    fn arm(&mut self, timer: Timer, at: BootTime) {
        self.effects.push(Effect::ArmTimer { timer, at });
    }

    fn now(&self) -> Now {
        self.context.now
    }

    fn moment(&self) -> Moment {
        Moment::new(self.context.now, self.context.boot_id)
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Accepted => self.accepted(),
            Event::Restarted { one_time_hash } => self.restarted(one_time_hash),
            Event::EpochRaised(epoch) => self.record(Record::Epoch { epoch }),
            Event::Released(assignment) => self.released(assignment),
            Event::MayOpen => self.open_gate(),
            Event::BudgetChanged(budget) => self.record(Record::Budget { budget }),
            Event::PodCreated { uid, one_time_hash } => self.pod_created(uid, one_time_hash),
            Event::PodCreateFailed(failure) => self.pod_create_failed(failure),
            Event::PodCreateDelayed(hindrance) => self.pod_create_delayed(hindrance),
            Event::PodObserved(digest) => self.pod_observed(*digest),
            Event::PodGone => self.pod_gone(),
            Event::Redeemed(redemption) => self.record(Record::Redeemed(redemption)),
            Event::AtGate(request) => self.at_gate(request),
            Event::EgressAnswered(closing) => self.egress_answered(closing),
            Event::EgressDelayed(hindrance) => self.egress_delayed(hindrance),
            Event::EgressRenewed { missing } => self.egress_renewed(missing),
            Event::Listening(targets) => self.listening(targets),
            Event::Counters { usage, refusals } => self.counters(usage, refusals),
            Event::Published { work_branch, head_commit } => {
                self.record(Record::Published { work_branch, head_commit });
            }
            Event::PullRequestOpened(request) => self.record(Record::PullRequestOpened(request)),
            Event::Result { result, usage, refusals } => self.result(result, usage, refusals),
            Event::NothingPending => {
                self.machine.sight.gateway_heard = true;
                self.heard();
            }
            Event::CgroupEmpty => {
                self.machine.sight.cgroup_empty = true;
                self.conclude();
            }
            Event::Timer(timer) => self.timer(timer),
            Event::CancelOrdered { reason, message, grace } => self.stop(reason, message, grace),
            Event::Acked(sequence) => self.acked(sequence),
            Event::Forget => self.forget(),
        }
    }

    fn accepted(&mut self) {
        self.machine.sight.creating = true;
        self.effects.push(Effect::RegisterGrant);
        self.effects.push(Effect::CreatePod);
        self.arm_start();
    }

    fn arm_start(&mut self) {
        let at = self.facts().accepted.boot.plus(self.facts().assignment.start_deadline());
        self.arm(Timer::Start, at);
    }

    /// Takes an attempt up again where the journal left it. Everything asked for here is harmless
    /// when it had been done before.
    fn restarted(&mut self, one_time_hash: String) {
        self.machine.sight.taken_over = true;
        if self.machine.finished() {
            self.effects.push(Effect::CloseStreams);
            if self.machine.log_end().is_some_and(|end| !end.recorded) {
                self.effects.push(Effect::ObservePod);
            }
            return self.settle();
        }
        if let Some(uid) = self.facts().pod_uid.clone() {
            self.effects.push(Effect::RegisterGrant);
            self.effects.push(Effect::OpenStreams { uid });
            self.effects.push(Effect::ObservePod);
        } else {
            self.record(Record::OneTime { hash: one_time_hash });
            self.machine.sight.creating = true;
            self.effects.push(Effect::RegisterGrant);
            self.effects.push(Effect::CreatePod);
        }
        match self.machine.deadline() {
            Some(at) => self.arm(Timer::Deadline, at),
            None => self.arm_start(),
        }
        self.renew_egress();
        if self.facts().stop.is_some() {
            self.enforce_stop();
        } else if self.facts().result.is_some() {
            self.await_exit();
        } else if self.machine.deadline().is_some_and(|at| at <= self.now().boot) {
            // Before anything is observed: the end at the deadline must not pass for another end.
            self.overdue();
        }
        self.conclude();
    }

    fn counters(&mut self, usage: Usage, refusals: Vec<Refusal>) {
        let same = usage == self.facts().usage && refusals == self.facts().refusals;
        if self.facts().result.is_none() && !self.machine.finished() && !same {
            self.record(Record::Counters { usage, refusals });
        }
    }
}

#[cfg(test)]
mod tests;
