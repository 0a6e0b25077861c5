//! Works off what one node said about one run.

use std::{collections::HashMap, sync::Arc};

use agent_operator::{
    crd::{AgentRun, AgentRunSpec, AgentRunStatus, conditions},
    domain::{
        NodeName, Reason, RunKey, RunPhase, RunRef, StepName, TaskUid,
        report::{Report, RunState},
    },
    telemetry::{audit::Subject, logs},
};
use kube::ResourceExt as _;
use tokio::{sync::mpsc, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span};

use super::{
    acts::{Act, acts},
    job::{Job, JobError, Parked, RETRY_INTERVAL},
    record::{minimal, recorded},
};
use crate::{
    apply::{Applier, ApplyError, run_event},
    clock,
    credentials::{Credentials, record_read},
    decide::Delivery,
    fleet::{Command, KnownAttempt, SendError},
    observe::{Change, Observer},
};

/// Jobs kept for another try; beyond it the node has to say them again.
const PARKED_MAX: usize = 4096;
/// Tries within one go when the object changes under a write.
const CONFLICTS_MAX: u32 = 5;

pub(super) struct Worker {
    observer: Observer,
    applier: Applier,
    credentials: Credentials,
    jobs: mpsc::Receiver<Job>,
    parked: HashMap<(u8, String), Parked>,
}

impl Worker {
    pub(super) fn new(
        observer: Observer,
        applier: Applier,
        credentials: Credentials,
        jobs: mpsc::Receiver<Job>,
    ) -> Self {
        Self { observer, applier, credentials, jobs, parked: HashMap::new() }
    }

    pub(super) async fn run(mut self, shutdown: CancellationToken) {
        let mut tick = tokio::time::interval(RETRY_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // A store that is not filled yet would make every run look unknown.
        tokio::select! {
            () = shutdown.cancelled() => return,
            ready = self.observer.world.ready() => if ready.is_err() { return },
        }
        let mut leadership = self.applier.leadership.clone();
        let mut epoch = None;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                job = self.jobs.recv() => match job {
                    Some(job) => self.take(job).await,
                    None => return,
                },
                _ = tick.tick() => self.retry(false).await,
                changed = leadership.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // What waited for a term need not wait for the clock; a renewal changes nothing.
                    let present = leadership.term(clock::instant()).map(|term| term.epoch);
                    if present != epoch && present.is_some() {
                        self.retry(true).await;
                    }
                    epoch = present;
                }
            }
        }
    }

    /// A node that says something again meanwhile does not shorten the wait.
    async fn take(&mut self, job: Job) {
        match self.parked.get_mut(&job.key()) {
            Some(parked) if parked.due > clock::instant() => parked.job = job,
            _ => self.attempt(job, 0).await,
        }
    }

    async fn retry(&mut self, all: bool) {
        let now = clock::instant();
        let due: Vec<_> = self
            .parked
            .iter()
            .filter(|(_, parked)| all || parked.due <= now)
            .map(|(key, _)| key.clone())
            .collect();
        for key in due {
            if let Some(parked) = self.parked.remove(&key) {
                self.attempt(parked.job, parked.tries).await;
            }
        }
    }

    async fn attempt(&mut self, job: Job, tries: u32) {
        let within = self.context(&job);
        self.attempt_within(job, tries).instrument(within).await;
    }

    /// Context of the log lines about a job: its run, as far as it is known, and its node.
    fn context(&self, job: &Job) -> Span {
        let world = &self.observer.world;
        let named = |at: &RunRef| world.run(&at.namespace, &at.name);
        let (node, uid, run) = match job {
            Job::Report { node, report } => (node, &report.run.uid, named(&report.run)),
            Job::Known { node, attempt, .. } => (node, &attempt.run.uid, named(&attempt.run)),
            Job::Opened { node, .. } => return tracing::error_span!("node", %node),
            Job::Refused { node, run, .. } | Job::Credentials { node, run } => {
                (node, &run.uid, world.run_by_uid(&run.uid))
            }
        };
        let span = if let Some(run) = run {
            let namespace = run.namespace().unwrap_or_default();
            let at = RunRef { namespace, name: run.name_any(), uid: uid.clone() };
            let AgentRunSpec { step, task_ref, .. } = &run.spec;
            logs::run(&at, step, &task_ref.name, &task_ref.uid.as_str().into())
        } else {
            tracing::error_span!("run", run_uid = %uid)
        };
        span.in_scope(|| tracing::error_span!("node", %node))
    }

    async fn attempt_within(&mut self, job: Job, tries: u32) {
        let key = job.key();
        let Err(error) = self.work(&job).await else {
            self.parked.remove(&key);
            return;
        };
        let parked = Parked::after(job, tries, &error);
        if !matches!(error, JobError::Apply(ApplyError::NotLeading)) {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error = %agent_operator::domain::text::error_chain(error), "leave a node's word to a later try");
        }
        if self.parked.len() >= PARKED_MAX {
            tracing::warn!("drop a node's word: too many wait");
            return;
        }
        self.parked.insert(key, parked);
    }

    async fn work(&self, job: &Job) -> Result<(), JobError> {
        self.applier.epoch()?;
        match job {
            Job::Report { node, report } => self.report(node, report).await,
            Job::Known { node, attempt, judging } => {
                self.known(node, attempt).await?;
                judging.one_judged();
                Ok(())
            }
            Job::Opened { judging, .. } => {
                judging.one_judged();
                Ok(())
            }
            Job::Refused { node, run, reason, message } => {
                self.refused(node, run, reason, message).await
            }
            Job::Credentials { node, run } => self.send_credentials(node, run).await,
        }
    }

    /// The run, if it exists with this uid; the cache is not believed when it says no.
    async fn find(&self, wanted: &RunRef) -> Result<Option<Arc<AgentRun>>, JobError> {
        let same = |run: &AgentRun| run.uid().as_deref() == Some(wanted.uid.as_str());
        let world = &self.observer.world;
        if let Some(run) = world.run(&wanted.namespace, &wanted.name).filter(|run| same(run)) {
            return Ok(Some(run));
        }
        self.find_live(wanted).await
    }

    /// The run as the API server has it, if it exists with this uid.
    async fn find_live(&self, wanted: &RunRef) -> Result<Option<Arc<AgentRun>>, JobError> {
        let same = |run: &AgentRun| run.uid().as_deref() == Some(wanted.uid.as_str());
        let found = self.observer.live_run(&wanted.namespace, &wanted.name).await?;
        Ok(found.filter(same).map(|run| self.observer.world.wrote_run(run)))
    }

    async fn report(&self, node: &NodeName, report: &Report) -> Result<(), JobError> {
        let key = RunKey { uid: report.run.uid.clone(), attempt: report.attempt };
        let run = self.find(&report.run).await?.filter(|run| belongs(run, node, &key));
        let Some(mut run) = run else {
            tracing::info!(run_uid = %key.uid, "drop a report of an unknown attempt");
            let ended =
                matches!(report.state, RunState::Finished(_) | RunState::ExitMismatch { .. });
            let live = !ended;
            self.acknowledge(node, &key, report.sequence);
            return self.drop_attempt(node, &key, live);
        };
        // It was taken up again from its pod when the Hello had been said, so that did not name it.
        if run.has_ended() && matches!(report.state, RunState::Waiting(_) | RunState::Running(_)) {
            self.end_given_up(node, key.clone())?;
        }
        self.prepare_next(&run, &report.state);
        let mut tries = 0;
        loop {
            let before = run.status.clone().unwrap_or_default();
            let Some(after) = recorded(&before, &report.state, clock::timestamp()) else { break };
            match self.write(&run, &after).await {
                Ok(written) => {
                    if let RunState::ExitMismatch { .. } = report.state {
                        self.tell_mismatch(&written, &after);
                    } else {
                        self.tell(&written, &after);
                    }
                    self.observer.world.announce(Change::Run(written));
                    break;
                }
                Err(error) if error.is_conflict() && tries < CONFLICTS_MAX => {
                    tries += 1;
                    let reference = &report.run;
                    let found =
                        self.observer.live_run(&reference.namespace, &reference.name).await?;
                    match found.filter(|run| belongs(run, node, &key)) {
                        Some(found) => run = self.observer.world.wrote_run(found),
                        None => break,
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.acknowledge(node, &key, report.sequence);
        Ok(())
    }

    /// The step that follows a success needs its credentials right after this write.
    fn prepare_next(&self, run: &AgentRun, state: &RunState) {
        let RunState::Finished(outcome) = state else { return };
        let step = run.spec.step.parse().ok().and_then(StepName::next);
        let Some(next) = step.filter(|_| outcome.phase() == RunPhase::Succeeded) else { return };
        let (namespace, of) = (run.namespace().unwrap_or_default(), &run.spec.task_ref);
        // Told again after it was recorded: the next step is with a node already.
        if run.has_ended() {
            return;
        }
        let task = self.observer.world.task(&namespace, &of.name);
        // One that is suspended starts nothing now, and its Secrets may change before it goes on.
        if let Some(task) = task.filter(|task| task.spec.suspend != Some(true)) {
            self.credentials.read_ahead(&of.uid.as_str().into(), &namespace, &task.spec, next);
        }
    }

    /// Writes a status; one that the API server refuses for its contents is written once more with
    /// only what must be there, for it would be refused for ever.
    async fn write(
        &self,
        run: &AgentRun,
        status: &AgentRunStatus,
    ) -> Result<Arc<AgentRun>, ApplyError> {
        match self.applier.write_run_status(run, status).await {
            Err(error) if matches!(error.code(), Some(413 | 422)) => {
                self.applier.write_run_status(run, &minimal(status)).await
            }
            result => result,
        }
    }

    fn tell(&self, run: &AgentRun, status: &AgentRunStatus) {
        let phase = status.phase.as_deref().unwrap_or("Pending");
        let (reason, warning) = match phase {
            "Running" => ("Running", false),
            "Succeeded" => ("Succeeded", false),
            "Unknown" => ("Unknown", true),
            "Pending" => ("Waiting", true),
            _ => (status.reason.as_deref().unwrap_or("Failed"), true),
        };
        let said = status.message.as_deref().filter(|message| !message.is_empty());
        let said = said.map(|message| format!(": {message}")).unwrap_or_default();
        let note = format!("step {} on node {}{said}", run.spec.step, run.spec.node_name);
        self.applier.events.publish_run(run, run_event(reason, warning, note));
        if status.has_ended() {
            for Act { reason, warning, note } in acts(&run.spec.step, status) {
                self.applier.events.publish_run(run, run_event(reason, warning, note));
            }
        }
    }

    fn tell_mismatch(&self, run: &AgentRun, status: &AgentRunStatus) {
        let conditions = status.conditions.iter();
        for found in conditions.filter(|found| found.type_ == conditions::EXIT_MISMATCH) {
            let event = run_event(conditions::EXIT_MISMATCH, true, found.message.clone());
            self.applier.events.publish_run(run, event);
        }
    }

    fn acknowledge(&self, node: &NodeName, run: &RunKey, sequence: u64) {
        self.send(node, Command::ReportAck { run: run.clone(), sequence });
    }

    /// Ends and forgets an attempt that nothing asks for any more.
    fn drop_attempt(&self, node: &NodeName, run: &RunKey, live: bool) -> Result<(), JobError> {
        if live && let Ok(epoch) = self.applier.epoch() {
            let message = "the AgentRun is gone".to_owned();
            let reason = Reason::Deleted;
            let cancel = Command::Cancel { run: run.clone(), epoch, reason, message };
            self.order_end(node, cancel)?;
        } else {
            self.send(node, Command::Forget { run: run.clone() });
            self.observer.memory.forgotten(node, run);
        }
        Ok(())
    }

    fn end_given_up(&self, node: &NodeName, run: RunKey) -> Result<(), JobError> {
        let epoch = self.applier.epoch()?;
        let message = "the run was given up while its node was away".to_owned();
        let cancel = Command::Cancel { run, epoch, reason: Reason::Cancelled, message };
        self.order_end(node, cancel)?;
        Ok(())
    }

    /// Queues an order to end. One that finds no room is tried again, and no permit to write goes out
    /// before; without a session there is nobody to permit anything.
    fn order_end(&self, node: &NodeName, cancel: Command) -> Result<(), SendError> {
        match self.observer.nodes.send(node, cancel) {
            Err(error @ SendError::Congested(_)) => Err(error),
            Ok(()) | Err(SendError::NotConnected(_)) => Ok(()),
        }
    }

    /// A command that does not go out is not lost: the node repeats what it was the answer to.
    fn send(&self, node: &NodeName, command: Command) {
        if let Err(error) = self.observer.nodes.send(node, command) {
            tracing::info!(error = %error, "leave an answer to a later time");
        }
    }

    /// Judges what a node has. Once this is done the node may be permitted to write upstream, so an
    /// attempt that was given up has its order to end in the session's queue by then.
    async fn known(&self, node: &NodeName, attempt: &KnownAttempt) -> Result<(), JobError> {
        let key = super::key_of(attempt);
        let live = !attempt.phase.is_terminal();
        let mut run = self.find(&attempt.run).await?.filter(|run| belongs(run, node, &key));
        if live && run.as_ref().is_some_and(|run| may_write(run) && !run.has_ended()) {
            // A watch may be late with what another leader, or a pass of ours, has given up.
            self.observer.memory.giving_up_is_over().await;
            run = self.find_live(&attempt.run).await?.filter(|run| belongs(run, node, &key));
        }
        let Some(run) = run else {
            return self.drop_attempt(node, &key, live);
        };
        let mut status = run.status.clone().unwrap_or_default();
        match status.phase.as_deref() {
            // Given up while the node was away: what runs there has to end, and its push stays in
            // quarantine.
            Some("Succeeded" | "Failed") if live => self.end_given_up(node, key)?,
            Some("Unknown") if matches!(attempt.phase, RunPhase::Pending | RunPhase::Running) => {
                status.phase = Some(attempt.phase.as_str().to_owned());
                status.message = None;
                // Whatever was decided of the silent node and is still on its way fails of this.
                let written = self.write(&run, &status).await?;
                self.tell(&written, &status);
                self.observer.world.announce(Change::Run(written));
            }
            _ => {}
        }
        Ok(())
    }

    async fn refused(
        &self,
        node: &NodeName,
        key: &RunKey,
        reason: &str,
        message: &str,
    ) -> Result<(), JobError> {
        tracing::warn!(reason, details = message, "an assignment was refused");
        match reason {
            // The node has it, with other words: it goes on with those it has.
            "Conflict" => {
                self.observer.memory.sent(node, key, Delivery::Sent);
                return Ok(());
            }
            // The node knows a later leader. If that is an error of the Lease, the floor heals it.
            "StaleEpoch" => {
                self.observer.memory.refused(node, key);
                return Ok(());
            }
            _ => {}
        }
        let Some(run) = self.observer.world.run_by_uid(&key.uid) else { return Ok(()) };
        let mut status = run.status.clone().unwrap_or_default();
        let pending = matches!(status.phase.as_deref(), None | Some("Pending"));
        if !pending || !belongs(&run, node, key) {
            return Ok(());
        }
        status.phase = Some(RunPhase::Failed.as_str().to_owned());
        status.reason = Some(Reason::Unstarted.as_str().to_owned());
        status.message = Some(format!("node {node} did not take the step: {reason}: {message}"));
        status.completion_time = Some(clock::timestamp());
        let written = self.write(&run, &status).await?;
        self.observer.memory.refused(node, key);
        self.tell(&written, &status);
        self.observer.world.announce(Change::Run(written));
        Ok(())
    }

    async fn send_credentials(&self, node: &NodeName, key: &RunKey) -> Result<(), JobError> {
        let world = &self.observer.world;
        let Some(run) = world.run_by_uid(&key.uid).filter(|run| belongs(run, node, key)) else {
            return self.drop_attempt(node, key, true);
        };
        // One that is held gets its credentials with the word to begin, and none before.
        let begun = !run.spec.prepared
            || self.observer.memory.delivery(node, key) == Delivery::Sent
            || run.status.as_ref().is_some_and(|status| status.start_time.is_some());
        if run.has_ended() || !begun {
            return Ok(());
        }
        let namespace = run.namespace().unwrap_or_default();
        let Some(task) = world.task(&namespace, &run.spec.task_ref.name) else { return Ok(()) };
        let Ok(step) = run.spec.step.parse::<StepName>() else { return Ok(()) };
        let of = TaskUid::from(task.uid().unwrap_or_default());
        let credentials = self.credentials.read(&of, &namespace, &task.spec, step).await?;
        let epoch = self.applier.epoch()?;
        let name = run.name_any();
        let subject = Subject {
            namespace: &namespace,
            task: &run.spec.task_ref.name,
            task_uid: &of,
            run: &name,
            run_uid: key.uid.as_str(),
            step: step.as_str(),
            attempt: key.attempt.0,
        };
        record_read(subject, node, &task.spec, &credentials);
        self.send(node, Command::Credentials { run: key.clone(), epoch, credentials });
        Ok(())
    }
}

/// Whether the run's step may write upstream.
fn may_write(run: &AgentRun) -> bool {
    let step: Option<StepName> = run.spec.step.parse().ok();
    step.is_none_or(|step| step.may_push() || step == StepName::PullRequest)
}

/// Whether a node may speak for an attempt: its uid and number, given to that very node.
fn belongs(run: &AgentRun, node: &NodeName, key: &RunKey) -> bool {
    run.uid().as_deref() == Some(key.uid.as_str())
        && u32::try_from(run.spec.attempt).ok() == Some(key.attempt.0)
        && run.spec.node_name == node.as_str()
}
