//! Chart values that the controller resolves tasks against.
//!
//! Read once at the start from the file that the chart mounts. Unknown fields are refused: a value
//! that is silently ignored looks set.

use std::{collections::BTreeMap, time::Duration};

use agent_operator::{
    crd::{
        coding_task::EgressPolicySpec,
        shared::{LocalSecretRef, TolerationSpec},
    },
    domain::{GoDuration, limits},
};
use serde::Deserialize;

/// Slack beyond a node's own deadline before the controller calls a silent step overdue: covers the
/// grace, the container's removal and one reconnect of the session.
pub const OVERRUN_SLACK: Duration = Duration::from_mins(1);

/// Why settings are refused.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Not YAML, an unknown field, or a value of the wrong type.
    #[error("parse settings: {0}")]
    Parse(String),
    /// A value that cannot work.
    #[error("check settings: {field}: {problem}")]
    Check {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

/// Everything that a task may leave out, and the controller's own limits.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// Namespaces in which tasks are accepted.
    pub task_namespaces: Vec<String>,
    /// The agent pod.
    pub agent: AgentDefaults,
    /// Retries of the implement-and-test loop.
    pub max_retries: u32,
    /// Longest time of a step.
    pub step_timeout: GoDuration,
    /// Longest time of a task.
    pub task_timeout: GoDuration,
    /// Longest time from assignment to an open start gate.
    pub start_deadline: GoDuration,
    /// Time between the order to stop and SIGKILL.
    pub grace: GoDuration,
    /// Silence after which a node counts as lost.
    pub node_lease: GoDuration,
    /// Infrastructure retries of a task.
    pub infrastructure_retries: u32,
    /// How long a task waits for an unavailable model provider or forge.
    pub provider_budget: GoDuration,
    /// How long pods of a finished task are kept for `kubectl logs`.
    pub task_end_pod_ttl: GoDuration,
    /// Hosts to which every Secret may be sent; others need the Secret's annotation.
    pub allowed_secret_hosts: Vec<String>,
    /// Hosts of the gateway's upstream map. An administrator configured them, so Secrets may go
    /// there as well.
    pub upstream_hosts: Vec<String>,
    /// Host that the model's key is for.
    pub llm_host: String,
    /// Isolation of tasks that ask for none.
    pub sandbox: SandboxDefaults,
    /// Node selector of tasks that have none.
    pub node_selector: BTreeMap<String, String>,
    /// Tolerations of tasks that have none.
    pub tolerations: Vec<TolerationSpec>,
}

/// Defaults of the agent pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AgentDefaults {
    /// Image.
    pub image: String,
    /// Secrets with which it is pulled.
    pub image_pull_secrets: Vec<LocalSecretRef>,
    /// Requests of every agent pod.
    pub requests: Requests,
    /// Limits of tasks that name none.
    pub limits: Limits,
}

/// Requests of the agent pod.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Requests {
    /// CPU, a quantity.
    pub cpu: String,
    /// Memory, a quantity.
    pub memory: String,
}

/// Limits of the agent pod.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// CPU, a quantity.
    pub cpu: String,
    /// Memory, a quantity.
    pub memory: String,
    /// Workspace, a quantity.
    pub storage: String,
}

/// Isolation by default.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SandboxDefaults {
    /// RuntimeClass; none is the cluster's default.
    pub runtime_class_name: Option<String>,
    /// Egress enforcement.
    pub egress_policy: EgressPolicySpec,
    /// Refuse to start without a pids limit.
    pub require_pids_limit: bool,
}

impl Default for Settings {
    fn default() -> Self {
        let seconds = |duration: Duration| GoDuration::from_secs(duration.as_secs());
        Self {
            task_namespaces: vec!["agent-system".to_owned()],
            agent: AgentDefaults::default(),
            max_retries: 3,
            step_timeout: GoDuration::from_secs(30 * 60),
            task_timeout: GoDuration::from_secs(6 * 3600),
            start_deadline: seconds(limits::START_DEADLINE),
            grace: seconds(limits::GRACE),
            node_lease: seconds(limits::NODE_LEASE),
            infrastructure_retries: limits::INFRASTRUCTURE_RETRIES,
            provider_budget: seconds(limits::PROVIDER_BUDGET),
            task_end_pod_ttl: GoDuration::from_secs(600),
            allowed_secret_hosts: vec!["github.com".to_owned(), "api.anthropic.com".to_owned()],
            upstream_hosts: Vec::new(),
            llm_host: "api.anthropic.com".to_owned(),
            sandbox: SandboxDefaults::default(),
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
        }
    }
}

impl Default for Requests {
    fn default() -> Self {
        Self { cpu: "500m".to_owned(), memory: "1Gi".to_owned() }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { cpu: "4".to_owned(), memory: "8Gi".to_owned(), storage: "20Gi".to_owned() }
    }
}

impl Default for SandboxDefaults {
    fn default() -> Self {
        Self {
            runtime_class_name: None,
            egress_policy: EgressPolicySpec::Required,
            require_pids_limit: false,
        }
    }
}

impl Settings {
    /// Parses and checks a settings file, YAML or JSON.
    pub fn parse(text: &str) -> Result<Self, SettingsError> {
        let settings: Self = serde_saphyr::from_str(text)
            .map_err(|error| SettingsError::Parse(error.to_string()))?;
        settings.check()?;
        Ok(settings)
    }

    /// Whether tasks are accepted in `namespace`.
    pub fn enables(&self, namespace: &str) -> bool {
        self.task_namespaces.iter().any(|enabled| enabled == namespace)
    }

    /// Whether the chart says which server stands behind `host`.
    pub fn has_upstream(&self, host: &str) -> bool {
        self.upstream_hosts.iter().any(|upstream| upstream.eq_ignore_ascii_case(host))
    }

    /// Whether every Secret may be sent to `host`.
    pub fn allows_secret_host(&self, host: &str) -> bool {
        let mut listed = self.allowed_secret_hosts.iter();
        self.has_upstream(host) || listed.any(|allowed| allowed.eq_ignore_ascii_case(host))
    }

    fn check(&self) -> Result<(), SettingsError> {
        let refuse =
            |field: &'static str, problem: String| Err(SettingsError::Check { field, problem });
        if self.agent.image.is_empty() {
            return refuse("agent.image", "must name the default agent image".to_owned());
        }
        if self.task_namespaces.is_empty() {
            return refuse("taskNamespaces", "must name at least one namespace".to_owned());
        }
        if self.llm_host.is_empty() || self.llm_host.contains('/') {
            return refuse("llmHost", "must be a host name, not a URL".to_owned());
        }
        let quantities = [
            ("agent.requests.cpu", &self.agent.requests.cpu),
            ("agent.requests.memory", &self.agent.requests.memory),
            ("agent.limits.cpu", &self.agent.limits.cpu),
            ("agent.limits.memory", &self.agent.limits.memory),
            ("agent.limits.storage", &self.agent.limits.storage),
        ];
        for (field, text) in quantities {
            if quantity_milli(text).is_none_or(|value| value == 0) {
                return refuse(field, format!("{text:?} is not a quantity greater than zero"));
            }
        }
        Ok(())
    }
}

/// A quantity in thousandths of its unit, rounded up; none when it is not a positive quantity.
pub fn quantity_milli(text: &str) -> Option<u64> {
    // A lone suffix parses as zero, and numbers pass through f64: both are caught here.
    if !text.starts_with(|c: char| c.is_ascii_digit() || c == '+' || c == '.') {
        return None;
    }
    let parsed = kube_quantity::ParsedQuantity::try_from(text).ok()?;
    let value = (parsed.to_bytes_f64()? * 1000.0).ceil();
    // Above 2^63 the cast would saturate; no node has that much of anything.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "finite, not negative and below 2^63"
    )]
    (value.is_finite() && (0.0..9.2e18).contains(&value)).then_some(value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_lacks_only_the_image() {
        let settings = Settings::parse("agent: {image: registry.local/agent:1}").unwrap();
        assert_eq!(settings.max_retries, 3);
        assert_eq!(settings.task_end_pod_ttl, GoDuration::from_secs(600));
        assert!(settings.enables("agent-system") && !settings.enables("default"));
    }

    #[test]
    fn an_unknown_field_is_refused_by_name() {
        let error = Settings::parse("agent: {image: x, imagee: y}").unwrap_err();
        assert!(error.to_string().contains("imagee"), "{error}");
    }

    #[test]
    fn values_that_cannot_work_are_refused_with_their_field() {
        for (text, field) in [
            ("agent: {image: ''}", "agent.image"),
            ("agent: {image: x, requests: {cpu: abc}}", "agent.requests.cpu"),
            ("agent: {image: x, requests: {cpu: Gi}}", "agent.requests.cpu"),
            ("agent: {image: x, limits: {memory: '-1'}}", "agent.limits.memory"),
            ("{agent: {image: x}, taskNamespaces: []}", "taskNamespaces"),
            ("{agent: {image: x}, llmHost: 'https://x/'}", "llmHost"),
        ] {
            let error = Settings::parse(text).unwrap_err();
            assert!(error.to_string().contains(field), "{text}: {error}");
        }
        assert!(Settings::parse("{agent: {image: x}, stepTimeout: 1y}").is_err());
    }

    #[test]
    fn quantities_are_read_in_thousandths_and_rounded_up() {
        for (text, milli) in [
            ("100m", 100),
            ("1", 1000),
            ("1.5", 1500),
            ("3", 3000),
            ("256Mi", 256 * 1024 * 1024 * 1000),
            ("1.5Gi", 1536 * 1024 * 1024 * 1000),
        ] {
            assert_eq!(quantity_milli(text), Some(milli), "{text}");
        }
        for text in ["", "abc", "Gi", "-1", "NaN", "inf"] {
            assert_eq!(quantity_milli(text), None, "{text}");
        }
        assert_eq!(quantity_milli("1000000000000E"), None);
    }
}
