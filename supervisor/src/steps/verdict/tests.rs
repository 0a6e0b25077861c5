//! Pod statuses as kubelet 1.36 and the control plane write them, and what each is charged to.

use agent_operator::domain::Budget;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::*;
use crate::{
    pod::digest::digest,
    steps::record::Record,
    testing::{self, at, redemption},
};

/// How far the attempt had come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Its runner never spoke.
    Silent,
    /// Its gate was open.
    Open,
}
use Stage::{Open, Silent};

fn terminated(code: i32, reason: &str, message: &str) -> Value {
    json!([{"name": "agent", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
        "containerID": "containerd://c0ffee", "state": {"terminated":
            {"exitCode": code, "reason": reason, "message": message, "finishedAt": "2027-01-15T08:00:09Z"}}}])
}

fn disrupted_by(reason: &str) -> Value {
    json!([{"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "m"}])
}

/// The kubelet's record out of a whole pod, as the supervisor journals it.
fn record(status: &Value, deleting: bool) -> Exit {
    let mut pod = json!({
        "metadata": {"name": "p", "uid": "u"},
        "spec": {"nodeName": "node-a", "containers": []},
        "status": status,
    });
    if deleting {
        pod["metadata"]["deletionTimestamp"] = json!("2027-01-15T08:00:00Z");
    }
    let pod: Pod = serde_json::from_value(pod).unwrap();
    let digest = digest(&pod);
    Exit { deleted_outside: deleting, ..digest.exit.expect("an end") }
}

fn facts(stage: Stage) -> Facts {
    let mut facts = testing::facts();
    facts.apply(&Record::PodCreated { uid: "u".into() });
    if stage == Open {
        facts.apply(&Record::Redeemed(redemption()));
        let at = crate::steps::moment::Moment::new(at(2), &testing::boot_id());
        facts.apply(&Record::GateOpened { at, device: None });
    }
    facts
}

fn judged(facts: &Facts, seen: Seen<'_>) -> Outcome {
    outcome(facts, seen, LogSummary::default(), at(10).wall)
}

struct Row {
    what: &'static str,
    stage: Stage,
    status: Value,
    deleting: bool,
    reason: Reason,
    budget: Budget,
    exit_code: Option<i32>,
    fault: Option<StartFault>,
}

fn row(what: &'static str, stage: Stage, status: Value, expected: (Reason, Option<i32>)) -> Row {
    let (reason, exit_code) = expected;
    let fault = (reason == Reason::Unstarted).then_some(StartFault::NodeRefused);
    let budget = reason.budget();
    Row { what, stage, status, deleting: false, reason, budget, exit_code, fault }
}

#[allow(clippy::too_many_lines, reason = "a table")]
fn ends_of_a_running_pod() -> Vec<Row> {
    let failed = |code, reason: &str| json!({"phase": "Failed", "containerStatuses": terminated(code, reason, "")});
    let disrupted = |reason: &str| {
        json!({"phase": "Failed", "conditions": disrupted_by(reason),
        "containerStatuses": terminated(137, "Error", "")})
    };
    let of_pod = |reason: &str, message: &str, code: i32| {
        json!({"phase": "Failed", "reason": reason, "message": message,
            "containerStatuses": terminated(code, "Error", "")})
    };
    let lost = (Reason::Disrupted, Some(137));
    vec![
        row(
            "out of memory, whole cgroup",
            Open,
            failed(137, "OOMKilled"),
            (Reason::OOMKilled, Some(137)),
        ),
        row("killed without a word", Open, failed(137, "Error"), (Reason::OOMKilled, Some(137))),
        row("failed without a report", Open, failed(1, "Error"), (Reason::AgentFailed, Some(1))),
        row(
            "ended well without a report",
            Open,
            failed(0, "Completed"),
            (Reason::AgentFailed, Some(0)),
        ),
        row(
            "status lost",
            Open,
            failed(137, "ContainerStatusUnknown"),
            (Reason::ExitCodeUnknown, None),
        ),
        // As containerd says after its own restart of a container that ended meanwhile.
        row(
            "status lost by the runtime",
            Open,
            failed(255, "Unknown"),
            (Reason::ExitCodeUnknown, None),
        ),
        row("drained", Open, disrupted("EvictionByEvictionAPI"), lost),
        row("taint of the node", Open, disrupted("DeletionByTaintManager"), lost),
        row("node object gone", Open, disrupted("DeletionByPodGC"), lost),
        row("preempted", Open, disrupted("PreemptionByScheduler"), lost),
        row(
            "evicted for the node's memory or disk",
            Open,
            json!({"phase": "Failed", "reason": "Evicted",
                "message": "The node was low on resource: memory. Threshold quantity: 100Mi, available: 90Mi.",
                "conditions": disrupted_by("TerminationByKubelet"),
                "containerStatuses": terminated(137, "Error", "")}),
            lost,
        ),
        row(
            "evicted for its own disk",
            Open,
            of_pod(
                "Evicted",
                "Usage of EmptyDir volume \"workspace\" exceeds the limit \"1Gi\".",
                137,
            ),
            (Reason::AgentFailed, Some(137)),
        ),
        row(
            "graceful node shutdown",
            Open,
            of_pod("Terminated", "Pod was terminated in response to imminent node shutdown.", 143),
            (Reason::Disrupted, Some(143)),
        ),
        row(
            "preempted by the kubelet for a critical pod",
            Open,
            of_pod("Preempting", "Preempted in order to admit critical pod", 137),
            lost,
        ),
        row(
            "active deadline",
            Open,
            of_pod(
                "DeadlineExceeded",
                "Pod was active on the node longer than the specified deadline",
                137,
            ),
            (Reason::TimedOut, Some(137)),
        ),
        Row {
            deleting: true,
            ..row("deleted by hand", Open, failed(143, "Error"), (Reason::Deleted, Some(143)))
        },
        Row {
            deleting: true,
            ..row("deleted by a drain", Open, disrupted("EvictionByEvictionAPI"), lost)
        },
    ]
}

#[allow(clippy::too_many_lines, reason = "a table")]
fn pods_that_never_ran() -> Vec<Row> {
    let refused = |reason: &str, message: &str| json!({"phase": "Failed", "reason": reason, "message": message});
    let exec = "failed to create containerd task: failed to create shim task: OCI runtime create failed: exec: \"/opt/agent-operator/agent-runner\": exec format error";
    let unstarted = (Reason::Unstarted, None);
    vec![
        row(
            "no CPU",
            Silent,
            refused(
                "OutOfcpu",
                "Node didn't have enough resource: cpu, requested: 4000, used: 100, capacity: 2000",
            ),
            unstarted,
        ),
        row(
            "no memory",
            Silent,
            refused("OutOfmemory", "Node didn't have enough resource: memory"),
            unstarted,
        ),
        row(
            "too many pods",
            Silent,
            refused(
                "OutOfpods",
                "Node didn't have enough resource: pods, requested: 1, used: 110, capacity: 110",
            ),
            unstarted,
        ),
        row(
            "labels changed",
            Silent,
            refused(
                "NodeAffinity",
                "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
            ),
            unstarted,
        ),
        row(
            "device gone",
            Silent,
            refused(
                "UnexpectedAdmissionError",
                "Allocate failed due to no healthy devices present",
            ),
            unstarted,
        ),
        row(
            "node shuts down",
            Silent,
            refused("NodeShutdown", "Pod was rejected as the node is shutting down."),
            unstarted,
        ),
        Row {
            fault: Some(StartFault::ImageNotRunnable),
            ..row(
                "wrong architecture",
                Silent,
                json!({"phase": "Failed", "containerStatuses": terminated(128, "StartError", exec)}),
                (Reason::Unstarted, Some(128)),
            )
        },
        Row {
            fault: Some(StartFault::NotStarted),
            ..row(
                "ended before its gate",
                Silent,
                json!({"phase": "Failed", "containerStatuses": terminated(75, "Error", "")}),
                (Reason::Unstarted, Some(75)),
            )
        },
    ]
}

#[test]
fn every_end_that_a_kubelet_records_has_its_reason_and_its_budget() {
    for Row { what, stage, status, deleting, reason, budget, exit_code, fault } in
        ends_of_a_running_pod().into_iter().chain(pods_that_never_ran())
    {
        let mut facts = facts(stage);
        facts.apply(&Record::Exit(record(&status, deleting)));
        let outcome = judged(&facts, Seen::default());
        assert_eq!((outcome.reason, outcome.exit_code), (reason, exit_code), "{what}");
        assert_eq!(outcome.reason.budget(), budget, "{what}");
        assert_eq!(outcome.start_fault, fault, "{what}");
        if let Some(words) = status["message"].as_str() {
            assert!(outcome.message.contains(words), "{what}: {}", outcome.message);
        }
        if let Some(fault) = fault {
            assert!(outcome.message.contains(fault.remedy()), "{what}: {}", outcome.message);
        }
    }
}

#[test]
fn reasons_are_charged_as_the_table_has_it() {
    use Budget::{Application, Infrastructure, None, Replace};
    for (reason, budget) in [
        (Reason::OOMKilled, Application),
        (Reason::AgentFailed, Application),
        (Reason::TimedOut, Application),
        (Reason::Disrupted, Infrastructure),
        (Reason::ExitCodeUnknown, Infrastructure),
        (Reason::Unstarted, Replace),
        (Reason::Deleted, None),
    ] {
        assert_eq!(reason.budget(), budget, "{reason}");
    }
}

/// Runtimes note an OOM kill of any process of the container, whatever the main one did afterwards.
#[test]
fn a_child_that_was_killed_for_memory_is_no_oom_failure_of_the_step() {
    let ended =
        |code| json!({"phase": "Running", "containerStatuses": terminated(code, "OOMKilled", "")});
    for (result, reason) in [
        (testing::completed(), Reason::Completed),
        (testing::result(Reason::AgentFailed, 1), Reason::AgentFailed),
    ] {
        let mut facts = facts(Open);
        let code = result.exit_code;
        facts.apply(&testing::result_record(result));
        facts.apply(&Record::Exit(record(&ended(code), false)));
        let outcome = judged(&facts, Seen::default());
        assert_eq!((outcome.reason, outcome.exit_code), (reason, Some(code)));
        assert_eq!(mismatch(&facts), None);
    }
}

#[test]
fn a_runner_that_was_stopped_from_outside_is_told_apart_by_the_api_servers_word() {
    let stopped = testing::result(Reason::Disrupted, 143);
    let drained = Some("EvictionByEvictionAPI");
    for (deleted_outside, disruption, reason) in [
        (true, None, Reason::Deleted),
        (true, drained, Reason::Disrupted),
        (false, drained, Reason::Disrupted),
        (false, None, Reason::Disrupted),
    ] {
        let mut facts = facts(Open);
        facts.apply(&testing::result_record(stopped.clone()));
        let outcome = judged(&facts, Seen { deleted_outside, disruption });
        assert_eq!((outcome.reason, outcome.exit_code), (reason, Some(143)));
        let named = drained.is_none_or(|word| outcome.message.contains(word));
        assert_eq!(named, disruption.is_some(), "{}", outcome.message);
    }
}

#[test]
fn a_pod_without_any_record_never_ends_well() {
    for (deleted_outside, disruption, reason) in [
        (false, None, Reason::ExitCodeUnknown),
        (true, None, Reason::Deleted),
        (true, Some("DeletionByPodGC"), Reason::Disrupted),
    ] {
        let outcome = judged(&facts(Open), Seen { deleted_outside, disruption });
        assert_eq!((outcome.reason, outcome.exit_code), (reason, None));
    }
}

#[test]
fn a_lost_status_contradicts_nothing_and_another_code_does() {
    let mut known = facts(Open);
    known.apply(&testing::result_record(testing::completed()));
    let mut lost = known.clone();
    let ended = |code, reason: &str| json!({"phase": "Failed", "containerStatuses": terminated(code, reason, "")});
    lost.apply(&Record::Exit(record(&ended(137, "ContainerStatusUnknown"), false)));
    assert_eq!(mismatch(&lost), None);
    let mut lost_by_runtime = known.clone();
    lost_by_runtime.apply(&Record::Exit(record(&ended(255, "Unknown"), false)));
    assert_eq!(mismatch(&lost_by_runtime), None);
    known.apply(&Record::Exit(record(&ended(137, "Error"), false)));
    assert_eq!(mismatch(&known), Some((0, 137)));
    // What was recorded first stays.
    known.apply(&Record::Exit(record(&ended(0, "Completed"), false)));
    assert_eq!(mismatch(&known), Some((0, 137)));
}

#[test]
fn an_image_that_lacks_something_keeps_its_word_and_remedy_and_charges_nobody() {
    let fault = Some(StartFault::ImageNotRunnable);
    let result = StepResult { start_fault: fault, ..testing::result(Reason::Unstarted, 75) };
    let mut facts = facts(Silent);
    facts.apply(&testing::result_record(result.clone()));
    let outcome = judged(&facts, Seen::default());
    assert_eq!((outcome.reason, outcome.start_fault), (Reason::Unstarted, fault));
    assert!(outcome.message.contains("spec.agentImage"), "{}", outcome.message);
    assert_eq!(outcome.reason.budget(), Budget::Replace);

    let mut facts = self::facts(Open);
    facts.apply(&testing::result_record(result));
    let late = judged(&facts, Seen::default());
    assert_eq!(late.start_fault, Some(StartFault::NotStarted), "behind an open gate it is no word");
}
