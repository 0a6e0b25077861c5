//! Who leads, and what a change of the leader leaves of a task.

use std::{sync::Arc, time::Duration};

use agent_operator::domain::Epoch;
use agent_operator_controller::lease::{
    Election, ElectionConfig, EpochFloor, Leadership, identity,
};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, ResourceExt as _, api::DeleteParams};
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::support::{Controller, Fleet, all_well, eventually, ground};

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn a_clean_hand_over_is_immediate_and_raises_the_epoch() {
    let Some(ground) = ground().await else { return };
    let elect = |floor: &EpochFloor| {
        let config = ElectionConfig::new(&ground.namespace, "lease", identity("x").unwrap());
        Election::new(ground.client.clone(), config, floor.clone())
    };
    let term = async |leadership: &mut Leadership| loop {
        if let Some(term) = leadership.term(Instant::now()) {
            return term;
        }
        leadership.changed().await.unwrap();
    };
    let (floor, stop) = (EpochFloor::default(), CancellationToken::new());
    let (first, mut first_leads) = elect(&floor);
    let running = tokio::spawn(first.run(stop.clone()));
    let one = term(&mut first_leads).await;
    let (second, mut second_leads) = elect(&floor);
    let second_stop = CancellationToken::new();
    let second_running = tokio::spawn(second.run(second_stop.clone()));
    // Longer than the Lease: a renewed term is not taken.
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert!(second_leads.term(Instant::now()).is_none());
    assert_eq!(first_leads.term(Instant::now()).unwrap().epoch, one.epoch);

    let asked = Instant::now();
    stop.cancel();
    running.await.unwrap();
    let two = tokio::time::timeout(Duration::from_secs(5), term(&mut second_leads)).await.unwrap();
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    assert_eq!(two.epoch, Epoch(one.epoch.0 + 1));
    assert!(first_leads.term(Instant::now()).is_none());

    // A supervisor that has obeyed a higher epoch raises the term.
    floor.raise(Epoch(40));
    eventually("the term is raised", async || {
        let term = second_leads.term(Instant::now());
        term.filter(|term| term.epoch == Epoch(41))
    })
    .await;
    // A deleted Lease does not bring the epoch down.
    second_stop.cancel();
    second_running.await.unwrap();
    let leases: Api<Lease> = Api::namespaced(ground.client.clone(), &ground.namespace);
    leases.delete("lease", &DeleteParams::default()).await.unwrap();
    let (third, mut third_leads) = elect(&floor);
    let third_stop = CancellationToken::new();
    let third_running = tokio::spawn(third.run(third_stop.clone()));
    assert_eq!(term(&mut third_leads).await.epoch, Epoch(42), "above the term that was");
    third_stop.cancel();
    third_running.await.unwrap();
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn a_waiting_replica_knows_the_leader_takes_over_at_once_and_a_deleted_lease_lowers_nothing()
{
    let Some(ground) = ground().await else { return };
    let elect = |name: &str, address: &str| {
        let config = ElectionConfig::new(&ground.namespace, "lease", identity(name).unwrap());
        let config = config.at(Some(address.to_owned()));
        // Two processes: what one knows of epochs, the other does not.
        let (election, leadership) =
            Election::new(ground.client.clone(), config, EpochFloor::default());
        let stop = CancellationToken::new();
        (tokio::spawn(election.run(stop.clone())), leadership, stop)
    };
    let term = async |leadership: &Leadership, above: u64| {
        eventually("a term begins", async || {
            leadership.term(Instant::now()).filter(|term| term.epoch > Epoch(above))
        })
        .await
    };
    let (first, first_leads, stop_first) = elect("first", "10.0.0.1:8443");
    let one = term(&first_leads, 0).await;
    let (second, second_leads, stop_second) = elect("second", "10.0.0.2:8443");
    let known = tokio::time::timeout(Duration::from_secs(30), second_leads.superseded()).await;
    assert_eq!(known.unwrap().address.as_deref(), Some("10.0.0.1:8443"));
    assert_eq!(first_leads.other(), None);

    // Three clean hand-overs, back and forth; the quickest counts, for the machine may be busy.
    let mut quickest = Duration::MAX;
    let (mut holder, mut waiting) =
        ((first, first_leads, stop_first), (second, second_leads, stop_second));
    let mut epoch = one.epoch;
    for round in 0..3 {
        let began = Instant::now();
        holder.2.cancel();
        let mut terms = waiting.1.clone();
        let next = tokio::time::timeout(Duration::from_secs(30), async {
            loop {
                if let Some(term) = terms.term(Instant::now()) {
                    return term;
                }
                terms.changed().await.unwrap();
            }
        });
        let next = next.await.unwrap();
        quickest = quickest.min(began.elapsed());
        assert_eq!(next.epoch, Epoch(epoch.0 + 1));
        assert_eq!(waiting.1.other(), None, "who leads knows no other leader");
        epoch = next.epoch;
        holder.0.await.unwrap();
        holder = waiting;
        waiting = elect("next", &format!("10.0.1.{round}:8443"));
        tokio::time::timeout(Duration::from_secs(30), waiting.1.superseded()).await.unwrap();
    }
    println!("clean hand-over: {quickest:?}");
    // By the watch, that is: a wait for the end of the Lease would take 5 s. It is some milliseconds
    // where nothing else runs.
    assert!(quickest < Duration::from_millis(2500), "{quickest:?}");

    // Whoever makes the Lease anew, the holder or the one that waits: the epoch goes up.
    let leases: Api<Lease> = Api::namespaced(ground.client.clone(), &ground.namespace);
    leases.delete("lease", &DeleteParams::default()).await.unwrap();
    let after = eventually("another term", async || {
        let terms = [&holder.1, &waiting.1].map(|leadership| leadership.term(Instant::now()));
        terms.into_iter().flatten().map(|term| term.epoch).find(|found| *found > epoch)
    })
    .await;
    assert_eq!(after, Epoch(epoch.0 + 1));
    for (running, _, stop) in [holder, waiting] {
        stop.cancel();
        running.await.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn f3_two_controllers_that_both_lead_complete_a_task_once() {
    let Some(ground) = ground().await else { return };
    ground.node("node-a").await;
    ground.secret().await;
    let fleet = Fleet::new(&["node-a"], all_well());
    // No Lease: the one has term 4 for good, the other term 5, and both see every change.
    let older = Controller::leading(&ground, Arc::clone(&fleet), Epoch(4)).await;
    let newer = Controller::leading(&ground, Arc::clone(&fleet), Epoch(5)).await;
    for index in 0..3 {
        ground.task(&format!("task-{index}"), json!({})).await;
    }
    for index in 0..3 {
        let task = ground.phase(&format!("task-{index}"), "Complete").await;
        assert_eq!(task.status.unwrap().retry_count.unwrap_or(0), 0);
    }
    let runs = ground.all_runs().await;
    assert_eq!(runs.len(), 12, "one run a step");
    for run in &runs {
        let status = run.status.clone().unwrap();
        assert_eq!(status.phase.as_deref(), Some("Succeeded"), "{}", run.name_any());
    }
    let started = fleet.started();
    assert_eq!(started.len(), 12);
    assert!(started.values().all(|times| *times == 1), "a node began twice: {started:?}");
    older.stop().await;
    newer.stop().await;
}
