//! Carries out what the machines want: facts to disk first, then everything else in order.

use std::{collections::BTreeSet, time::Duration};

use agent_operator::{
    domain::{
        RunKey, RunPhase, StartFault,
        report::{Outcome, Report, RunState},
    },
    telemetry::{Told, logs},
};

use super::{Outgoing, Runner, RunnerError};
use crate::{
    clock,
    ledger::{Delivery, Entry},
    link::contract::ToGateway,
    steps::{
        event::{Context, Effect, Event, PodDigest, Timer},
        machine::Machine,
        record::Record,
    },
};

/// A pod is usually scheduled within 30 ms; only one that is not is looked at by name.
const SCHEDULED_WITHIN: Duration = Duration::from_secs(2);

/// The report on an attempt's state.
pub(super) fn report(machine: &Machine, sequence: u64, state: RunState) -> Report {
    let assignment = &machine.facts.assignment;
    Report {
        run: assignment.run.clone(),
        attempt: assignment.attempt,
        epoch: assignment.epoch,
        sequence,
        state,
    }
}

impl Runner {
    /// Takes one event of an attempt through its machine and carries out what follows.
    pub(super) fn step(&mut self, run: &RunKey, event: Event) -> Result<(), RunnerError> {
        let Some(machine) = self.machines.get_mut(run) else {
            self.metrics.drop_one("unknown_attempt");
            return Ok(());
        };
        let streams = self.workers.streams().known(run);
        let log = streams.map_or_else(Default::default, |streams| streams.log_summary());
        let context = Context {
            now: clock::now(),
            boot_id: &self.boot_id,
            log,
            pod_retention: self.settings.pod_retention,
        };
        let within = logs::attempt(&machine.facts.assignment);
        let _within = within.enter();
        let effects = machine.step(event, &context);
        let entries: Vec<_> = effects.iter().filter_map(|effect| entry(run, effect)).collect();
        if !entries.is_empty() {
            // Counts alone may be lost in a crash; the gateway still has them.
            let sync = !effects
                .iter()
                .all(|effect| matches!(effect, Effect::Journal(Record::Counters { .. })));
            self.keep(&entries, sync)?;
        }
        for effect in effects {
            self.carry_out(run, effect)?;
        }
        Ok(())
    }

    fn carry_out(&mut self, run: &RunKey, effect: Effect) -> Result<(), RunnerError> {
        let Some(machine) = self.machines.get(run) else { return Ok(()) };
        let at = machine.facts.assignment.run.clone();
        match effect {
            Effect::Journal(record) => {
                if matches!(record, Record::Redeemed(_)) {
                    self.delivery_works()?;
                }
                self.journalled(run, &record);
            }
            Effect::RegisterGrant => {
                let grant = self.grant(machine, clock::now());
                self.tell_gateway(ToGateway::Register(Box::new(grant)));
            }
            Effect::CreatePod => self.create_pod(run),
            Effect::AbortCreate => self.workers.abort_create(run),
            Effect::ObservePod => self.workers.observe_pod(run.clone(), &at),
            Effect::OpenStreams { uid } => {
                self.tokens.remove(run);
                self.workers.open_streams(run, &at, &uid);
                self.workers.remind_scheduling(run.clone(), SCHEDULED_WITHIN);
            }
            Effect::CloseEgress { uid, pod_ip, iflink, required } => {
                self.workers.close_egress(run, &uid, pod_ip, iflink, required);
            }
            Effect::RenewEgress { uid, pod_ip, device } => {
                self.workers.renew_egress(run, &uid, pod_ip, device);
            }
            Effect::EgressReopened => self.egress_reopened(),
            Effect::TryTargets => self.try_targets(run),
            Effect::Probe { patience } => self.order_probe(run, patience),
            Effect::OpenGate { pod_ip, remaining } => self.open_gate(run, pod_ip, remaining),
            Effect::Report { sequence, state } => {
                let report = report(machine, sequence, *state);
                self.say(Outgoing::Report(Box::new(report)));
            }
            Effect::StopRunner(order) => {
                self.tell_gateway(ToGateway::Stop { run: run.clone(), order });
            }
            Effect::WatchCgroup { uid, container_id, missing_is_empty } => {
                self.workers.watch_cgroup(run, uid, container_id, missing_is_empty);
            }
            // Of an attempt that has ended nothing is to be learned any more.
            Effect::DeletePod { uid } if machine.finished() => {
                self.workers.drop_pod(run, &at, uid);
            }
            Effect::DeletePod { uid } => self.workers.delete_pod(run.clone(), &at, uid),
            Effect::RemoveFinalizer { uid } => self.workers.remove_finalizer(run, &at, uid),
            Effect::Revoke => {
                self.tell_gateway(ToGateway::Revoke { run: run.clone() });
            }
            Effect::CloseStreams => {
                let uid = machine.facts.pod_uid.clone();
                let end = machine.log_end().unwrap_or_default();
                self.workers.close_streams(run, &at, uid.as_ref(), end);
            }
            Effect::ArmTimer { timer, at } => {
                if timer == Timer::Deadline
                    && let Some(guarded) = machine.guarded()
                {
                    self.guards.hold(run.clone(), guarded)?;
                }
                self.timers.arm(run.clone(), timer, at)?;
            }
            Effect::SwitchDelivery { message } => self.switch_delivery(&message)?,
            Effect::ExitMismatch { reported, recorded } => self.exits_differ(reported, recorded),
            Effect::Drop => self.drop_attempt(run)?,
        }
        Ok(())
    }

    fn exits_differ(&self, reported: i32, recorded: i32) {
        tracing::error!(reported, recorded, "exit codes differ");
        self.metrics.exit_mismatches.inc();
    }

    fn egress_reopened(&self) {
        tracing::error!("the enforcer's rules of a running step's pod were gone");
        self.metrics.enforcer.rules_missing();
    }

    /// Lets go of an attempt that is over; its pod may take a while to go.
    fn drop_attempt(&mut self, run: &RunKey) -> Result<(), RunnerError> {
        let Some(machine) = self.machines.get(run) else { return Ok(()) };
        let facts = &machine.facts;
        if let Some(uid) = facts.pod_uid.clone().filter(|_| machine.sight.scheduled) {
            self.leaving.add(run.clone(), facts.assignment.run.namespace.clone(), uid);
        }
        self.keep(&[Entry::Dropped { run: run.clone() }], true)?;
        self.machines.remove(run);
        self.tokens.remove(run);
        self.timers.forget(run);
        self.workers.forget(run);
        Ok(())
    }

    fn journalled(&mut self, run: &RunKey, record: &Record) {
        match record {
            Record::GateOpened { at, .. } => {
                let Some(machine) = self.machines.get(run) else { return };
                let facts = &machine.facts;
                let after = at.boot.since(facts.turn().boot);
                self.metrics.started(facts.assignment.step, after);
            }
            Record::Acked => {
                let outcome = self.machines.get(run).and_then(|m| m.facts.outcome.as_ref());
                if let Some(outcome) = outcome {
                    let after = clock::now().wall.duration_since(outcome.completed_at);
                    self.metrics.reported(after.try_into().unwrap_or_default());
                }
            }
            Record::Finished { outcome } => {
                let (reason, details) = (outcome.reason, &outcome.message);
                tracing::info!(%reason, details, exit = ?outcome.exit_code, "finished");
                self.metrics.ended(reason, outcome.start_fault);
                self.tell_parts(run, outcome);
                self.tokens.remove(run);
                self.needing.remove(run);
                self.guards.release(run);
            }
            Record::Result { .. } => self.guards.spare_the_order(run),
            Record::Stopping(stop) => {
                tracing::info!(reason = %stop.reason, details = stop.message, "stopping");
            }
            _ => {}
        }
    }

    /// Tells what an attempt that has ended spent its time on, as parts of its run.
    fn tell_parts(&self, run: &RunKey, outcome: &Outcome) {
        let Some(machine) = self.machines.get(run) else { return };
        let facts = &machine.facts;
        let (task, at) = (&facts.assignment.task.uid, &run.uid);
        let (accepted, end) = (facts.turn().wall, outcome.completed_at);
        let opened = facts.opened.as_ref().map(|opened| opened.wall);
        let part = |name, times| {
            let pod = outcome.pod_name.clone();
            Told::part(task, at, name, times)
                .with("k8s.node.name", self.settings.node.to_string())
                .with_some("k8s.pod.name", pod)
        };
        // Until the gate opens: the pod is made, its image pulled, the gateway reached.
        let start = part("start", (accepted, opened.unwrap_or(end)));
        let fault = outcome.start_fault.map(StartFault::as_str);
        self.tracer.tell(start.failed(fault.filter(|_| opened.is_none())));
        if let Some(opened) = opened {
            let failed =
                (outcome.phase() != RunPhase::Succeeded).then_some(outcome.reason.as_str());
            self.tracer.tell(part("work", (opened, end)).failed(failed));
        }
    }

    fn create_pod(&mut self, run: &RunKey) {
        let delivery = self.delivery();
        let Some(machine) = self.machines.get(run) else { return };
        let token = self.tokens.get(run).cloned();
        let token = token.expect("a token is made before every creation and kept until the pod");
        let again = machine.sight.taken_over;
        self.workers.create_pod(&machine.facts.assignment, delivery, token, again);
    }

    /// A runner has reached its pod. The first one that does so ends the node's trial.
    fn delivery_works(&mut self) -> Result<(), RunnerError> {
        if self.settings.delivery.is_none() && self.found_delivery.is_none() {
            let delivery = self.delivery();
            tracing::info!(delivery = delivery.as_str(), "this is how runners get into pods here");
            self.keep(&[Entry::Delivery { delivery }], true)?;
            self.found_delivery = Some(delivery);
        }
        Ok(())
    }

    /// With the delivery set by argument nothing is to be found out; once it is not any more, the
    /// node tries again, for it may have been mended meanwhile.
    pub(super) fn forget_trial(&mut self) -> Result<(), RunnerError> {
        if self.settings.delivery.is_some() && self.found_delivery == Some(Delivery::InitContainer)
        {
            let delivery = Delivery::ImageVolume;
            self.keep(&[Entry::Delivery { delivery }], true)?;
            self.found_delivery = Some(delivery);
        }
        Ok(())
    }

    /// Image volumes do not work here. With the delivery set by argument there is no choice.
    pub(super) fn switch_delivery(&mut self, message: &str) -> Result<(), RunnerError> {
        if self.settings.delivery.is_none() && self.delivery() == Delivery::ImageVolume {
            tracing::warn!(message, "image volumes do not work here; using init containers");
            let delivery = Delivery::InitContainer;
            self.keep(&[Entry::Delivery { delivery }], true)?;
            self.found_delivery = Some(delivery);
        }
        Ok(())
    }

    pub(super) fn pod_seen(
        &mut self,
        run: &RunKey,
        digest: Box<PodDigest>,
    ) -> Result<(), RunnerError> {
        let Some(machine) = self.machines.get(run) else {
            if self.leaving.explains(run, &digest.uid) {
                return Ok(());
            }
            // One that is on its way out was dropped in order, unless the order is lost. One that we
            // still hold was not: a life before this one ordered its deletion and died before it let
            // go, and this one's ledger, begun anew since, shows nothing of that.
            if self.facts_missing || !digest.deleting || digest.held {
                self.stranger_seen(run, digest.run.as_ref());
            }
            return Ok(());
        };
        let stray = match &machine.facts.pod_uid {
            // A creation that was repeated took effect once more, after its first pod had gone.
            Some(uid) => *uid != digest.uid,
            // One that was called off took effect after all.
            None => machine.finished(),
        };
        if stray {
            let at = machine.facts.assignment.run.clone();
            self.workers.drop_pod(run, &at, digest.uid.clone());
            self.workers.remove_finalizer(run, &at, digest.uid);
            return Ok(());
        }
        self.step(run, Event::PodObserved(digest))
    }

    /// Looks at an attempt's pod live, where that could change anything.
    pub(super) fn observe(&mut self, run: &RunKey) {
        if let Some(machine) = self.machines.get(run)
            && !machine.finished()
            && machine.facts.pod_uid.is_some()
        {
            self.workers.observe_pod(run.clone(), &machine.facts.assignment.run);
        }
    }

    /// A list may be stale: what is missing from it is looked at live before it counts as gone.
    pub(super) fn pods_listed(&mut self, namespace: &str, seen: &BTreeSet<RunKey>) {
        self.leaving.listed(namespace, seen);
        let missing: Vec<_> = self
            .machines
            .iter()
            .filter(|(run, machine)| {
                machine.facts.assignment.run.namespace == namespace && !seen.contains(*run)
            })
            .map(|(run, _)| run.clone())
            .collect();
        for run in &missing {
            self.observe(run);
        }
    }

    pub(super) fn check_scheduled(&mut self, run: &RunKey) {
        let unscheduled = self
            .machines
            .get(run)
            .is_some_and(|machine| !machine.finished() && !machine.sight.scheduled);
        if unscheduled {
            self.observe(run);
            self.workers.remind_scheduling(run.clone(), SCHEDULED_WITHIN);
        }
    }
}

fn entry(run: &RunKey, effect: &Effect) -> Option<Entry> {
    match effect {
        Effect::Journal(record) => {
            Some(Entry::Attempt { run: run.clone(), fact: Box::new(record.clone()) })
        }
        _ => None,
    }
}
