use agent_operator::{
    attempt::{GateRequest, ProbeReport, StepResult},
    domain::{
        Epoch,
        assignment::{EgressPolicy, TaskBudget},
        report::LogSummary,
    },
};
use proptest::prelude::*;

use super::*;
use crate::{
    steps::{egress::Closing, hindrance, record::Exit},
    testing::{self, at, boot_id, completed, facts, redemption},
};

const IP: &str = "10.244.0.7";

fn take(machine: &mut Machine, seconds: i64, event: Event) -> Vec<Effect> {
    let boot_id = boot_id();
    let context = Context {
        now: at(seconds),
        boot_id: &boot_id,
        log: LogSummary { bytes: 5, gaps: 0 },
        pod_retention: Duration::from_mins(10),
    };
    machine.step(event, &context)
}

fn uid() -> PodUid {
    PodUid::from("pod-uid")
}

fn created() -> Event {
    Event::PodCreated { uid: uid(), one_time_hash: "token-hash".into() }
}

fn running_pod() -> PodDigest {
    PodDigest {
        uid: uid(),
        scheduled: true,
        ip: Some(IP.parse().unwrap()),
        container_id: Some("c0ffee".into()),
        ..PodDigest::default()
    }
}

fn observed(digest: PodDigest) -> Event {
    Event::PodObserved(Box::new(digest))
}

fn refused(words: &str) -> Hindrance {
    Hindrance { fault: hindrance::refusal(words), words: words.to_owned(), lasting: true }
}

fn exited(exit_code: i32, reason: &str) -> Exit {
    Exit { exit_code: Some(exit_code), reason: reason.into(), ..Exit::default() }
}

fn ended(exit: Exit) -> Event {
    observed(PodDigest { exit: Some(exit), ..running_pod() })
}

fn result(result: StepResult) -> Event {
    Event::Result { result: Box::new(result), usage: Usage::default(), refusals: vec![] }
}

/// An attempt whose pod exists.
fn pending() -> Machine {
    let mut machine = Machine::new(facts());
    take(&mut machine, 0, Event::Accepted);
    take(&mut machine, 0, created());
    machine
}

/// An attempt whose gate opened at second 2 (deadline 62).
fn running() -> Machine {
    let mut machine = pending();
    take(&mut machine, 1, Event::Redeemed(redemption()));
    take(&mut machine, 1, Event::AtGate(GateRequest::default()));
    take(&mut machine, 2, observed(running_pod()));
    take(&mut machine, 2, not_closed());
    assert!(machine.facts.opened.is_some());
    machine
}

fn not_closed() -> Event {
    Event::EgressAnswered(Closing::NotClosed("no enforcer".into()))
}

/// A runner that has reached the canary, and after the closing `reached`.
fn at_gate(reached: Option<&[&str]>) -> Event {
    let probe = reached.map(|reached| ProbeReport {
        tried: vec!["10.244.0.3:8081".parse().unwrap()],
        reached: reached.iter().map(|text| text.parse().unwrap()).collect(),
    });
    let request =
        GateRequest { canary_before: Some(true), iflink: Some(9), probe, ..Default::default() };
    Event::AtGate(request)
}

/// An attempt that requires closed egress and whose runner stands at the gate.
fn closing() -> (Machine, Vec<Effect>) {
    let mut machine = pending();
    machine.facts.assignment.sandbox.egress = EgressPolicy::Required;
    take(&mut machine, 1, Event::Redeemed(redemption()));
    take(&mut machine, 1, observed(running_pod()));
    let effects = take(&mut machine, 1, at_gate(None));
    (machine, effects)
}

#[test]
fn the_gate_opens_after_the_network_is_closed_and_the_runner_has_reached_nothing() {
    let (mut machine, effects) = closing();
    let close = Effect::CloseEgress {
        uid: uid(),
        pod_ip: IP.parse().unwrap(),
        iflink: Some(9),
        required: true,
    };
    assert!(effects.contains(&close), "{effects:?}");
    assert_eq!(take(&mut machine, 1, observed(running_pod())), vec![], "asked once");
    let effects = take(&mut machine, 1, Event::EgressAnswered(Closing::Closed));
    assert!(matches!(effects[..], [Effect::Probe { .. }]), "{effects:?}");
    assert!(machine.facts.opened.is_none());
    take(&mut machine, 2, at_gate(Some(&[])));
    assert!(machine.facts.opened.is_some());
    let status = crate::steps::verdict::sandbox(&machine.facts);
    assert_eq!(status.egress.as_deref(), Some("Enforced"));
}

#[test]
fn an_open_network_keeps_the_gate_closed_and_says_what_to_install() {
    let (mut machine, _) = closing();
    take(&mut machine, 1, not_closed());
    let effects = take(&mut machine, 2, at_gate(Some(&["10.244.0.3:8081"])));
    assert!(machine.facts.opened.is_none() && orders_delete(&effects));
    let stop = machine.facts.stop.unwrap();
    assert_eq!((stop.reason, stop.fault), (Reason::Unstarted, Some(StartFault::EgressOpen)));
    assert!(stop.message.contains("10.244.0.3:8081"), "{}", stop.message);
}

#[test]
fn a_supervisor_that_restarts_at_the_gate_closes_again_and_keeps_what_was_probed() {
    let (mut machine, _) = closing();
    take(&mut machine, 1, Event::EgressAnswered(Closing::Closed));
    machine.facts.apply(&Record::AtGate(match at_gate(Some(&[])) {
        Event::AtGate(request) => request,
        _ => unreachable!(),
    }));
    let mut machine = Machine::new(machine.facts);
    take(&mut machine, 3, Event::Restarted { one_time_hash: "fresh".into() });
    let effects = take(&mut machine, 3, observed(running_pod()));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::CloseEgress { .. })));
    assert!(machine.facts.opened.is_none());
    take(&mut machine, 4, Event::EgressAnswered(Closing::Closed));
    assert!(machine.facts.opened.is_some());
}

#[test]
fn an_enforcer_that_does_not_answer_is_waited_for_and_told_about() {
    let (mut machine, _) = closing();
    let delay = Hindrance { fault: StartFault::EgressOpen, words: "away".into(), lasting: false };
    let effects = take(&mut machine, 2, Event::EgressDelayed(delay.clone()));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Report { .. })), "{effects:?}");
    assert_eq!(take(&mut machine, 3, Event::EgressDelayed(delay)), vec![], "told once");
    take(&mut machine, 3, observed(running_pod()));
    take(&mut machine, 30, Event::Timer(Timer::Start));
    let stop = machine.facts.stop.unwrap();
    assert_eq!((stop.reason, stop.fault), (Reason::Unstarted, Some(StartFault::EgressOpen)));
}

fn outcome(machine: &Machine) -> (Reason, Option<i32>) {
    let outcome = machine.facts.outcome.as_ref().expect("an outcome");
    (outcome.reason, outcome.exit_code)
}

fn orders_delete(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::DeletePod { .. }))
}

#[test]
fn an_accepted_attempt_registers_its_grant_before_its_pod() {
    let mut machine = Machine::new(facts());
    let effects = take(&mut machine, 0, Event::Accepted);
    assert_eq!(effects[..2], [Effect::RegisterGrant, Effect::CreatePod]);
    assert_eq!(effects[2], Effect::ArmTimer { timer: Timer::Start, at: at(30).boot });
}

#[test]
fn the_gate_opens_once_runner_and_kubelet_agree_in_whatever_order() {
    let events = [
        Event::Redeemed(redemption()),
        Event::AtGate(GateRequest::default()),
        observed(running_pod()),
    ];
    for order in [[0, 1, 2], [0, 2, 1], [2, 0, 1]] {
        let mut machine = pending();
        let all: Vec<_> =
            order.iter().flat_map(|at| take(&mut machine, 2, events[*at].clone())).collect();
        let all = [all, take(&mut machine, 2, not_closed())].concat();
        let open =
            Effect::OpenGate { pod_ip: IP.parse().unwrap(), remaining: Duration::from_mins(1) };
        assert_eq!(all.iter().filter(|effect| **effect == open).count(), 1, "{order:?}");
        let armed = Effect::ArmTimer { timer: Timer::Deadline, at: at(62).boot };
        assert!(all.contains(&armed));
        let journal =
            all.iter().position(|e| matches!(e, Effect::Journal(Record::GateOpened { .. })));
        let opened = all.iter().position(|e| *e == open);
        assert!(journal < opened, "on disk first");
        assert!(all.iter().any(|e| matches!(e, Effect::Report { sequence: 1, .. })));
    }
}

#[test]
fn a_token_redeemed_from_elsewhere_never_opens_the_gate() {
    let mut machine = pending();
    let stolen = crate::link::contract::Redemption {
        pod_ip: "10.244.0.99".parse().unwrap(),
        ..redemption()
    };
    take(&mut machine, 1, Event::Redeemed(stolen));
    take(&mut machine, 1, Event::AtGate(GateRequest::default()));
    let effects = take(&mut machine, 2, observed(running_pod()));
    assert!(machine.facts.opened.is_none() && orders_delete(&effects));
    assert_eq!(machine.facts.stop.unwrap().reason, Reason::Unstarted);
}

#[test]
fn policies_that_this_node_cannot_keep_keep_the_gate_closed() {
    for set in [
        |machine: &mut Machine| machine.facts.assignment.sandbox.require_pids_limit = true,
        |machine: &mut Machine| {
            machine.facts.assignment.sandbox.egress = EgressPolicy::Required;
        },
    ] {
        let mut machine = pending();
        set(&mut machine);
        take(&mut machine, 1, Event::Redeemed(redemption()));
        take(&mut machine, 1, Event::AtGate(GateRequest::default()));
        take(&mut machine, 2, observed(running_pod()));
        take(&mut machine, 2, not_closed());
        assert!(machine.facts.opened.is_none());
        assert_eq!(machine.facts.stop.unwrap().reason, Reason::Unstarted);
    }
}

#[test]
fn a_demanded_limit_of_processes_opens_the_gate_only_where_there_is_one() {
    for (limit, opens) in [(None, false), (Some(1024), true)] {
        let mut machine = pending();
        machine.facts.assignment.sandbox.require_pids_limit = true;
        take(&mut machine, 1, Event::Redeemed(redemption()));
        let mut request = GateRequest::default();
        request.sandbox.pids_limit = limit;
        take(&mut machine, 1, Event::AtGate(request));
        take(&mut machine, 2, observed(running_pod()));
        take(&mut machine, 2, not_closed());
        assert_eq!(machine.facts.opened.is_some(), opens, "{limit:?}");
        if let Some(stop) = machine.facts.stop {
            assert!(stop.message.contains("podPidsLimit"), "{}", stop.message);
        }
    }
}

#[test]
fn the_runners_result_decides_once_the_cgroup_is_empty_without_waiting_for_the_kubelet() {
    let mut machine = running();
    let effects = take(&mut machine, 9, result(completed()));
    assert!(!machine.finished(), "the container is not gone yet");
    assert!(effects.iter().any(|e| matches!(e, Effect::WatchCgroup { .. })));
    let effects = take(&mut machine, 9, Event::CgroupEmpty);
    assert_eq!(outcome(&machine), (Reason::Completed, Some(0)));
    assert!(matches!(&effects[0], Effect::Journal(Record::Finished { .. })));
    assert!(effects.contains(&Effect::Revoke) && effects.contains(&Effect::CloseStreams));
}

/// Name, the runner's word, the kubelet's record, and what they must mean.
type Row = (&'static str, Option<StepResult>, Exit, Reason, Option<i32>);

/// Rows: what is on record > reason and exit code. All with an open gate.
#[test]
fn the_verdict_table() {
    use Reason::{AgentFailed, Completed, Deleted, Disrupted, ExitCodeUnknown, OOMKilled};
    let failed = testing::result(Reason::VerifyFailed, 3);
    let disrupted =
        Exit { disruption: Some("EvictionByEvictionAPI".into()), ..exited(143, "Error") };
    let evicted = Exit { pod_reason: "Evicted".into(), ..exited(137, "Error") };
    let deadline = Exit { pod_reason: "DeadlineExceeded".into(), ..exited(143, "Error") };
    let shutdown = Exit { pod_reason: "Terminated".into(), ..exited(143, "Error") };
    let rows: [Row; 13] = [
        ("agreement", Some(completed()), exited(0, "Completed"), Completed, Some(0)),
        ("failure", Some(failed.clone()), exited(3, "Error"), Reason::VerifyFailed, Some(3)),
        (
            "the kubelet's code is kept",
            Some(failed),
            exited(4, "Error"),
            Reason::VerifyFailed,
            Some(4),
        ),
        ("success contradicted", Some(completed()), exited(1, "Error"), AgentFailed, Some(1)),
        ("success, then killed", Some(completed()), exited(137, "Error"), OOMKilled, Some(137)),
        (
            "success claimed with a code",
            Some(testing::result(Completed, 2)),
            exited(2, "Error"),
            AgentFailed,
            Some(2),
        ),
        ("0 without a report", None, exited(0, "Completed"), AgentFailed, Some(0)),
        ("137 without a report", None, exited(137, "Error"), OOMKilled, Some(137)),
        ("out of memory", None, exited(137, "OOMKilled"), OOMKilled, Some(137)),
        ("another code", None, exited(9, "Error"), AgentFailed, Some(9)),
        ("drained", None, disrupted, Disrupted, Some(143)),
        ("broke its own disk limit", None, evicted, AgentFailed, Some(137)),
        ("lost by the node", None, exited(137, "ContainerStatusUnknown"), ExitCodeUnknown, None),
    ];
    for (name, reported, exit, reason, code) in rows {
        let mut machine = running();
        if let Some(reported) = reported {
            take(&mut machine, 9, result(reported));
        }
        take(&mut machine, 9, ended(exit));
        assert_eq!(outcome(&machine), (reason, code), "{name}");
    }
    for (exit, reason) in [(deadline, Reason::TimedOut), (shutdown, Disrupted)] {
        let mut machine = running();
        take(&mut machine, 9, ended(exit));
        assert_eq!(outcome(&machine).0, reason);
    }
    // It was seen and went without an order of ours: somebody took it away, finalizer and all.
    let mut machine = running();
    take(&mut machine, 9, Event::PodGone);
    take(&mut machine, 9, Event::CgroupEmpty);
    assert_eq!(outcome(&machine), (Reason::Deleted, None));

    let mut machine = running();
    take(&mut machine, 8, observed(PodDigest { deleting: true, ..running_pod() }));
    take(&mut machine, 9, ended(exited(143, "Error")));
    assert_eq!(outcome(&machine), (Deleted, Some(143)));
}

#[test]
fn before_the_gate_an_end_is_no_attempt_but_an_oom_is() {
    let refused = Exit { pod_reason: "OutOfcpu".into(), ..Exit::default() };
    for (exit, reason) in [
        (refused, Reason::Unstarted),
        (exited(1, "Error"), Reason::Unstarted),
        (exited(128, "StartError"), Reason::Unstarted),
        (exited(137, "OOMKilled"), Reason::OOMKilled),
    ] {
        let mut machine = pending();
        take(&mut machine, 3, ended(exit.clone()));
        assert_eq!(outcome(&machine).0, reason, "{exit:?}");
    }
    let mut machine = pending();
    take(&mut machine, 3, result(completed()));
    take(&mut machine, 3, Event::CgroupEmpty);
    assert_eq!(outcome(&machine).0, Reason::AgentFailed, "success before the gate");
}

#[test]
fn a_pod_that_vanished_is_looked_for_in_the_cgroups_before_it_counts_as_gone() {
    // As after a restart: what happened meanwhile is not known.
    let mut machine = Machine::new(running().facts);
    let effects = take(&mut machine, 9, Event::PodGone);
    let watch = |e: &Effect| matches!(e, Effect::WatchCgroup { missing_is_empty: true, .. });
    assert!(effects.iter().any(watch) && effects.contains(&Effect::Revoke));
    assert!(!machine.finished());
    take(&mut machine, 10, Event::CgroupEmpty);
    assert_eq!(outcome(&machine), (Reason::ExitCodeUnknown, None));

    let mut machine = running();
    take(&mut machine, 8, observed(PodDigest { deleting: true, ..running_pod() }));
    take(&mut machine, 9, Event::PodGone);
    take(&mut machine, 9, Event::CgroupEmpty);
    assert_eq!(outcome(&machine), (Reason::Deleted, None));
}

#[test]
fn a_step_is_stopped_at_its_deadline_and_its_pod_deleted_at_the_end_of_the_grace() {
    let mut machine = running();
    let effects = take(&mut machine, 62, Event::Timer(Timer::Deadline));
    let order = effects.iter().find_map(|effect| match effect {
        Effect::StopRunner(order) => Some(order.clone()),
        _ => None,
    });
    let order = order.expect("an order to the runner");
    assert_eq!((order.reason, order.grace_millis), (Reason::TimedOut, 10_000));
    assert!(effects.contains(&Effect::ArmTimer { timer: Timer::Grace, at: at(72).boot }));
    assert!(!orders_delete(&effects));
    let effects = take(&mut machine, 72, Event::Timer(Timer::Grace));
    assert!(orders_delete(&effects));
    take(&mut machine, 73, ended(exited(137, "Error")));
    assert_eq!(outcome(&machine), (Reason::TimedOut, Some(137)));
}

#[test]
fn a_result_from_before_the_deadline_is_not_overruled_by_it() {
    let mut machine = running();
    take(&mut machine, 61, result(completed()));
    let effects = take(&mut machine, 62, Event::Timer(Timer::Deadline));
    assert_eq!(effects, vec![]);
    take(&mut machine, 62, Event::CgroupEmpty);
    assert_eq!(outcome(&machine), (Reason::Completed, Some(0)));
}

#[test]
fn a_runner_that_reported_but_does_not_end_is_killed() {
    let mut machine = running();
    let effects = take(&mut machine, 20, result(completed()));
    assert!(effects.contains(&Effect::ArmTimer { timer: Timer::Grace, at: at(30).boot }));
    let effects = take(&mut machine, 30, Event::Timer(Timer::Grace));
    assert!(orders_delete(&effects));
    take(&mut machine, 31, ended(exited(137, "Error")));
    assert_ne!(outcome(&machine).0, Reason::Completed, "no success with exit code 137");
}

#[test]
fn the_start_deadline_keeps_the_kubelets_words() {
    let mut machine = pending();
    let waiting = hindrance::waiting("ErrImagePull", "429 Too Many Requests");
    take(&mut machine, 5, observed(PodDigest { waiting, ip: None, ..running_pod() }));
    let effects = take(&mut machine, 30, Event::Timer(Timer::Start));
    assert!(orders_delete(&effects));
    let refused = Exit { pod_reason: String::new(), ..Exit::default() };
    take(&mut machine, 31, ended(refused));
    let outcome = machine.facts.outcome.unwrap();
    assert_eq!(outcome.reason, Reason::Unstarted);
    assert!(outcome.message.contains("ErrImagePull: 429"), "{}", outcome.message);
}

#[test]
fn an_image_that_the_registry_denies_ends_the_attempt_before_the_start_deadline() {
    let mut machine = pending();
    let waiting = hindrance::waiting("ErrImagePull", "r.example/x:1: not found");
    let digest = PodDigest { waiting, ip: None, ..running_pod() };
    let effects = take(&mut machine, 5, observed(digest));
    assert!(orders_delete(&effects));
    take(&mut machine, 6, Event::PodGone);
    take(&mut machine, 6, Event::CgroupEmpty);
    let outcome = machine.facts.outcome.clone().unwrap();
    assert_eq!(outcome.reason, Reason::Unstarted);
    assert_eq!(outcome.start_fault, Some(StartFault::ImageNotPullable));
    assert!(outcome.message.contains("not found"), "{}", outcome.message);
    // Its dead pod does not wait for the task's end.
    let effects = take(&mut machine, 7, Event::Acked(SEQUENCE_FINISHED));
    assert!(orders_delete(&effects));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::RemoveFinalizer { .. })));
}

#[test]
fn a_hindrance_that_may_pass_is_told_once_and_waited_out() {
    let waits = |effects: &[Effect]| {
        effects.iter().find_map(|effect| match effect {
            Effect::Report { sequence, state } => match state.as_ref() {
                RunState::Waiting(trouble) => Some((*sequence, trouble.fault)),
                _ => None,
            },
            _ => None,
        })
    };
    let mut machine = Machine::new(facts());
    take(&mut machine, 0, Event::Accepted);
    let words = "the API server did not answer within 10s".to_owned();
    let fault = StartFault::ApiServerUnavailable;
    let delay = Hindrance { fault, words, lasting: false };
    let first = waits(&take(&mut machine, 10, Event::PodCreateDelayed(delay.clone())));
    assert_eq!(first.map(|(_, fault)| fault), Some(fault));
    assert_eq!(waits(&take(&mut machine, 20, Event::PodCreateDelayed(delay))), None);
    assert_eq!(machine.unacked().len(), 1, "repeated until acknowledged");
    take(&mut machine, 21, Event::Acked(first.unwrap().0));
    assert_eq!(machine.unacked(), vec![]);

    take(&mut machine, 22, created());
    let waiting = hindrance::waiting("ErrImagePull", "429 Too Many Requests");
    let digest = PodDigest { waiting, ip: None, ..running_pod() };
    let second = waits(&take(&mut machine, 23, observed(digest)));
    assert_eq!(second.map(|(_, fault)| fault), Some(StartFault::ImageNotPullable));
    assert_ne!(first.unwrap().0, second.unwrap().0);
    assert!(machine.facts.stop.is_none(), "it may pass");
}

#[test]
fn a_stop_from_outside_waits_for_the_word_of_who_stopped_it() {
    let stopped = || result(testing::result(Reason::Disrupted, 143));
    let mut machine = running();
    take(&mut machine, 9, stopped());
    take(&mut machine, 9, Event::CgroupEmpty);
    assert!(!machine.finished(), "deleted or disrupted is not known yet");
    take(&mut machine, 10, observed(PodDigest { deleting: true, ..running_pod() }));
    assert_eq!(outcome(&machine), (Reason::Deleted, Some(143)));

    let mut machine = running();
    take(&mut machine, 9, stopped());
    take(&mut machine, 9, Event::CgroupEmpty);
    let disruption = Some("EvictionByEvictionAPI".to_owned());
    take(&mut machine, 10, observed(PodDigest { deleting: true, disruption, ..running_pod() }));
    assert_eq!(outcome(&machine), (Reason::Disrupted, Some(143)));
}

#[test]
fn an_unschedulable_pod_is_given_ten_seconds() {
    let unscheduled = || PodDigest {
        uid: uid(),
        unschedulable: Some("0/2 nodes: Insufficient cpu".into()),
        ..PodDigest::default()
    };
    let mut machine = pending();
    let effects = take(&mut machine, 1, observed(unscheduled()));
    assert!(effects.contains(&Effect::ArmTimer { timer: Timer::Unschedulable, at: at(11).boot }));
    take(&mut machine, 3, observed(unscheduled()));
    let effects = take(&mut machine, 11, Event::Timer(Timer::Unschedulable));
    assert!(orders_delete(&effects));
    // No kubelet will ever write a record for it: the deletion itself is its end.
    take(&mut machine, 12, observed(PodDigest { deleting: true, ..unscheduled() }));
    assert_eq!(outcome(&machine).0, Reason::Unstarted);

    let mut machine = pending();
    take(&mut machine, 1, observed(unscheduled()));
    take(&mut machine, 4, observed(running_pod()));
    assert_eq!(take(&mut machine, 11, Event::Timer(Timer::Unschedulable)), vec![]);
}

#[test]
fn a_creation_that_fails_for_good_ends_the_attempt() {
    for (failure, reason) in [
        (CreateFailure::Invalid("bad image".into()), Reason::InvalidTask),
        (CreateFailure::Refused(refused("exceeded quota: q")), Reason::Unstarted),
        (CreateFailure::Foreign("p: it has another owner".into()), Reason::Unstarted),
    ] {
        let mut machine = Machine::new(facts());
        take(&mut machine, 0, Event::Accepted);
        take(&mut machine, 1, Event::PodCreateFailed(failure));
        assert_eq!(outcome(&machine), (reason, None));
        assert_eq!(machine.facts.outcome.unwrap().pod_name, None);
    }
}

#[test]
fn a_cancel_during_creation_waits_for_its_answer_and_leaves_no_pod() {
    let cancel = Event::CancelOrdered {
        reason: Reason::Cancelled,
        message: "by hand".into(),
        grace: Duration::from_secs(10),
    };
    let mut machine = Machine::new(facts());
    take(&mut machine, 0, Event::Accepted);
    let effects = take(&mut machine, 1, cancel.clone());
    assert!(effects.contains(&Effect::AbortCreate) && !machine.finished());
    take(&mut machine, 2, Event::PodCreateFailed(CreateFailure::Aborted));
    assert_eq!(outcome(&machine).0, Reason::Cancelled);

    let mut machine = Machine::new(facts());
    take(&mut machine, 0, Event::Accepted);
    take(&mut machine, 1, cancel);
    assert!(orders_delete(&take(&mut machine, 2, created())));
}

#[test]
fn a_cancelled_step_keeps_what_its_runner_still_reports() {
    let mut machine = running();
    let grace = Duration::from_secs(10);
    let (reason, message) = (Reason::Deleted, "task deleted".to_owned());
    take(&mut machine, 10, Event::CancelOrdered { reason, message, grace });
    let mut last_words = testing::result(Reason::Cancelled, 1);
    last_words.facts.output = Some("partial".into());
    take(&mut machine, 11, result(last_words));
    take(&mut machine, 12, Event::CgroupEmpty);
    let outcome = machine.facts.outcome.unwrap();
    assert_eq!(outcome.reason, Reason::Deleted);
    assert_eq!(outcome.result.output.as_deref(), Some("partial"));
}

#[test]
fn what_the_gateway_did_upstream_outweighs_what_the_runner_says() {
    let mut machine = running();
    let published =
        Event::Published { work_branch: "ai/x-abcde".into(), head_commit: "c0ffee".into() };
    take(&mut machine, 8, published);
    let mut words = completed();
    words.facts.head_commit = Some("forged".into());
    words.facts.pull_request =
        Some(agent_operator::domain::report::PullRequest { url: "https://evil".into(), number: 1 });
    take(&mut machine, 9, result(words));
    take(&mut machine, 9, Event::CgroupEmpty);
    let facts = machine.facts.outcome.unwrap().result;
    assert_eq!(facts.head_commit.as_deref(), Some("c0ffee"));
    assert_eq!(facts.work_branch.as_deref(), Some("ai/x-abcde"));
    assert_eq!(facts.pull_request, None);
}

#[test]
fn the_finalizer_goes_only_after_the_controller_has_the_outcome() {
    let mut machine = running();
    take(&mut machine, 9, result(completed()));
    let effects = take(&mut machine, 9, Event::CgroupEmpty);
    let release = Effect::RemoveFinalizer { uid: uid() };
    assert!(!effects.contains(&release));
    assert_eq!(take(&mut machine, 9, Event::Acked(SEQUENCE_RUNNING)), vec![]);
    assert!(!machine.facts.acked);
    let effects = take(&mut machine, 10, Event::Acked(SEQUENCE_FINISHED));
    assert_eq!(effects, vec![Effect::Journal(Record::Acked), release.clone()]);
    let effects = take(&mut machine, 20, Event::Forget);
    let retention = Effect::ArmTimer { timer: Timer::Retention, at: at(620).boot };
    assert!(effects.contains(&release) && effects.contains(&retention));
    let effects = take(&mut machine, 620, Event::Timer(Timer::Retention));
    assert_eq!(effects, vec![Effect::DeletePod { uid: uid() }, Effect::Drop]);
}

#[test]
fn a_run_that_is_gone_is_ended_and_released_without_an_acknowledgement() {
    let mut machine = running();
    assert!(orders_delete(&take(&mut machine, 9, Event::Forget)));
    let effects = take(&mut machine, 10, ended(exited(143, "Error")));
    assert_eq!(outcome(&machine).0, Reason::Deleted);
    assert!(effects.contains(&Effect::RemoveFinalizer { uid: uid() }));
    assert!(!effects.iter().any(|e| matches!(e, Effect::Report { .. })));
}

#[test]
fn a_pod_that_does_not_end_is_reported_as_unknown_and_stays_open() {
    let mut machine = running();
    take(&mut machine, 62, Event::Timer(Timer::Deadline));
    take(&mut machine, 72, Event::Timer(Timer::Grace));
    let effects = take(&mut machine, 132, Event::Timer(Timer::Stuck));
    assert!(effects.iter().any(|e| matches!(e, Effect::Report { sequence: 2, .. })));
    assert!(!machine.finished());
    take(&mut machine, 200, Event::CgroupEmpty);
    assert_eq!(outcome(&machine).0, Reason::TimedOut);
}

#[test]
fn a_node_without_image_volumes_switches_and_uses_no_attempt() {
    let mut machine = pending();
    let broken = Some("CreateContainerError: failed to mkdir \"\"".to_owned());
    let digest = PodDigest { image_volume_broken: broken, ip: None, ..running_pod() };
    let effects = take(&mut machine, 3, observed(digest));
    assert!(effects.iter().any(|e| matches!(e, Effect::SwitchDelivery { .. })));
    take(&mut machine, 4, ended(Exit::default()));
    assert_eq!(outcome(&machine).0, Reason::Unstarted);
}

#[test]
fn a_foreign_pod_under_our_name_changes_nothing() {
    let mut machine = running();
    let foreign = PodDigest {
        uid: PodUid::from("other"),
        exit: Some(exited(0, "Completed")),
        ..running_pod()
    };
    assert_eq!(take(&mut machine, 9, observed(foreign)), vec![]);
    assert!(!machine.finished());
}

#[test]
fn a_pod_seen_before_its_creation_was_answered_is_not_overlooked() {
    let mut machine = Machine::new(facts());
    take(&mut machine, 0, Event::Accepted);
    assert_eq!(take(&mut machine, 1, observed(running_pod())), vec![]);
    take(&mut machine, 1, created());
    take(&mut machine, 2, Event::Redeemed(redemption()));
    take(&mut machine, 2, Event::AtGate(GateRequest::default()));
    take(&mut machine, 2, not_closed());
    assert!(machine.facts.opened.is_some());
}

#[test]
fn a_late_kubelet_record_is_compared_and_changes_nothing() {
    let mut machine = running();
    take(&mut machine, 9, result(completed()));
    take(&mut machine, 9, Event::CgroupEmpty);
    let before = machine.facts.outcome.clone();
    let effects = take(&mut machine, 10, ended(exited(1, "Error")));
    assert!(effects.contains(&Effect::ExitMismatch { reported: 0, recorded: 1 }));
    assert_eq!(machine.facts.outcome, before);
    // Said until the controller has it, also after a restart.
    let state = RunState::ExitMismatch { reported: 0, recorded: 1 };
    let told = Effect::Report { sequence: SEQUENCE_MISMATCH, state: Box::new(state.clone()) };
    assert!(effects.contains(&told));
    assert!(Machine::new(machine.facts.clone()).unacked().contains(&(SEQUENCE_MISMATCH, state)));
    take(&mut machine, 11, Event::Acked(SEQUENCE_MISMATCH));
    assert!(machine.unacked().iter().all(|(sequence, _)| *sequence != SEQUENCE_MISMATCH));

    let mut machine = running();
    take(&mut machine, 9, result(completed()));
    take(&mut machine, 9, Event::CgroupEmpty);
    let effects = take(&mut machine, 10, ended(exited(0, "Completed")));
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::ExitMismatch { .. })));
}

mod restart {
    use super::*;

    fn again(machine: &Machine, seconds: i64) -> (Machine, Vec<Effect>) {
        let mut facts = Facts::accepted(
            machine.facts.assignment.clone(),
            machine.facts.one_time_hash.clone(),
            machine.facts.accepted.clone(),
        );
        machine.facts.to_records().iter().for_each(|record| facts.apply(record));
        assert_eq!(facts, machine.facts, "replay gives the same facts");
        let mut machine = Machine::new(facts);
        let one_time_hash = "fresh".to_owned();
        let effects = take(&mut machine, seconds, Event::Restarted { one_time_hash });
        (machine, effects)
    }

    #[test]
    fn without_a_pod_a_fresh_token_is_made_and_the_pod_created() {
        let mut machine = Machine::new(facts());
        take(&mut machine, 0, Event::Accepted);
        let (mut machine, effects) = again(&machine, 5);
        assert_eq!(effects[1..3], [Effect::RegisterGrant, Effect::CreatePod]);
        assert_eq!(machine.facts.one_time_hash, "fresh");
        // The pod was there after all, with the token of the process before.
        let adopted = Event::PodCreated { uid: uid(), one_time_hash: "token-hash".into() };
        let effects = take(&mut machine, 6, adopted);
        assert!(effects.contains(&Effect::RegisterGrant));
        assert_eq!(machine.facts.one_time_hash, "token-hash");
    }

    #[test]
    fn a_running_step_keeps_its_deadline_and_gets_no_second_pod() {
        let (_, effects) = again(&running(), 40);
        assert!(effects.contains(&Effect::ArmTimer { timer: Timer::Deadline, at: at(62).boot }));
        assert!(effects.contains(&Effect::ObservePod) && !effects.contains(&Effect::CreatePod));
    }

    #[test]
    fn a_deadline_that_passed_meanwhile_is_the_reason_whatever_the_container_says() {
        let (mut machine, _) = again(&running(), 100);
        take(&mut machine, 100, ended(exited(1, "Error")));
        assert_eq!(outcome(&machine).0, Reason::TimedOut);
    }

    #[test]
    fn a_result_on_record_is_concluded() {
        let mut machine = running();
        take(&mut machine, 9, result(completed()));
        let (mut machine, effects) = again(&machine, 100);
        assert!(effects.iter().any(|e| matches!(e, Effect::WatchCgroup { .. })));
        let effects = take(&mut machine, 101, observed(running_pod()));
        let id = Some("c0ffee".to_owned());
        let watch = Effect::WatchCgroup { uid: uid(), container_id: id, missing_is_empty: false };
        assert!(effects.contains(&watch), "looked for again once the container is known");
        take(&mut machine, 101, Event::CgroupEmpty);
        assert_eq!(outcome(&machine).0, Reason::Completed);
    }

    #[test]
    fn an_unacknowledged_outcome_is_reported_again_and_never_changed() {
        let mut machine = running();
        take(&mut machine, 9, ended(exited(9, "Error")));
        let before = machine.facts.outcome.clone();
        let (machine, effects) = again(&machine, 100);
        assert_eq!(machine.facts.outcome, before);
        assert!(effects.iter().any(|e| matches!(e, Effect::Report { sequence: 3, .. })));
        assert_eq!(machine.unacked().len(), 1);
    }
}

fn any_exit() -> impl Strategy<Value = Exit> {
    let code = prop_oneof![Just(None), Just(Some(0)), Just(Some(1)), Just(Some(137))];
    let reason = prop_oneof![
        Just("Completed"),
        Just("Error"),
        Just("OOMKilled"),
        Just("ContainerStatusUnknown"),
    ];
    (code, reason, any::<bool>()).prop_map(|(exit_code, reason, deleted_outside)| Exit {
        exit_code,
        reason: reason.into(),
        deleted_outside,
        ..Exit::default()
    })
}

fn any_event() -> impl Strategy<Value = Event> {
    let words = prop_oneof![
        Just(completed()),
        Just(testing::result(Reason::Completed, 1)),
        Just(testing::result(Reason::AgentFailed, 1)),
    ];
    let timer = prop_oneof![
        Just(Timer::Start),
        Just(Timer::Unschedulable),
        Just(Timer::Deadline),
        Just(Timer::Grace),
        Just(Timer::Stuck),
        Just(Timer::Retention),
    ];
    prop_oneof![
        Just(created()),
        Just(Event::PodCreateFailed(CreateFailure::Refused(refused("no")))),
        Just(observed(running_pod())),
        any::<bool>().prop_map(|deleting| observed(PodDigest { deleting, ..running_pod() })),
        any_exit().prop_map(ended),
        Just(Event::PodGone),
        Just(Event::Redeemed(redemption())),
        Just(Event::AtGate(GateRequest::default())),
        Just(at_gate(None)),
        Just(at_gate(Some(&[]))),
        Just(at_gate(Some(&["10.244.0.3:8081"]))),
        Just(not_closed()),
        Just(Event::EgressAnswered(Closing::Closed)),
        words.prop_map(result),
        Just(Event::CgroupEmpty),
        timer.prop_map(Event::Timer),
        Just(Event::CancelOrdered {
            reason: Reason::Cancelled,
            message: String::new(),
            grace: Duration::from_secs(1),
        }),
        (0..5_u64).prop_map(Event::Acked),
        Just(Event::Forget),
        Just(Event::EpochRaised(Epoch(9))),
        Just(Event::BudgetChanged(Some(TaskBudget { tokens: Some(7), cost_micro_usd: None }))),
        Just(Event::Restarted { one_time_hash: "fresh".into() }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_happens_there_is_one_outcome_and_no_success_by_guess(
        events in prop::collection::vec(any_event(), 0..25),
    ) {
        let mut machine = Machine::new(facts());
        take(&mut machine, 0, Event::Accepted);
        let mut replayed = facts();
        let mut finished = 0;
        let mut outcome = None;
        for (seconds, event) in (1..).zip(events) {
            let effects = take(&mut machine, seconds, event);
            for effect in &effects {
                if let Effect::Journal(record) = effect {
                    finished += u32::from(matches!(record, Record::Finished { .. }));
                    replayed.apply(record);
                }
            }
            if outcome.is_none() {
                outcome.clone_from(&machine.facts.outcome);
            }
            prop_assert_eq!(&machine.facts.outcome, &outcome);
        }
        prop_assert!(finished <= 1);
        prop_assert_eq!(&replayed, &machine.facts, "the journal alone gives the same facts");
        if let Some(outcome) = outcome.filter(|outcome| outcome.reason == Reason::Completed) {
            prop_assert_eq!(outcome.exit_code, Some(0));
            let facts = &machine.facts;
            let result = facts.result.as_ref().expect("no success without a result");
            prop_assert_eq!((result.reason, result.exit_code), (Reason::Completed, 0));
            prop_assert!(facts.opened.is_some() && facts.stop.is_none());
        }
    }
}
