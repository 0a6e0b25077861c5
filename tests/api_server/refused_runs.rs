//! Wrong runs. Only the controller makes them, so these sentences are for its developers.

use serde_json::json;

use super::refused_tasks::{Row, row};

/// Changes of the sample run that the API server must refuse.
pub(crate) fn runs() -> Vec<Row> {
    vec![
        row!("/spec/taskRef" = null => "spec.taskRef", "Required"),
        row!("/spec/taskRef/uid" = "" => "spec.taskRef.uid", "at least 1 chars"),
        row!("/spec/step" = "deploy" => "spec.step", "should match"),
        row!("/spec/attempt" = 0 => "spec.attempt", "greater than or equal to 1"),
        row!("/spec/attempt" = 2_147_483_648_i64 => "spec.attempt", "format int32"),
        row!("/spec/nodeName" = "" => "spec.nodeName", "at least 1 chars"),
        row!("/spec/epoch" = (-1) => "spec.epoch", "greater than or equal to 0"),
        row!("/spec/timeout" = "1y" => "spec.timeout", "must be a duration"),
        row!("/spec/timeout" = "0s" => "spec.timeout", "must be a duration"),
        row!("/spec/image" = "" => "spec.image", "at least 1 chars"),
        row!("/spec/resources/cpu" = "abc" => "spec.resources.cpu", "must be a Kubernetes quantity"),
        row!("/spec/resources/memory" = null => "spec.resources.memory", "Required"),
        row!("/spec/agent/type" = "Robot" => "spec.agent.type", "supported values"),
        row!("/spec/maxTurns" = 0 => "spec.maxTurns", "greater than or equal to 1"),
        row!("/spec/tolerations" = [{"effect": "Never", "key": "a"}] => "spec.tolerations[0].effect", "supported values"),
        row!("/spec/prompt" = "the prompt is the task's" => "spec.prompt", "unknown field"),
        row!("/metadata/name" = "Upper" => "metadata.name", "lowercase RFC 1123"),
    ]
}
