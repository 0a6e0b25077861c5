//! Attempts that are made ahead: nothing of the task reaches them before their turn, and one word begins
//! them.

use super::*;

fn held() -> Assignment {
    Assignment { held: true, ..assignment() }
}

fn to_begin() -> Assignment {
    let mut assignment = assignment();
    assignment.work.plan = Some("the plan as it is now".into());
    assignment.repository.head_commit = Some("c0ffee".into());
    assignment
}

/// The messages to the gateway up to one that is `wanted`, with it.
async fn until(life: &mut Life, wanted: impl Fn(&ToGateway) -> bool) -> Vec<ToGateway> {
    let mut all = Vec::new();
    loop {
        let message = life.told(|_| true).await;
        let found = wanted(&message);
        all.push(message);
        if found {
            return all;
        }
    }
}

async fn accepted(life: &mut Life) {
    loop {
        if let Outgoing::AssignmentAck { refused, .. } = life.said().await {
            assert_eq!(refused, None);
            return;
        }
    }
}

/// At the gate, as far as an ordinary attempt needs to have it opened.
async fn at_gate(life: &mut Life, pods: &FakePods) {
    wait_until(|| pods.only().is_some()).await;
    life.durable(1, DurableEvent::Redeemed(redemption())).await;
    life.durable(2, DurableEvent::AtGate(GateRequest::default())).await;
    life.see(&pods.set_status(started())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_attempt_gets_no_credentials_and_begins_with_all_of_them_by_one_word() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    let mut life = Life::start(dir.path(), &pods).await;
    // Even if somebody sent some along.
    life.assign(held()).await;
    accepted(&mut life).await;
    assert!(life.registered().await.assignment.held);
    at_gate(&mut life, &pods).await;
    life.send(Input::Gateway(FromGateway::NeedCredentials { run: assignment().key() })).await;
    life.assign(held()).await;
    accepted(&mut life).await;

    life.assign(to_begin()).await;
    let told = until(&mut life, |message| matches!(message, ToGateway::OpenGate { .. })).await;
    let place = |is: fn(&ToGateway) -> bool| told.iter().position(is);
    let begun = |message: &ToGateway| match message {
        ToGateway::Register(grant) => grant.assignment == to_begin(),
        _ => false,
    };
    let (registered, credentials) =
        (place(begun), place(|message| matches!(message, ToGateway::Credentials { .. })));
    assert!(registered.is_some() && registered < credentials, "{told:?}");
    assert_eq!(told.iter().filter(|m| matches!(m, ToGateway::Credentials { .. })).count(), 1);
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_to_hold_behind_the_word_to_begin_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    let mut life = Life::start(dir.path(), &pods).await;
    life.assign(held()).await;
    life.assign(to_begin()).await;
    life.assign(held()).await;
    life.assign(to_begin()).await;
    for _ in 0..4 {
        accepted(&mut life).await;
    }
    life.open_gate(&pods).await;
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_run_than_the_held_one_is_refused_however_it_is_called() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    let mut life = Life::start(dir.path(), &pods).await;
    life.assign(held()).await;
    accepted(&mut life).await;
    life.assign(Assignment { timeout_seconds: 7, ..assignment() }).await;
    let Outgoing::AssignmentAck { refused: Some((reason, _)), .. } = life.said().await else {
        panic!("an answer")
    };
    assert_eq!(reason, "Conflict");
    life.kill().await;
}
