use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::{
    domain::{
        Assignment, Attempt, Credential, Epoch, Reason, RunKey, RunRef, Secret, StartFault,
        StartTrouble, StepName, TaskRef, Usage,
        assignment::{
            AgentKind, EgressPolicy, IssueRef, PodRequest, Repository, SandboxPolicy, TaskBudget,
            Toleration, Work,
        },
        event::AgentEvent,
        report::{
            LogSummary, Outcome, PullRequest, Refusal, Report, RunState, SandboxStatus, Started,
            StepFacts,
        },
        stream::{Channel, Gap},
    },
    proto::v1,
};

fn run() -> RunRef {
    RunRef { namespace: "agents".into(), name: "t-plan-1".into(), uid: "u-1".into() }
}

fn assignment(step: StepName) -> Assignment {
    Assignment {
        run: run(),
        task: TaskRef { name: "t".into(), uid: "tu".into() },
        step,
        attempt: Attempt(2),
        epoch: Epoch(7),
        node: "node-a".into(),
        timeout_seconds: 1800,
        start_deadline_seconds: 300,
        grace_seconds: 10,
        pod: PodRequest {
            image: "base:1".into(),
            image_pull_secrets: vec!["pull".into()],
            cpu_limit: "4".into(),
            memory_limit: "8Gi".into(),
            storage_limit: "20Gi".into(),
            cpu_request: "100m".into(),
            memory_request: "256Mi".into(),
            node_selector: BTreeMap::from([("disk".into(), "ssd".into())]),
            tolerations: vec![Toleration {
                key: "agents".into(),
                operator: "Exists".into(),
                effect: "NoExecute".into(),
                toleration_seconds: Some(60),
                ..Toleration::default()
            }],
            runtime_class_name: Some("gvisor".into()),
        },
        work: Work {
            prompt: "do it".into(),
            plan: Some("plan".into()),
            feedback: Some("it failed".into()),
            agent: AgentKind::Command { command: vec!["sh".into(), "-c".into()] },
            model: Some("m".into()),
            max_turns: Some(5),
            test_command: Some(vec!["make".into(), "test".into()]),
            issue: Some(IssueRef { owner: "o".into(), repo: "r".into(), number: 12 }),
            unverified: true,
        },
        repository: Repository {
            name: "main".into(),
            url: "https://example.com/r.git".into(),
            base_branch: "main".into(),
            work_branch: "ai/t".into(),
            base_commit: Some("aa".into()),
            head_commit: None,
        },
        sandbox: SandboxPolicy {
            egress: EgressPolicy::Required,
            require_pids_limit: true,
            allowed_hosts: vec!["packages.example:443".into()],
        },
        budget: Some(TaskBudget { tokens: Some(5), cost_micro_usd: None }),
        held: true,
    }
}

fn outcome(reason: Reason) -> Outcome {
    Outcome {
        reason,
        message: "tests failed".into(),
        start_fault: (reason == Reason::Unstarted).then_some(StartFault::ImageNotPullable),
        exit_code: Some(1),
        pod_name: Some("pod".into()),
        started_at: Some(Timestamp::new(1_700_000_000, 5).unwrap()),
        completed_at: Timestamp::new(1_700_000_100, 999_999_999).unwrap(),
        result: StepFacts {
            output: Some("out".into()),
            command: Some(vec!["make".into()]),
            base_commit: Some("aa".into()),
            head_commit: Some("bb".into()),
            work_branch: Some("ai/t".into()),
            pull_request: Some(PullRequest { url: "https://example.com/1".into(), number: 1 }),
        },
        usage: Usage { turns: 1, input_tokens: 2, cost_micro_usd: 3, ..Usage::default() },
        sandbox: SandboxStatus { pids_limit: Some(100), ..SandboxStatus::default() },
        log: LogSummary { bytes: 10, gaps: 1 },
        refusals: vec![Refusal { kind: "egress".into(), target: "x.test".into(), count: 3 }],
    }
}

fn report(state: RunState) -> Report {
    Report { run: run(), attempt: Attempt(1), epoch: Epoch(3), sequence: 9, state }
}

#[test]
fn assignments_of_every_step_round_trip() {
    for step in StepName::ALL {
        let full = assignment(step);
        assert_eq!(Assignment::try_from(v1::Assignment::from(&full)), Ok(full));
    }
}

#[test]
fn an_assignment_without_optional_parts_round_trips() {
    let mut bare = assignment(StepName::Test);
    bare.pod.runtime_class_name = None;
    bare.work = Work {
        prompt: "p".into(),
        plan: None,
        feedback: None,
        agent: AgentKind::ClaudeCode,
        model: None,
        max_turns: None,
        test_command: None,
        issue: None,
        unverified: false,
    };
    bare.sandbox = SandboxPolicy::default();
    bare.budget = None;
    assert_eq!(Assignment::try_from(v1::Assignment::from(&bare)), Ok(bare));
}

#[test]
fn what_an_assignment_lacks_is_named_by_its_path() {
    type Spoil = fn(&mut v1::Assignment);
    let cases: [(&str, Problem, Spoil); 12] = [
        ("run", Problem::Missing, |w| w.run = None),
        ("run.uid", Problem::Missing, |w| w.run.as_mut().unwrap().uid.clear()),
        ("step", Problem::Unknown("deploy".into()), |w| w.step = "deploy".into()),
        ("step", Problem::Missing, |w| w.step.clear()),
        ("attempt", Problem::Missing, |w| w.attempt = 0),
        ("epoch", Problem::Missing, |w| w.epoch = 0),
        ("timeout", Problem::OutOfRange("-1s".into()), |w| {
            w.timeout.as_mut().unwrap().seconds = -1;
        }),
        ("pod.image", Problem::Missing, |w| w.pod.as_mut().unwrap().image.clear()),
        ("work.agent.type", Problem::Unknown("Codex".into()), |w| {
            w.work.as_mut().unwrap().agent.as_mut().unwrap().r#type = "Codex".into();
        }),
        ("repositories", Problem::Count { expected: 1, found: 0 }, |w| w.repositories.clear()),
        ("repositories", Problem::Count { expected: 1, found: 2 }, |w| {
            w.repositories.push(w.repositories[0].clone());
        }),
        ("sandbox.egress_policy", Problem::Unknown("Open".into()), |w| {
            w.sandbox.as_mut().unwrap().egress_policy = "Open".into();
        }),
    ];
    for (field, problem, spoil) in cases {
        let mut wire = v1::Assignment::from(&assignment(StepName::Plan));
        spoil(&mut wire);
        let error = Assignment::try_from(wire).unwrap_err();
        assert_eq!(error, ConvertError { field: field.into(), problem });
    }
}

#[test]
fn outcomes_of_every_reason_round_trip() {
    for reason in Reason::ALL {
        let report = report(RunState::Finished(Box::new(outcome(*reason))));
        assert_eq!(Report::try_from(v1::RunReport::from(&report)), Ok(report));
    }
}

#[test]
fn reports_of_a_start_and_of_an_unknown_state_round_trip() {
    let started = Started {
        pod_name: "pod".into(),
        pod_uid: "pu".into(),
        started_at: Timestamp::UNIX_EPOCH,
        sandbox: SandboxStatus::default(),
    };
    for state in [
        RunState::Running(started),
        RunState::Unknown { message: "silent".into() },
        RunState::Waiting(StartTrouble::new(StartFault::QuotaExceeded, "exceeded quota")),
        RunState::ExitMismatch { reported: 0, recorded: 137 },
    ] {
        let report = report(state);
        assert_eq!(Report::try_from(v1::RunReport::from(&report)), Ok(report));
    }
}

#[test]
fn times_of_a_report_are_moved_into_the_receivers_clock() {
    let at = |second: i64| Timestamp::from_second(1_700_000_000 + second).unwrap();
    let finished = |started: i64, completed: i64| {
        let (started_at, completed_at) = (Some(at(started)), at(completed));
        let outcome = Outcome { started_at, completed_at, ..outcome(Reason::Completed) };
        report(RunState::Finished(Box::new(outcome)))
    };
    // The node is ten minutes behind, or ahead; or only as far as a message travels.
    assert_eq!(finished(10, 60).moved(at(61), at(661)), finished(610, 660));
    assert_eq!(finished(610, 660).moved(at(661), at(61)), finished(10, 60));
    assert_eq!(finished(10, 60).moved(at(61), at(63)), finished(10, 60));
    let unknown = || report(RunState::Unknown { message: String::new() });
    assert_eq!(unknown().moved(at(0), at(600)), unknown());
}

#[test]
fn what_a_report_lacks_is_named_by_its_path() {
    type Spoil = fn(&mut v1::Outcome);
    let cases: [(&str, Spoil); 5] = [
        ("finished.reason: has the unknown value \"Bored\"", |o| o.reason = "Bored".into()),
        ("finished.completed_at: is missing", |o| o.completed_at = None),
        ("finished.usage: is missing", |o| o.usage = None),
        ("finished.refusals[0].kind: is missing", |o| o.refusals[0].kind.clear()),
        ("finished.result.pull_request.number: is out of range: 0", |o| {
            o.result.as_mut().unwrap().pull_request.as_mut().unwrap().number = 0;
        }),
    ];
    for (sentence, spoil) in cases {
        let mut wire = v1::Outcome::from(&outcome(Reason::Completed));
        spoil(&mut wire);
        let mut full = v1::RunReport::from(&report(RunState::Unknown { message: String::new() }));
        full.state = Some(v1::run_report::State::Finished(wire));
        assert_eq!(Report::try_from(full).unwrap_err().to_string(), sentence);
    }
    let mut empty = v1::RunReport::from(&report(RunState::Unknown { message: String::new() }));
    empty.state = None;
    assert_eq!(Report::try_from(empty), Err(ConvertError::missing("state")));
}

#[test]
fn events_of_every_type_round_trip_and_others_are_refused() {
    let events = [
        AgentEvent::Status { text: "cloned".into() },
        AgentEvent::Text { text: "hm".into() },
        AgentEvent::ToolCall { id: "1".into(), name: "Bash".into(), input: "{}".into() },
        AgentEvent::ToolResult { id: "1".into(), output: "ok".into(), is_error: true },
        AgentEvent::Usage { usage: Usage { turns: 4, ..Usage::default() } },
    ];
    for event in events {
        assert_eq!(AgentEvent::try_from(v1::AgentEvent::from(&event)), Ok(event));
    }
    let later = v1::AgentEvent { r#type: "thought".into(), ..Default::default() };
    assert_eq!(AgentEvent::try_from(later), Err(ConvertError::unknown("type", "thought")));
}

#[test]
fn credentials_round_trip_and_an_empty_value_is_missing() {
    let credential = Credential {
        id: "git/main".into(),
        purpose: "git".into(),
        host: "github.com".into(),
        scheme: "bearer".into(),
        value: Secret::new("v"),
    };
    let mut wire = v1::Credential::from(&credential);
    assert_eq!(Credential::try_from(wire.clone()), Ok(credential));
    wire.value.clear();
    assert_eq!(Credential::try_from(wire), Err(ConvertError::missing("value")));
}

#[test]
fn channels_and_gaps_round_trip_and_odd_ones_are_named() {
    for channel in Channel::ALL {
        assert_eq!(Channel::try_from(v1::Channel::from(channel) as i32), Ok(channel));
    }
    assert_eq!(Channel::try_from(0), Err(ConvertError::missing("channel")));
    assert_eq!(Channel::try_from(9), Err(ConvertError::unknown("channel", "9")));
    let gap = Gap { from: 3, to: 9, reason: "rotated".into() };
    let mut wire = v1::Gap::from(&gap);
    assert_eq!(Gap::try_from(wire.clone()), Ok(gap));
    wire.to = 3;
    assert_eq!(Gap::try_from(wire).unwrap_err().field, "to");
}

#[test]
fn keys_in_a_list_are_named_by_their_index() {
    let key = RunKey { uid: "u".into(), attempt: Attempt(1) };
    let wire = v1::RunKey::from(&key);
    assert_eq!(run_keys("runs", vec![wire.clone()]), Ok(vec![key]));
    let broken = v1::RunKey { attempt: 0, ..wire.clone() };
    assert_eq!(run_keys("runs", vec![wire, broken]).unwrap_err().field, "runs[1].attempt");
}

proptest! {
    #[test]
    fn times_round_trip(seconds in -377_705_023_201_i64..253_402_207_200, nanos in 0..1_000_000_000) {
        let time = Timestamp::new(seconds, nanos).unwrap();
        let wire = wire_timestamp(time);
        prop_assert!((0..1_000_000_000).contains(&wire.nanos));
        prop_assert_eq!(timestamp("t", Some(wire)), Ok(time));
    }

    #[test]
    fn durations_round_trip(seconds in 0..i64::MAX.cast_unsigned(), nanos in 0_u32..1_000_000_000) {
        let value = Duration::new(seconds, nanos);
        prop_assert_eq!(duration("d", Some(wire_duration(value))), Ok(value));
    }

    #[test]
    fn usage_round_trips(turns: u64, input_tokens: u64, output_tokens: u64, cost_micro_usd: u64) {
        let usage = Usage { turns, input_tokens, output_tokens, cost_micro_usd, ..Usage::default() };
        prop_assert_eq!(Usage::try_from(v1::Usage::from(&usage)), Ok(usage));
    }
}
