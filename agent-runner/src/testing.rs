//! A step in progress for unit tests: no gateway behind it, children in their own groups.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use agent_operator::{
    attempt::{GitIdentity, StepRepository, StepSpec},
    domain::{Attempt, RunRef, RunUid, StepName, TaskRef, TaskUid, assignment::AgentKind},
};

use crate::{
    attempt::Client,
    context::{Context, Layout},
    events::Events,
    output::Printer,
    process::{Ownership, Processes},
    stop::Stop,
};

/// A specification with the sample task.
pub(crate) fn spec(step: StepName) -> StepSpec {
    StepSpec {
        run: RunRef {
            namespace: "agent-system".to_owned(),
            name: "add-healthcheck-impl-1-0a1b2c3d".to_owned(),
            uid: RunUid::from("run-uid"),
        },
        task: TaskRef { name: "add-healthcheck".to_owned(), uid: TaskUid::from("task-uid") },
        step,
        attempt: Attempt(1),
        prompt: "Add a /healthz endpoint".to_owned(),
        plan: None,
        feedback: None,
        agent: AgentKind::ClaudeCode,
        model: None,
        max_turns: None,
        test_command: None,
        unverified: false,
        issue: None,
        repository: StepRepository {
            name: "main".to_owned(),
            base_branch: "main".to_owned(),
            base_commit: "0".repeat(40),
            work_branch: "ai/add-healthcheck".to_owned(),
            start_commit: "0".repeat(40),
            may_push: step.may_push(),
        },
        identity: GitIdentity {
            name: "agent-operator".to_owned(),
            email: "agent@example.invalid".to_owned(),
        },
        grace_seconds: 10,
        canary: None,
        held: false,
    }
}

/// Everything that a [`Context`] borrows.
pub(crate) struct Fixture {
    /// The step.
    pub(crate) spec: StepSpec,
    /// Folders below a temporary one.
    pub(crate) layout: Layout,
    /// The container's environment.
    pub(crate) image_environment: BTreeMap<String, OsString>,
    /// The stop order.
    pub(crate) stop: Arc<Stop>,
    /// Events.
    pub(crate) events: Events,
    /// Client of the gateway; nobody listens there.
    pub(crate) client: Client,
    processes: Processes,
    printer: Printer,
    _folder: tempfile::TempDir,
}

impl Fixture {
    /// A plan step in a temporary folder.
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let under = |name: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(&path).unwrap();
            path
        };
        let layout =
            Layout { workspace: under("workspace"), home: under("home"), runner: under("runner") };
        let stop = Arc::<Stop>::default();
        let (printer, _) = Printer::start(std::io::sink());
        let path = std::env::var_os("PATH").unwrap();
        Self {
            spec: spec(StepName::Plan),
            layout,
            image_environment: BTreeMap::from([("PATH".to_owned(), path)]),
            processes: Processes::new(shim(), Vec::new(), Ownership::Group, Arc::clone(&stop)),
            stop,
            events: Events::default(),
            client: Client::new("http://127.0.0.1:1"),
            printer,
            _folder: folder,
        }
    }

    /// The context.
    pub(crate) fn context(&self) -> Context<'_> {
        Context {
            spec: &self.spec,
            layout: &self.layout,
            gateway: "http://127.0.0.1:1",
            agent_token: "agent-token",
            client: &self.client,
            processes: &self.processes,
            stop: &self.stop,
            printer: &self.printer,
            events: &self.events,
            image_environment: &self.image_environment,
        }
    }
}

/// Stands in for the runner's own binary: unit tests run inside the test binary.
pub(crate) fn shim() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/testing/shim.sh")
}
