//! Whole attempts: the real runner, ledger, machine, workers and streams over a double of the API
//! server and of the gateway.

mod called_off;
mod dropped;
mod epochs;
mod held;
mod life;
mod lost_ledger;
mod renewed;
mod requests;
mod secrets;
mod telemetry;

use std::{
    cell::Cell,
    collections::HashMap,
    path::Path,
    sync::{
        Mutex,
        atomic::Ordering,
        atomic::{AtomicBool, AtomicU32},
    },
};

use agent_operator::{
    attempt::{GateRequest, ProbeReport},
    domain::{Assignment, Reason, RunPhase, RunUid, Usage, ids::PodUid, report::RunState},
};
use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use tokio::{runtime::Handle, sync::oneshot};
use tokio_util::{sync::DropGuard, task::TaskTracker};

use super::*;
use crate::{
    enforcer::client::Enforcer,
    ledger::disk::{Disk, RealDisk},
    link::contract::{DurableEvent, FromGateway, Grant, Redemption},
    pod::{
        adoption::RunOnServer,
        cgroup::Cgroups,
        client::{PodApi, PodError},
        digest::digest,
        logs::Waker,
    },
    steps::{
        machine::SEQUENCE_FINISHED,
        moment::{BootTime, Now},
        workers::GatewayAddress,
    },
    streams::{Retention, Streams},
    testing::{assignment, completed, credential, redemption},
};
use life::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_goes_from_assignment_to_a_released_pod() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    let cgroup = container_cgroup(dir.path());
    let mut life = Life::start(dir.path(), &pods).await;
    life.assign(assignment()).await;
    let registered = life.told(|m| matches!(m, ToGateway::Register(_))).await;
    life.told(|m| matches!(m, ToGateway::Credentials { .. })).await;
    assert!(matches!(life.said().await, Outgoing::AssignmentAck { refused: None, .. }));
    life.open_gate(&pods).await;
    let Outgoing::Report(running) = life.said().await else { panic!("a report") };
    assert!(matches!(running.state, RunState::Running(_)));
    life.durable(3, result_event()).await;
    std::fs::write(cgroup.join("pids.current"), "0\n").unwrap();
    let outcome = life.outcome().await;
    assert_eq!((outcome.reason, outcome.exit_code), (Reason::Completed, Some(0)));
    assert_eq!(outcome.usage.turns, 2);
    life.told(|m| matches!(m, ToGateway::Revoke { .. })).await;
    assert!(pods.only().unwrap().metadata.finalizers.is_some(), "kept until recorded");
    life.send(Input::ReportAck { run: assignment().key(), sequence: SEQUENCE_FINISHED }).await;
    wait_until(|| pods.only().unwrap().metadata.finalizers.is_none()).await;
    life.send(Input::Forget(assignment().key())).await;
    wait_until(|| pods.only().is_none()).await;

    let ToGateway::Register(grant) = registered else { unreachable!() };
    let ledger = std::fs::read_to_string(dir.path().join("ledger.jsonl")).unwrap();
    assert!(ledger.contains(&grant.one_time_hash), "the hash is kept");
    assert!(!ledger.contains("CREDENTIAL-CANARY"));
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_token_in_the_pod_is_the_one_that_the_grant_names_and_is_not_in_the_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    let mut life = Life::start(dir.path(), &pods).await;
    life.assign(assignment()).await;
    let grant = life.registered().await;
    wait_until(|| pods.only().is_some()).await;
    let env = pods.only().unwrap().spec.unwrap().containers[0].env.clone().unwrap();
    let token = env.iter().find(|e| e.name == "AGENT_OPERATOR_TOKEN").unwrap().value.clone();
    let token = token.unwrap();
    assert_eq!(agent_operator::domain::names::sha256_hex(token.as_bytes()), grant.one_time_hash);
    let ledger = std::fs::read_to_string(dir.path().join("ledger.jsonl")).unwrap();
    assert!(!ledger.contains(&token));
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_to_the_creation_makes_no_second_pod() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    pods.lose_answer.store(true, Ordering::SeqCst);
    let mut life = Life::start(dir.path(), &pods).await;
    life.assign(assignment()).await;
    life.open_gate(&pods).await;
    assert_eq!(*pods.creations.lock().unwrap(), 1);
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_supervisor_killed_in_mid_step_comes_back_and_finishes_it() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    let cgroup = container_cgroup(dir.path());
    let opened = pods.stand_still(Duration::ZERO);
    let mut life = Life::start(dir.path(), &pods).await;
    life.assign(assignment()).await;
    let left_at_first = life.open_gate(&pods).await;
    life.kill().await;

    let back = pods.stand_still(AWAY);
    let mut life = Life::start(dir.path(), &pods).await;
    let grant = life.registered().await;
    assert_eq!(grant.redemption, Some(redemption()));
    let left = Duration::from_millis(grant.open_remaining_millis.expect("the gate is open"));
    assert_kept((opened, left_at_first), (back, left));
    life.told(|m| matches!(m, ToGateway::Synced)).await;
    life.durable(9, result_event()).await;
    std::fs::write(cgroup.join("pids.current"), "0\n").unwrap();
    assert_eq!(life.outcome().await.reason, Reason::Completed);
    assert_eq!(*pods.creations.lock().unwrap(), 1);
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_runner_in_its_pod_ends_the_nodes_trial_and_a_restart_remembers() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    let mut life = Life::start(dir.path(), &pods).await;
    assert_eq!(life.delivery().await, None, "not tried yet");
    life.assign(assignment()).await;
    life.open_gate(&pods).await;
    assert_eq!(life.delivery().await, Some(Delivery::ImageVolume));
    life.kill().await;

    let life = Life::start(dir.path(), &pods).await;
    assert_eq!(life.delivery().await, Some(Delivery::ImageVolume));
    life.send(Input::SwitchDelivery("no such volumes".to_owned())).await;
    assert_eq!(life.delivery().await, Some(Delivery::InitContainer));
    life.kill().await;
    let life = Life::start(dir.path(), &pods).await;
    assert_eq!(life.delivery().await, Some(Delivery::InitContainer), "found out once");
    life.kill().await;

    // Set by hand meanwhile: the finding goes, and the node tries again.
    *pods.delivery.lock().unwrap() = Some(Delivery::InitContainer);
    let life = Life::start(dir.path(), &pods).await;
    assert_eq!(life.delivery().await, Some(Delivery::InitContainer));
    life.kill().await;
    *pods.delivery.lock().unwrap() = None;
    let life = Life::start(dir.path(), &pods).await;
    assert_eq!(life.delivery().await, Some(Delivery::ImageVolume));
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_over_its_deadline_is_stopped_and_its_pod_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    container_cgroup(dir.path());
    let mut life = Life::start(dir.path(), &pods).await;
    let short = Assignment { timeout_seconds: 1, grace_seconds: 1, ..assignment() };
    life.assign(short).await;
    life.open_gate(&pods).await;
    let began = clock::instant();
    let ToGateway::Stop { order, .. } = life.told(|m| matches!(m, ToGateway::Stop { .. })).await
    else {
        unreachable!()
    };
    assert_eq!(order.reason, Reason::TimedOut);
    let outcome = life.outcome().await;
    assert_eq!((outcome.reason, outcome.exit_code), (Reason::TimedOut, Some(137)));
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn assignments_are_judged() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    let mut life = Life::start(dir.path(), &pods).await;
    let mut other = assignment();
    other.run.uid = "other".into();
    let changed = Assignment { timeout_seconds: 1, ..assignment() };
    for (assignment, answer) in [
        (assignment(), None),
        (assignment(), None),
        (Assignment { epoch: Epoch(5), ..assignment() }, None),
        (assignment(), Some("StaleEpoch")),
        (Assignment { epoch: Epoch(5), ..changed }, Some("Conflict")),
        (Assignment { epoch: Epoch(5), node: "node-b".into(), ..other.clone() }, Some("WrongNode")),
        (Assignment { epoch: Epoch(5), ..other }, Some("NoCapacity")),
    ] {
        life.assign(assignment.clone()).await;
        let refused = match life.said().await {
            Outgoing::AssignmentAck { refused, .. } => refused.map(|(reason, _)| reason),
            other => panic!("{other:?}"),
        };
        assert_eq!(refused.as_deref(), answer, "{:?}", assignment.epoch);
    }
    wait_until(|| pods.only().is_some()).await;
    assert_eq!(*pods.creations.lock().unwrap(), 1);
    let (answer, snapshot) = oneshot::channel();
    life.send(Input::Snapshot(answer)).await;
    let snapshot = snapshot.await.unwrap();
    assert_eq!(snapshot.highest_epoch, Epoch(5));
    assert_eq!((snapshot.known.len(), snapshot.known[0].epoch), (1, Epoch(5)));
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_that_no_gateway_took_are_asked_for_again() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    let mut life = Life::start(dir.path(), &pods).await;
    life.send(Input::LinkDown).await;
    life.assign(assignment()).await;
    assert!(matches!(life.said().await, Outgoing::AssignmentAck { refused: None, .. }));
    let (to_gateway, gateway) = mpsc::channel(64);
    life.gateway = gateway;
    life.send(Input::LinkUp(to_gateway)).await;
    life.told(|m| matches!(m, ToGateway::Register(_))).await;
    assert_eq!(life.said().await, Outgoing::NeedCredentials(vec![assignment().key()]));
    let (run, epoch) = (assignment().key(), Epoch(3));
    life.send(Input::Credentials { run, epoch, credentials: vec![credential()] }).await;
    life.told(|m| matches!(m, ToGateway::Credentials { .. })).await;
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_and_log_reach_the_spools_and_complete() {
    use agent_operator::domain::event::{AgentEvent, EventRecord};

    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    let mut life = Life::start(dir.path(), &pods).await;
    life.assign(assignment()).await;
    life.open_gate(&pods).await;
    let event = AgentEvent::Status { text: "cloned".into() };
    let records = vec![EventRecord { time: jiff::Timestamp::UNIX_EPOCH, event }];
    life.durable(3, DurableEvent::Events { first: 0, records }).await;
    let name = pods.only().unwrap().metadata.name.unwrap();
    let folder = dir.path().join(format!("logs/agents_{name}_pod-uid/agent"));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("0.log"), "2027-01-15T10:00:00Z stdout F hello\n").unwrap();
    let streams = life.streams.attempt(&assignment().run, assignment().attempt).unwrap();
    wait_until(|| streams.log.extent().end == 6).await;
    life.see(&pods.set_status(terminated(3))).await;
    let outcome = life.outcome().await;
    assert_eq!((outcome.reason, outcome.exit_code), (Reason::AgentFailed, Some(3)));
    assert_eq!(outcome.log.bytes, 6);
    wait_until(|| streams.log.extent().complete && streams.events.extent().complete).await;
    assert_eq!(streams.next_event(), 1);
    life.kill().await;
}
