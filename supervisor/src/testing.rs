//! Values for the tests of this crate.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
};

use agent_operator::{
    attempt::StepResult,
    domain::{
        Assignment, Attempt, Epoch, Reason, RunRef, RunUid, StepName, TaskRef, TaskUid, Usage,
        assignment::{AgentKind, PodRequest, Repository, SandboxPolicy, Work},
        ids::BootId,
        report::StepFacts,
    },
};
use jiff::Timestamp;

use crate::{
    link::contract::Redemption,
    steps::{
        moment::{BootTime, Moment, Now},
        record::{Facts, Record},
    },
};

/// An implement step of an ordinary task: timeout 60 s, start deadline 30 s, grace 10 s.
pub(crate) fn assignment() -> Assignment {
    Assignment {
        run: RunRef {
            namespace: "agents".into(),
            name: "add-healthcheck-impl-1-0a1b2c3d".into(),
            uid: RunUid::from("run-uid"),
        },
        task: TaskRef { name: "add-healthcheck".into(), uid: TaskUid::from("task-uid") },
        step: StepName::Implement,
        attempt: Attempt(1),
        epoch: Epoch(3),
        node: "node-a".into(),
        timeout_seconds: 60,
        start_deadline_seconds: 30,
        grace_seconds: 10,
        pod: PodRequest {
            image: "registry.example/agent-base:1".into(),
            image_pull_secrets: vec!["pull".into()],
            cpu_limit: "4".into(),
            memory_limit: "8Gi".into(),
            storage_limit: "20Gi".into(),
            cpu_request: "100m".into(),
            memory_request: "256Mi".into(),
            node_selector: BTreeMap::from([("pool".into(), "agents".into())]),
            tolerations: vec![],
            runtime_class_name: None,
        },
        work: Work {
            prompt: "PROMPT-CANARY".into(),
            plan: Some("PLAN-CANARY".into()),
            feedback: None,
            agent: AgentKind::ClaudeCode,
            model: None,
            max_turns: None,
            test_command: None,
            issue: None,
            unverified: false,
        },
        repository: Repository {
            name: "main".into(),
            url: "https://github.com/jcwearn/example-repo.git".into(),
            base_branch: "main".into(),
            work_branch: "ai/add-healthcheck".into(),
            base_commit: None,
            head_commit: None,
        },
        sandbox: SandboxPolicy::default(),
        budget: None,
        held: false,
    }
}

/// The boot of every test.
pub(crate) fn boot_id() -> BootId {
    BootId::from("boot")
}

/// `seconds` after the boot of every test.
pub(crate) fn at(seconds: i64) -> Now {
    let wall = Timestamp::from_second(1_800_000_000 + seconds).unwrap();
    Now { boot: BootTime(seconds * 1_000_000_000), wall }
}

/// An attempt that was accepted at second 0.
pub(crate) fn facts() -> Facts {
    Facts::accepted(assignment(), "token-hash".into(), Moment::new(at(0), &boot_id()))
}

/// A redemption from 10.244.0.7.
pub(crate) fn redemption() -> Redemption {
    Redemption {
        nonce_hash: "nonce".into(),
        pod_ip: "10.244.0.7".parse().unwrap(),
        runner_hash: "runner".into(),
        agent_hash: "agent".into(),
    }
}

/// A runner's result with this reason and code.
pub(crate) fn result(reason: Reason, exit_code: i32) -> StepResult {
    StepResult {
        reason,
        message: format!("{reason} with {exit_code}"),
        exit_code,
        start_fault: None,
        facts: StepFacts::default(),
        reported_usage: Usage::default(),
        events: 0,
        printed: None,
    }
}

/// A successful result.
pub(crate) fn completed() -> StepResult {
    result(Reason::Completed, 0)
}

/// The record of a result.
pub(crate) fn result_record(result: StepResult) -> Record {
    Record::Result { result: Box::new(result), usage: Usage::default(), refusals: vec![] }
}

/// A credential for the model.
pub(crate) fn credential() -> agent_operator::domain::Credential {
    agent_operator::domain::Credential {
        id: "model".into(),
        purpose: agent_operator::domain::secret::purpose::MODEL.into(),
        host: "api.anthropic.com".into(),
        scheme: "api-key".into(),
        value: agent_operator::domain::Secret::new("CREDENTIAL-CANARY"),
    }
}

/// A credential of the repository's forge with this value.
pub(crate) fn git_credential(value: &str) -> agent_operator::domain::Credential {
    agent_operator::domain::Credential {
        id: "git/main".into(),
        purpose: agent_operator::domain::secret::purpose::GIT.into(),
        host: "github.com".into(),
        scheme: "basic".into(),
        value: agent_operator::domain::Secret::new(value),
    }
}

/// Log lines of the tests' thread.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    /// Keeps what is logged on this thread until the guard is dropped.
    pub(crate) fn keep() -> (Self, tracing::subscriber::DefaultGuard) {
        static LISTENER: std::sync::Once = std::sync::Once::new();
        // A line that was first reached while nobody listened is remembered as one that nobody wants,
        // and a listener that comes at that very moment does not change that. So somebody always does.
        LISTENER.call_once(|| {
            let nowhere = agent_operator::telemetry::logs::json_to("info", io::sink).unwrap();
            // Another test's listener would do as well.
            let _ = tracing::subscriber::set_global_default(nowhere);
        });
        let lines = Self::default();
        let writer = lines.clone();
        let subscriber = agent_operator::telemetry::logs::json_to("info", move || writer.clone());
        let guard = tracing::subscriber::set_default(subscriber.unwrap());
        (lines, guard)
    }

    /// Those that are whole.
    pub(crate) fn all(&self) -> Vec<serde_json::Value> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
