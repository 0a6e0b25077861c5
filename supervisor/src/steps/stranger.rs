//! Attempts that the ledger has lost (see [`crate::ledger`]): what becomes of one by what the API server,
//! the gateway's memory and the controller say together (pure). Never a second pod for a run that had
//! one, and never a guess.
//!
//! | known besides the ledger | outcome |
//! |---|---|
//! | pod, live run, order (from the gateway or the controller) that makes this very pod | adopted: journalled as if it had never been lost |
//! | pod, live run, no order yet | its deadline is guarded; the controller hands the order out again |
//! | pod and an order that would make another | fails closed: guarded, counted, not adopted; the order stays, so that the run can be ended |
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

use agent_operator::domain::{
    Assignment, Credential, NodeName, Reason, RunKey, RunPhase, RunRef,
    ids::{BootId, PodUid},
    limits::GRACE,
    names,
};
use k8s_openapi::api::core::v1::Pod;

use super::{
    event::{CreateFailure, End},
    guard::Guarded,
    machine,
    moment::{Moment, Now},
    record::{Record, Stop},
};
use crate::{
    link::contract::Survivor,
    pod::{
        adoption::{RunOnServer, container_started_at, judge_for, opened_at},
        client::{Adoption, owned},
        digest::digest,
    },
};

#[cfg(test)]
mod tests;

/// Why an adopted attempt cannot go on.
const TOKENS_LOST: &str = "the node lost its records of the attempt, and its tokens with them";

/// Run and pod as the API server has them now.
#[derive(Clone, Debug)]
pub struct Look {
    /// The run; none when there is none of this name.
    pub run: Option<RunOnServer>,
    /// The pod; none when there is none of this name.
    pub pod: Option<Pod>,
}

/// The controller's order for a stranger.
pub(super) struct Order {
    pub(super) assignment: Assignment,
    pub(super) credentials: Vec<Credential>,
    /// The controller was told that the pod is not adopted, and is told once.
    pub(super) refused: bool,
}

/// An attempt that is here, or should be, without an entry in the ledger.
#[derive(Default)]
pub(super) struct Stranger {
    pub(super) order: Option<Order>,
    pub(super) survivor: Option<Box<Survivor>>,
    pub(super) look: Option<Box<Look>>,
    /// The look that is under way was begun before there was news.
    pub(super) look_again: bool,
    /// It is to end, whatever there is of it.
    pub(super) end: Option<End>,
}

/// What the gateway has of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GatewayMemory {
    /// Nobody knows: there is no link.
    Unknown,
    /// It has kept it, tokens included.
    Keeps,
    /// Nothing.
    Nothing,
}

/// What is known beside the stranger itself.
pub(super) struct Here<'a> {
    pub(super) node: &'a NodeName,
    pub(super) boot_id: &'a BootId,
    pub(super) gateway: GatewayMemory,
    pub(super) now: Now,
}

/// What becomes of a stranger.
#[derive(Debug)]
pub(super) enum Settled {
    /// Run and pod have not been looked at.
    Unseen,
    /// Its run is gone or has its outcome: what is left of it is to be taken away.
    Unwanted(Option<Leftover>),
    /// Its run is another node's, or another attempt.
    Misplaced(NodeName),
    /// Not enough is known yet; meanwhile its deadline holds, as far as that is known.
    Guarded(Option<Guarded>),
    /// The order would make another pod than the one that is there.
    Foreign { difference: String, guarded: Option<Guarded> },
    /// Taken up with its pod.
    Adopted(TakenUp),
    /// It has no pod, had none, and shall have one.
    Assigned(Assignment),
    /// It has no pod and ends.
    Podless { taken: TakenUp, failure: CreateFailure },
    /// It has no pod, and nobody who gives an order for it.
    Nothing,
}

/// A pod without a live run.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Leftover {
    pub(super) run: RunRef,
    pub(super) uid: PodUid,
    pub(super) task: Option<String>,
}

/// An attempt as it is journalled again.
#[derive(Debug)]
pub(super) struct TakenUp {
    pub(super) assignment: Assignment,
    pub(super) one_time_hash: String,
    /// When it was accepted, as far as anybody knows.
    pub(super) accepted: Moment,
    /// What followed, in order.
    pub(super) then: Vec<Record>,
    /// It had started, and its tokens are lost.
    pub(super) tokens_lost: bool,
}

impl Stranger {
    /// Whether anybody's order explains the pod; one that was refused for it does not.
    fn has_order(&self) -> bool {
        self.survivor.is_some() || self.order.as_ref().is_some_and(|order| !order.refused)
    }

    /// Its run, as far as anybody has named it.
    pub(super) fn run(&self) -> Option<RunRef> {
        let shown = || self.look.as_ref().and_then(|look| digest(look.pod.as_ref()?).run);
        self.assignment().map(|assignment| assignment.run.clone()).or_else(shown)
    }

    /// What is to be done, by the controller where it has spoken, else by the gateway's memory.
    pub(super) fn assignment(&self) -> Option<&Assignment> {
        let ordered = self.order.as_ref().map(|order| &order.assignment);
        ordered.or_else(|| self.survivor.as_ref().map(|survivor| &survivor.assignment))
    }

    /// Its run as the API server has it, if it is this one and without an outcome.
    pub(super) fn live_run(&self, run: &RunKey) -> Option<&RunOnServer> {
        let found = self.look.as_ref()?.run.as_ref()?;
        (found.uid == run.uid && !found.phase.is_terminal()).then_some(found)
    }

    /// What becomes of it by what is known now.
    pub(super) fn settle(&self, run: &RunKey, here: &Here<'_>) -> Settled {
        let Some(look) = &self.look else { return Settled::Unseen };
        let Some(server) = self.live_run(run) else {
            return Settled::Unwanted(look.pod.as_ref().and_then(leftover));
        };
        if server.node != *here.node || server.attempt != run.attempt {
            return Settled::Misplaced(server.node.clone());
        }
        let Some(pod) = &look.pod else { return self.without_pod(run, server, here) };
        match self.assignment() {
            Some(assignment) if !self.waits(here.gateway) => {
                self.with_pod(run, assignment, server, pod, here)
            }
            _ => Settled::Guarded(self.guarded(server, pod, here)),
        }
    }

    /// Whether its tokens survived is known only with the gateway's word; what ends needs none.
    fn waits(&self, gateway: GatewayMemory) -> bool {
        let told = match gateway {
            GatewayMemory::Unknown => false,
            GatewayMemory::Keeps => self.survivor.is_some(),
            GatewayMemory::Nothing => true,
        };
        self.end.is_none() && !told
    }

    fn with_pod(
        &self,
        run: &RunKey,
        assignment: &Assignment,
        server: &RunOnServer,
        pod: &Pod,
        here: &Here<'_>,
    ) -> Settled {
        // To be ended, it has to be the run's and nothing else.
        let of_run = owned(pod, &run.uid).filter(|_| self.end.is_some());
        let judged = of_run.map(|(uid, one_time_hash)| Adoption::Ours { uid, one_time_hash });
        match judged.unwrap_or_else(|| judge_for(pod, assignment)) {
            Adoption::Ours { uid, one_time_hash } => {
                let opened = self.opened(server, pod, here);
                Settled::Adopted(self.taken_up(assignment, uid, one_time_hash, opened, here))
            }
            Adoption::Foreign(difference) => {
                Settled::Foreign { difference, guarded: self.guarded(server, pod, here) }
            }
        }
    }

    fn taken_up(
        &self,
        assignment: &Assignment,
        uid: PodUid,
        one_time_hash: String,
        opened: Option<Moment>,
        here: &Here<'_>,
    ) -> TakenUp {
        let now = Moment::new(here.now, here.boot_id);
        // A late order to hold does not close what is open.
        let held = assignment.held && opened.is_none();
        let assignment = Assignment { held, ..assignment.clone() };
        let accepted = opened.clone().unwrap_or_else(|| now.clone());
        let survivor = self.survivor.as_ref();
        let redemption = survivor.and_then(|survivor| survivor.redemption.clone());
        let tokens_lost = opened.is_some() && redemption.is_none();
        let mut then = vec![Record::PodCreated { uid }];
        then.extend(redemption.map(Record::Redeemed));
        then.extend(opened.map(|at| Record::GateOpened { at }));
        if tokens_lost && self.end.is_none() {
            let grace = assignment.grace();
            let stop = Stop::new(Reason::Disrupted, TOKENS_LOST.to_owned(), now, grace);
            then.push(Record::Stopping(stop));
        }
        then.extend(survivor.map(|survivor| Record::Counters {
            usage: survivor.usage,
            refusals: survivor.refusals.clone(),
        }));
        TakenUp { assignment, one_time_hash, accepted, then, tokens_lost }
    }

    /// There is no pod: a run that had one must not get another.
    fn without_pod(&self, run: &RunKey, server: &RunOnServer, here: &Here<'_>) -> Settled {
        let wanted = self.order.is_some() || self.end.is_some();
        let Some(assignment) = self.assignment().filter(|_| wanted) else {
            return Settled::Nothing;
        };
        let began = server.phase != RunPhase::Pending || self.survivor.is_some();
        if !began && self.end.is_none() {
            return Settled::Assigned(assignment.clone());
        }
        let taken = TakenUp {
            assignment: assignment.clone(),
            one_time_hash: names::sha256_hex(run.to_string().as_bytes()),
            accepted: Moment::new(here.now, here.boot_id),
            then: Vec::new(),
            tokens_lost: false,
        };
        let failure = if began { CreateFailure::Vanished } else { CreateFailure::Aborted };
        Settled::Podless { taken, failure }
    }

    /// The deadline of a pod that nobody has given an order for yet.
    fn guarded(&self, server: &RunOnServer, pod: &Pod, here: &Here<'_>) -> Option<Guarded> {
        let opened = self.opened(server, pod, here)?;
        let timeout = server.timeout?;
        Some(Guarded {
            at: opened.boot.plus(timeout),
            order: machine::timeout_order(timeout.as_secs(), GRACE),
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            pod: pod.metadata.name.clone().unwrap_or_default(),
            uid: digest(pod).uid,
        })
    }

    /// When the step's clock began; none while it has not, as far as anybody knows.
    fn opened(&self, server: &RunOnServer, pod: &Pod, here: &Here<'_>) -> Option<Moment> {
        let survivor = self.survivor.as_ref();
        if let Some((survivor, left)) =
            survivor.and_then(|survivor| Some((survivor, survivor.open_remaining()?)))
        {
            let spent = survivor.assignment.timeout().saturating_sub(left);
            return Some(Moment::ago(here.now, spent, here.boot_id));
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
            _ if self.has_order() => return None,
            _ => container_started_at(pod)?,
        };
        Some(Moment::at_wall(wall, here.now, here.boot_id))
    }
}

fn leftover(pod: &Pod) -> Option<Leftover> {
    let digest = digest(pod);
    let labels = pod.metadata.labels.as_ref();
    let task = labels.and_then(|labels| labels.get(names::LABEL_TASK)).cloned();
    Some(Leftover { run: digest.run?, uid: digest.uid, task })
}
