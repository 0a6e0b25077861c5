//! Runs that the controller ends and of which the ledger knows nothing.

use super::*;

/// The order for a run and the word to end it, both given before anybody could look at it.
fn order_and_end(life: &Life, pods: &FakePods) {
    let looking = pods.phase.lock().unwrap();
    let assignment = Box::new(Assignment { held: true, epoch: Epoch(4), ..assignment() });
    let (run, credentials) = (assignment.key(), Vec::new());
    let order = Input::Assign { assignment, credentials, first: false };
    let (reason, message) = (Reason::Cancelled, "cancelled: not needed any more".to_owned());
    let end = Input::Cancel { run, epoch: Epoch(4), reason, message, grace: Some(Duration::ZERO) };
    life.inputs.try_send(order).unwrap();
    life.inputs.try_send(end).unwrap();
    drop(looking);
}

/// A pod whose supervisor was killed and has lost its ledger; its run is in `phase`.
async fn forgotten(dir: &Path, pods: &Arc<FakePods>, phase: RunPhase) {
    let mut life = Life::start(dir, pods).await;
    life.assign(Assignment { held: phase == RunPhase::Pending, ..assignment() }).await;
    if phase == RunPhase::Pending {
        wait_until(|| pods.only().is_some()).await;
        pods.set_status(started());
    } else {
        life.open_gate(pods).await;
    }
    life.kill().await;
    std::fs::remove_file(dir.join("ledger.jsonl")).unwrap();
    *pods.phase.lock().unwrap() = Some(phase);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_ended_after_its_ledger_was_lost_has_no_outcome_before_its_pod_has_ended() {
    for phase in [RunPhase::Running, RunPhase::Pending] {
        let dir = tempfile::tempdir().unwrap();
        let pods = Arc::new(FakePods::default());
        forgotten(dir.path(), &pods, phase).await;
        // Whatever became of its tokens, it needs none to end: the gateway describes nothing.
        *pods.gateway_knows.lock().unwrap() = vec![assignment().key()];
        let mut life = Life::start(dir.path(), &pods).await;
        order_and_end(&life, &pods);
        let grant = life.registered().await;
        assert_eq!(grant.assignment.held, phase == RunPhase::Pending, "an open gate stays open");
        let outcome = life.outcome().await;
        assert_eq!((outcome.reason, outcome.exit_code), (Reason::Cancelled, Some(137)), "{phase}");
        assert_eq!(outcome.message, "cancelled: not needed any more");
        assert!(pods.calls.lock().unwrap().contains(&"delete pod"));
        assert_eq!(*pods.creations.lock().unwrap(), 1);
        life.kill().await;
    }
}

/// A later version of the operator, or other values of its chart, would make another pod.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_whose_pod_was_not_adopted_is_refused_once_and_ended_with_its_pod() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    forgotten(dir.path(), &pods, RunPhase::Running).await;
    let mut life = Life::start(dir.path(), &pods).await;
    let mut other = Assignment { epoch: Epoch(4), ..assignment() };
    other.pod.image = "another:1".into();
    life.assign(other).await;
    let Outgoing::AssignmentAck { refused: Some((reason, _)), .. } = life.said().await else {
        panic!("a refusal")
    };
    assert_eq!(reason, "Conflict");
    // Whoever looks again finds the same, and says nothing.
    let looks = pods.looks.load(Ordering::SeqCst);
    life.see(&pods.set_status(started())).await;
    wait_until(|| pods.looks.load(Ordering::SeqCst) > looks).await;
    let (run, epoch, grace) = (assignment().key(), Epoch(4), Some(Duration::ZERO));
    let (reason, message) = (Reason::Cancelled, "cancelled: not needed any more".to_owned());
    life.send(Input::Cancel { run, epoch, reason, message, grace }).await;
    loop {
        match life.said().await {
            Outgoing::Report(report) => {
                if let RunState::Finished(outcome) = report.state {
                    assert_eq!(outcome.reason, Reason::Cancelled);
                    break;
                }
            }
            Outgoing::AssignmentAck { .. } => panic!("a second answer"),
            _ => {}
        }
    }
    assert!(pods.calls.lock().unwrap().contains(&"delete pod"));
    assert_eq!(*pods.creations.lock().unwrap(), 1);
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_ended_before_it_had_a_pod_gets_none() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    *pods.phase.lock().unwrap() = Some(RunPhase::Pending);
    let mut life = Life::start(dir.path(), &pods).await;
    order_and_end(&life, &pods);
    assert_eq!(life.outcome().await.reason, Reason::Cancelled);
    assert_eq!(*pods.creations.lock().unwrap(), 0);
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_ended_after_its_pod_has_gone_is_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    forgotten(dir.path(), &pods, RunPhase::Running).await;
    pods.pods.lock().unwrap().clear();
    let mut life = Life::start(dir.path(), &pods).await;
    order_and_end(&life, &pods);
    let outcome = life.outcome().await;
    assert_eq!((outcome.reason, outcome.exit_code), (Reason::Cancelled, None));
    assert_eq!(*pods.creations.lock().unwrap(), 1);
    life.kill().await;
}
