//! Small types that both resources embed.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rules;
use crate::domain::{self, report};

/// Longest `message` of a status: four times what we write, so that a cut with its mark never meets
/// the API server's refusal.
pub const MESSAGE_CHARS_MAX: usize = 4 * crate::domain::limits::MESSAGE_BYTES_MAX;

/// Most conditions of an object: far above the types there are, so that later ones fit.
pub const CONDITIONS_MAX: usize = 32;

/// Consumption as the gateway counted it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct UsageStatus {
    /// Model requests that were answered.
    #[schemars(range(min = 0))]
    pub turns: i64,
    /// Tokens sent, without cached ones.
    #[schemars(range(min = 0))]
    pub input_tokens: i64,
    /// Tokens received.
    #[schemars(range(min = 0))]
    pub output_tokens: i64,
    /// Tokens read from the provider's prompt cache.
    #[schemars(range(min = 0))]
    pub cache_read_tokens: i64,
    /// Tokens written to the provider's prompt cache.
    #[schemars(range(min = 0))]
    pub cache_write_tokens: i64,
    /// Cost in millionths of a US dollar, by the chart's price table.
    #[serde(rename = "costMicroUSD")]
    #[schemars(range(min = 0))]
    pub cost_micro_usd: i64,
}

impl From<domain::Usage> for UsageStatus {
    fn from(usage: domain::Usage) -> Self {
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        Self {
            turns: signed(usage.turns),
            input_tokens: signed(usage.input_tokens),
            output_tokens: signed(usage.output_tokens),
            cache_read_tokens: signed(usage.cache_read_tokens),
            cache_write_tokens: signed(usage.cache_write_tokens),
            cost_micro_usd: signed(usage.cost_micro_usd),
        }
    }
}

impl From<UsageStatus> for domain::Usage {
    fn from(usage: UsageStatus) -> Self {
        let unsigned = |n: i64| u64::try_from(n).unwrap_or(0);
        Self {
            turns: unsigned(usage.turns),
            input_tokens: unsigned(usage.input_tokens),
            output_tokens: unsigned(usage.output_tokens),
            cache_read_tokens: unsigned(usage.cache_read_tokens),
            cache_write_tokens: unsigned(usage.cache_write_tokens),
            cost_micro_usd: unsigned(usage.cost_micro_usd),
        }
    }
}

/// A pull request at the forge.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PullRequestStatus {
    /// Web address.
    #[schemars(length(max = 2048))]
    pub url: String,
    /// Number within the repository.
    #[schemars(range(min = 0))]
    pub number: i64,
}

impl From<report::PullRequest> for PullRequestStatus {
    fn from(pull: report::PullRequest) -> Self {
        Self { url: pull.url, number: pull.number }
    }
}

/// A condition, in the form of `metav1.Condition`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Type of the condition in CamelCase.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 316))]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    #[schemars(length(max = 16), regex(pattern = "^(True|False|Unknown)$"))]
    pub status: String,
    /// Generation of the spec that the condition speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// When the status last changed.
    pub last_transition_time: jiff::Timestamp,
    /// CamelCase word for programs.
    #[schemars(length(min = 1, max = 1024))]
    pub reason: String,
    /// Sentence for people.
    #[schemars(length(max = 32_768))]
    pub message: String,
}

/// A pod toleration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("!has(self.operator) || self.operator != 'Exists' || !has(self.value) || self.value == ''").message("must have no value with operator Exists; remove the value or use operator Equal"),
    validation = Rule::new("(has(self.key) && self.key != '') || (has(self.operator) && self.operator == 'Exists')").message("must name the key of a taint; without one, operator Exists tolerates every taint"),
    validation = Rule::new("!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')").message("must have effect NoExecute when tolerationSeconds is set; set the effect or remove tolerationSeconds")
)]
#[serde(rename_all = "camelCase")]
pub struct TolerationSpec {
    /// Taint key; left out, with operator `Exists`, it tolerates every key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 316))]
    #[x_kube(validation = Rule::new(rules::TAINT_KEY).message("must be the key of a taint, such as gpu or example.com/gpu"))]
    pub key: Option<String>,
    /// `Exists` or `Equal` (the default).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("enum" = ["Exists", "Equal"]))]
    pub operator: Option<String>,
    /// Taint value for `Equal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    #[x_kube(validation = Rule::new(rules::LABEL_VALUE).message("must be the value of a taint, of letters, digits and . _ -"))]
    pub value: Option<String>,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`; left out: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), extend("enum" = ["NoSchedule", "PreferNoSchedule", "NoExecute"]))]
    pub effect: Option<String>,
    /// For `NoExecute`: how many seconds the pod stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1, max = 31_536_000))]
    pub toleration_seconds: Option<i64>,
}

/// Name of a Secret in the task's namespace, and one of its keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new(rules::OBJECT_NAME).message("must be the name of a Secret, of lower-case letters, digits, - and ."))]
    pub name: String,
    /// Key within the Secret.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new(rules::SECRET_KEY).message("must be a key of the Secret, of letters, digits and . _ -"))]
    pub key: String,
}

/// Name of an image pull Secret in the task's namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocalSecretRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new(rules::OBJECT_NAME).message("must be the name of a Secret, of lower-case letters, digits, - and ."))]
    pub name: String,
}
