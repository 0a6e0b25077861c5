//! What the gateway says, and what it is told.

use std::{net::IpAddr, time::Duration};

use agent_operator::{
    attempt::ProbeOrder,
    domain::{RunKey, ids::PodUid, report::Refusal},
    telemetry::audit::{self, Act},
};
use tokio::sync::mpsc;

use super::{Outgoing, Runner, RunnerError};
use crate::{
    clock,
    link::contract::{DurableEvent, FromGateway, Grant, ToGateway},
    steps::{egress, event::Event, machine::Machine, moment::Now},
};

impl Runner {
    /// Queues a message for the gateway; whether the link took it. While the link is down nothing is
    /// kept: the next link starts with all live attempts as they then stand.
    pub(super) fn tell_gateway(&mut self, message: ToGateway) -> bool {
        let sent = self.link.as_ref().is_some_and(|link| link.try_send(message).is_ok());
        if !sent {
            self.link = None;
        }
        sent
    }

    /// Brings a (re)connected gateway up to date.
    pub(super) fn link_up(&mut self, link: mpsc::Sender<ToGateway>) -> Result<(), RunnerError> {
        self.link = Some(link);
        self.unheard.clear();
        // A new link begins with everything that was not acknowledged.
        self.unkept.clear();
        self.metrics.link_up.set(1);
        let now = clock::now();
        let mut messages = Vec::new();
        for (run, machine) in self.machines.iter().filter(|(_, machine)| !machine.finished()) {
            messages.push(ToGateway::Register(Box::new(self.grant(machine, now))));
            if let Some(order) = machine.stop_order(now) {
                messages.push(ToGateway::Stop { run: run.clone(), order });
            }
        }
        for message in messages {
            self.tell_gateway(message);
        }
        self.ask_for_survivors();
        self.tell_gateway(ToGateway::Synced);
        self.ask_for_credentials();
        self.settle_strangers()
    }

    /// The gateway that the link comes up to next has these attempts in memory; of others it has nothing
    /// to tell.
    pub(super) fn gateway_knows(&mut self, runs: Vec<RunKey>) -> Result<(), RunnerError> {
        self.gateway_knows = runs.into_iter().collect();
        let unknown = |(run, machine): (&RunKey, &Machine)| {
            (machine.sight.hearing && !self.gateway_knows.contains(run)).then(|| run.clone())
        };
        let unknown: Vec<_> = self.machines.iter().filter_map(unknown).collect();
        for run in unknown {
            self.step(&run, Event::NothingPending)?;
        }
        Ok(())
    }

    pub(super) fn grant(&self, machine: &Machine, now: Now) -> Grant {
        let facts = &machine.facts;
        let remaining = machine.deadline().map(|at| at.since(now.boot).as_millis());
        let streams = self.workers.streams();
        let next_event = streams
            .attempt(&facts.assignment.run, facts.assignment.attempt)
            .map_or(0, |streams| streams.next_event());
        Grant {
            assignment: facts.assignment.clone(),
            one_time_hash: facts.one_time_hash.clone(),
            redemption: machine.redemption(&self.boot_id).cloned(),
            open_remaining_millis: remaining.map(|left| u64::try_from(left).unwrap_or(u64::MAX)),
            usage: facts.usage,
            refusals: facts.refusals.clone(),
            next_event,
            canary: self.settings.forbidden.first().copied(),
            probe: machine.sight.egress.probing.map(|patience| self.probe(patience)),
        }
    }

    /// What the runner of an attempt tries before its gate opens.
    fn probe(&self, patience: Duration) -> ProbeOrder {
        ProbeOrder {
            targets: self.settings.forbidden.clone(),
            patience_millis: u64::try_from(patience.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Tries from here what the runner will, but for the canary: that is this process, which would be reached through any
    /// wall.
    pub(super) fn try_targets(&mut self, run: &RunKey) {
        let others = self.settings.forbidden.iter().skip(1).copied().collect();
        self.workers.try_targets(run, others);
    }

    pub(super) fn order_probe(&mut self, run: &RunKey, patience: Duration) {
        let order = self.probe(patience);
        self.tell_gateway(ToGateway::Probe { run: run.clone(), order });
    }

    pub(super) fn open_gate(&mut self, run: &RunKey, pod_ip: IpAddr, remaining: Duration) {
        let remaining_millis = u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX);
        let run = run.clone();
        self.tell_gateway(ToGateway::OpenGate { run, pod_ip, remaining_millis });
    }

    pub(super) fn gateway(&mut self, message: FromGateway) -> Result<(), RunnerError> {
        match message {
            // The link client has checked it.
            FromGateway::Hello { .. } => Ok(()),
            // It is told again once the attempt is taken up; what is acknowledged is not.
            FromGateway::Durable { run, .. } if self.may_be_adopted(&run) => {
                self.unheard.insert(run);
                Ok(())
            }
            FromGateway::Durable { id, run, event } => match self.pod_to_count(&run, &event) {
                Some(uid) => {
                    self.workers.count_dropped(&uid, FromGateway::Durable { id, run, event });
                    Ok(())
                }
                None => self.acknowledge(id, &run, event, None),
            },
            FromGateway::Survivor(survivor) => {
                self.survivor(survivor);
                Ok(())
            }
            FromGateway::Counters { run, usage, refusals } => {
                self.step(&run, Event::Counters { usage, refusals })
            }
            FromGateway::Preflighted(report) => {
                self.say(Outgoing::Preflight(report));
                Ok(())
            }
            FromGateway::NeedCredentials { run } => {
                self.needing.insert(run);
                self.ask_for_credentials();
                Ok(())
            }
        }
    }

    /// The pod whose dropped packets are counted before this event is kept: as the gate opens, and at the end, when
    /// the agent is gone and the pod's rules are not.
    fn pod_to_count(&self, run: &RunKey, event: &DurableEvent) -> Option<PodUid> {
        let at_gate = matches!(event, DurableEvent::AtGate(request) if request.probe.is_some());
        let counts = at_gate || matches!(event, DurableEvent::Result { .. });
        let machine = self.machines.get(run).filter(|_| counts && self.workers.have_enforcer())?;
        machine.facts.pod_uid.clone()
    }

    pub(super) fn counted(
        &mut self,
        message: FromGateway,
        dropped: Option<u64>,
    ) -> Result<(), RunnerError> {
        match message {
            FromGateway::Durable { id, run, event } => self.acknowledge(id, &run, event, dropped),
            other => self.gateway(other),
        }
    }

    /// Keeps an event and says so.
    fn acknowledge(
        &mut self,
        id: u64,
        run: &RunKey,
        event: DurableEvent,
        dropped: Option<u64>,
    ) -> Result<(), RunnerError> {
        self.durable(run, event, dropped)?;
        if self.ledger.is_behind() {
            self.unkept.push(id);
        } else {
            self.tell_gateway(ToGateway::Ack { id });
        }
        Ok(())
    }

    /// Keeps an event. One of an attempt that is unknown or over is dropped: repeating it would not
    /// help, so it is acknowledged all the same.
    fn durable(
        &mut self,
        run: &RunKey,
        event: DurableEvent,
        dropped: Option<u64>,
    ) -> Result<(), RunnerError> {
        let Some(machine) = self.machines.get(run) else {
            self.metrics.drop_one("unknown_attempt");
            return Ok(());
        };
        let event = match event {
            DurableEvent::Redeemed(redemption) => Event::Redeemed(redemption),
            DurableEvent::AtGate(mut request) => {
                let of_pod = machine.facts.pod_uid.as_ref();
                let of_pod = of_pod.and_then(|pod| self.workers.containers().pids_limit(pod));
                let limits = [of_pod, request.sandbox.pids_limit].into_iter().flatten();
                request.sandbox.pids_limit = limits.min();
                request.dropped_before = dropped.filter(|_| request.probe.is_some());
                Event::AtGate(request)
            }
            DurableEvent::Events { first, records } => {
                let at = &machine.facts.assignment;
                let streams = self.workers.streams().attempt(&at.run, at.attempt);
                if let Err(error) =
                    streams.and_then(|streams| streams.append_events(first, &records))
                {
                    // A gap of their size stands in their place; they are acknowledged all the same.
                    self.metrics.drop_one("events_unstored");
                    tracing::warn!(run = at.run.name, %error, "events could not be stored");
                }
                return Ok(());
            }
            DurableEvent::Published { work_branch, head_commit } => {
                Event::Published { work_branch, head_commit }
            }
            DurableEvent::PullRequestOpened(request) => Event::PullRequestOpened(request),
            DurableEvent::Result { result, usage, mut refusals } => {
                let news = machine.facts.result.is_none() && !machine.finished();
                if let Some(packets) = egress::dropped(machine.facts.gate.as_ref(), dropped)
                    && news
                {
                    let Refusal { kind, target, .. } = &packets;
                    audit::record(&machine.facts.assignment, &Act::Refused { kind, target });
                    refusals.push(packets);
                }
                Event::Result { result, usage, refusals }
            }
        };
        self.step(run, event)
    }
}
