//! What the journal keeps of an attempt, and the pure fold that rebuilds the attempt from it.
//!
//! No record contains a token or a credential; one-time tokens appear as SHA-256 only.

use std::time::Duration;

use agent_operator::{
    attempt::{GateRequest, StepResult},
    domain::{
        Assignment, Epoch, Reason, StartFault, Usage,
        assignment::TaskBudget,
        ids::PodUid,
        report::{Outcome, PullRequest, Refusal},
    },
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::moment::Moment;
use crate::link::contract::Redemption;

/// One fact about an attempt, in the order in which facts became known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "record")]
pub enum Record {
    /// The node took the attempt on. Opens every attempt.
    #[serde(rename_all = "camelCase")]
    Accepted {
        /// The order, whole.
        assignment: Box<Assignment>,
        /// SHA-256 (hex) of the one-time token for the pod spec.
        one_time_hash: String,
        /// When.
        at: Moment,
    },
    /// The assignment came again under a higher epoch.
    Epoch {
        /// The new epoch.
        epoch: Epoch,
    },
    /// Made ahead, it was told to begin.
    Released {
        /// The order, whole.
        assignment: Box<Assignment>,
        /// When.
        at: Moment,
    },
    /// Another amount is left of the task's budget.
    Budget {
        /// What is left; none means unlimited.
        budget: Option<TaskBudget>,
    },
    /// A new one-time token was made (the old one died with the process, no pod exists yet), or the
    /// adopted pod turned out to carry this one.
    OneTime {
        /// SHA-256 (hex) of the token.
        hash: String,
    },
    /// The pod exists and is ours.
    PodCreated {
        /// Its uid.
        uid: PodUid,
    },
    /// The one-time token was redeemed.
    Redeemed(Redemption),
    /// The runner stands at the start gate.
    AtGate(GateRequest),
    /// The start gate has opened; the step's clock runs from here.
    GateOpened {
        /// When.
        at: Moment,
        /// Index of the device on which the enforcer's rules hang.
        #[serde(default)]
        device: Option<u32>,
    },
    /// The attempt is being ended, and why.
    Stopping(Stop),
    /// Counts of the gateway so far.
    Counters {
        /// Consumption.
        usage: Usage,
        /// Refused requests.
        refusals: Vec<Refusal>,
    },
    /// The runner's result with the gateway's final counts.
    Result {
        /// The runner's words.
        result: Box<StepResult>,
        /// Consumption.
        usage: Usage,
        /// Refused requests.
        refusals: Vec<Refusal>,
    },
    /// A commit stands upstream.
    #[serde(rename_all = "camelCase")]
    Published {
        /// Work branch as resolved.
        work_branch: String,
        /// Its tip.
        head_commit: String,
    },
    /// The pull request exists.
    PullRequestOpened(PullRequest),
    /// The kubelet's record of the container's end; the first one is kept.
    Exit(Exit),
    /// The one outcome.
    Finished {
        /// What is reported.
        outcome: Box<Outcome>,
    },
    /// The controller has the outcome.
    Acked,
    /// The controller needs nothing of the attempt any more.
    Forgotten {
        /// When.
        at: Moment,
    },
}

/// Why and when an attempt was told to stop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stop {
    /// Reason that the attempt will end with.
    pub reason: Reason,
    /// One sentence for people.
    pub message: String,
    /// What kept it from starting, where that is the reason.
    #[serde(default)]
    pub fault: Option<StartFault>,
    /// When it was ordered.
    pub at: Moment,
    /// Milliseconds from then until SIGKILL.
    pub grace_millis: u64,
}

impl Stop {
    /// Ends what had begun, with `grace` from `at` until SIGKILL.
    pub fn new(reason: Reason, message: String, at: Moment, grace: Duration) -> Self {
        let grace_millis = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        Self { reason, message, fault: None, at, grace_millis }
    }
}

/// How the container ended by the kubelet's record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Exit {
    /// Exit code of the container; none when the kubelet does not know it either.
    pub exit_code: Option<i32>,
    /// The container's termination reason (`Completed`, `Error`, `OOMKilled`, `StartError`, ...).
    pub reason: String,
    /// The kubelet's words.
    pub message: String,
    /// `status.reason` of the pod (`Evicted`, `Preempting`, `OutOfcpu`, ...).
    pub pod_reason: String,
    /// Reason of the pod's condition `DisruptionTarget`, where it is true.
    pub disruption: Option<String>,
    /// Whether somebody else than this supervisor had deleted the pod before.
    pub deleted_outside: bool,
    /// When, by the kubelet; for display.
    pub finished_at: Option<Timestamp>,
}

/// An attempt as the journal knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The order; its epoch is the highest seen for it, its budget the last one told.
    pub assignment: Assignment,
    /// SHA-256 (hex) of the one-time token in use.
    pub one_time_hash: String,
    /// When it was accepted.
    pub accepted: Moment,
    /// When it was told to begin, if it was made ahead.
    pub released: Option<Moment>,
    /// The pod, once it is known to exist and to be ours.
    pub pod_uid: Option<PodUid>,
    /// The redemption of the one-time token.
    pub redemption: Option<Redemption>,
    /// What the runner said at the gate.
    pub gate: Option<GateRequest>,
    /// When the gate opened.
    pub opened: Option<Moment>,
    /// Index of the device on which the enforcer's rules hung then; none where it had none.
    pub closed_device: Option<u32>,
    /// The order to stop; the first one is kept.
    pub stop: Option<Stop>,
    /// Consumption as last counted.
    pub usage: Usage,
    /// Refusals as last counted.
    pub refusals: Vec<Refusal>,
    /// The runner's result; the first one is kept.
    pub result: Option<Box<StepResult>>,
    /// Work branch and tip as published.
    pub published: Option<(String, String)>,
    /// The pull request.
    pub pull_request: Option<PullRequest>,
    /// The kubelet's record; the first one is kept.
    pub exit: Option<Exit>,
    /// The outcome; never changes once set.
    pub outcome: Option<Box<Outcome>>,
    /// Whether the controller has the outcome.
    pub acked: bool,
    /// When the controller dropped the attempt.
    pub forgotten: Option<Moment>,
}

impl Facts {
    /// When its turn came: with its acceptance, unless it was made ahead.
    pub fn turn(&self) -> &Moment {
        self.released.as_ref().unwrap_or(&self.accepted)
    }

    /// An attempt that was just accepted.
    pub fn accepted(assignment: Assignment, one_time_hash: String, at: Moment) -> Self {
        Self {
            assignment,
            one_time_hash,
            accepted: at,
            released: None,
            pod_uid: None,
            redemption: None,
            gate: None,
            opened: None,
            closed_device: None,
            stop: None,
            usage: Usage::default(),
            refusals: Vec::new(),
            result: None,
            published: None,
            pull_request: None,
            exit: None,
            outcome: None,
            acked: false,
            forgotten: None,
        }
    }

    /// Adds one record. Records are harmless when repeated, and what must not change does not.
    pub fn apply(&mut self, record: &Record) {
        match record {
            // A repeated acceptance (a crash between write and answer) changes nothing.
            Record::Accepted { .. } => {}
            Record::Epoch { epoch } => {
                self.assignment.epoch = self.assignment.epoch.max(*epoch);
            }
            Record::Released { assignment, at } => {
                self.released.get_or_insert_with(|| at.clone());
                if self.assignment.held {
                    let epoch = self.assignment.epoch.max(assignment.epoch);
                    self.assignment = Assignment { epoch, ..(**assignment).clone() };
                }
            }
            Record::Budget { budget } => self.assignment.budget = *budget,
            Record::OneTime { hash } => self.one_time_hash.clone_from(hash),
            Record::PodCreated { uid } => {
                self.pod_uid.get_or_insert_with(|| uid.clone());
            }
            Record::Redeemed(redemption) => {
                // The same nonce may redeem again until the gate opens: the last answer holds.
                if self.opened.is_none() {
                    self.redemption = Some(redemption.clone());
                }
            }
            Record::AtGate(gate) => self.gate = Some(gate.clone()),
            Record::GateOpened { at, device } => {
                if self.opened.is_none() {
                    self.opened = Some(at.clone());
                    self.closed_device = *device;
                }
            }
            Record::Stopping(stop) => {
                self.stop.get_or_insert_with(|| stop.clone());
            }
            Record::Counters { usage, refusals } => self.count(*usage, refusals),
            Record::Result { result, usage, refusals } => {
                if self.result.is_none() {
                    self.result = Some(result.clone());
                    self.count(*usage, refusals);
                }
            }
            Record::Published { work_branch, head_commit } => {
                self.published = Some((work_branch.clone(), head_commit.clone()));
            }
            Record::PullRequestOpened(request) => self.pull_request = Some(request.clone()),
            Record::Exit(exit) => {
                self.exit.get_or_insert_with(|| exit.clone());
            }
            Record::Finished { outcome } => {
                self.outcome.get_or_insert_with(|| outcome.clone());
            }
            Record::Acked => self.acked = true,
            Record::Forgotten { at } => {
                self.forgotten.get_or_insert_with(|| at.clone());
            }
        }
    }

    fn count(&mut self, usage: Usage, refusals: &[Refusal]) {
        self.usage = usage;
        self.refusals = refusals.to_vec();
    }

    /// The records that rebuild exactly this; what compaction writes.
    pub fn to_records(&self) -> Vec<Record> {
        let mut records = vec![Record::Accepted {
            assignment: Box::new(self.assignment.clone()),
            one_time_hash: self.one_time_hash.clone(),
            at: self.accepted.clone(),
        }];
        let assignment = Box::new(self.assignment.clone());
        let optional = [
            self.released.clone().map(|at| Record::Released { assignment, at }),
            self.pod_uid.clone().map(|uid| Record::PodCreated { uid }),
            self.redemption.clone().map(Record::Redeemed),
            self.gate.clone().map(Record::AtGate),
            self.opened.clone().map(|at| Record::GateOpened { at, device: self.closed_device }),
            self.stop.clone().map(Record::Stopping),
            self.result.clone().map(|result| Record::Result {
                result,
                usage: self.usage,
                refusals: self.refusals.clone(),
            }),
            Some(Record::Counters { usage: self.usage, refusals: self.refusals.clone() }),
            self.published
                .clone()
                .map(|(work_branch, head_commit)| Record::Published { work_branch, head_commit }),
            self.pull_request.clone().map(Record::PullRequestOpened),
            self.exit.clone().map(Record::Exit),
            self.outcome.clone().map(|outcome| Record::Finished { outcome }),
            self.acked.then_some(Record::Acked),
            self.forgotten.clone().map(|at| Record::Forgotten { at }),
        ];
        records.extend(optional.into_iter().flatten());
        records
    }

    /// Makes all moments comparable with `now` of this boot.
    pub fn rebase(
        &mut self,
        now: super::moment::Now,
        boot_id: &agent_operator::domain::ids::BootId,
    ) {
        let moments = [
            Some(&mut self.accepted),
            self.released.as_mut(),
            self.opened.as_mut(),
            self.stop.as_mut().map(|stop| &mut stop.at),
            self.forgotten.as_mut(),
        ];
        for moment in moments.into_iter().flatten() {
            moment.rebase(now, boot_id);
        }
    }
}
