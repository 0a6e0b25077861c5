//! What is seen of an attempt's pod, from its creation to its end.

use std::time::Duration;

use agent_operator::domain::{Reason, StartFault, ids::PodUid};

use super::{SEQUENCE_MISMATCH, Step, UNSCHEDULABLE_GRACE};
use crate::steps::{
    event::{CreateFailure, Effect, PodDigest, Timer},
    hindrance::Hindrance,
    record::Record,
    verdict,
};

impl Step<'_> {
    pub(super) fn pod_created(&mut self, uid: PodUid, one_time_hash: String) {
        self.machine.sight.creating = false;
        if self.machine.finished() || self.facts().pod_uid.is_some() {
            return;
        }
        self.record(Record::PodCreated { uid: uid.clone() });
        if self.facts().one_time_hash != one_time_hash {
            self.record(Record::OneTime { hash: one_time_hash });
            self.effects.push(Effect::RegisterGrant);
        }
        self.effects.push(Effect::OpenStreams { uid });
        if self.facts().stop.is_some() {
            self.delete_pod();
        }
        if let Some(digest) = self.machine.sight.early.take() {
            self.pod_observed(*digest);
        }
    }

    pub(super) fn pod_create_failed(&mut self, failure: CreateFailure) {
        self.machine.sight.creating = false;
        if self.machine.finished() || self.facts().pod_uid.is_some() {
            return;
        }
        let unstarted = |fault, words: &str| (Reason::Unstarted, words.to_owned(), Some(fault));
        let (reason, message, fault) = match failure {
            CreateFailure::Invalid(words) => {
                (Reason::InvalidTask, format!("the API server refused the pod: {words}"), None)
            }
            CreateFailure::Refused(Hindrance { fault, words, .. }) => {
                unstarted(fault, &format!("the pod was not admitted: {words}"))
            }
            CreateFailure::Foreign(words) => unstarted(
                StartFault::NotStarted,
                &format!("another object holds the pod's name: {words}"),
            ),
            CreateFailure::Aborted => {
                unstarted(StartFault::NotStarted, "called off before its pod")
            }
            CreateFailure::Vanished => {
                let message = "its pod is gone, and the node lost its record of it".to_owned();
                (Reason::ExitCodeUnknown, message, None)
            }
        };
        self.record_stop(reason, message, fault, Duration::ZERO);
        self.finish();
    }

    pub(super) fn pod_create_delayed(&mut self, hindrance: Hindrance) {
        if self.facts().pod_uid.is_none() && self.facts().stop.is_none() {
            self.machine.sight.waiting = Some(hindrance);
            self.tell_waiting();
        }
    }

    /// Makes visible what keeps the pod from running: one report for each kind, not for each word.
    pub(super) fn tell_waiting(&mut self) {
        let ending = self.facts().stop.is_some() || self.machine.finished();
        let fault = self.machine.sight.waiting.as_ref().map(|waiting| waiting.fault);
        if ending || fault.is_none() || fault == self.machine.sight.waiting_told {
            return;
        }
        self.machine.sight.waiting_told = fault;
        self.machine.sight.waiting_acked = false;
        if let Some((sequence, state)) = self.machine.waiting() {
            self.effects.push(Effect::Report { sequence, state: Box::new(state) });
        }
    }

    pub(super) fn pod_observed(&mut self, digest: PodDigest) {
        if self.facts().pod_uid.is_none() && !self.machine.finished() {
            // Kept until the creation's answer says whether this is the one.
            self.machine.sight.early = Some(Box::new(digest));
            return;
        }
        if self.facts().pod_uid.as_ref() != Some(&digest.uid) {
            return;
        }
        let sight = &mut self.machine.sight;
        sight.ip = digest.ip.or(sight.ip);
        let container_found = sight.container_id.is_none() && digest.container_id.is_some();
        sight.container_id = digest.container_id.or_else(|| sight.container_id.take());
        let unscheduled = digest.unschedulable.clone().map(|words| Hindrance {
            fault: StartFault::NoCapacity,
            words,
            lasting: false,
        });
        sight.waiting = digest.waiting.or(unscheduled).or_else(|| sight.egress.delayed.clone());
        sight.scheduled |= digest.scheduled;
        if digest.disruption.is_some() {
            sight.disruption.clone_from(&digest.disruption);
        }
        let ordered = sight.delete_ordered || self.machine.facts.forgotten.is_some();
        sight.deleted_outside |= digest.deleting && !ordered;
        let deleted_outside = sight.deleted_outside;
        let never_ran = digest.deleting && !sight.scheduled;

        if let Some(mut exit) = digest.exit.filter(|_| self.facts().exit.is_none()) {
            exit.deleted_outside |= deleted_outside;
            self.record(Record::Exit(exit));
            self.compare_records();
            self.tell_log_end();
        }
        self.machine.sight.pod_heard = true;
        if self.machine.finished() {
            return;
        }
        self.watch_scheduling(digest.unschedulable.is_some());
        if let Some(message) = digest.image_volume_broken {
            self.switch_delivery(message);
        }
        self.give_up_waiting();
        if never_ran {
            // Deleted before any node had it: no kubelet will ever write a record.
            self.machine.sight.pod_gone = true;
            self.machine.sight.cgroup_empty = true;
        }
        let ending = self.facts().result.is_some() || self.facts().stop.is_some();
        if container_found && ending {
            self.watch_cgroup(digest.uid, false);
        }
        self.open_gate();
        self.heard();
        self.conclude();
    }

    /// The kubelet's word came after the outcome: the log's reader may wait for it.
    fn tell_log_end(&mut self) {
        if self.machine.finished() {
            self.effects.push(Effect::CloseStreams);
        }
    }

    /// Both records are on disk: a contradiction is shown, and changes nothing.
    fn compare_records(&mut self) {
        if let Some((reported, recorded)) = verdict::mismatch(self.facts()) {
            self.effects.push(Effect::ExitMismatch { reported, recorded });
            if let Some(state) = self.machine.mismatch() {
                let state = Box::new(state);
                self.effects.push(Effect::Report { sequence: SEQUENCE_MISMATCH, state });
            }
        }
    }

    /// Ends an attempt that waiting cannot help; one that it may help is made visible.
    fn give_up_waiting(&mut self) {
        let waiting = self.machine.sight.waiting.clone();
        match waiting.filter(|_| self.facts().opened.is_none()) {
            Some(Hindrance { fault, words, lasting: true }) => {
                self.stop_unstarted(fault, &words);
            }
            // The scheduler's first look often comes too early; it has its own timer.
            Some(waiting) if waiting.fault != StartFault::NoCapacity => self.tell_waiting(),
            Some(_) | None => {}
        }
    }

    fn watch_scheduling(&mut self, unschedulable: bool) {
        let before = std::mem::replace(&mut self.machine.sight.unschedulable, unschedulable);
        if unschedulable && !before {
            let at = self.now().boot.plus(UNSCHEDULABLE_GRACE);
            self.arm(Timer::Unschedulable, at);
        }
    }

    fn switch_delivery(&mut self, message: String) {
        if self.facts().redemption.is_some() || self.facts().stop.is_some() {
            return;
        }
        let text = format!(
            "image volumes do not work on this node ({message}); \
             with runner.delivery: auto the next try uses an init container"
        );
        self.effects.push(Effect::SwitchDelivery { message });
        self.stop_unstarted(StartFault::NotStarted, &text);
    }

    pub(super) fn pod_gone(&mut self) {
        let Some(uid) = self.facts().pod_uid.clone() else { return };
        if self.machine.sight.pod_gone {
            return;
        }
        let sight = &mut self.machine.sight;
        (sight.pod_gone, sight.pod_heard) = (true, true);
        // It was there and went without our word, so somebody took our finalizer off and deleted it.
        let ordered = sight.delete_ordered || self.machine.facts.forgotten.is_some();
        sight.deleted_outside |= sight.scheduled && !ordered;
        if self.machine.finished() {
            return self.tell_log_end();
        }
        // The object is gone, but processes may outlive it for a moment: look before judging.
        self.effects.push(Effect::Revoke);
        self.watch_cgroup(uid, true);
        self.heard();
    }
}
