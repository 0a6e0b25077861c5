//! The one owner of ledger and machines. Everything that happens on the node comes in as an
//! [`Input`] through one queue; facts are on disk before anything is done about them or acknowledged.
//! It runs on a thread and a runtime of its own, so that neither a slow disk nor a busy worker
//! elsewhere delays a deadline.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use agent_operator::{
    domain::{
        Epoch, RunKey, Secret,
        ids::{BootId, NodeName},
        text::error_chain,
    },
    telemetry::{Tracer, metrics::gauge},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    deadline::{DeadlineError, Deadlines},
    event::{End, Event},
    guard::Guards,
    machine::Machine,
    stranger::Stranger,
    workers::{Tools, Workers},
};
use crate::{
    clock::{self, ClockError},
    ledger::{Delivery, Entry, Ledger, LedgerError, Memory, Stored},
    link::contract::ToGateway,
    metrics::Metrics,
};

mod adoption;
mod called_off;
mod effects;
mod gateway;
mod leaving;
mod messages;
mod orders;
mod snapshot;

use leaving::Leaving;
pub use messages::{Input, Known, Outgoing, Snapshot};
pub(crate) use orders::{ACCEPTED, refusal};

/// Longest queue of inputs; senders wait beyond it.
pub const INPUTS_MAX: usize = 4096;
/// Unacknowledged reports are sent again at this pace while the session is up.
const RESEND: Duration = Duration::from_secs(10);
/// Random bytes of a one-time token.
const TOKEN_BYTES: usize = 32;

/// Fixed settings of the runner.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node.
    pub node: NodeName,
    /// Most live attempts.
    pub slots: u32,
    /// Delivery by argument; none finds it out.
    pub delivery: Option<Delivery>,
    /// How long a forgotten attempt's pod stays.
    pub pod_retention: Duration,
    /// Whether the ledger may have lost facts, see [`crate::ledger::Oddities`].
    pub facts_missing: bool,
    /// What no sandbox may reach; the first is the canary.
    pub forbidden: Vec<SocketAddr>,
}

/// The runner cannot go on; the process ends and the next one replays the ledger.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// Facts cannot be kept.
    #[error("the ledger failed")]
    Ledger(#[from] LedgerError),
    /// Deadlines cannot be kept.
    #[error("the deadline timer failed")]
    Deadline(#[from] DeadlineError),
    /// The boot id cannot be read.
    #[error("the node's boot could not be identified")]
    Clock(#[from] ClockError),
    /// The kernel gives no randomness.
    #[error("no randomness for tokens: {0}")]
    Random(getrandom::Error),
    /// The runner's own runtime could not be made.
    #[error("could not start the runner's runtime")]
    Runtime(#[source] std::io::Error),
}

/// Ledger, machines, timers, and the ends of all queues.
pub struct Runner {
    settings: Settings,
    boot_id: BootId,
    ledger: Ledger,
    machines: BTreeMap<RunKey, Machine>,
    highest_epoch: Epoch,
    found_delivery: Option<Delivery>,
    timers: Deadlines,
    guards: Guards,
    workers: Workers,
    /// One-time tokens until their pod is made. In memory only.
    tokens: HashMap<RunKey, Secret>,
    session: Option<mpsc::Sender<Outgoing>>,
    link: Option<mpsc::Sender<ToGateway>>,
    /// Attempts whose credentials the gateway lacks, to be asked for when a session is up.
    needing: BTreeSet<RunKey>,
    /// Messages of the gateway whose facts wait for the disk; acknowledged once it has them.
    unkept: Vec<u64>,
    /// Whether the ledger may have lost facts before this process began.
    facts_missing: bool,
    /// Attempts without an entry in the ledger.
    strangers: BTreeMap<RunKey, Stranger>,
    /// Pods on their way out, by our order, whose attempts have left the ledger.
    leaving: Leaving,
    /// What the gateway had in memory when the link came up.
    gateway_knows: BTreeSet<RunKey>,
    /// Attempts without an entry of which the gateway has told something that nobody could keep.
    unheard: BTreeSet<RunKey>,
    metrics: Arc<Metrics>,
    tracer: Tracer,
}

impl Runner {
    /// Takes over a ledger and what it remembered.
    pub fn new(
        settings: Settings,
        ledger: Ledger,
        memory: Memory,
        tools: Arc<Tools>,
        guards: Guards,
        metrics: Arc<Metrics>,
    ) -> Result<Self, RunnerError> {
        let boot_id = clock::boot_id()?;
        let now = clock::now();
        let machines = memory.attempts.into_iter().map(|(run, mut facts)| {
            facts.rebase(now, &boot_id);
            (run, Machine::new(facts))
        });
        let machines: BTreeMap<RunKey, Machine> = machines.collect();
        // The gateway may have the credentials still, but what watches for them in logs was in memory.
        let live = machines.iter().filter(|(_, machine)| !machine.finished());
        let needing = live.map(|(run, _)| run.clone()).collect();
        let mut runner = Self {
            machines,
            boot_id,
            ledger,
            highest_epoch: memory.highest_epoch,
            found_delivery: memory.delivery,
            timers: Deadlines::new()?,
            guards,
            workers: Workers::new(tools),
            tokens: HashMap::new(),
            session: None,
            link: None,
            needing,
            unkept: Vec::new(),
            facts_missing: settings.facts_missing,
            strangers: BTreeMap::new(),
            leaving: Leaving::default(),
            gateway_knows: BTreeSet::new(),
            unheard: BTreeSet::new(),
            settings,
            metrics,
            tracer: Tracer::off(),
        };
        runner.forget_trial()?;
        Ok(runner)
    }

    /// Tells `tracer` what attempts spend their time on.
    #[must_use]
    pub fn with_tracer(self, tracer: Tracer) -> Self {
        Self { tracer, ..self }
    }

    /// Runs until `shutdown`, on the calling thread.
    pub fn run_blocking(
        self,
        inputs: mpsc::Receiver<Input>,
        shutdown: &CancellationToken,
    ) -> Result<(), RunnerError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(RunnerError::Runtime)?;
        runtime.block_on(self.run(inputs, shutdown))
    }

    /// Runs until `shutdown`.
    pub async fn run(
        mut self,
        mut inputs: mpsc::Receiver<Input>,
        shutdown: &CancellationToken,
    ) -> Result<(), RunnerError> {
        self.restart()?;
        let mut resend = tokio::time::interval(RESEND);
        resend.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                () = self.timers.wait() => {}
                input = inputs.recv() => match input {
                    Some(input) => self.take(input)?,
                    None => return Ok(()),
                },
                _ = resend.tick() => {
                    self.tend_ledger();
                    self.resend_reports();
                }
            }
            for (run, timer) in self.timers.due(clock::boot())? {
                self.step(&run, Event::Timer(timer))?;
            }
            self.tidy();
        }
    }

    /// Takes every attempt of the ledger up again.
    fn restart(&mut self) -> Result<(), RunnerError> {
        let runs: Vec<_> = self.machines.keys().cloned().collect();
        for run in runs {
            let one_time_hash = self.new_token(&run)?;
            self.step(&run, Event::Restarted { one_time_hash })?;
            if self.machines.get(&run).is_some_and(|machine| !machine.sight.creating) {
                self.tokens.remove(&run);
            }
        }
        Ok(())
    }

    /// Compaction and gauges.
    fn tidy(&mut self) {
        self.metrics.live_attempts.set(i64::from(self.live()));
        self.metrics.slots.set(i64::from(self.settings.slots));
        self.metrics.stream_stored_bytes.set(gauge(self.workers.streams().budget.used()));
        if self.ledger.wants_compaction() {
            let attempts = self.machines.iter().map(|(run, machine)| (run, &machine.facts));
            let entries =
                crate::ledger::snapshot(attempts, self.highest_epoch, self.found_delivery);
            if let Err(error) = self.ledger.compact(&entries) {
                // The old file is whole and goes on growing; assignments end before the disk does.
                tracing::error!(error = %error_chain(&error), "the ledger was not compacted");
            }
        }
    }

    /// Puts entries on disk, or has them wait for it; an error ends the process.
    fn keep(&mut self, entries: &[Entry], sync: bool) -> Result<Stored, RunnerError> {
        let stored = self.ledger.append(entries, sync)?;
        self.ledger_is(stored == Stored::OnDisk);
        Ok(stored)
    }

    /// Tries again what could not be written, and takes lost reserves back.
    fn tend_ledger(&mut self) {
        let flushed = self.ledger.tend();
        self.ledger_is(flushed);
    }

    /// Acknowledges what the gateway has waited for, once it is on disk.
    fn ledger_is(&mut self, whole: bool) {
        self.metrics.ledger_room.set(i64::from(self.ledger.check_room().is_ok()));
        if whole {
            for id in std::mem::take(&mut self.unkept) {
                self.tell_gateway(ToGateway::Ack { id });
            }
        }
    }

    fn live(&self) -> u32 {
        let live = self.machines.values().filter(|machine| !machine.finished()).count();
        u32::try_from(live).unwrap_or(u32::MAX)
    }

    fn delivery(&self) -> Delivery {
        self.settings.delivery.or(self.found_delivery).unwrap_or(Delivery::ImageVolume)
    }

    fn take(&mut self, input: Input) -> Result<(), RunnerError> {
        match input {
            Input::Assign { assignment, credentials, first } => {
                self.assign(*assignment, credentials, first)
            }
            Input::Cancel { run, epoch, reason, message, grace } => {
                self.cancel(&run, epoch, End { reason, message, grace })
            }
            Input::ReportAck { run, sequence } => self.step(&run, Event::Acked(sequence)),
            Input::Credentials { run, epoch, credentials } => {
                self.credentials(run, epoch, credentials)
            }
            Input::Budget { run, epoch, budget } => self.budget(run, epoch, budget),
            Input::Preflight { order, credentials } => self.preflight(order, credentials),
            Input::Permit { epoch, valid } => self.permit(epoch, valid),
            Input::Forget(run) => self.forget(&run),
            Input::SessionUp { epoch, outgoing } => self.session_up(epoch, outgoing),
            Input::SessionDown => {
                self.session = None;
                self.metrics.session_up.set(0);
                Ok(())
            }
            Input::Snapshot(answer) => {
                // A session that stopped waiting asks again.
                let _ = answer.send(self.snapshot());
                Ok(())
            }
            Input::LinkUp(link) => self.link_up(link),
            Input::GatewayKnows(runs) => self.gateway_knows(runs),
            Input::Looked { run, look } => self.looked(&run, look),
            Input::LinkDown => {
                self.link = None;
                self.metrics.link_up.set(0);
                Ok(())
            }
            Input::Gateway(message) => self.gateway(message),
            Input::Counted { message, dropped } => self.counted(message, dropped),
            Input::Attempt { run, event } => self.step(&run, *event),
            Input::PodSeen { run, digest } => self.pod_seen(&run, digest),
            Input::PodMissing(run) => {
                self.leaving.gone(&run);
                self.observe(&run);
                Ok(())
            }
            Input::PodsListed { namespace, seen } => {
                self.pods_listed(&namespace, &seen);
                Ok(())
            }
            Input::CheckScheduled(run) => {
                self.check_scheduled(&run);
                Ok(())
            }
            Input::SwitchDelivery(message) => self.switch_delivery(&message),
        }
    }

    /// A fresh one-time token of the attempt, kept until its pod is made; its SHA-256.
    fn new_token(&mut self, run: &RunKey) -> Result<String, RunnerError> {
        use base64::Engine as _;
        let mut bytes = zeroize::Zeroizing::new([0_u8; TOKEN_BYTES]);
        getrandom::fill(bytes.as_mut()).map_err(RunnerError::Random)?;
        let token = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes.as_ref());
        let hash = agent_operator::domain::names::sha256_hex(token.as_bytes());
        self.tokens.insert(run.clone(), Secret::new(token));
        Ok(hash)
    }

    /// Raises the highest epoch if needed; whether a controller of this term is obeyed.
    fn obey(&mut self, epoch: Epoch) -> Result<bool, RunnerError> {
        if epoch < self.highest_epoch {
            self.metrics.drop_one("stale_epoch");
            return Ok(false);
        }
        if epoch > self.highest_epoch {
            self.keep(&[Entry::HighestEpoch { epoch }], true)?;
            self.highest_epoch = epoch;
        }
        Ok(true)
    }

    fn say(&mut self, message: Outgoing) {
        if let Some(session) = &self.session
            && session.try_send(message).is_err()
        {
            // Gone or congested: the next session starts with a full resync.
            self.session = None;
        }
    }

    fn resend_reports(&mut self) {
        let mut reports = Vec::new();
        for machine in self.machines.values() {
            for (sequence, state) in machine.unacked() {
                reports.push(effects::report(machine, sequence, state));
            }
        }
        for report in reports {
            self.say(Outgoing::Report(Box::new(report)));
        }
    }
}

#[cfg(test)]
mod tests;
