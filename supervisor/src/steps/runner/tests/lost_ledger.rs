//! A supervisor whose ledger is gone, full, or of many attempts.

use super::*;
use crate::{
    ledger::{NoRoom, format, tests::SmallDisk},
    link::contract::Survivor,
    streams::spool::SpoolError,
};

/// An attempt with an open gate whose supervisor was killed and whose ledger is gone.
async fn killed_without_ledger(dir: &Path, pods: &Arc<FakePods>) {
    killed_in_the_middle_of(assignment(), dir, pods).await;
}

async fn killed_in_the_middle_of(assignment: Assignment, dir: &Path, pods: &Arc<FakePods>) {
    let mut life = Life::start(dir, pods).await;
    life.assign(assignment).await;
    life.open_gate(pods).await;
    life.kill().await;
    std::fs::remove_file(dir.join("ledger.jsonl")).unwrap();
}

fn survivor(left: Duration) -> Survivor {
    Survivor {
        assignment: assignment(),
        redemption: Some(redemption()),
        open_remaining_millis: Some(u64::try_from(left.as_millis()).unwrap()),
        usage: Usage { turns: 5, ..Usage::default() },
        refusals: vec![],
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_only_pod_and_gateway_remember_is_adopted_with_its_deadline_and_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    let cgroup = container_cgroup(dir.path());
    killed_without_ledger(dir.path(), &pods).await;
    *pods.phase.lock().unwrap() = Some(RunPhase::Running);
    *pods.gateway_knows.lock().unwrap() = vec![assignment().key()];

    let back = pods.stand_still(AWAY);
    let mut life = Life::start(dir.path(), &pods).await;
    life.told(|m| matches!(m, ToGateway::Describe { .. })).await;
    life.told(|m| matches!(m, ToGateway::Synced)).await;
    let left = Duration::from_secs(33);
    life.send(Input::Gateway(FromGateway::Survivor(Box::new(survivor(left))))).await;
    let grant = life.registered().await;
    assert_eq!(grant.redemption, Some(redemption()));
    assert_eq!(grant.usage.turns, 5);
    let token = names_hash_of_pod_token(&pods);
    assert_eq!(grant.one_time_hash, token);
    let open = Duration::from_millis(grant.open_remaining_millis.unwrap());
    assert_kept((back, left), (back, open));
    life.durable(9, result_event()).await;
    std::fs::write(cgroup.join("pids.current"), "0\n").unwrap();
    assert_eq!(life.outcome().await.reason, Reason::Completed);
    assert_eq!(*pods.creations.lock().unwrap(), 1);
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_of_an_attempt_that_the_ledger_has_lost_is_kept_by_the_gateway_until_it_is_adopted()
 {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    let cgroup = container_cgroup(dir.path());
    killed_without_ledger(dir.path(), &pods).await;
    *pods.phase.lock().unwrap() = Some(RunPhase::Running);
    *pods.gateway_knows.lock().unwrap() = vec![assignment().key()];

    let mut life = Life::start(dir.path(), &pods).await;
    let run = assignment().key();
    let result = FromGateway::Durable { id: 9, run, event: result_event() };
    life.send(Input::Gateway(result)).await;
    let survivor = survivor(Duration::from_secs(33));
    life.send(Input::Gateway(FromGateway::Survivor(Box::new(survivor)))).await;
    // It gives the link up, and all that was not acknowledged comes with the next one.
    while let Some(message) = tokio::time::timeout(LIMIT, life.gateway.recv()).await.unwrap() {
        assert!(!matches!(message, ToGateway::Ack { .. }), "nobody has kept it");
    }
    life.link(&pods).await;
    life.durable(9, result_event()).await;
    std::fs::write(cgroup.join("pids.current"), "0\n").unwrap();
    assert_eq!(life.outcome().await.reason, Reason::Completed);
    life.kill().await;
}

fn names_hash_of_pod_token(pods: &FakePods) -> String {
    let env = pods.only().unwrap().spec.unwrap().containers[0].env.clone().unwrap();
    let token = env.into_iter().find(|env| env.name == "AGENT_OPERATOR_TOKEN").unwrap();
    agent_operator::domain::names::sha256_hex(token.value.unwrap().as_bytes())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_whose_tokens_nobody_remembers_is_stopped_as_disrupted_and_not_doubled() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    container_cgroup(dir.path());
    killed_without_ledger(dir.path(), &pods).await;
    *pods.phase.lock().unwrap() = Some(RunPhase::Running);

    let mut life = Life::start(dir.path(), &pods).await;
    let no_grace = Assignment { epoch: Epoch(4), ..assignment() };
    life.assign(no_grace).await;
    let grant = life.registered().await;
    // 20 s ago by the run's status, whose clock has whole seconds.
    let open = Duration::from_millis(grant.open_remaining_millis.unwrap());
    assert!(open + Duration::from_secs(19) <= assignment().timeout(), "{open:?}");
    let ToGateway::Stop { order, .. } = life.told(|m| matches!(m, ToGateway::Stop { .. })).await
    else {
        unreachable!()
    };
    assert_eq!(order.reason, Reason::Disrupted);
    assert!(matches!(life.said().await, Outgoing::AssignmentAck { refused: None, .. }));
    life.see(&pods.set_status(terminated(143))).await;
    assert_eq!(life.outcome().await.reason, Reason::Disrupted);
    assert_eq!(*pods.creations.lock().unwrap(), 1);
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_of_lost_tokens_whose_time_is_over_is_disrupted_for_it_may_have_ended_before() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    container_cgroup(dir.path());
    // Less than the 20 s for which it has run by the run's status.
    let short = Assignment { timeout_seconds: 5, ..assignment() };
    killed_in_the_middle_of(short.clone(), dir.path(), &pods).await;
    *pods.phase.lock().unwrap() = Some(RunPhase::Running);

    let mut life = Life::start(dir.path(), &pods).await;
    life.assign(Assignment { epoch: Epoch(4), ..short }).await;
    life.see(&pods.set_status(terminated(255))).await;
    assert_eq!(life.outcome().await.reason, Reason::Disrupted);
    life.kill().await;
}

/// What the ledger has of this boot becomes what it has of another one.
fn restart_node(dir: &Path) {
    let file = dir.join("ledger.jsonl");
    let boot_id = clock::boot_id().unwrap();
    let ledger = std::fs::read_to_string(&file).unwrap();
    let line = |line: &str| match line.split_once(" {") {
        Some((_, json)) => {
            format::sealed(&format!("{{{json}").replace(boot_id.as_str(), "another"))
        }
        None => format!("{line}\n"),
    };
    std::fs::write(file, ledger.lines().map(line).collect::<String>()).unwrap();
}

/// Else the gateway would be the witness of tokens that went with the boot, once this ledger is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_is_told_no_tokens_of_a_step_that_ran_before_its_node_restarted() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    let mut life = Life::start(dir.path(), &pods).await;
    life.assign(assignment()).await;
    life.open_gate(&pods).await;
    life.kill().await;

    let mut life = Life::start(dir.path(), &pods).await;
    assert_eq!(life.registered().await.redemption, Some(redemption()));
    life.kill().await;
    restart_node(dir.path());
    let mut life = Life::start(dir.path(), &pods).await;
    let grant = life.registered().await;
    assert!(grant.open_remaining_millis.is_some(), "its clock runs on");
    assert_eq!(grant.redemption, None);
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_whose_gate_the_gateway_has_kept_closed_has_all_of_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    killed_without_ledger(dir.path(), &pods).await;
    // Its container has run for a while, which says nothing of its gate.
    let begun = clock::now().wall.checked_sub(Duration::from_secs(30)).unwrap();
    let mut status = started();
    status["containerStatuses"][0]["state"]["running"]["startedAt"] = json!(begun);
    pods.set_status(status);
    *pods.phase.lock().unwrap() = Some(RunPhase::Unknown);
    *pods.gateway_knows.lock().unwrap() = vec![assignment().key()];

    let mut life = Life::start(dir.path(), &pods).await;
    life.told(|m| matches!(m, ToGateway::Synced)).await;
    let closed = Survivor { open_remaining_millis: None, ..survivor(Duration::ZERO) };
    life.send(Input::Gateway(FromGateway::Survivor(Box::new(closed)))).await;
    let grant = life.registered().await;
    assert_eq!(grant.open_remaining_millis, None);
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_had_a_pod_gets_no_second_one_when_pod_and_ledger_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    killed_without_ledger(dir.path(), &pods).await;
    *pods.phase.lock().unwrap() = Some(RunPhase::Running);
    pods.pods.lock().unwrap().clear();

    let mut life = Life::start(dir.path(), &pods).await;
    life.assign(assignment()).await;
    assert_eq!(life.outcome().await.reason, Reason::ExitCodeUnknown);
    assert_eq!(*pods.creations.lock().unwrap(), 1);
    life.kill().await;
}

/// A controller takes the refusal of a run for the word that there is no pod, and places it elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_node_refuses_no_run_whose_pod_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    killed_without_ledger(dir.path(), &pods).await;
    *pods.phase.lock().unwrap() = Some(RunPhase::Running);

    let mut life = Life::start(dir.path(), &pods).await;
    let mut other = assignment();
    other.run.name = "other".into();
    other.run.uid = "other".into();
    life.order(other.clone(), true).await;
    life.assign(assignment()).await;
    for run in [other.key(), assignment().key()] {
        let refused = loop {
            match life.said().await {
                Outgoing::AssignmentAck { run: of, refused, .. } if of == run => break refused,
                _ => {}
            }
        };
        assert_eq!(refused, None, "{run}");
    }
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pending_run_of_an_empty_ledger_is_an_ordinary_assignment() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    *pods.phase.lock().unwrap() = Some(RunPhase::Pending);
    let mut life = Life::start(dir.path(), &pods).await;
    life.assign(assignment()).await;
    assert!(matches!(life.said().await, Outgoing::AssignmentAck { refused: None, .. }));
    life.told(|m| matches!(m, ToGateway::Credentials { .. })).await;
    life.open_gate(&pods).await;
    assert_eq!(*pods.creations.lock().unwrap(), 1);
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_whose_run_is_gone_is_deleted_and_released() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    killed_without_ledger(dir.path(), &pods).await;
    let life = Life::start(dir.path(), &pods).await;
    life.see(&pods.set_status(started())).await;
    wait_until(|| pods.only().is_none()).await;
    life.kill().await;
}

/// The pod of an attempt without an entry, whose deletion a life before this one has ordered.
async fn deleted_before_this_life(pods: &FakePods) -> Pod {
    let name = pods.only().unwrap().metadata.name.unwrap();
    pods.delete("", &name, &PodUid::new("pod-uid")).await.unwrap();
    pods.only().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_an_earlier_life_deleted_and_did_not_release_is_released_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    killed_without_ledger(dir.path(), &pods).await;
    let pod = deleted_before_this_life(&pods).await;
    // The ledger was begun anew by that life: this one has no reason to mistrust it.
    let life = Life::start(dir.path(), &pods).await;
    *pods.phase.lock().unwrap() = Some(RunPhase::Succeeded);
    life.see(&pod).await;
    wait_until(|| pods.only().is_none()).await;
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_without_an_entry_that_goes_and_that_we_do_not_hold_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    killed_without_ledger(dir.path(), &pods).await;
    let mut pod = deleted_before_this_life(&pods).await;
    pod.metadata.finalizers = None;
    let life = Life::start(dir.path(), &pods).await;
    life.see(&pod).await;
    // Answered after the pod was taken note of.
    life.delivery().await;
    life.kill().await;
    assert_eq!(pods.looks.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_without_an_order_stays_while_its_run_lives_and_goes_once_the_run_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    killed_without_ledger(dir.path(), &pods).await;
    *pods.phase.lock().unwrap() = Some(RunPhase::Running);
    let mut life = Life::start(dir.path(), &pods).await;
    life.see(&pods.set_status(started())).await;
    wait_until(|| pods.looks.load(Ordering::SeqCst) > 0).await;
    life.told(|m| matches!(m, ToGateway::Synced)).await;
    assert!(pods.only().unwrap().metadata.deletion_timestamp.is_none());
    *pods.phase.lock().unwrap() = Some(RunPhase::Failed);
    life.see(&pods.set_status(terminated(143))).await;
    wait_until(|| pods.only().is_none()).await;
    life.kill().await;
}

/// A report of the life before this one is recorded late: the pod shows nothing new any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_without_an_entry_goes_when_the_controller_forgets_its_run_though_nothing_shows_any_more()
 {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    killed_without_ledger(dir.path(), &pods).await;
    *pods.phase.lock().unwrap() = Some(RunPhase::Running);
    let life = Life::start(dir.path(), &pods).await;
    life.see(&pods.set_status(terminated(0))).await;
    wait_until(|| pods.looks.load(Ordering::SeqCst) > 0).await;
    assert!(pods.only().is_some());
    *pods.phase.lock().unwrap() = Some(RunPhase::Succeeded);
    life.send(Input::Forget(assignment().key())).await;
    wait_until(|| pods.only().is_none()).await;
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_assignments_by_name_and_acknowledges_nothing_that_it_cannot_keep() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    let disk = SmallDisk::with_free(64 * 1024 * 1024);
    let mut life = Life::start_on(Box::new(disk.clone()), dir.path(), &pods).await;
    life.assign(assignment()).await;
    assert!(matches!(life.said().await, Outgoing::AssignmentAck { refused: None, .. }));
    life.open_gate(&pods).await;

    disk.set_broken(true);
    let run = assignment().key();
    life.send(Input::Gateway(FromGateway::Durable { id: 7, run, event: result_event() })).await;
    // The queue is in order: with this answered, the result has been taken.
    let (answer, snapshot) = oneshot::channel();
    life.send(Input::Snapshot(answer)).await;
    assert_eq!(snapshot.await.unwrap().known.len(), 1);
    while let Ok(message) = life.gateway.try_recv() {
        assert!(!matches!(message, ToGateway::Ack { id: 7 }), "nothing unkept is acknowledged");
    }
    let mut other = assignment();
    other.run.uid = "other".into();
    life.assign(other).await;
    let refused = loop {
        if let Outgoing::AssignmentAck { refused: Some((reason, _)), .. } = life.said().await {
            break reason;
        }
    };
    assert!(["LedgerUnwritable", "NoCapacity"].contains(&refused.as_str()), "{refused}");
    disk.set_broken(false);
    // Kept once the disk works again, and acknowledged only then.
    life.told(|message| matches!(message, ToGateway::Ack { id: 7 })).await;
    let ledger = std::fs::read_to_string(dir.path().join("ledger.jsonl")).unwrap();
    assert!(ledger.contains("\"record\":\"result\""));
    life.kill().await;
}

#[test]
fn a_disk_that_has_no_room_for_a_steps_output_has_none_for_the_step() {
    let full = SpoolError::Io(std::io::ErrorKind::StorageFull.into());
    assert_eq!(NoRoom::of_streams(&full), Some(NoRoom::DiskFull));
    let other = SpoolError::Io(std::io::ErrorKind::NotADirectory.into());
    assert_eq!(NoRoom::of_streams(&other), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_outlasts_a_loss_of_power_in_the_same_moment() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    let disk = SmallDisk::with_free(64 * 1024 * 1024);
    let run = assignment().key();
    let left = || disk.after_power_loss(dir.path()).0;
    let attempt = || left().attempts.remove(&run).expect("the attempt");

    disk.lose_power_behind("\"epoch\":3");
    let mut life = Life::start_on(Box::new(disk.clone()), dir.path(), &pods).await;
    // The queue is in order: with this answered, the session is up and its leader obeyed.
    life.delivery().await;
    assert_eq!(left().highest_epoch, Epoch(3));

    disk.lose_power_behind("\"record\":\"accepted\"");
    life.assign(assignment()).await;
    assert!(matches!(life.said().await, Outgoing::AssignmentAck { refused: None, .. }));
    assert_eq!(attempt().assignment.key(), run);

    wait_until(|| pods.only().is_some()).await;
    disk.lose_power_behind("\"record\":\"redeemed\"");
    life.durable(1, DurableEvent::Redeemed(redemption())).await;
    assert!(attempt().redemption.is_some());

    disk.lose_power_behind("\"record\":\"gateOpened\"");
    life.open_gate(&pods).await;
    assert!(attempt().opened.is_some(), "before anybody may begin");

    disk.lose_power_behind("\"record\":\"published\"");
    let (work_branch, head_commit) = ("ai/x".to_owned(), "c0ffee".to_owned());
    life.durable(6, DurableEvent::Published { work_branch, head_commit }).await;
    assert!(attempt().published.is_some());

    disk.lose_power_behind("\"record\":\"result\"");
    life.durable(7, result_event()).await;
    assert!(attempt().result.is_some());
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_assignment_is_refused_while_the_reserve_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    // Too small for the reserve from the start.
    let disk = SmallDisk::with_free(1024 * 1024);
    let mut life = Life::start_on(Box::new(disk), dir.path(), &pods).await;
    life.assign(assignment()).await;
    let Outgoing::AssignmentAck { refused: Some((reason, message)), .. } = life.said().await else {
        panic!("a refusal")
    };
    assert_eq!(reason, "DiskFull");
    assert!(message.contains("supervisor.hostPath"), "{message}");
    assert!(pods.only().is_none());
    life.kill().await;
}

fn numbered(number: usize) -> Assignment {
    let mut numbered = assignment();
    numbered.run.name = format!("run-{number}");
    numbered.run.uid = RunUid::from(format!("run-{number}").as_str());
    // So that no deadline passes for another's.
    numbered.timeout_seconds = 3600 + 10 * number as u64;
    numbered
}

impl Life {
    /// Takes numbered attempts whose pods are made to open gates; the time that each is told to have.
    async fn open_gates(&mut self, pods: &FakePods, attempts: usize) -> BTreeMap<RunKey, Duration> {
        let mut opened = BTreeMap::new();
        for number in 0..attempts {
            let run = numbered(number).key();
            let events = [
                DurableEvent::Redeemed(redemption()),
                DurableEvent::AtGate(GateRequest::default()),
            ];
            for (id, event) in (1 + 2 * number as u64..).zip(events) {
                let run = run.clone();
                self.send(Input::Gateway(FromGateway::Durable { id, run, event })).await;
            }
            let pod = pods.set_status_of(&format!("run-{number}-"), started());
            let digest = Box::new(digest(&pod));
            self.send(Input::PodSeen { run: run.clone(), digest }).await;
            let of_run = |told: &ToGateway| matches!(told, ToGateway::OpenGate { run: opened, .. } if *opened == run);
            let ToGateway::OpenGate { remaining_millis, .. } = self.told(of_run).await else {
                unreachable!()
            };
            opened.insert(run, Duration::from_millis(remaining_millis));
        }
        opened
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_attempts_are_adopted_after_a_restart_with_none_killed_and_none_doubled() {
    const ATTEMPTS: usize = 100;
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    pods.many.store(true, Ordering::SeqCst);
    let first = pods.stand_still(Duration::ZERO);
    let mut life = Life::start(dir.path(), &pods).await;
    for number in 0..ATTEMPTS {
        life.assign(numbered(number)).await;
        assert!(matches!(life.said().await, Outgoing::AssignmentAck { refused: None, .. }));
    }
    wait_until(|| pods.pods.lock().unwrap().len() == ATTEMPTS).await;
    // Every creation is on record before the end.
    loop {
        let ledger = std::fs::read_to_string(dir.path().join("ledger.jsonl")).unwrap();
        if ledger.matches("pod-run-").count() == ATTEMPTS {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let opened = life.open_gates(&pods, ATTEMPTS).await;
    life.kill().await;

    let back = pods.stand_still(AWAY);
    let began = clock::instant();
    let mut life = Life::start(dir.path(), &pods).await;
    let mut registered = BTreeMap::new();
    loop {
        match life.told(|_| true).await {
            ToGateway::Register(grant) => {
                registered.insert(grant.assignment.key(), grant.open_remaining_millis);
            }
            ToGateway::Synced => break,
            _ => {}
        }
    }
    let took = began.elapsed();
    let creations = *pods.creations.lock().unwrap();
    let killed = {
        let pods = pods.pods.lock().unwrap();
        let gone = ATTEMPTS - pods.len();
        gone + pods.values().filter(|pod| pod.metadata.deletion_timestamp.is_some()).count()
    };
    let doubled = usize::try_from(creations).unwrap() - ATTEMPTS;
    println!(
        "figure: supervisor restart: {} of {ATTEMPTS} attempts adopted in {took:?}, {killed} killed, {doubled} doubled",
        registered.len()
    );
    assert_eq!((registered.len(), killed, doubled), (ATTEMPTS, 0, 0));
    for (run, left_at_first) in opened {
        let left = registered[&run].expect("its gate is open");
        assert_kept((first, left_at_first), (back, Duration::from_millis(left)));
    }
    life.kill().await;
}
