//! Tasks under faults, and the judgement over what the witnesses saw of them.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use agent_operator::{
    crd::{
        AgentRun, CodingTask,
        conditions::{self, EXIT_MISMATCH},
    },
    domain::{
        limits::{GRACE, INFRASTRUCTURE_RETRIES},
        names::default_work_branch,
    },
};
use agent_operator_doubles::history::{self, Fact, History, Rules, check, latest_end};
use agent_operator_supervisor::clock;
use jiff::Timestamp;
use kube::{
    ResourceExt as _,
    api::{ListParams, LogParams, PostParams},
};
use serde_json::{Value, json};

use super::{
    harm::victim::Node,
    say,
    witness::{Witnesses, tell_task},
};
use crate::support::{
    cluster::{Cluster, NAMESPACE, SYSTEM, phase},
    eventually, grpcurl, logs, processes,
    task::{command_agent, merge, task, unique},
};

/// A whole task with everything that is done to it, on a busy machine.
pub(super) const LIMIT: Duration = Duration::from_mins(5);
/// What a single step, a reaction or a recovery may take.
pub(super) const SOON: Duration = Duration::from_mins(2);
/// Retries that a task of a trial may have.
const RETRIES_MAX: u32 = 1;
/// Rows that plan and pull request print.
pub(crate) const ROWS_FEW: u64 = 4;
/// The promise is one second. A machine with two busy cores needs more to deliver a signal; what was
/// reached is printed.
const SLACK: Duration = Duration::from_secs(5);
/// The runtime notes an end when it gets to it; by then a supervisor that looks at the cgroup may have
/// told its controller.
const SKEW: Duration = Duration::from_secs(1);
/// What runners tell their gateways nobody hears here; writes are not held up on their way.
const TOLD: history::Witnesses = history::Witnesses { reports: false, prompt_writes: true };
/// Length of the quiet time in which nothing may be written.
const QUIET: Duration = Duration::from_secs(10);
/// Writes have ceased when there was none for this long.
const CALM: Duration = Duration::from_secs(4);

/// What is at stake in one test.
pub(crate) struct Trial {
    pub(crate) cluster: Cluster,
    pub(super) witnesses: Witnesses,
    prefix: String,
    tasks: Mutex<Vec<Made>>,
    /// What a person said of nodes.
    fences: Mutex<Vec<(Timestamp, Fact)>>,
}

/// A task of the trial.
struct Made {
    name: String,
    at: Timestamp,
    /// Rows that its implement step prints; none for an agent that prints no rows.
    rows: Option<u64>,
}

impl Trial {
    pub(super) async fn begin(name: &str) -> Self {
        Self::watch(&unique(name)).await
    }

    /// Watches tasks of whatever maker, all of whose names begin with `prefix`.
    pub(crate) async fn watch(prefix: &str) -> Self {
        let cluster = Cluster::connect().await;
        let witnesses = Witnesses::watch(prefix);
        let (tasks, fences) = (Mutex::default(), Mutex::default());
        Self { cluster, witnesses, prefix: prefix.to_owned(), tasks, fences }
    }

    /// Takes down that a person is about to fence this node.
    pub(super) fn fences(&self, node: &str) {
        self.says(Fact::Fenced { node: node.to_owned() });
    }

    /// Takes down that a person has lifted the fence.
    pub(super) fn trusts(&self, node: &str) {
        self.says(Fact::Trusted { node: node.to_owned() });
    }

    fn says(&self, word: Fact) {
        let mut fences = self.fences.lock().unwrap_or_else(PoisonError::into_inner);
        fences.push((clock::now().wall, word));
    }

    /// Takes a task that was made elsewhere into the judgement. `rows`: what its implement step prints,
    /// for an agent that prints [`ROWS_FEW`] in the other steps.
    pub(crate) async fn adopt(&self, name: &str, rows: Option<u64>) {
        let task = self.cluster.tasks(NAMESPACE).get(name).await.expect("the task");
        let at = task.creation_timestamp().expect("every object has one").0;
        self.tasks().push(Made { name: name.to_owned(), at, rows });
    }

    /// A task whose implement step prints `rows` numbered rows, four a second.
    pub(super) async fn ticking(&self, rows: u64, overrides: &Value) -> String {
        let script = format!(
            "n={ROWS_FEW}; [ \"$AGENT_STEP\" != implement ] || {{ date > change.txt; n={rows}; }}; \
             i=0; while [ $i -lt $n ]; do echo \"row $i \"; i=$((i+1)); sleep 0.25; done; exit 0"
        );
        let mut spec = command_agent(&script);
        let test = json!({"command": ["test", "-s", "change.txt"]});
        merge(&mut spec, &json!({"maxRetries": RETRIES_MAX, "test": test}));
        merge(&mut spec, overrides);
        self.make(spec, Some(rows)).await
    }

    /// A task whose first step sleeps until its `timeout` ends it, for good.
    pub(super) async fn sleeping(&self, timeout: &str, overrides: &Value) -> String {
        let mut spec = command_agent("echo asleep; sleep 3607");
        merge(&mut spec, &json!({"stepTimeout": timeout, "maxRetries": 0}));
        merge(&mut spec, overrides);
        self.make(spec, None).await
    }

    fn tasks(&self) -> MutexGuard<'_, Vec<Made>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn make(&self, spec: Value, rows: Option<u64>) -> String {
        let at = clock::now().wall;
        let name = {
            let mut made = self.tasks();
            let name = format!("{}-{}", self.prefix, made.len());
            made.push(Made { name: name.clone(), at, rows });
            name
        };
        let made = task(&name, "Go on whatever happens.", &spec);
        let tasks = self.cluster.tasks(NAMESPACE);
        eventually(&format!("{name} is made"), SOON, || async {
            match tasks.create(&PostParams::default(), &made).await {
                Ok(_) => Ok(()),
                // The answer to an earlier try was lost.
                Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
        name
    }

    /// Waits until a run of this step runs.
    pub(super) async fn running(&self, task: &str, step: &str) -> AgentRun {
        self.cluster.run_in_phase(NAMESPACE, task, step, "Running").await
    }

    /// A task that will run into its deadline, and one that is at the beginning of a long implement step,
    /// both on this node.
    pub(super) async fn two_on(&self, node: Node, rows: u64) -> (String, String) {
        let sleeping = self.sleeping("30s", &on(node)).await;
        self.running(&sleeping, "plan").await;
        let ticking = self.ticking(rows, &on(node)).await;
        self.running(&ticking, "implement").await;
        (ticking, sleeping)
    }

    /// Waits until nothing of the task's only pod runs.
    pub(super) async fn agent_is_gone(&self, task: &str) {
        let pods = self.cluster.task_pods(NAMESPACE, task).await;
        let uid = pods[0].metadata.uid.clone().expect("a uid");
        eventually(&format!("nothing of {task} runs"), SOON, || async {
            let mut left = processes::of_pod(&uid);
            left.retain(|(_, comm)| comm != "pause");
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        })
        .await;
    }

    /// Waits until the gateway of a node holds the commit of a run back for want of a permission to write.
    pub(super) async fn commit_waits(&self, node: Node, run: &str) {
        let by_label = ListParams::default().labels("app.kubernetes.io/component=supervisor");
        let pods = self.cluster.pods(SYSTEM);
        let of_node = pods.list(&by_label).await.expect("the release's pods").items;
        let of_node = of_node.into_iter().find(|pod| {
            pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node.name())
        });
        let name = of_node.expect("each node has a supervisor").name_any();
        let of_gateway =
            LogParams { container: Some("gateway".to_owned()), ..LogParams::default() };
        eventually(&format!("the commit of {run} waits"), SOON, || async {
            let log = pods.logs(&name, &of_gateway).await.map_err(|error| error.to_string())?;
            let told = |line: &str| line.contains(run) && line.contains("waits in quarantine");
            if log.lines().any(told) { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
    }

    /// Tip of the task's work branch at the forge, if there is one.
    pub(super) async fn published(&self, task: &str) -> Option<String> {
        self.cluster.forge.branch(&default_work_branch(task)).await
    }

    /// Waits until a condition of the task has this reason.
    pub(super) async fn held_up_by(&self, task: &str, type_: &str, reason: &str) {
        self.cluster.condition(NAMESPACE, task, (type_, "False", reason)).await;
    }

    /// Waits until all tasks have ended. The API server may be away meanwhile.
    pub(super) async fn ended(&self) -> BTreeMap<String, CodingTask> {
        let names: Vec<String> = self.tasks().iter().map(|made| made.name.clone()).collect();
        let mut ended = BTreeMap::new();
        for name in names {
            let task = self.end_of(&name).await;
            ended.insert(name, task);
        }
        ended
    }

    /// Waits until a task has ended. The API server may be away meanwhile.
    pub(super) async fn end_of(&self, name: &str) -> CodingTask {
        let tasks = self.cluster.tasks(NAMESPACE);
        eventually(&format!("{name} has ended"), LIMIT, || async {
            let task = tasks.get(name).await.map_err(|error| error.to_string())?;
            match phase(&task).as_str() {
                "Complete" | "Failed" => Ok(task),
                phase => {
                    let status = task.status.unwrap_or_default();
                    Err(format!("{phase}: {:?} {:?}", status.agent_runs, status.conditions))
                }
            }
        })
        .await
    }

    /// Waits until all tasks have ended, and holds all that was seen against the promises. Gives the
    /// tasks for what else a test wants to know of them.
    pub(crate) async fn judge(self, quiet: bool) -> BTreeMap<String, CodingTask> {
        let ended = self.ended().await;
        let quiet = if quiet { Some(self.quiet().await) } else { None };
        let (mut runs, mut pods) = (Vec::new(), Vec::new());
        for name in ended.keys() {
            runs.extend(self.cluster.runs(NAMESPACE, name).await);
            pods.extend(self.cluster.task_pods(NAMESPACE, name).await);
        }
        let now = clock::now().wall;
        let mut history = self.witnesses.history(now, &runs, &pods);
        let fences =
            std::mem::take(&mut *self.fences.lock().unwrap_or_else(PoisonError::into_inner));
        for (at, word) in fences {
            history.push(at, word);
        }
        for run in runs.iter().filter(|run| has_mismatch(run)) {
            history.push(now, Fact::Contradicted { run: run.name_any() });
        }
        if let Some((from, until)) = quiet {
            history.push(from, Fact::Quiet { until });
        }
        let made_tasks = std::mem::take(&mut *self.tasks());
        for made in &made_tasks {
            let task = &ended[&made.name];
            let retries_max = task.spec.max_retries.unwrap_or_default();
            let retries_max = u32::try_from(retries_max).expect("no negative limit");
            history.push(made.at, Fact::TaskMade { task: made.name.clone(), retries_max });
            let status = task.status.clone().unwrap_or_default();
            tell_task(&made.name, &status, now, &mut history);
            self.tell_pull_requests(task, &made.name, now, &mut history).await;
            self.tell_log(made, &runs, now, &mut history).await;
        }
        let rules = Rules {
            grace: GRACE,
            slack: SLACK,
            skew: SKEW,
            infrastructure_retries: INFRASTRUCTURE_RETRIES,
            witnesses: TOLD,
        };
        let broken = check(&history, &rules);
        let latest = latest_end(&history, &rules).unwrap_or_default();
        say(&format!(
            "{}: {}; latest end {latest:.1?} after deadline and grace",
            self.prefix,
            history.summary()
        ));
        let mut told = String::new();
        for name in ended.keys() {
            told += &self.cluster.describe(NAMESPACE, name).await;
            told.push('\n');
        }
        let words: Vec<String> = broken.iter().map(ToString::to_string).collect();
        assert!(broken.is_empty(), "broken promises:\n{}\n{told}", words.join("\n"));
        ended
    }

    /// Waits until writes cease, and then for some time in which there must be none.
    async fn quiet(&self) -> (Timestamp, Timestamp) {
        eventually("writes cease", SOON, || async {
            let before = self.witnesses.writes();
            tokio::time::sleep(CALM).await;
            let now = self.witnesses.writes();
            if now == before { Ok(()) } else { Err(format!("{before}, then {now} writes")) }
        })
        .await;
        let from = clock::now().wall;
        // Not a wait for something to happen: the time itself is what is measured.
        tokio::time::sleep(QUIET).await;
        (from, clock::now().wall)
    }

    async fn tell_pull_requests(
        &self,
        task: &CodingTask,
        name: &str,
        now: Timestamp,
        history: &mut History,
    ) {
        let status = task.status.clone().unwrap_or_default();
        let branch = status.repositories.first().and_then(|first| first.work_branch.clone());
        let Some(branch) = branch else { return };
        let repository = repository_name(&task.spec.repository.url);
        for pull in self.cluster.forge.pull_requests_of(repository, &branch).await {
            let number = pull["number"].as_i64().expect("a number");
            history.push(now, Fact::PullRequest { task: name.to_owned(), number });
        }
    }

    /// Reads the whole log of a task, as a person would, and tells it row by row.
    async fn tell_log(&self, made: &Made, runs: &[AgentRun], now: Timestamp, to: &mut History) {
        let Some(rows) = made.rows else { return };
        let token = grpcurl::token(NAMESPACE, "viewer").await;
        let request = json!({"namespace": NAMESPACE, "task": made.name, "follow": true});
        let events = eventually("the log is read to its end", SOON, || async {
            grpcurl::call(Some(&token), logs::FOLLOW, &request).await
        })
        .await;
        for event in &events {
            let run = event["run"].as_str().unwrap_or_default().to_owned();
            let text = event["log"]["text"].as_str().unwrap_or_default();
            if let Some(number) = text.strip_prefix("row ") {
                let row = number.trim_end().parse().expect("a row's number");
                to.push(now, Fact::Row { run, row });
            } else if event["gap"].is_object() {
                to.push(now, Fact::Gap { run });
            }
        }
        for run in runs.iter().filter(|run| run.spec.task_ref.name == made.name) {
            let rows = match run.spec.step.as_str() {
                "implement" => rows,
                "test" => continue,
                _ => ROWS_FEW,
            };
            let phase = run.status.as_ref().and_then(|status| status.phase.as_deref());
            let run = run.metadata.name.clone().expect("every object has a name");
            if phase == Some("Succeeded") {
                to.push(now, Fact::Read { run, rows });
            }
        }
    }
}

/// Whether report and record of a run's exit are shown to differ.
fn has_mismatch(run: &AgentRun) -> bool {
    run.status.iter().any(|status| conditions::find(&status.conditions, EXIT_MISMATCH).is_some())
}

/// Name of the repository with this clone URL.
fn repository_name(url: &str) -> &str {
    let last = url.rsplit('/').next().unwrap_or(url);
    last.strip_suffix(".git").unwrap_or(last)
}

/// Asserts that a task went through and that nobody was charged for what was done to it. A step that
/// did not start in time may have been placed again.
pub(super) fn assert_uncharged(task: &CodingTask) {
    let status = task.status.clone().expect("a status");
    assert_eq!(status.phase.as_deref(), Some("Complete"), "{status:#?}");
    let retries = status.retries.unwrap_or_default();
    let charged = (retries.application, retries.infrastructure, retries.provider);
    assert_eq!(charged, (0, 0, 0), "{status:#?}");
}

/// Asserts that a task went through without a single failed attempt.
pub(crate) fn assert_untouched(task: &CodingTask) {
    assert_uncharged(task);
    let status = task.status.clone().expect("a status");
    let phases: Vec<_> = status.agent_runs.iter().map(|run| (&run.step, run.attempt)).collect();
    assert_eq!(phases.len(), 4, "one run a step: {phases:?}\n{status:#?}");
}

/// Overrides that pin a task to a node.
pub(super) fn on(node: Node) -> Value {
    json!({"nodeSelector": {"kubernetes.io/hostname": node.name()}})
}
