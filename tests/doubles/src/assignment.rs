//! An assignment as the controller sends it, in JSON: this crate knows none of the project's types.

use serde_json::{Value, json};

/// The assignment of a first step, with `changes` joined into it: objects are joined, everything else is replaced.
pub fn assignment(changes: &Value) -> Value {
    let mut assignment = json!({
        "run": {"namespace": "agents", "name": "x-plan-1-0a1b2c3d", "uid": "run-uid"},
        "task": {"name": "x", "uid": "task-uid"},
        "step": "plan", "attempt": 1, "epoch": 1, "node": "node-a",
        "timeoutSeconds": 60, "startDeadlineSeconds": 30, "graceSeconds": 10,
        "pod": {
            "image": "registry.example/agent:1", "imagePullSecrets": [],
            "cpuLimit": "4", "memoryLimit": "8Gi", "storageLimit": "20Gi",
            "cpuRequest": "100m", "memoryRequest": "256Mi",
            "nodeSelector": {}, "tolerations": [], "runtimeClassName": null,
        },
        "work": {
            "prompt": "p", "plan": null, "feedback": null, "agent": {"type": "claudeCode"},
            "model": null, "maxTurns": null, "testCommand": null,
        },
        "repository": {
            "name": "main", "url": "https://github.com/o/r.git", "baseBranch": "main",
            "workBranch": "ai/x", "baseCommit": null, "headCommit": null,
        },
        "sandbox": {}, "budget": null,
    });
    join(&mut assignment, changes);
    assignment
}

fn join(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                join(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_joined_and_the_rest_stays() {
        let changed = assignment(&json!({"pod": {"nodeSelector": {"pool": "agents"}}, "epoch": 3}));
        assert_eq!(changed["pod"]["nodeSelector"], json!({"pool": "agents"}));
        assert_eq!((&changed["pod"]["cpuLimit"], &changed["epoch"]), (&json!("4"), &json!(3)));
    }
}
