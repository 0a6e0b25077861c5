//! The start gate: what must agree before it opens.

use std::net::{IpAddr, SocketAddr};

use agent_operator::{
    attempt::GateRequest,
    domain::{Assignment, StartFault, report::RunState},
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

    fn open_gate_for(&mut self, ip: IpAddr) {
        self.record(Record::GateOpened { at: self.moment() });
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
