//! Task, then chart: what a run is made of. The result is recorded in its spec.

use agent_operator::{
    crd::{
        AgentRunSpec, QuantityText,
        agent_run::{ResolvedResources, ResolvedSandbox, TaskReference},
        coding_task::{AgentSpec, AgentType, EgressPolicySpec, ModelSpec},
        shared::{LocalSecretRef, TolerationSpec},
    },
    domain::{GoDuration, NodeName, StepName},
};
use std::collections::BTreeMap;

use super::{Observed, progress::Start};

/// The node selector that holds for the task.
pub fn node_selector(observed: &Observed) -> &BTreeMap<String, String> {
    let own = &observed.task.spec.node_selector;
    if own.is_empty() { &observed.settings.node_selector } else { own }
}

/// The tolerations that hold for the task.
pub fn tolerations(observed: &Observed) -> &[TolerationSpec] {
    let own = &observed.task.spec.tolerations;
    if own.is_empty() { &observed.settings.tolerations } else { own }
}

/// The spec of a run. The epoch is set when it is created.
pub fn run_spec(observed: &Observed, start: &Start, node: &NodeName) -> AgentRunSpec {
    let (task, settings) = (&observed.task, &observed.settings);
    let model = task.spec.model.as_ref();
    AgentRunSpec {
        task_ref: TaskReference { name: task.name.clone(), uid: task.uid.to_string() },
        step: start.step.as_str().to_owned(),
        attempt: i32::try_from(start.attempt.0).unwrap_or(i32::MAX),
        node_name: node.to_string(),
        epoch: 0,
        timeout: GoDuration::from_secs(observed.step_timeout().as_secs()).to_string(),
        image: task.spec.agent_image.clone().unwrap_or_else(|| settings.agent.image.clone()),
        image_pull_secrets: pull_secrets(observed),
        resources: resources(observed),
        agent: task
            .spec
            .agent
            .clone()
            .unwrap_or(AgentSpec { type_: AgentType::ClaudeCode, command: None }),
        model: model.and_then(|model| model_name(model, start.step)),
        max_turns: model.and_then(|model| max_turns(model, start.step)),
        node_selector: node_selector(observed).clone(),
        tolerations: tolerations(observed).to_vec(),
        sandbox: sandbox(observed),
        feedback_from: start.feedback_from.clone(),
        prepared: false,
    }
}

/// The task's own and the chart's: those are for the runner image, which comes from the chart as well.
fn pull_secrets(observed: &Observed) -> Vec<LocalSecretRef> {
    let mut secrets = observed.task.spec.image_pull_secrets.clone();
    for secret in &observed.settings.agent.image_pull_secrets {
        if !secrets.contains(secret) {
            secrets.push(secret.clone());
        }
    }
    secrets
}

fn resources(observed: &Observed) -> ResolvedResources {
    let own = observed.task.spec.resources.clone().unwrap_or_default();
    let agent = &observed.settings.agent;
    let limit = |own: Option<QuantityText>, default: &str| {
        own.map_or_else(|| default.to_owned(), |quantity| quantity.0)
    };
    let cpu = limit(own.cpu, &agent.limits.cpu);
    let memory = limit(own.memory, &agent.limits.memory);
    ResolvedResources {
        cpu_request: lower(&agent.requests.cpu, &cpu),
        memory_request: lower(&agent.requests.memory, &memory),
        storage: limit(own.storage, &agent.limits.storage),
        cpu,
        memory,
    }
}

/// The request, or the limit where that is lower: a pod whose request exceeds its limit is refused.
fn lower(request: &str, limit: &str) -> String {
    let milli = crate::settings::quantity_milli;
    match (milli(request), milli(limit)) {
        (Some(wanted), Some(most)) if wanted > most => limit.to_owned(),
        _ => request.to_owned(),
    }
}

fn sandbox(observed: &Observed) -> ResolvedSandbox {
    let own = observed.task.spec.sandbox.clone().unwrap_or_default();
    let default = &observed.settings.sandbox;
    let egress = match own.egress_policy.unwrap_or(default.egress_policy) {
        EgressPolicySpec::Required => "Required",
        EgressPolicySpec::BestEffort => "BestEffort",
    };
    ResolvedSandbox {
        runtime_class_name: own.runtime_class_name.or_else(|| default.runtime_class_name.clone()),
        egress_policy: egress.to_owned(),
        require_pids_limit: own.require_pids_limit.unwrap_or(default.require_pids_limit),
        allowed_hosts: own.allowed_hosts,
    }
}

fn model_name(model: &ModelSpec, step: StepName) -> Option<String> {
    let own = match step {
        StepName::Plan => &model.plan,
        StepName::Implement => &model.implement,
        StepName::Test => return None,
        StepName::PullRequest => &model.pull_request,
    };
    own.clone().or_else(|| model.default.clone())
}

fn max_turns(model: &ModelSpec, step: StepName) -> Option<i32> {
    let own = match step {
        StepName::Plan => model.plan_max_turns,
        StepName::Implement => model.implement_max_turns,
        StepName::Test => return None,
        StepName::PullRequest => model.pull_request_max_turns,
    };
    own.or(model.max_turns)
}
