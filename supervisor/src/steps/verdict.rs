//! How an attempt ended: a function of what is on record, and never a guess in favour of success.
//!
//! | known | outcome |
//! |---|---|
//! | order to stop | its reason; facts and exit code as far as known |
//! | result | the runner's reason; `Completed` only with exit code 0 on every side |
//! | kubelet's record alone | by reason and code; never success |
//! | neither | `Deleted` if somebody deleted the pod, else `ExitCodeUnknown` |

use agent_operator::attempt::StepResult;
use agent_operator::domain::{
    Reason, StartFault, StartTrouble,
    limits::{MESSAGE_BYTES_MAX, OUTPUT_BYTES_MAX},
    names,
    report::{LogSummary, Outcome, SandboxStatus, StepFacts},
    text,
};
use jiff::Timestamp;

use super::{
    egress, hindrance,
    record::{Exit, Facts},
};

/// Exit code of a process that was killed by SIGKILL, as runtimes report it.
const EXIT_SIGKILL: i32 = 137;
/// The words for 'the container is gone and I do not know how it ended': the kubelet's, and the one of a
/// container runtime that was itself away at the end (containerd, with exit code 255).
const STATUS_UNKNOWN: [&str; 2] = ["ContainerStatusUnknown", "Unknown"];
/// The kubelet's words for a container whose process could not be started at all.
const START_ERRORS: [&str; 4] =
    ["StartError", "ContainerCannotRun", "CreateContainerError", "CreateContainerConfigError"];
/// What a pod's reason starts with when the kubelet refused to run it (`OutOfcpu`, `OutOfpods`, ...).
const REFUSALS: [&str; 8] = [
    "OutOf",
    "NodeAffinity",
    "UnexpectedAdmissionError",
    "NodeShutdown",
    "NodeSelectorMismatching",
    "TopologyAffinityError",
    "PodOSNotSupported",
    "AppArmor",
];
/// What a pod's reason is when the node or the scheduler ended it, where no condition says so.
const DISRUPTIONS: [&str; 4] = ["Preempting", "Shutdown", "NodeShutdown", "Terminated"];
/// The kubelet's word for a pod that it has thrown out.
const EVICTED: &str = "Evicted";
/// Kubernetes keeps no record of who deletes an object.
const DELETED: &str =
    "its pod was deleted from outside (the API server's audit log names the actor)";

/// What happened to the pod besides the record, as last seen by this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen<'a> {
    /// Somebody else deleted the pod.
    pub deleted_outside: bool,
    /// Reason of the pod's disruption.
    pub disruption: Option<&'a str>,
}

/// Why an attempt ended, in a word and a sentence, and what kept it from starting.
type Verdict = (Reason, String, Option<StartFault>);

/// The outcome of an attempt of which nothing runs any more.
pub fn outcome(facts: &Facts, seen: Seen<'_>, log: LogSummary, now: Timestamp) -> Outcome {
    let (reason, mut message, fault) = reason(facts, seen);
    let start_fault =
        (reason == Reason::Unstarted).then(|| fault.unwrap_or(StartFault::NotStarted));
    if let Some(fault) = start_fault {
        message = StartTrouble::new(fault, &message).message;
    }
    let recorded = facts.exit.as_ref().map(recorded_code);
    let reported = facts.result.as_ref().map(|result| result.exit_code);
    // What was printed and is not read yet: whoever follows knows that it is still to come, or missing.
    let printed = facts.result.as_ref().and_then(|result| result.printed).unwrap_or_default();
    let log = LogSummary { bytes: log.bytes.max(printed), ..log };
    Outcome {
        reason,
        message: text::head_and_tail(&text::printable(&message), MESSAGE_BYTES_MAX),
        start_fault,
        exit_code: if reason == Reason::ExitCodeUnknown {
            None
        } else {
            recorded.unwrap_or(reported)
        },
        pod_name: facts.pod_uid.as_ref().map(|_| pod_name(facts)),
        started_at: facts.opened.as_ref().map(|opened| opened.wall),
        completed_at: now,
        result: step_facts(facts),
        usage: facts.usage,
        sandbox: sandbox(facts),
        log,
        refusals: facts.refusals.clone(),
    }
}

/// The name of the attempt's pod.
pub fn pod_name(facts: &Facts) -> String {
    let run = &facts.assignment.run;
    names::pod_name(&run.name, &run.uid, facts.assignment.attempt)
}

/// Isolation reached, as far as it is known.
pub fn sandbox(facts: &Facts) -> SandboxStatus {
    let mut status =
        facts.gate.as_ref().map_or_else(SandboxStatus::default, |gate| gate.sandbox.clone());
    status.runtime_class.clone_from(&facts.assignment.pod.runtime_class_name);
    status.egress = Some(egress::level(facts.gate.as_ref()).as_str().to_owned());
    status
}

/// The runner's facts, corrected by what the gateway itself did upstream.
fn step_facts(facts: &Facts) -> StepFacts {
    let mut step = facts.result.as_ref().map_or_else(StepFacts::default, |r| r.facts.clone());
    step.output =
        step.output.map(|output| text::head_and_tail(&text::printable(&output), OUTPUT_BYTES_MAX));
    if let Some((work_branch, head_commit)) = &facts.published {
        step.work_branch = Some(work_branch.clone());
        step.head_commit = Some(head_commit.clone());
    }
    step.pull_request.clone_from(&facts.pull_request);
    step
}

fn reason(facts: &Facts, seen: Seen<'_>) -> Verdict {
    if let Some(stop) = &facts.stop {
        return (stop.reason, stop.message.clone(), stop.fault);
    }
    if let Some(result) = &facts.result {
        return by_result(facts, result, seen);
    }
    match &facts.exit {
        Some(exit) => by_record(facts, exit),
        None => plain(by_absence(seen)),
    }
}

fn plain((reason, message): (Reason, String)) -> Verdict {
    (reason, message, None)
}

fn by_result(facts: &Facts, result: &StepResult, seen: Seen<'_>) -> Verdict {
    if result.reason == Reason::Disrupted {
        return plain(stopped_from_outside(facts, result, seen));
    }
    if result.reason == Reason::Unstarted && facts.opened.is_none() {
        return (Reason::Unstarted, result.message.clone(), result.start_fault);
    }
    if result.reason != Reason::Completed {
        return plain((result.reason, result.message.clone()));
    }
    if facts.opened.is_none() {
        let message = "reported success before its start gate opened";
        return plain((Reason::AgentFailed, message.to_owned()));
    }
    if result.exit_code != 0 {
        let message = format!("reported success with exit code {}", result.exit_code);
        return plain((Reason::AgentFailed, message));
    }
    match &facts.exit {
        Some(exit) if recorded_code(exit) != Some(0) => {
            let (reason, message, fault) = by_record(facts, exit);
            // A lost status is no second opinion: the report stands, but not as a success.
            (reason, format!("reported success, but {message}"), fault)
        }
        _ => plain((Reason::Completed, result.message.clone())),
    }
}

/// The runner knows that its pod is being stopped, the API server by what.
fn stopped_from_outside(facts: &Facts, result: &StepResult, seen: Seen<'_>) -> (Reason, String) {
    let exit = facts.exit.as_ref();
    let disruption = seen.disruption.or_else(|| exit.and_then(|exit| exit.disruption.as_deref()));
    let deleted = seen.deleted_outside || exit.is_some_and(|exit| exit.deleted_outside);
    match (disruption, exit) {
        (Some(disruption), _) => (Reason::Disrupted, disrupted(disruption)),
        (None, Some(exit)) if exit.pod_reason == EVICTED => by_its_own_doing(exit),
        _ if deleted => (Reason::Deleted, DELETED.to_owned()),
        _ => (Reason::Disrupted, result.message.clone()),
    }
}

/// Evicted without a disruption: the pod broke a limit of its own (disk).
fn by_its_own_doing(exit: &Exit) -> (Reason, String) {
    (Reason::AgentFailed, words("evicted for its own use of resources", exit))
}

fn by_record(facts: &Facts, exit: &Exit) -> Verdict {
    if let Some(disruption) = &exit.disruption {
        return plain((Reason::Disrupted, words(&disrupted(disruption), exit)));
    }
    if exit.reason == "OOMKilled" {
        return plain((Reason::OOMKilled, words("ran out of memory", exit)));
    }
    let started = facts.redemption.is_some() || facts.opened.is_some();
    if !started
        && exit.exit_code.is_none()
        && REFUSALS.iter().any(|r| exit.pod_reason.starts_with(r))
    {
        let what = format!("the kubelet refused the pod ({})", exit.pod_reason);
        return (Reason::Unstarted, words(&what, exit), Some(StartFault::NodeRefused));
    }
    if exit.deleted_outside {
        return plain((Reason::Deleted, words(DELETED, exit)));
    }
    if exit.pod_reason == "DeadlineExceeded" {
        // The kubelet's last resort: it counts from the pod's start, so it fires behind our deadline.
        let reason = if facts.opened.is_some() { Reason::TimedOut } else { Reason::Unstarted };
        return plain((reason, words("ended by the kubelet at the pod's active deadline", exit)));
    }
    if DISRUPTIONS.contains(&exit.pod_reason.as_str()) {
        return plain((Reason::Disrupted, words(&disrupted(&exit.pod_reason), exit)));
    }
    if exit.pod_reason == EVICTED {
        return plain(by_its_own_doing(exit));
    }
    by_code(facts, exit, started)
}

/// Nothing but the container's own end is known.
fn by_code(facts: &Facts, exit: &Exit, started: bool) -> Verdict {
    if is_lost(exit) {
        return plain((Reason::ExitCodeUnknown, words("the node lost the container's end", exit)));
    }
    let Some(code) = exit.exit_code else {
        let reason = if started { Reason::ExitCodeUnknown } else { Reason::Unstarted };
        return plain((reason, words("ended without an exit code", exit)));
    };
    if START_ERRORS.contains(&exit.reason.as_str()) {
        let fault = hindrance::not_set_up(&exit.message);
        return (Reason::Unstarted, words("its container could not be started", exit), Some(fault));
    }
    if code == EXIT_SIGKILL {
        let what = "was killed (exit code 137) without a report";
        return plain((Reason::OOMKilled, words(what, exit)));
    }
    if facts.opened.is_none() {
        let what = format!("ended with exit code {code} before its start gate opened");
        return plain((Reason::Unstarted, words(&what, exit)));
    }
    let what = format!("ended with exit code {code} without a report");
    plain((Reason::AgentFailed, words(&what, exit)))
}

fn by_absence(seen: Seen<'_>) -> (Reason, String) {
    if let Some(disruption) = seen.disruption {
        let message = format!("{}; its exit code is not known", disrupted(disruption));
        return (Reason::Disrupted, message);
    }
    if seen.deleted_outside {
        return (Reason::Deleted, format!("{DELETED}; its exit code is not known"));
    }
    (Reason::ExitCodeUnknown, "its pod is gone and left no record of its end".to_owned())
}

/// What a condition `DisruptionTarget` or a pod's reason means, with the word itself.
fn disrupted(word: &str) -> String {
    let by = match word {
        "EvictionByEvictionAPI" => "evicted through the API, as a drain does",
        "DeletionByTaintManager" => "evicted because of a taint of its node",
        "DeletionByPodGC" => "removed with its node",
        "PreemptionByScheduler" | "Preempting" => "preempted by a pod of higher priority",
        "TerminationByKubelet" => "ended by the kubelet: node pressure or shutdown",
        "Shutdown" | "NodeShutdown" | "Terminated" => "ended by the shutdown of its node",
        _ => "disrupted",
    };
    format!("{by} ({word})")
}

/// The kubelet's exit code; a lost status has none whatever number it shows.
fn recorded_code(exit: &Exit) -> Option<i32> {
    if is_lost(exit) { None } else { exit.exit_code }
}

fn is_lost(exit: &Exit) -> bool {
    STATUS_UNKNOWN.contains(&exit.reason.as_str())
}

/// Whether the kubelet's code contradicts the runner's: the runner's and the kubelet's. A lost status
/// has no code and contradicts nothing.
pub fn mismatch(facts: &Facts) -> Option<(i32, i32)> {
    let reported = facts.result.as_ref()?.exit_code;
    let recorded = recorded_code(facts.exit.as_ref()?)?;
    (recorded != reported).then_some((reported, recorded))
}

fn words(what: &str, exit: &Exit) -> String {
    if exit.message.is_empty() { what.to_owned() } else { format!("{what}: {}", exit.message) }
}

#[cfg(test)]
mod tests;
