//! How an attempt comes to its end: result, deadline, orders to stop, and what follows an outcome.

use std::time::Duration;

use agent_operator::{
    attempt::StepResult,
    domain::{
        Reason, StartFault, Usage,
        ids::PodUid,
        report::{Refusal, RunState},
    },
};

use super::{
    HEARING, SEQUENCE_FINISHED, SEQUENCE_MISMATCH, SEQUENCE_RUNNING, SEQUENCE_UNKNOWN, STUCK_AFTER,
    Step, grace_end, timeout_message,
};
use crate::steps::{
    event::{Effect, Timer},
    record::{Record, Stop},
    verdict,
};

/// Resolution of the times in the kubelet's records, which are cut: what the deadline ended may seem to
/// have ended within the second before.
const RECORD_RESOLUTION: Duration = Duration::from_secs(1);
/// Why a step ended that ran when its node restarted.
const NODE_RESTARTED: &str = "its node restarted while it ran";

impl Step<'_> {
    pub(super) fn result(&mut self, result: Box<StepResult>, usage: Usage, refusals: Vec<Refusal>) {
        if self.machine.finished() || self.facts().result.is_some() {
            return;
        }
        self.record(Record::Result { result, usage, refusals });
        self.machine.sight.hearing = false;
        self.await_exit();
        self.conclude();
    }

    /// The runner has said its last word; its container must end within the grace.
    pub(super) fn await_exit(&mut self) {
        let at = self.now().boot.plus(self.facts().assignment.grace());
        self.arm(Timer::Grace, at);
        if let Some(uid) = self.facts().pod_uid.clone() {
            self.watch_cgroup(uid, false);
        }
    }

    pub(super) fn watch_cgroup(&mut self, uid: PodUid, missing_is_empty: bool) {
        let container_id = self.machine.sight.container_id.clone();
        self.effects.push(Effect::WatchCgroup { uid, container_id, missing_is_empty });
    }

    pub(super) fn timer(&mut self, timer: Timer) {
        if timer == Timer::Retention {
            return self.retention_over();
        }
        if self.machine.finished() {
            return;
        }
        match timer {
            Timer::Start if self.facts().opened.is_none() => {
                let (fault, words) = self.machine.sight.waiting.clone().map_or_else(
                    || (StartFault::NotStarted, "its start gate did not open".to_owned()),
                    |waiting| (waiting.fault, waiting.words),
                );
                self.stop_unstarted(fault, &format!("not running at the start deadline: {words}"));
            }
            Timer::Unschedulable if self.machine.sight.unschedulable => {
                let words = self.machine.sight.waiting.clone().map(|waiting| waiting.words);
                let message = format!("could not be scheduled: {}", words.unwrap_or_default());
                self.stop_unstarted(StartFault::NoCapacity, &message);
            }
            // What was found after its deadline is judged once its gateway was heard.
            Timer::Deadline if self.machine.sight.hearing => {}
            Timer::Deadline if self.facts().opened.is_some() => self.time_out(),
            Timer::Hearing => self.judge_late(),
            Timer::Grace => self.delete_pod(),
            Timer::Egress => self.renew_egress(),
            Timer::Stuck => {
                self.machine.sight.stuck = true;
                let state = Box::new(self.machine.stuck_state());
                self.effects.push(Effect::Report { sequence: SEQUENCE_UNKNOWN, state });
                self.effects.push(Effect::ObservePod);
            }
            Timer::Start | Timer::Unschedulable | Timer::Deadline | Timer::Retention => {}
        }
    }

    /// A result that came before the deadline decides; the grace then sees to the container. What ran
    /// before the node restarted did not use up its time: the node's restart ended it.
    pub(super) fn time_out(&mut self) {
        let facts = self.facts();
        if facts.result.is_some() {
            return;
        }
        let opened = facts.opened.as_ref();
        if opened.is_some_and(|opened| !opened.is_of(self.context.boot_id)) {
            self.stop(Reason::Disrupted, NODE_RESTARTED.to_owned(), Duration::ZERO);
        } else {
            let message = timeout_message(self.facts().assignment.timeout_seconds);
            self.stop(Reason::TimedOut, message, self.facts().assignment.grace());
        }
    }

    /// A step that is found after its deadline. It may have ended before, while this supervisor was away:
    /// its gateway keeps the runner's result, which then decides. Of another boot no gateway knows
    /// anything.
    pub(super) fn overdue(&mut self) {
        let opened = self.facts().opened.as_ref();
        if opened.is_some_and(|opened| opened.is_of(self.context.boot_id)) {
            self.machine.sight.hearing = true;
            self.arm(Timer::Hearing, self.now().boot.plus(HEARING));
        } else {
            self.time_out();
        }
    }

    /// Judges a step that was found after its deadline, once its gateway and its pod have told what they
    /// know.
    pub(super) fn heard(&mut self) {
        if self.machine.sight.gateway_heard && self.machine.sight.pod_heard {
            self.judge_late();
        }
    }

    /// Everybody was heard, or had the time to be.
    fn judge_late(&mut self) {
        if !std::mem::take(&mut self.machine.sight.hearing) {
            return;
        }
        if self.ended_in_time() {
            self.conclude();
        } else {
            self.time_out();
        }
    }

    /// Whether the container had ended before the deadline, by the kubelet's record: that is then how the
    /// attempt ended. Only within this boot, for there is no hearing otherwise.
    fn ended_in_time(&self) -> bool {
        let facts = self.facts();
        let finished_at = facts.exit.as_ref().and_then(|exit| exit.finished_at);
        let Some((finished_at, opened)) = finished_at.zip(facts.opened.as_ref()) else {
            return false;
        };
        let deadline = opened.wall.checked_add(facts.assignment.timeout());
        let latest = finished_at.checked_add(RECORD_RESOLUTION);
        latest.ok().zip(deadline.ok()).is_some_and(|(latest, deadline)| latest <= deadline)
    }

    pub(super) fn record_stop(
        &mut self,
        reason: Reason,
        message: String,
        fault: Option<StartFault>,
        grace: Duration,
    ) {
        let stop = Stop::new(reason, message, self.moment(), grace);
        self.record(Record::Stopping(Stop { fault, ..stop }));
    }

    /// Ends an attempt that cannot start.
    pub(super) fn stop_unstarted(&mut self, fault: StartFault, message: &str) {
        self.stop_for(Reason::Unstarted, message.to_owned(), Some(fault), Duration::ZERO);
    }

    /// Orders the end of the attempt. The first order holds.
    pub(super) fn stop(&mut self, reason: Reason, message: String, grace: Duration) {
        self.stop_for(reason, message, None, grace);
    }

    fn stop_for(
        &mut self,
        reason: Reason,
        message: String,
        fault: Option<StartFault>,
        grace: Duration,
    ) {
        if self.machine.finished() || self.facts().stop.is_some() {
            return;
        }
        // Nothing runs behind a closed gate that would need time to save its work.
        let grace = if self.facts().opened.is_some() { grace } else { Duration::ZERO };
        self.record_stop(reason, message, fault, grace);
        self.machine.sight.hearing = false;
        self.enforce_stop();
        self.conclude();
    }

    pub(super) fn enforce_stop(&mut self) {
        if let Some(order) = self.machine.stop_order(self.now()) {
            self.effects.push(Effect::StopRunner(order));
        }
        if self.facts().pod_uid.is_none() {
            self.effects.push(Effect::AbortCreate);
            return;
        }
        let Some(end) = self.facts().stop.as_ref().map(grace_end) else { return };
        if end <= self.now().boot {
            self.delete_pod();
        } else {
            self.arm(Timer::Grace, end);
        }
        if let Some(uid) = self.facts().pod_uid.clone().filter(|_| self.facts().opened.is_some()) {
            self.watch_cgroup(uid, false);
        }
    }

    pub(super) fn delete_pod(&mut self) {
        let Some(uid) = self.facts().pod_uid.clone() else { return };
        if self.machine.finished() || self.machine.sight.delete_ordered {
            return;
        }
        self.machine.sight.delete_ordered = true;
        self.effects.push(Effect::DeletePod { uid });
        let at = self.now().boot.plus(STUCK_AFTER);
        self.arm(Timer::Stuck, at);
    }

    /// Writes the outcome once nothing of the attempt runs any more.
    pub(super) fn conclude(&mut self) {
        if self.machine.finished() || self.machine.sight.hearing {
            return;
        }
        let facts = self.facts();
        let sight = &self.machine.sight;
        let word = facts.result.is_some() || facts.stop.is_some() || sight.pod_gone;
        if facts.exit.is_some() || (sight.cgroup_empty && word && !self.awaits_reason()) {
            self.finish();
        }
    }

    /// The runner was stopped from outside and cannot know by whom: deletion and disruption are
    /// charged differently, so the API server's word is waited for. It comes with the deletion, or
    /// with the kubelet's record.
    fn awaits_reason(&self) -> bool {
        let sight = &self.machine.sight;
        let told = sight.deleted_outside || sight.disruption.is_some() || sight.pod_gone;
        let disrupted =
            self.facts().result.as_ref().is_some_and(|result| result.reason == Reason::Disrupted);
        disrupted && self.facts().stop.is_none() && !told
    }

    pub(super) fn finish(&mut self) {
        let sight = &self.machine.sight;
        let seen = verdict::Seen {
            deleted_outside: sight.deleted_outside,
            disruption: sight.disruption.as_deref(),
        };
        let context = self.context;
        let outcome = verdict::outcome(self.facts(), seen, context.log, context.now.wall);
        self.record(Record::Finished { outcome: Box::new(outcome) });
        self.effects.push(Effect::Revoke);
        self.effects.push(Effect::CloseStreams);
        self.settle();
    }

    /// What follows from an outcome: report it until acknowledged, then let the pod go.
    pub(super) fn settle(&mut self) {
        let Some(outcome) = self.facts().outcome.clone() else { return };
        if !self.facts().acked && self.facts().forgotten.is_none() {
            let state = Box::new(RunState::Finished(outcome));
            self.effects.push(Effect::Report { sequence: SEQUENCE_FINISHED, state });
            return;
        }
        let unstarted = self
            .facts()
            .outcome
            .as_ref()
            .is_some_and(|outcome| outcome.reason == Reason::Unstarted);
        if let Some(uid) = self.facts().pod_uid.clone().filter(|_| !self.machine.sight.released) {
            self.machine.sight.released = true;
            self.effects.push(Effect::RemoveFinalizer { uid: uid.clone() });
            if unstarted {
                // It is made again and again until somebody mends what hinders it: its dead pods
                // would pile up, and some kubelets count them against the node.
                self.effects.push(Effect::DeletePod { uid });
            }
        }
        if let Some(forgotten) = &self.facts().forgotten {
            let at = forgotten.boot.plus(self.context.pod_retention);
            self.arm(Timer::Retention, at);
        }
    }

    pub(super) fn acked(&mut self, sequence: u64) {
        match sequence {
            SEQUENCE_RUNNING => self.machine.sight.running_acked = true,
            SEQUENCE_MISMATCH => self.machine.sight.mismatch_acked = true,
            _ if self.machine.waiting().is_some_and(|(waiting, _)| waiting == sequence) => {
                self.machine.sight.waiting_acked = true;
            }
            SEQUENCE_FINISHED if self.machine.finished() && !self.facts().acked => {
                self.record(Record::Acked);
                self.settle();
            }
            _ => {}
        }
    }

    pub(super) fn forget(&mut self) {
        if self.facts().forgotten.is_none() {
            self.record(Record::Forgotten { at: self.moment() });
        }
        if self.machine.finished() {
            self.settle();
        } else {
            let message = "its run is gone".to_owned();
            self.stop(Reason::Deleted, message, Duration::ZERO);
        }
    }

    fn retention_over(&mut self) {
        if !self.machine.finished() || self.facts().forgotten.is_none() {
            return;
        }
        if let Some(uid) = self.facts().pod_uid.clone() {
            self.effects.push(Effect::DeletePod { uid });
        }
        self.effects.push(Effect::Drop);
    }
}
