mod gate;
mod properties;
mod renewal;
mod restart;

use super::*;
use crate::{
    steps::{egress::Closing, event::CreateFailure, hindrance, record::Exit},
    testing::{self, at, boot_id, completed, facts, redemption},
};
use agent_operator::{
    attempt::{GateRequest, ProbeReport, StepResult},
    domain::{
        Epoch,
        assignment::{EgressPolicy, TaskBudget},
        ids::PodUid,
        report::LogSummary,
    },
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

fn closed() -> Event {
    Event::EgressAnswered(Closing::Closed { device: Some(9) })
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

#[test]
fn the_reader_of_the_log_learns_what_was_printed_and_later_that_the_end_is_recorded() {
    let mut machine = running();
    take(&mut machine, 9, result(StepResult { printed: Some(120), ..completed() }));
    assert_eq!(machine.log_end(), None, "it runs");
    take(&mut machine, 9, Event::CgroupEmpty);
    assert_eq!(machine.log_end(), Some(LogEnd { printed: Some(120), recorded: false }));
    let outcome = machine.facts.outcome.clone().expect("an outcome");
    assert_eq!(outcome.log.bytes, 120, "whoever follows knows of what is not read yet");
    for word in [ended(exited(0, "Completed")), Event::PodGone] {
        let mut machine = machine.clone();
        let effects = take(&mut machine, 11, word);
        assert!(effects.contains(&Effect::CloseStreams), "{effects:?}");
        assert_eq!(machine.log_end(), Some(LogEnd { printed: Some(120), recorded: true }));
    }
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
    let rows: [Row; 14] = [
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
        ("broke its own disk limit", None, evicted.clone(), AgentFailed, Some(137)),
        (
            "broke it, and had a second to say goodbye",
            Some(testing::result(Disrupted, 143)),
            evicted,
            AgentFailed,
            Some(137),
        ),
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
    assert!(!effects.contains(&release), "once is enough");
    assert!(effects.contains(&retention));
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
