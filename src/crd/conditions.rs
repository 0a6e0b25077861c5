//! Condition types and reasons: what programs read. The phase is a summary for people.
//!
//! [`waiting_reasons`] is the one table of everything that a task waits for, with its remedy.

use super::shared::Condition;
use crate::domain::preflight::Problem;

/// The task is valid and its namespace is enabled.
pub const ACCEPTED: &str = "Accepted";
/// Everything that can be checked before the first model call holds.
pub const PREFLIGHTED: &str = "Preflighted";
/// The present step has a node.
pub const SCHEDULED: &str = "Scheduled";
/// `spec.suspend` holds the task.
pub const SUSPENDED: &str = "Suspended";
/// The task has ended, well or not.
pub const FINISHED: &str = "Finished";
/// The task has ended well.
pub const SUCCEEDED: &str = "Succeeded";
/// The run's pod runs (on an `AgentRun`). False while something keeps it from starting, with a
/// `StartFault` as reason; left out where nothing did.
pub const STARTED: &str = "Started";
/// The kubelet's record of an exit differs from the runner's report (on an `AgentRun`).
pub const EXIT_MISMATCH: &str = "ExitMismatch";

/// The condition of that type, if it was ever set.
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Reasons of [`ACCEPTED`] being false.
pub mod accepted {
    /// The namespace is not among the chart's `taskNamespaces`.
    pub const NAMESPACE_NOT_ENABLED: &str = "NamespaceNotEnabled";
    /// A Secret or its key is missing.
    pub const SECRET_MISSING: &str = "SecretMissing";
    /// A Secret may not be sent to the host that the task names.
    pub const HOST_NOT_ALLOWED: &str = "HostNotAllowed";
    /// A field is wrong in a way that the schema cannot see.
    pub const INVALID: &str = "Invalid";
    /// Reason when true.
    pub const ACCEPTED: &str = "Accepted";
}

/// Reasons of [`PREFLIGHTED`]; when false also those of [`Problem`].
pub mod preflighted {
    /// Reason when true.
    pub const PASSED: &str = "Passed";
    /// A node asks the task's upstreams; false until it has the answer.
    pub const CHECKING: &str = "Checking";
    /// The image of the first pod cannot be had or does not run on its node.
    pub const IMAGE_NOT_PULLABLE: &str = "ImageNotPullable";
}

/// Reasons of [`SCHEDULED`] being false.
pub mod scheduled {
    /// No connected node fits.
    pub const NO_CAPACITY: &str = "NoCapacity";
    /// No supervisor is connected.
    pub const NO_NODES: &str = "NoNodes";
    /// The run's node is silent and not fenced.
    pub const NODE_UNKNOWN: &str = "NodeUnknown";
    /// Reason when true.
    pub const ASSIGNED: &str = "Assigned";
}

/// A reason for which a task waits, and what puts it right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitingReason {
    /// Type of the condition that is false.
    pub condition: &'static str,
    /// Its reason.
    pub reason: &'static str,
    /// What it means: a sentence.
    pub meaning: &'static str,
    /// What a person does about it; whatever it is, the task then goes on by itself.
    pub remedy: &'static str,
    /// When the task is looked at again without anybody's doing.
    pub retried: &'static str,
}

/// Pace of refusals, which are read from the cluster itself.
const RETRIED_REFUSAL: &str =
    "looked at again after half the time waited so far, from 5 s to 5 min";
/// Pace of preflights.
const RETRIED_PREFLIGHT: &str = "tried again after 5 s, doubled up to 5 min";
/// What waits for an event needs no pace.
const RETRIED_EVENT: &str = "noticed as it happens, and looked at every 30 s";

/// Everything that a task may wait for, but for its own failures: the reasons of conditions that are
/// false while the task is not over. `taskTimeout` ends each of these waits.
pub fn waiting_reasons() -> Vec<WaitingReason> {
    let accepted = |reason, meaning, remedy| WaitingReason {
        condition: ACCEPTED,
        reason,
        meaning,
        remedy,
        retried: RETRIED_REFUSAL,
    };
    let scheduled = |reason, meaning, remedy| WaitingReason {
        condition: SCHEDULED,
        reason,
        meaning,
        remedy,
        retried: RETRIED_EVENT,
    };
    let mut table = vec![
        accepted(
            accepted::NAMESPACE_NOT_ENABLED,
            "The namespace is not among the chart's taskNamespaces.",
            "create the task in an enabled namespace, or add this one to the chart value taskNamespaces",
        ),
        accepted(
            accepted::SECRET_MISSING,
            "A Secret that the task names, or the key in it, is missing or holds no token.",
            "create the Secret or add the key",
        ),
        accepted(
            accepted::HOST_NOT_ALLOWED,
            "The Secret may not be sent to the host of the repository or of the model API, or not over plain http.",
            "let the Secret's owner annotate it with agents.wearn.dev/allowed-hosts, or add the host to the chart's list; for plain http write the URL with https, add the host to the chart's upstreams, or spell http://host in the annotation",
        ),
        accepted(
            accepted::INVALID,
            "A field is wrong in a way that the schema cannot see.",
            "correct the field that the message names, or create the task anew where it cannot be changed",
        ),
        scheduled(
            scheduled::NO_CAPACITY,
            "No connected node fits the task.",
            "add a node, free one, or change nodeSelector, tolerations or resources",
        ),
        scheduled(
            scheduled::NO_NODES,
            "No supervisor is connected.",
            "look at the DaemonSet of the supervisors",
        ),
        scheduled(
            scheduled::NODE_UNKNOWN,
            "The node of the live step is silent.",
            "bring the node back, or fence it: delete its Node object, taint it node.kubernetes.io/out-of-service, or annotate it with agents.wearn.dev/fence",
        ),
    ];
    table.push(WaitingReason {
        condition: PREFLIGHTED,
        reason: preflighted::IMAGE_NOT_PULLABLE,
        meaning: "The image of the first pod cannot be had or does not run on its node.",
        remedy: "correct the image or its pull secret, or push the image for the node's architecture",
        retried: "placed again after 2 s, doubled up to 5 min",
    });
    table.extend(Problem::ALL.iter().map(|problem| WaitingReason {
        condition: PREFLIGHTED,
        reason: problem.as_str(),
        meaning: problem.meaning(),
        remedy: problem.remedy(),
        retried: RETRIED_PREFLIGHT,
    }));
    table
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_reason_to_wait_is_there_once_and_says_what_to_do() {
        let table = waiting_reasons();
        let mut seen = BTreeSet::new();
        for entry in &table {
            assert!(seen.insert((entry.condition, entry.reason)), "{} twice", entry.reason);
            let camel = entry.reason.chars().all(|c| c.is_ascii_alphanumeric())
                && entry.reason.starts_with(|c: char| c.is_ascii_uppercase());
            assert!(camel, "{} is no CamelCase word", entry.reason);
            assert!(entry.meaning.ends_with('.') && entry.meaning.len() > 10, "{}", entry.reason);
            let clause = entry.remedy.starts_with(|c: char| c.is_ascii_lowercase())
                && entry.remedy.contains(' ')
                && !entry.remedy.ends_with('.');
            assert!(clause, "the remedy of {} follows a semicolon", entry.reason);
            assert!(!entry.retried.is_empty(), "{}", entry.reason);
        }
        for problem in Problem::ALL {
            assert!(seen.contains(&(PREFLIGHTED, problem.as_str())), "{problem}");
        }
    }

    #[test]
    fn every_reason_constant_of_a_false_condition_is_in_the_table() {
        let source = include_str!("conditions.rs");
        let table: BTreeSet<_> = waiting_reasons().iter().map(|entry| entry.reason).collect();
        // What holds when the condition is true, or while nothing is known yet.
        let without_remedy = ["Accepted", "Assigned", "Passed", "Checking"];
        let constants = source.lines().filter_map(|line| {
            let value = line.strip_prefix("    pub const ")?.split('"').nth(1)?;
            (!without_remedy.contains(&value)).then_some(value)
        });
        let mut count = 0;
        for reason in constants {
            assert!(table.contains(reason), "{reason} has no remedy");
            count += 1;
        }
        assert!(count >= 8, "{count} constants were found");
    }
}
