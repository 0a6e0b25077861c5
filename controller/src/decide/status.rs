//! The task's status as it should be, built whole each time and written only when it differs.

use agent_operator::{
    crd::{
        CodingTaskStatus,
        coding_task::{AgentRunSummary, PlanStatus, RepositoryStatus, RetryStatus},
        conditions,
        shared::{Condition, UsageStatus},
    },
    domain::{RunPhase, StepName, limits::OUTPUT_BYTES_MAX, names, text::head_and_tail},
};
use jiff::Timestamp;

use super::{
    Observed, message,
    progress::{self, Progress, Record},
};

/// Number of steps of a task.
const STEPS: i32 = 4;
/// Most runs listed, the schema's limit; the oldest are left out first.
const RUNS_LISTED_MAX: usize = agent_operator::crd::coding_task::RUNS_MAX;
/// Name of the first repository.
pub const MAIN_REPOSITORY: &str = "main";

/// Phase of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskPhase {
    /// No step was started yet.
    Pending,
    /// Plan.
    Planning,
    /// Implement.
    Implementing,
    /// Test.
    Testing,
    /// Pull request.
    PullRequest,
    /// Ended well.
    Complete,
    /// Ended.
    Failed,
}

impl TaskPhase {
    /// All phases.
    pub const ALL: [Self; 7] = [
        Self::Pending,
        Self::Planning,
        Self::Implementing,
        Self::Testing,
        Self::PullRequest,
        Self::Complete,
        Self::Failed,
    ];

    /// The phase as written in status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Planning => "Planning",
            Self::Implementing => "Implementing",
            Self::Testing => "Testing",
            Self::PullRequest => "PullRequest",
            Self::Complete => "Complete",
            Self::Failed => "Failed",
        }
    }

    /// The phase while `step` is the present one.
    pub fn of(step: StepName) -> Self {
        match step {
            StepName::Plan => Self::Planning,
            StepName::Implement => Self::Implementing,
            StepName::Test => Self::Testing,
            StepName::PullRequest => Self::PullRequest,
        }
    }
}

/// Whether a status says that the task has ended.
pub fn is_finished(status: &CodingTaskStatus) -> bool {
    matches!(status.phase.as_deref(), Some("Complete" | "Failed"))
}

/// The least of a last status, for an API server that refuses the whole: plan text, runs and details of
/// the repository are left out, which the runs' own statuses have.
pub fn minimal(status: &CodingTaskStatus) -> CodingTaskStatus {
    CodingTaskStatus {
        phase: status.phase.clone(),
        observed_generation: status.observed_generation,
        message: Some("the full status was refused by the API server".to_owned()),
        retry_count: status.retry_count,
        retries: status.retries,
        pull_request: status.pull_request.clone(),
        usage: status.usage,
        start_time: status.start_time,
        completion_time: status.completion_time,
        conditions: status.conditions.clone(),
        ..CodingTaskStatus::default()
    }
}

/// A status in the making.
pub struct Draft<'a> {
    observed: &'a Observed,
    now: Timestamp,
    /// The status so far.
    pub status: CodingTaskStatus,
    held_back: bool,
}

impl<'a> Draft<'a> {
    /// Starts from the present status and brings in what the runs say.
    pub fn new(observed: &'a Observed, progress: &Progress<'_>, now: Timestamp) -> Self {
        let mut draft =
            Self { observed, now, status: observed.task.status.clone(), held_back: false };
        draft.status.total_steps = Some(STEPS);
        draft.status.observed_generation = Some(observed.task.generation);
        draft.counts(progress);
        draft.runs(&progress.history);
        draft.facts(&progress.history);
        draft
    }

    /// The task's timeout.
    pub fn task_timeout(&self) -> std::time::Duration {
        self.observed.task_timeout()
    }

    /// Sets a condition; its time changes only with its status.
    pub fn condition(&mut self, type_: &str, holds: bool, reason: &str, text: &str) {
        let status = if holds { "True" } else { "False" };
        let at = conditions::find(&self.status.conditions, type_)
            .filter(|old| old.status == status)
            .map_or(self.now, |old| old.last_transition_time);
        let new = Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            observed_generation: Some(self.observed.task.generation),
            last_transition_time: at,
            reason: reason.to_owned(),
            message: message::bounded(text),
        };
        match self.status.conditions.iter_mut().find(|old| old.type_ == type_) {
            Some(old) => *old = new,
            None => self.status.conditions.push(new),
        }
    }

    /// The task goes on, or waits; the words say why it has not ended.
    pub fn unfinished(&mut self, reason: &str, text: &str) {
        self.condition(conditions::FINISHED, false, reason, text);
        self.condition(conditions::SUCCEEDED, false, reason, text);
    }

    /// Sets phase, step and message.
    pub fn summary(&mut self, phase: TaskPhase, step: StepName, text: &str) {
        self.status.phase = Some(phase.as_str().to_owned());
        if phase != TaskPhase::Pending {
            self.status.current_step = Some(step.number());
            self.status.step_name = Some(step.as_str().to_owned());
        }
        self.status.message = Some(message::bounded(text));
    }

    /// Lists a run that the plan creates.
    pub fn created(&mut self, name: &str, step: StepName, attempt: i32, node: &str) {
        self.status.node_name = Some(node.to_owned());
        self.status.start_time.get_or_insert(self.now);
        self.status.agent_runs.push(AgentRunSummary {
            name: name.to_owned(),
            step: step.as_str().to_owned(),
            attempt,
            phase: RunPhase::Pending.as_str().to_owned(),
            reason: None,
            usage: None,
        });
        self.bound_runs();
    }

    /// Leaves the status as it is: what there would be to say changes within moments.
    pub fn hold_back(&mut self) {
        self.held_back = true;
    }

    /// The status, if it has to be written. The difference between Pending and Running of a live run
    /// is no reason to write: the AgentRun has it, and a step costs one write of the task.
    pub fn changed(self) -> Option<Box<CodingTaskStatus>> {
        let same = masked(&self.status) == masked(&self.observed.task.status);
        (!same && !self.held_back).then(|| Box::new(self.status))
    }

    fn counts(&mut self, progress: &Progress<'_>) {
        let signed = |count: u32| i32::try_from(count).unwrap_or(i32::MAX);
        let counts = progress.counts;
        self.status.retry_count = Some(signed(counts.application));
        self.status.retries = Some(RetryStatus {
            application: signed(counts.application),
            infrastructure: signed(counts.infrastructure),
            provider: signed(counts.provider),
        });
    }

    fn runs(&mut self, history: &[Record<'_>]) {
        self.status.agent_runs = history
            .iter()
            .map(|record| AgentRunSummary {
                name: record.name.clone(),
                step: record.step.as_str().to_owned(),
                attempt: i32::try_from(record.attempt.0).unwrap_or(i32::MAX),
                phase: record.phase.as_str().to_owned(),
                reason: record.reason.map(|reason| reason.as_str().to_owned()),
                usage: record.usage,
            })
            .collect();
        self.bound_runs();
        let sum = progress::usage(self.observed);
        if sum != agent_operator::domain::Usage::default() {
            self.status.usage = Some(UsageStatus::from(sum));
        }
    }

    fn bound_runs(&mut self) {
        let excess = self.status.agent_runs.len().saturating_sub(RUNS_LISTED_MAX);
        self.status.agent_runs.drain(..excess);
    }

    /// Plan, repository and pull request, as the runs report them.
    fn facts(&mut self, history: &[Record<'_>]) {
        let mut main =
            self.status.repositories.first().cloned().unwrap_or_else(|| RepositoryStatus {
                name: MAIN_REPOSITORY.to_owned(),
                url: self.observed.task.spec.repository.url.clone(),
                ..RepositoryStatus::default()
            });
        for record in history {
            let Some(run) = record.run else { continue };
            self.status.node_name = Some(run.spec.node_name.clone());
            if run.is_live() {
                self.status.start_time.get_or_insert(self.now);
                continue;
            }
            let (step, status) = (record.step, &run.status);
            if step == StepName::Plan && record.phase == RunPhase::Succeeded {
                self.status.plan = status.output.as_deref().map(plan_status);
            }
            // The base is what the work started from: the first word on it stands.
            main.base_commit = main.base_commit.or_else(|| status.base_commit.clone());
            main.head_commit = status.head_commit.clone().or(main.head_commit);
            main.work_branch = status.work_branch.clone().or(main.work_branch);
            if main.pull_request.is_none() {
                main.pull_request.clone_from(&status.pull_request);
            }
        }
        self.status.pull_request =
            self.status.pull_request.clone().or_else(|| main.pull_request.clone());
        self.status.repositories = vec![main];
    }
}

/// Plan text as kept in the task's status.
fn plan_status(text: &str) -> PlanStatus {
    PlanStatus {
        digest: format!("sha256:{}", names::sha256_hex(text.as_bytes())),
        text: head_and_tail(text, OUTPUT_BYTES_MAX),
        size_bytes: i64::try_from(text.len()).unwrap_or(i64::MAX),
    }
}

/// `status` with everything levelled that alone is no reason to write.
fn masked(status: &CodingTaskStatus) -> CodingTaskStatus {
    let mut status = status.clone();
    for run in &mut status.agent_runs {
        if run.phase == RunPhase::Running.as_str() {
            RunPhase::Pending.as_str().clone_into(&mut run.phase);
        }
    }
    status
}
