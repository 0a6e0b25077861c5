//! Assignments and their parts.

use std::time::Duration;

use crate::{
    domain::assignment::{
        AgentKind, Assignment, EgressPolicy, IssueRef, PodRequest, Repository, SandboxPolicy,
        TaskBudget, Toleration, Work,
    },
    proto::v1,
};

use super::{
    ConvertError, Problem, attempt, epoch, list, name, required, text, whole_seconds, wire_duration,
};

impl TryFrom<v1::Assignment> for Assignment {
    type Error = ConvertError;

    fn try_from(wire: v1::Assignment) -> Result<Self, Self::Error> {
        Ok(Self {
            run: required("run", wire.run)?,
            task: required("task", wire.task)?,
            step: name("step", &wire.step)?,
            attempt: attempt("attempt", wire.attempt)?,
            epoch: epoch("epoch", wire.epoch)?,
            node: text("node_name", wire.node_name)?.into(),
            timeout_seconds: whole_seconds("timeout", wire.timeout)?,
            start_deadline_seconds: whole_seconds("start_deadline", wire.start_deadline)?,
            grace_seconds: whole_seconds("grace", wire.grace)?,
            pod: required("pod", wire.pod)?,
            work: required("work", wire.work)?,
            repository: single_repository(wire.repositories)?,
            sandbox: required("sandbox", wire.sandbox)?,
            budget: wire.budget.map(TaskBudget::from),
            held: wire.held,
        })
    }
}

/// The wire is ready for several repositories, this version works on one.
fn single_repository(wire: Vec<v1::Repository>) -> Result<Repository, ConvertError> {
    let mut repositories: Vec<Repository> = list("repositories", wire)?;
    match (repositories.pop(), repositories.len()) {
        (Some(only), 0) => Ok(only),
        (last, others) => Err(ConvertError {
            field: "repositories".to_owned(),
            problem: Problem::Count { expected: 1, found: others + usize::from(last.is_some()) },
        }),
    }
}

impl From<&Assignment> for v1::Assignment {
    fn from(assignment: &Assignment) -> Self {
        let seconds = |count| Some(wire_duration(Duration::from_secs(count)));
        Self {
            run: Some((&assignment.run).into()),
            task: Some((&assignment.task).into()),
            step: assignment.step.as_str().to_owned(),
            attempt: assignment.attempt.0,
            epoch: assignment.epoch.0,
            node_name: assignment.node.as_str().to_owned(),
            timeout: seconds(assignment.timeout_seconds),
            start_deadline: seconds(assignment.start_deadline_seconds),
            grace: seconds(assignment.grace_seconds),
            pod: Some((&assignment.pod).into()),
            work: Some((&assignment.work).into()),
            repositories: vec![(&assignment.repository).into()],
            sandbox: Some((&assignment.sandbox).into()),
            budget: assignment.budget.as_ref().map(Into::into),
            held: assignment.held,
        }
    }
}

impl TryFrom<v1::PodRequest> for PodRequest {
    type Error = ConvertError;

    fn try_from(wire: v1::PodRequest) -> Result<Self, Self::Error> {
        Ok(Self {
            image: text("image", wire.image)?,
            image_pull_secrets: wire.image_pull_secrets,
            cpu_limit: text("cpu_limit", wire.cpu_limit)?,
            memory_limit: text("memory_limit", wire.memory_limit)?,
            storage_limit: text("storage_limit", wire.storage_limit)?,
            cpu_request: text("cpu_request", wire.cpu_request)?,
            memory_request: text("memory_request", wire.memory_request)?,
            node_selector: wire.node_selector.into_iter().collect(),
            tolerations: wire.tolerations.into_iter().map(Into::into).collect(),
            runtime_class_name: (!wire.runtime_class_name.is_empty())
                .then_some(wire.runtime_class_name),
        })
    }
}

impl From<&PodRequest> for v1::PodRequest {
    fn from(pod: &PodRequest) -> Self {
        Self {
            image: pod.image.clone(),
            image_pull_secrets: pod.image_pull_secrets.clone(),
            cpu_limit: pod.cpu_limit.clone(),
            memory_limit: pod.memory_limit.clone(),
            storage_limit: pod.storage_limit.clone(),
            cpu_request: pod.cpu_request.clone(),
            memory_request: pod.memory_request.clone(),
            node_selector: pod.node_selector.clone().into_iter().collect(),
            tolerations: pod.tolerations.iter().map(Into::into).collect(),
            runtime_class_name: pod.runtime_class_name.clone().unwrap_or_default(),
        }
    }
}

// The core API's own rules hold for tolerations; empty means unset there as well.
impl From<v1::Toleration> for Toleration {
    fn from(wire: v1::Toleration) -> Self {
        Self {
            key: wire.key,
            operator: wire.operator,
            value: wire.value,
            effect: wire.effect,
            toleration_seconds: wire.toleration_seconds,
        }
    }
}

impl From<&Toleration> for v1::Toleration {
    fn from(toleration: &Toleration) -> Self {
        Self {
            key: toleration.key.clone(),
            operator: toleration.operator.clone(),
            value: toleration.value.clone(),
            effect: toleration.effect.clone(),
            toleration_seconds: toleration.toleration_seconds,
        }
    }
}

impl TryFrom<v1::Work> for Work {
    type Error = ConvertError;

    fn try_from(wire: v1::Work) -> Result<Self, Self::Error> {
        Ok(Self {
            prompt: text("prompt", wire.prompt)?,
            plan: wire.plan,
            feedback: wire.feedback,
            agent: required("agent", wire.agent)?,
            model: wire.model,
            max_turns: wire.max_turns,
            test_command: (!wire.test_command.is_empty()).then_some(wire.test_command),
            issue: wire.issue.map(TryInto::try_into).transpose()?,
            unverified: wire.unverified,
        })
    }
}

impl From<&Work> for v1::Work {
    fn from(work: &Work) -> Self {
        Self {
            prompt: work.prompt.clone(),
            plan: work.plan.clone(),
            feedback: work.feedback.clone(),
            agent: Some((&work.agent).into()),
            model: work.model.clone(),
            max_turns: work.max_turns,
            test_command: work.test_command.clone().unwrap_or_default(),
            issue: work.issue.as_ref().map(Into::into),
            unverified: work.unverified,
        }
    }
}

impl TryFrom<v1::Issue> for IssueRef {
    type Error = ConvertError;

    fn try_from(wire: v1::Issue) -> Result<Self, Self::Error> {
        Ok(Self {
            owner: text("owner", wire.owner)?,
            repo: text("repo", wire.repo)?,
            number: wire.number,
        })
    }
}

impl From<&IssueRef> for v1::Issue {
    fn from(issue: &IssueRef) -> Self {
        Self { owner: issue.owner.clone(), repo: issue.repo.clone(), number: issue.number }
    }
}

const CLAUDE_CODE: &str = "ClaudeCode";
const COMMAND: &str = "Command";

impl TryFrom<v1::Agent> for AgentKind {
    type Error = ConvertError;

    fn try_from(wire: v1::Agent) -> Result<Self, Self::Error> {
        match wire.r#type.as_str() {
            CLAUDE_CODE => Ok(Self::ClaudeCode),
            COMMAND if wire.command.is_empty() => Err(ConvertError::missing("command")),
            COMMAND => Ok(Self::Command { command: wire.command }),
            "" => Err(ConvertError::missing("type")),
            other => Err(ConvertError::unknown("type", other)),
        }
    }
}

impl From<&AgentKind> for v1::Agent {
    fn from(agent: &AgentKind) -> Self {
        match agent {
            AgentKind::ClaudeCode => Self { r#type: CLAUDE_CODE.to_owned(), command: Vec::new() },
            AgentKind::Command { command } => {
                Self { r#type: COMMAND.to_owned(), command: command.clone() }
            }
        }
    }
}

impl TryFrom<v1::Repository> for Repository {
    type Error = ConvertError;

    fn try_from(wire: v1::Repository) -> Result<Self, Self::Error> {
        Ok(Self {
            name: text("name", wire.name)?,
            url: text("url", wire.url)?,
            base_branch: text("base_branch", wire.base_branch)?,
            work_branch: text("work_branch", wire.work_branch)?,
            base_commit: wire.base_commit,
            head_commit: wire.head_commit,
        })
    }
}

impl From<&Repository> for v1::Repository {
    fn from(repository: &Repository) -> Self {
        Self {
            name: repository.name.clone(),
            url: repository.url.clone(),
            base_branch: repository.base_branch.clone(),
            work_branch: repository.work_branch.clone(),
            base_commit: repository.base_commit.clone(),
            head_commit: repository.head_commit.clone(),
        }
    }
}

const REQUIRED: &str = "Required";
const BEST_EFFORT: &str = "BestEffort";

impl TryFrom<v1::SandboxPolicy> for SandboxPolicy {
    type Error = ConvertError;

    fn try_from(wire: v1::SandboxPolicy) -> Result<Self, Self::Error> {
        let egress = match wire.egress_policy.as_str() {
            REQUIRED => EgressPolicy::Required,
            BEST_EFFORT => EgressPolicy::BestEffort,
            "" => return Err(ConvertError::missing("egress_policy")),
            other => return Err(ConvertError::unknown("egress_policy", other)),
        };
        Ok(Self {
            egress,
            require_pids_limit: wire.require_pids_limit,
            allowed_hosts: wire.allowed_hosts,
        })
    }
}

impl From<&SandboxPolicy> for v1::SandboxPolicy {
    fn from(sandbox: &SandboxPolicy) -> Self {
        let egress_policy = match sandbox.egress {
            EgressPolicy::Required => REQUIRED,
            EgressPolicy::BestEffort => BEST_EFFORT,
        };
        Self {
            egress_policy: egress_policy.to_owned(),
            require_pids_limit: sandbox.require_pids_limit,
            allowed_hosts: sandbox.allowed_hosts.clone(),
        }
    }
}

impl From<v1::TaskBudget> for TaskBudget {
    fn from(wire: v1::TaskBudget) -> Self {
        Self { tokens: wire.tokens, cost_micro_usd: wire.cost_micro_usd }
    }
}

impl From<&TaskBudget> for v1::TaskBudget {
    fn from(budget: &TaskBudget) -> Self {
        Self { tokens: budget.tokens, cost_micro_usd: budget.cost_micro_usd }
    }
}
