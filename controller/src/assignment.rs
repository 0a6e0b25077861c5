//! The whole order for one attempt, put together from the run, the task, and what earlier runs left.
//! Pure; holds no credential.

use agent_operator::{
    crd::{
        agent_run::ResolvedSandbox,
        coding_task::{AgentSpec, AgentType, OnUnverifiable, SourceType, TaskSource},
        shared::TolerationSpec,
    },
    domain::{
        Assignment, Epoch, GoDuration, PreflightKey, PreflightOrder, StepName, TaskRef,
        assignment::{
            AgentKind, EgressPolicy, IssueRef, PodRequest, Repository, SandboxPolicy, Toleration,
            Work,
        },
        names,
    },
};

use crate::decide::{
    Observed, RunView, deadline, prepare,
    progress::{self, replay},
    status::{Draft, MAIN_REPOSITORY},
};

/// Base branch of a task that names none.
const DEFAULT_BRANCH: &str = "main";

/// The order to execute `run`, under `epoch`. It is the same each time for the same run, but for the
/// epoch and what is left of the budget.
pub fn assignment(observed: &Observed, run: &RunView, epoch: Epoch) -> Assignment {
    let (task, settings) = (&observed.task, &observed.settings);
    let timeout = run.spec.timeout.parse::<GoDuration>().unwrap_or(settings.step_timeout);
    Assignment {
        run: run.run.clone(),
        task: TaskRef { name: task.name.clone(), uid: task.uid.clone() },
        step: run.step,
        attempt: run.attempt,
        epoch,
        node: run.node(),
        timeout_seconds: timeout.get().as_secs(),
        start_deadline_seconds: deadline::start_deadline(settings, &run.spec).as_secs(),
        grace_seconds: settings.grace.get().as_secs(),
        pod: pod(run),
        work: work(observed, run),
        repository: repository(observed),
        sandbox: sandbox(&run.spec.sandbox),
        budget: progress::budget_left(observed),
        held: prepare::is_held(observed, run),
    }
}

/// The order to find out what stands in the way of the task. Holds no credential.
pub fn preflight_order(observed: &Observed, key: PreflightKey) -> PreflightOrder {
    let task = &observed.task;
    let test = task.spec.test.as_ref();
    let given = test.and_then(|test| test.command.as_ref()).is_some_and(|words| !words.is_empty());
    let proceeds =
        test.and_then(|test| test.on_unverifiable).unwrap_or_default() == OnUnverifiable::Proceed;
    // A command of the user's own may never call a model; one that does is told by the model API.
    let own_command =
        task.spec.agent.as_ref().is_some_and(|agent| agent.type_ == AgentType::Command);
    PreflightOrder {
        key,
        namespace: task.namespace.clone(),
        task: TaskRef { name: task.name.clone(), uid: task.uid.clone() },
        repository: repository(observed),
        needs_test_command: !given && !proceeds,
        needs_model: !own_command,
    }
}

fn pod(run: &RunView) -> PodRequest {
    let spec = &run.spec;
    PodRequest {
        image: spec.image.clone(),
        image_pull_secrets: spec
            .image_pull_secrets
            .iter()
            .map(|secret| secret.name.clone())
            .collect(),
        cpu_limit: spec.resources.cpu.clone(),
        memory_limit: spec.resources.memory.clone(),
        storage_limit: spec.resources.storage.clone(),
        cpu_request: spec.resources.cpu_request.clone(),
        memory_request: spec.resources.memory_request.clone(),
        node_selector: spec.node_selector.clone(),
        tolerations: spec.tolerations.iter().map(toleration).collect(),
        runtime_class_name: spec.sandbox.runtime_class_name.clone(),
    }
}

fn toleration(spec: &TolerationSpec) -> Toleration {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    Toleration {
        key: text(&spec.key),
        operator: text(&spec.operator),
        value: text(&spec.value),
        effect: text(&spec.effect),
        toleration_seconds: spec.toleration_seconds,
    }
}

fn work(observed: &Observed, run: &RunView) -> Work {
    let task = &observed.task;
    Work {
        prompt: task.spec.prompt.clone(),
        plan: (run.step != StepName::Plan).then(|| plan(observed)).flatten(),
        feedback: run.spec.feedback_from.as_deref().and_then(|name| output_of(observed, name)),
        agent: agent(&run.spec.agent),
        model: run.spec.model.clone(),
        max_turns: run.spec.max_turns.and_then(|turns| u32::try_from(turns).ok()),
        test_command: task.spec.test.as_ref().and_then(|test| test.command.clone()),
        issue: issue(&task.spec.source),
        unverified: run.step == StepName::PullRequest && progress::unverified(observed),
    }
}

fn issue(source: &TaskSource) -> Option<IssueRef> {
    let github = source.github.as_ref().filter(|_| source.type_ == SourceType::GithubIssue)?;
    Some(IssueRef {
        owner: github.owner.clone(),
        repo: github.repo.clone(),
        number: github.issue_number,
    })
}

/// The plan as it stands in the last plan run that ended well, or in the task's status.
fn plan(observed: &Observed) -> Option<String> {
    observed
        .runs
        .iter()
        .filter(|run| run.step == StepName::Plan)
        .filter(|run| run.phase == agent_operator::domain::RunPhase::Succeeded)
        .filter_map(|run| run.status.output.clone())
        .next_back()
        .or_else(|| observed.task.status.plan.as_ref().map(|plan| plan.text.clone()))
}

fn output_of(observed: &Observed, name: &str) -> Option<String> {
    observed.runs.iter().find(|run| run.run.name == name)?.status.output.clone()
}

fn agent(spec: &AgentSpec) -> AgentKind {
    match spec.type_ {
        AgentType::ClaudeCode => AgentKind::ClaudeCode,
        AgentType::Command => {
            AgentKind::Command { command: spec.command.clone().unwrap_or_default() }
        }
    }
}

fn sandbox(spec: &ResolvedSandbox) -> SandboxPolicy {
    SandboxPolicy {
        // Anything but the one permissive word is the strict one.
        egress: if spec.egress_policy == "BestEffort" {
            EgressPolicy::BestEffort
        } else {
            EgressPolicy::Required
        },
        require_pids_limit: spec.require_pids_limit,
        allowed_hosts: spec.allowed_hosts.clone(),
    }
}

/// The repository as the task knows it now: the status may lag behind the runs, so it is derived
/// from them in the same way as the next status.
fn repository(observed: &Observed) -> Repository {
    let task = &observed.task;
    let progress = replay(observed);
    let status = Draft::new(observed, &progress, task.created).status;
    let main = status.repositories.into_iter().next().unwrap_or_default();
    let wanted = task.spec.repository.work_branch.clone();
    Repository {
        name: MAIN_REPOSITORY.to_owned(),
        url: task.spec.repository.url.clone(),
        base_branch: task
            .spec
            .repository
            .branch
            .clone()
            .unwrap_or_else(|| DEFAULT_BRANCH.to_owned()),
        work_branch: main
            .work_branch
            .or(wanted)
            .unwrap_or_else(|| names::default_work_branch(&task.name)),
        base_commit: main.base_commit,
        head_commit: main.head_commit,
    }
}
