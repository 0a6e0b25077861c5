//! The start gate: what must agree before it opens.

use std::net::IpAddr;

use agent_operator::{
    attempt::GateRequest,
    domain::{StartFault, report::RunState},
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
        self.record(Record::AtGate(request));
        self.open_gate();
    }

    /// Opens the gate once runner, address and policy agree.
    pub(super) fn open_gate(&mut self) {
        let facts = self.facts();
        let (Some(gate), Some(redemption), Some(ip)) =
            (&facts.gate, &facts.redemption, self.machine.sight.ip)
        else {
            return;
        };
        let closed = facts.stop.is_some() || facts.result.is_some() || self.machine.finished();
        if facts.opened.is_some() || facts.pod_uid.is_none() || closed {
            return;
        }
        if redemption.pod_ip != ip {
            let message = format!("token redeemed by {} instead of the pod", redemption.pod_ip);
            return self.stop_unstarted(StartFault::NotStarted, &message);
        }
        let policy = &facts.assignment.sandbox;
        if policy.require_pids_limit && gate.sandbox.pids_limit.is_none() {
            let message = "the task requires a pids limit and this node sets none";
            return self.stop_unstarted(StartFault::NodeRefused, message);
        }
        let next = egress::next(policy.egress, gate, &self.machine.sight.egress);
        let (uid, iflink) = (facts.pod_uid.clone(), gate.iflink);
        match (next, uid) {
            (egress::Next::Open, _) => self.open_gate_for(ip),
            (egress::Next::Close { required }, Some(uid)) => {
                self.machine.sight.egress.asked = true;
                self.effects.push(Effect::CloseEgress { uid, pod_ip: ip, iflink, required });
            }
            (egress::Next::Probe { patience }, _) => {
                self.machine.sight.egress.probing = Some(patience);
                self.effects.push(Effect::Probe { patience });
            }
            (egress::Next::Refuse(words), _) => {
                self.stop_unstarted(StartFault::EgressOpen, &words);
            }
            (egress::Next::Wait | egress::Next::Close { .. }, _) => {}
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
