//! Names of the objects we create: deterministic, length-safe, and unique by a hash of what they
//! stand for, so that a repeated create hits the same name (409) and never a second object.

use sha2::{Digest, Sha256};

use super::{
    ids::{Attempt, RunUid, TaskUid},
    limits::LABEL_BYTES_MAX,
    step::StepName,
};

/// API group of the custom resources, and prefix of labels, annotations and finalizers.
pub const GROUP: &str = "agents.wearn.dev";
/// Label with the task's name (hashed form when too long).
pub const LABEL_TASK: &str = "agents.wearn.dev/task";
/// Label with the run's name.
pub const LABEL_RUN: &str = "agents.wearn.dev/run";
/// Label with the step's name.
pub const LABEL_STEP: &str = "agents.wearn.dev/step";
/// Label that marks every agent pod.
pub const LABEL_MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`LABEL_MANAGED_BY`].
pub const MANAGED_BY: &str = "agent-operator";
/// Annotation of an agent pod: SHA-256 of its spec without the one-time token.
pub const ANNOTATION_SPEC_HASH: &str = "agents.wearn.dev/spec-hash";
/// Annotation of an agent pod: epoch of the assignment that made it.
pub const ANNOTATION_EPOCH: &str = "agents.wearn.dev/epoch";
/// Annotation of a Secret: comma-separated hosts that its value may be sent to.
pub const ANNOTATION_ALLOWED_HOSTS: &str = "agents.wearn.dev/allowed-hosts";
/// Annotation of a Node, set by a person: the node with this uid is fenced.
pub const ANNOTATION_FENCE: &str = "agents.wearn.dev/fence";
/// Annotation of a task: end it, for the reason that is its value. The task stays, as `Failed`.
pub const ANNOTATION_CANCEL: &str = "agents.wearn.dev/cancel";
/// Annotation of the controller's Lease: `host:port` of the holder's gRPC port.
pub const ANNOTATION_GRPC_ADDRESS: &str = "agents.wearn.dev/grpc-address";
/// Finalizer of an agent pod until its outcome stands in the run.
pub const POD_FINALIZER: &str = "agents.wearn.dev/outcome";
/// Trailer of every commit made by a task.
pub const TRAILER_TASK_UID: &str = "Agent-Operator-Task-Uid";
/// Audience of every token that our own processes accept.
pub const TOKEN_AUDIENCE: &str = "agent-operator";

/// Hex digits of a name's hash: 32 bits keep two names apart within one owner's few children.
const HASH_DIGITS: usize = 8;

/// First [`HASH_DIGITS`] hex digits of SHA-256 over the parts, each followed by a NUL.
pub fn short_hash(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    hex(&hash.finalize()[..HASH_DIGITS / 2])
}

/// SHA-256 of `bytes` as 64 hex digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Cuts `name` to `max` bytes without leaving a trailing separator (names are ASCII here).
fn cut(name: &str, max: usize) -> &str {
    let end = name.len().min(max);
    name[..end].trim_end_matches(['-', '.', '_'])
}

/// Name of the run for `attempt` of `step`: a function of the task's uid, so a task that is deleted
/// and made again never meets its predecessor's runs.
pub fn run_name(task_name: &str, task_uid: &TaskUid, step: StepName, attempt: Attempt) -> String {
    let hash = short_hash(&[task_uid.as_str(), step.as_str(), &attempt.to_string()]);
    let tail = format!("-{}-{attempt}-{hash}", step.short());
    format!("{}{tail}", cut(task_name, LABEL_BYTES_MAX - tail.len()))
}

/// Name of the pod of a run: a function of (run uid, attempt).
pub fn pod_name(run_name: &str, run_uid: &RunUid, attempt: Attempt) -> String {
    let hash = short_hash(&[run_uid.as_str(), &attempt.to_string()]);
    format!("{}-{hash}", cut(run_name, LABEL_BYTES_MAX - HASH_DIGITS - 1))
}

/// A label value for `name`: itself when it fits, else cut with a hash of the whole.
pub fn label_value(name: &str) -> String {
    if name.len() <= LABEL_BYTES_MAX {
        return name.to_owned();
    }
    let hash = short_hash(&[name]);
    format!("{}-{hash}", cut(name, LABEL_BYTES_MAX - HASH_DIGITS - 1))
}

/// Hex digits of a task's uid in a work branch of its own.
const OWN_DIGITS: usize = 5;

/// Longest work branch of a task: [`disambiguated_branch`]'s tail still fits.
pub const WORK_BRANCH_BYTES_MAX: usize = BRANCH_BYTES_MAX - 1 - OWN_DIGITS;

/// Longest branch of any kind: with git's `.lock` beside the reference it is still a file name (255
/// bytes), and it fits its status field.
pub const BRANCH_BYTES_MAX: usize = 244;

/// The work branch when the user names none: `ai/` and the task's name, cut with a hash of the whole
/// where git could not store it.
pub fn default_work_branch(task_name: &str) -> String {
    let branch = format!("ai/{task_name}");
    if branch.len() <= WORK_BRANCH_BYTES_MAX {
        return branch;
    }
    let hash = short_hash(&[task_name]);
    format!("{}-{hash}", cut(&branch, WORK_BRANCH_BYTES_MAX - HASH_DIGITS - 1))
}

/// The work branch to use when `branch` exists and is not this task's. One that has the task's tail
/// keeps it: that is what a later step is given, and a second tail would not fit.
pub fn disambiguated_branch(branch: &str, task_uid: &TaskUid) -> String {
    let digits = task_uid.as_str().chars().filter(char::is_ascii_hexdigit).take(OWN_DIGITS);
    let tail = format!("-{}", digits.collect::<String>());
    if branch.ends_with(&tail) { branch.to_owned() } else { format!("{branch}{tail}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_a_63_character_task_fit_a_label_and_differ_by_step_and_attempt() {
        let task = "x".repeat(63);
        let uid = TaskUid::from("0a1b2c3d-0000-0000-0000-000000000000");
        let mut names = std::collections::BTreeSet::new();
        for step in StepName::ALL {
            for attempt in 1..=200 {
                let name = run_name(&task, &uid, step, Attempt(attempt));
                assert!(name.len() <= LABEL_BYTES_MAX, "{name}");
                let pod = pod_name(&name, &RunUid::from("u"), Attempt(attempt));
                assert!(pod.len() <= LABEL_BYTES_MAX, "{pod}");
                assert!(names.insert(name));
            }
        }
    }

    #[test]
    fn a_name_never_ends_in_a_separator_before_its_hash() {
        let name = label_value(&format!("{}.{}", "a".repeat(53), "b".repeat(40)));
        assert!(!name.contains(".-"), "{name}");
        assert!(name.len() <= LABEL_BYTES_MAX);
    }

    #[test]
    fn the_same_task_name_in_another_namespace_gets_its_own_branch() {
        let a = disambiguated_branch("ai/x", &TaskUid::from("aaaaa111-0"));
        let b = disambiguated_branch("ai/x", &TaskUid::from("bbbbb111-0"));
        assert_eq!(a, "ai/x-aaaaa");
        assert_ne!(a, b);
    }

    #[test]
    fn a_branch_with_the_tasks_tail_gets_no_second_one_and_the_longest_fits() {
        let uid = TaskUid::from("aaaaa111-0");
        let longest = disambiguated_branch(&"x".repeat(WORK_BRANCH_BYTES_MAX), &uid);
        assert_eq!(longest.len(), BRANCH_BYTES_MAX);
        assert_eq!(disambiguated_branch(&longest, &uid), longest);
    }
}
