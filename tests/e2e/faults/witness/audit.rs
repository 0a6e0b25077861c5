//! The API server's audit log: who wrote which object when, and for ours what it was then.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use agent_operator::crd::{AgentRun, AgentRunStatus, CodingTaskStatus};
use agent_operator::domain::GoDuration;
use agent_operator_doubles::{
    audit,
    history::{Fact, History, Retries},
};
use jiff::Timestamp;
use kube::ResourceExt as _;

use super::Shared;
use crate::support::{cluster::SYSTEM, env};

/// How often the log is looked at: short beside what happens between two moments of a step.
const LOOK: Duration = Duration::from_millis(20);

/// The growing log.
pub(super) struct Log {
    path: PathBuf,
    file: Option<File>,
    /// What was read of a line whose end is not written yet.
    rest: Vec<u8>,
}

impl Log {
    pub(super) fn from_its_end() -> Self {
        let path = PathBuf::from(env("AO_STATE")).join("logs/audit.log");
        let mut file = File::open(&path).expect("the API server's audit log");
        file.seek(SeekFrom::End(0)).expect("its end");
        Self { path, file: Some(file), rest: Vec::new() }
    }

    /// What has been added; a log that was rotated away is read to its end first.
    fn lines(&mut self) -> Vec<String> {
        let mut added = Vec::new();
        if let Some(file) = &mut self.file {
            file.read_to_end(&mut added).expect("the log can be read");
            let now = fs::metadata(&self.path).ok().map(|meta| meta.ino());
            let open = file.metadata().ok().map(|meta| meta.ino());
            if now.is_some() && now != open {
                file.read_to_end(&mut added).expect("the log can be read");
                self.file = None;
            }
        } else {
            self.file = File::open(&self.path).ok();
        }
        self.rest.extend(added);
        let end = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let whole: Vec<u8> = self.rest.drain(..end).collect();
        String::from_utf8_lossy(&whole).lines().map(str::to_owned).collect()
    }
}

/// Writes down what concerns the test, for ever.
pub(super) async fn follow(mut log: Log, shared: Arc<Shared>) {
    loop {
        let mut lines = log.lines();
        lines.retain(|line| line.contains(&shared.prefix));
        let requests = lines.iter().filter_map(|line| Request::parse(line, &shared.prefix));
        let requests: Vec<Request> = requests.collect();
        shared.seen().requests.extend(requests);
        tokio::time::sleep(LOOK).await;
    }
}

/// A request that concerns the test.
#[derive(Clone, Debug)]
pub(super) struct Request(audit::Request);

impl Request {
    /// A write to an object of the test; lines of an API server that was killed in mid-write are none.
    fn parse(line: &str, prefix: &str) -> Option<Self> {
        let request = audit::Request::parse(line)?;
        (request.is_write() && request.name().starts_with(prefix)).then_some(Self(request))
    }

    /// Whether it created an object of this kind.
    pub(super) fn made(&self, resource: &str) -> bool {
        self.0.verb == "create" && self.0.worked() && self.0.target() == resource
    }

    /// The run that it created; an audit policy of another cluster logs no bodies.
    fn made_run(&self) -> Option<AgentRun> {
        let body = self.made("agentruns").then(|| self.0.response_object.clone())?;
        serde_json::from_value(body).ok()
    }

    /// Whether it wrote a run's outcome.
    pub(super) fn is_outcome(&self) -> bool {
        let phase = self.run_status().and_then(|status| status.phase);
        matches!(phase.as_deref(), Some("Succeeded" | "Failed"))
    }

    /// Whether the system itself sent it.
    pub(super) fn is_ours(&self) -> bool {
        self.0.user().starts_with(&format!("system:serviceaccount:{SYSTEM}:"))
    }

    fn run_status(&self) -> Option<AgentRunStatus> {
        let is_status = self.0.target() == "agentruns/status" && self.0.worked();
        is_status.then(|| self.object_status()).flatten()
    }

    fn object_status<T: serde::de::DeserializeOwned>(&self) -> Option<T> {
        let status = self.0.response_object.get("status")?.clone();
        serde_json::from_value(status).ok()
    }

    pub(super) fn tell(&self, history: &mut History) {
        let at = self.0.received;
        if let Some(run) = self.made_run() {
            tell_assigned(&run, at, history);
        }
        if let Some(status) = self.run_status() {
            tell_recorded(self.0.name(), &status, at, history);
        }
        if self.0.target() == "codingtasks/status"
            && self.0.worked()
            && let Some(status) = self.object_status::<CodingTaskStatus>()
        {
            tell_task(self.0.name(), &status, at, history);
        }
        if self.is_ours() {
            let what = format!("{} {} {}", self.0.verb, self.0.target(), self.0.name());
            history.push(at, Fact::Wrote { by: self.0.user().to_owned(), what });
        }
    }
}

fn tell_assigned(run: &AgentRun, at: Timestamp, history: &mut History) {
    let timeout = run.spec.timeout.parse::<GoDuration>().expect("a duration").get();
    let fact = Fact::Assigned {
        run: run.name_any(),
        task: run.spec.task_ref.name.clone(),
        node: run.spec.node_name.clone(),
        timeout,
        epoch: run.spec.epoch,
        prepared: run.spec.prepared,
    };
    history.push(at, fact);
}

fn tell_recorded(run: &str, status: &AgentRunStatus, at: Timestamp, history: &mut History) {
    let fact = Fact::Recorded {
        run: run.to_owned(),
        phase: status.phase.clone().unwrap_or_default(),
        reason: status.reason.clone(),
        exit_code: status.exit_code,
        opened: status.start_time,
        began: status.start_time.is_some(),
    };
    history.push(at, fact);
}

/// A task's status as a fact.
pub(crate) fn tell_task(task: &str, status: &CodingTaskStatus, at: Timestamp, to: &mut History) {
    let counts = status.retries.unwrap_or_default();
    let count = |count: i32| u32::try_from(count).expect("no negative count");
    let retries = Retries {
        application: count(counts.application),
        infrastructure: count(counts.infrastructure),
        provider: count(counts.provider),
    };
    let phase = status.phase.clone().unwrap_or_default();
    to.push(at, Fact::TaskRecorded { task: task.to_owned(), phase, retries });
}

/// The run as it is at the end: what a killed API server did not log is in there.
pub(super) fn tell_final(
    run: &AgentRun,
    requests: &[Request],
    now: Timestamp,
    history: &mut History,
) {
    let name = run.name_any();
    let told = |request: &Request| request.0.name() == name && request.made_run().is_some();
    if !requests.iter().any(told) {
        let made = run.creation_timestamp().expect("every object has one").0;
        tell_assigned(run, made, history);
    }
    if let Some(status) = &run.status {
        tell_recorded(&name, status, now, history);
    }
}
