//! What an attempt costs the API server, on a node whose ledger is new.

use super::*;

/// Takes the attempt from its open gate to a recorded and forgotten outcome.
async fn to_its_end(life: &mut Life, pods: &FakePods, cgroup: &Path) {
    life.durable(3, result_event()).await;
    std::fs::write(cgroup.join("pids.current"), "0\n").unwrap();
    assert_eq!(life.outcome().await.reason, Reason::Completed);
    let run = assignment().key();
    life.send(Input::ReportAck { run: run.clone(), sequence: SEQUENCE_FINISHED }).await;
    life.send(Input::Forget(run)).await;
    wait_until(|| pods.only().is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_is_three_writes_and_no_read_on_a_node_whose_ledger_is_new() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    // So that this ledger counts as one that may have lost facts.
    *pods.phase.lock().unwrap() = Some(RunPhase::Pending);
    let cgroup = container_cgroup(dir.path());
    let mut life = Life::start(dir.path(), &pods).await;
    life.order(assignment(), true).await;
    life.open_gate(&pods).await;
    let begun = std::mem::take(&mut *pods.calls.lock().unwrap());
    // A slow machine may have asked by now whether the pod has found its node.
    assert!(begun[0] == "create pod" && !begun.contains(&"get run"), "{begun:?}");
    to_its_end(&mut life, &pods, &cgroup).await;
    life.kill().await;
    let mut ended = pods.calls.lock().unwrap().clone();
    // Release and deletion do not wait for one another.
    ended.sort_unstable();
    assert_eq!(ended, ["delete pod", "release pod"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_shows_while_it_goes_by_our_order_is_neither_looked_at_nor_deleted_again() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    *pods.phase.lock().unwrap() = Some(RunPhase::Succeeded);
    let cgroup = container_cgroup(dir.path());
    let mut life = Life::start(dir.path(), &pods).await;
    life.order(assignment(), true).await;
    wait_until(|| pods.only().is_some()).await;
    let mut late = pods.set_status(terminated(0));
    life.open_gate(&pods).await;
    to_its_end(&mut life, &pods, &cgroup).await;
    let before = pods.calls.lock().unwrap().len();
    late.metadata.finalizers = None;
    life.see(&late).await;
    late.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
    life.see(&late).await;
    // Answered after the pod was taken note of.
    life.delivery().await;
    assert_eq!(pods.calls.lock().unwrap().len(), before);

    // Once it is gone, whatever has its name is looked at again.
    life.send(Input::PodMissing(assignment().key())).await;
    life.see(&late).await;
    wait_until(|| pods.calls.lock().unwrap().contains(&"get run")).await;
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_may_have_been_given_before_is_looked_at_in_any_life_after_its_ledger_was_lost()
 {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    *pods.phase.lock().unwrap() = Some(RunPhase::Running);
    // The ledger is new in the first of these lives.
    for _ in 0..2 {
        Life::start(dir.path(), &pods).await.kill().await;
    }
    let mut life = Life::start(dir.path(), &pods).await;
    life.order(assignment(), false).await;
    assert_eq!(life.outcome().await.reason, Reason::ExitCodeUnknown);
    assert_eq!(*pods.calls.lock().unwrap(), ["get pod", "get run"]);
    assert_eq!(*pods.creations.lock().unwrap(), 0);
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_order_for_a_run_whose_pod_shows_all_the_same_is_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    *pods.phase.lock().unwrap() = Some(RunPhase::Pending);
    container_cgroup(dir.path());
    let life = Life::start(dir.path(), &pods).await;
    life.order(assignment(), true).await;
    wait_until(|| pods.only().is_some()).await;
    life.kill().await;
    std::fs::remove_file(dir.path().join("ledger.jsonl")).unwrap();
    let mut life = Life::start(dir.path(), &pods).await;
    life.see(&pods.set_status(started())).await;
    life.order(assignment(), true).await;
    while !matches!(life.said().await, Outgoing::AssignmentAck { refused: None, .. }) {}
    assert_eq!(*pods.creations.lock().unwrap(), 1);
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creation_that_takes_effect_again_after_its_pod_has_gone_leaves_no_pod() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    let life = Life::start(dir.path(), &pods).await;
    life.assign(assignment()).await;
    wait_until(|| pods.only().is_some()).await;
    let mut again = pods.set_status(started());
    life.see(&again).await;
    // What hung on its way for long.
    again.metadata.uid = Some("uid-of-the-late-one".to_owned());
    pods.pods.lock().unwrap().insert(again.metadata.name.clone().unwrap(), again.clone());
    life.see(&again).await;
    wait_until(|| pods.only().is_none()).await;
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_was_not_made_before_its_run_ended_is_not_made_by_the_next_life() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    let life = Life::start(dir.path(), &pods).await;
    life.assign(assignment()).await;
    wait_until(|| pods.only().is_some()).await;
    life.kill().await;
    // As though the first life had got no further than its ledger.
    pods.pods.lock().unwrap().clear();
    let ledger = dir.path().join("ledger.jsonl");
    let text = std::fs::read_to_string(&ledger).unwrap();
    let accepted: Vec<_> = text.lines().filter(|line| !line.contains("podCreated")).collect();
    std::fs::write(&ledger, accepted.join("\n") + "\n").unwrap();
    *pods.phase.lock().unwrap() = Some(RunPhase::Failed);

    let mut life = Life::start(dir.path(), &pods).await;
    assert_eq!(life.outcome().await.reason, Reason::Unstarted);
    assert_eq!(*pods.creations.lock().unwrap(), 1);
    life.kill().await;
}
