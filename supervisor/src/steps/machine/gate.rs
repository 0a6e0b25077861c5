//! The start gate: what must agree before it opens.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use agent_operator::{
    attempt::GateRequest,
    domain::{Assignment, Reason, StartFault, assignment::EgressPolicy, report::RunState},
};

use super::{SEQUENCE_RUNNING, Step};
use crate::steps::{
    egress::{self, Closing},
    event::{Effect, Timer},
    hindrance::Hindrance,
    record::Record,
};

impl Step<'_> {
    pub(super) fn at_gate(&mut self, request: GateRequest) {
        let known = self.facts().gate.as_ref();
        let listening = known.and_then(|gate| gate.listening.clone());
        // The first count is from before the agent's first packet; a repeated request may come later.
        let dropped_before = known.and_then(|gate| gate.dropped_before).or(request.dropped_before);
        self.record(Record::AtGate(GateRequest { listening, dropped_before, ..request }));
        self.open_gate();
    }

    pub(super) fn listening(&mut self, targets: Vec<SocketAddr>) {
        let facts = self.facts();
        if let Some(gate) = facts.gate.clone().filter(|_| facts.opened.is_none()) {
            let listening = Some(targets);
            self.record(Record::AtGate(GateRequest { listening, ..gate }));
            self.open_gate();
        }
    }

    /// Its turn has come: what it works on is known, to the gateway too.
    pub(super) fn released(&mut self, assignment: Box<Assignment>) {
        if !self.machine.finished() {
            self.record(Record::Released { assignment, at: self.moment() });
            self.effects.push(Effect::RegisterGrant);
        }
    }

    /// Opens the gate once runner, address and policy agree. What takes its time goes on while the
    /// kubelet has not told the pod's address yet, with the address that redeemed; but nothing opens
    /// before the two are the same.
    pub(super) fn open_gate(&mut self) {
        let facts = self.facts();
        let (Some(gate), Some(redemption), Some(uid)) =
            (&facts.gate, &facts.redemption, facts.pod_uid.clone())
        else {
            return;
        };
        let over = facts.stop.is_some() || facts.result.is_some() || self.machine.finished();
        if facts.opened.is_some() || over {
            return;
        }
        let (pod_ip, seen) = (redemption.pod_ip, self.machine.sight.ip);
        if seen.is_some_and(|ip| ip != pod_ip) {
            let message = format!("token redeemed by {pod_ip} instead of the pod");
            return self.stop_unstarted(StartFault::NotStarted, &message);
        }
        let policy = &facts.assignment.sandbox;
        if policy.require_pids_limit && gate.sandbox.pids_limit.is_none() {
            let message = "the task requires a limit of processes (requirePidsLimit), and this node's kubelet sets none (podPidsLimit)";
            return self.stop_unstarted(StartFault::PidsUnlimited, message);
        }
        let iflink = gate.iflink;
        // One that was made ahead gets as far as this and waits for the word.
        let may_open = seen.is_some() && !facts.assignment.held;
        match egress::next(policy.egress, gate, &self.machine.sight.egress) {
            egress::Next::Open if may_open => self.open_gate_for(pod_ip),
            egress::Next::Close { required } => {
                self.machine.sight.egress.asked = true;
                self.effects.push(Effect::CloseEgress { uid, pod_ip, iflink, required });
            }
            egress::Next::TryTargets => {
                self.machine.sight.egress.trying = true;
                self.effects.push(Effect::TryTargets);
            }
            egress::Next::Probe { patience } => {
                self.machine.sight.egress.probing = Some(patience);
                self.effects.push(Effect::Probe { patience });
            }
            egress::Next::Refuse(words) => self.stop_unstarted(StartFault::EgressOpen, &words),
            egress::Next::Wait | egress::Next::Open => {}
        }
    }

    pub(super) fn egress_answered(&mut self, closing: Closing) {
        let progress = &mut self.machine.sight.egress;
        progress.answer.get_or_insert(closing);
        progress.delayed = None;
        self.open_gate();
    }

    pub(super) fn egress_delayed(&mut self, hindrance: Hindrance) {
        if self.machine.sight.egress.answer.is_none() && self.facts().opened.is_none() {
            self.machine.sight.egress.delayed = Some(hindrance.clone());
            self.machine.sight.waiting = Some(hindrance);
            self.tell_waiting();
        }
    }

    /// Has the rules of the pod of a running step made again: others may have taken them away, and the gateway's pod
    /// has another address after an upgrade. Harmless where neither is so.
    pub(super) fn renew_egress(&mut self) {
        let (facts, sight) = (self.facts(), &self.machine.sight);
        // The address of a pod that has ended may be another one's.
        if facts.exit.is_some() || sight.pod_gone {
            return;
        }
        let redemption = self.machine.redemption(self.context.boot_id);
        if let (Some(device), Some(redemption), Some(uid)) =
            (facts.closed_device, redemption, facts.pod_uid.clone())
        {
            let pod_ip = redemption.pod_ip;
            self.effects.push(Effect::RenewEgress { uid, pod_ip, device });
            self.arm_renewal();
        }
    }

    fn arm_renewal(&mut self) {
        if self.facts().closed_device.is_some() {
            let at = self.now().boot.plus(egress::RENEWAL);
            self.arm(Timer::Egress, at);
        }
    }

    /// Rules that were gone are made again by now, and what the probe has shown holds no more. What the step did
    /// meanwhile nobody knows: where a closed network is required, it does not count.
    pub(super) fn egress_renewed(&mut self, missing: bool) {
        if !missing || self.machine.finished() {
            return;
        }
        if let Some(gate) = self.facts().gate.clone() {
            self.record(Record::AtGate(GateRequest { probe: None, ..gate }));
        }
        self.effects.push(Effect::EgressReopened);
        if self.facts().assignment.sandbox.egress == EgressPolicy::Required {
            self.stop(Reason::Disrupted, egress::REOPENED.to_owned(), Duration::ZERO);
        }
    }

    fn open_gate_for(&mut self, ip: IpAddr) {
        let device = self.machine.sight.egress.device();
        self.record(Record::GateOpened { at: self.moment(), device });
        if self.facts().released.is_some() {
            // Its rules were made, and its probe, long ago.
            self.renew_egress();
        } else {
            self.arm_renewal();
        }
        let remaining = self.facts().assignment.timeout();
        self.effects.push(Effect::OpenGate { pod_ip: ip, remaining });
        if let Some(at) = self.machine.deadline() {
            self.arm(Timer::Deadline, at);
        }
        if let Some(started) = self.machine.started() {
            let state = Box::new(RunState::Running(started));
            self.effects.push(Effect::Report { sequence: SEQUENCE_RUNNING, state });
        }
    }
}
