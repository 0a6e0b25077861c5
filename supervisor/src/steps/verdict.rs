//! How an attempt ended: a function of what is on record, and never a guess in favour of success.
//!
//! | known | outcome |
//! |---|---|
//! | order to stop | its reason; facts and exit code as far as known |
//! | result | the runner's reason; `Completed` only with exit code 0 on every side |
//! | kubelet's record alone | by reason and code; never success |
//! | neither | `Deleted` if somebody deleted the pod, else `ExitCodeUnknown` |

use agent_operator::domain::{
    Reason,
    limits::{MESSAGE_BYTES_MAX, OUTPUT_BYTES_MAX},
    names,
    report::{LogSummary, Outcome, SandboxStatus, StepFacts},
    text,
};
use jiff::Timestamp;

use super::record::{Exit, Facts};

/// Exit code of a process that was killed by SIGKILL, as runtimes report it.
const EXIT_SIGKILL: i32 = 137;
/// The kubelet's word for 'the container is gone and I do not know how it ended'.
const STATUS_UNKNOWN: &str = "ContainerStatusUnknown";
/// The kubelet's words for a container whose process could not be started at all.
const START_ERRORS: [&str; 4] =
    ["StartError", "ContainerCannotRun", "CreateContainerError", "CreateContainerConfigError"];

/// What happened to the pod besides the record, as last seen by this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen<'a> {
    /// Somebody else deleted the pod.
    pub deleted_outside: bool,
    /// Reason of the pod's disruption.
    pub disruption: Option<&'a str>,
}

/// The outcome of an attempt of which nothing runs any more.
pub fn outcome(facts: &Facts, seen: Seen<'_>, log: LogSummary, now: Timestamp) -> Outcome {
    let (reason, message) = reason(facts, seen);
    let recorded = facts.exit.as_ref().map(recorded_code);
    let reported = facts.result.as_ref().map(|result| result.exit_code);
    Outcome {
        reason,
        message: text::head_and_tail(&text::printable(&message), MESSAGE_BYTES_MAX),
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
    // Nothing on the node closes egress yet; the runner's own view is no proof of it.
    status.egress = Some("Unenforced".to_owned());
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

fn reason(facts: &Facts, seen: Seen<'_>) -> (Reason, String) {
    if let Some(stop) = &facts.stop {
        return (stop.reason, stop.message.clone());
    }
    if let Some(result) = &facts.result {
        return by_result(facts, result);
    }
    match &facts.exit {
        Some(exit) => by_record(facts, exit),
        None => by_absence(seen),
    }
}

fn by_result(facts: &Facts, result: &agent_operator::attempt::StepResult) -> (Reason, String) {
    if result.reason != Reason::Completed {
        return (result.reason, result.message.clone());
    }
    if facts.opened.is_none() {
        return (Reason::AgentFailed, "reported success before its start gate opened".to_owned());
    }
    if result.exit_code != 0 {
        let message = format!("reported success with exit code {}", result.exit_code);
        return (Reason::AgentFailed, message);
    }
    match &facts.exit {
        Some(exit) if recorded_code(exit) != Some(0) => {
            let (reason, message) = by_record(facts, exit);
            // A lost status is no second opinion: the report stands, but not as a success.
            (reason, format!("reported success, but {message}"))
        }
        _ => (Reason::Completed, result.message.clone()),
    }
}

fn by_record(facts: &Facts, exit: &Exit) -> (Reason, String) {
    if let Some(disruption) = &exit.disruption {
        return (Reason::Disrupted, words(&format!("disrupted ({disruption})"), exit));
    }
    if exit.reason == "OOMKilled" {
        return (Reason::OOMKilled, words("ran out of memory", exit));
    }
    if exit.deleted_outside {
        return (Reason::Deleted, words("its pod was deleted from outside", exit));
    }
    if exit.pod_reason == "DeadlineExceeded" {
        // The kubelet's last resort: it counts from the pod's start, so it fires behind our deadline.
        let reason = if facts.opened.is_some() { Reason::TimedOut } else { Reason::Unstarted };
        return (reason, words("ended by the kubelet at the pod's active deadline", exit));
    }
    if matches!(exit.pod_reason.as_str(), "Preempting" | "Shutdown" | "NodeShutdown" | "Terminated")
    {
        return (Reason::Disrupted, words(&format!("disrupted ({})", exit.pod_reason), exit));
    }
    if exit.pod_reason == "Evicted" {
        // Without a disruption condition the pod broke a limit of its own (disk).
        return (Reason::AgentFailed, words("evicted for its own use of resources", exit));
    }
    if exit.reason == STATUS_UNKNOWN {
        return (Reason::ExitCodeUnknown, words("the node lost the container's end", exit));
    }
    let started = facts.redemption.is_some() || facts.opened.is_some();
    let Some(code) = exit.exit_code else {
        let reason = if started { Reason::ExitCodeUnknown } else { Reason::Unstarted };
        return (reason, words("ended without an exit code", exit));
    };
    if START_ERRORS.contains(&exit.reason.as_str()) {
        return (Reason::Unstarted, words("its container could not be started", exit));
    }
    if code == EXIT_SIGKILL {
        return (Reason::OOMKilled, words("was killed (exit code 137) without a report", exit));
    }
    if facts.opened.is_none() {
        return (
            Reason::Unstarted,
            words(&format!("ended with exit code {code} before its start gate opened"), exit),
        );
    }
    let what = format!("ended with exit code {code} without a report");
    (Reason::AgentFailed, words(&what, exit))
}

fn by_absence(seen: Seen<'_>) -> (Reason, String) {
    if let Some(disruption) = seen.disruption {
        return (
            Reason::Disrupted,
            format!("disrupted ({disruption}); its exit code is not known"),
        );
    }
    if seen.deleted_outside {
        return (
            Reason::Deleted,
            "its pod was deleted from outside; its exit code is not known".to_owned(),
        );
    }
    (Reason::ExitCodeUnknown, "its pod is gone and left no record of its end".to_owned())
}

/// The kubelet's exit code; a lost status has none whatever number it shows.
fn recorded_code(exit: &Exit) -> Option<i32> {
    if exit.reason == STATUS_UNKNOWN { None } else { exit.exit_code }
}

/// Whether the kubelet's code contradicts the runner's.
pub fn mismatch(facts: &Facts) -> Option<(i32, Option<i32>)> {
    let reported = facts.result.as_ref()?.exit_code;
    let recorded = recorded_code(facts.exit.as_ref()?);
    (recorded != Some(reported)).then_some((reported, recorded))
}

fn words(what: &str, exit: &Exit) -> String {
    if exit.message.is_empty() { what.to_owned() } else { format!("{what}: {}", exit.message) }
}
