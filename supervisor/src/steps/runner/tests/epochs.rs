//! Words of the controller under their terms: what an older one says has no effect, also after a
//! restart, and what a newer one says of the budget is kept.

use agent_operator::domain::assignment::TaskBudget;

use super::*;

fn under(epoch: u64) -> Assignment {
    Assignment { epoch: Epoch(epoch), ..assignment() }
}

fn permit(epoch: u64) -> Input {
    Input::Permit { epoch: Epoch(epoch), valid: Duration::from_secs(5) }
}

impl Life {
    /// A session of a controller of term `epoch`.
    async fn session_of(&mut self, epoch: u64) {
        let (outgoing, session) = mpsc::channel(1024);
        self.send(Input::SessionUp { epoch: Epoch(epoch), outgoing }).await;
        self.session = session;
    }

    /// The next words that no report is.
    async fn answered(&mut self) -> Outgoing {
        loop {
            match self.said().await {
                Outgoing::Report(_) => {}
                other => return other,
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_leader_that_wakes_up_changes_nothing_also_after_a_restart_of_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    let mut life = Life::start(dir.path(), &pods).await;
    life.assign(under(5)).await;
    life.open_gate(&pods).await;
    life.kill().await;

    // Life::start offers a session of term 3, which is not taken.
    let mut life = Life::start(dir.path(), &pods).await;
    life.told(|message| matches!(message, ToGateway::Synced)).await;
    let closed = tokio::time::timeout(LIMIT, life.session.recv()).await.expect("an end in time");
    assert!(closed.is_none(), "a controller of an old term is not talked to: {closed:?}");
    life.session_of(5).await;

    let run = assignment().key();
    let epoch = Epoch(4);
    let (reason, message) = (Reason::Cancelled, String::new());
    let budget = Some(TaskBudget { tokens: Some(1), cost_micro_usd: None });
    let credentials = vec![credential()];
    life.send(Input::Cancel { run: run.clone(), epoch, reason, message, grace: None }).await;
    life.send(Input::Budget { run: run.clone(), epoch, budget }).await;
    life.send(Input::Credentials { run, epoch, credentials }).await;
    life.send(permit(4)).await;
    life.assign(under(4)).await;
    loop {
        if let Outgoing::AssignmentAck { refused, .. } = life.answered().await {
            assert_eq!(refused.map(|(reason, _)| reason).as_deref(), Some("StaleEpoch"));
            break;
        }
    }
    life.send(permit(5)).await;
    // Whatever had been passed on of all that would come before it.
    let next = life.told(|_| true).await;
    assert!(matches!(next, ToGateway::Permit { epoch: Epoch(5), .. }), "{next:?}");
    assert_eq!(*pods.creations.lock().unwrap(), 1);
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_controllers_at_once_make_one_pod_and_the_later_term_is_obeyed() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    let mut life = Life::start(dir.path(), &pods).await;
    let mut answers = Vec::new();
    for epoch in [5, 6, 5, 6, 5] {
        life.assign(under(epoch)).await;
        if let Outgoing::AssignmentAck { refused, .. } = life.answered().await {
            answers.push(refused.is_none());
        }
    }
    assert_eq!(answers, [true, true, false, true, false]);
    life.open_gate(&pods).await;
    assert_eq!(*pods.creations.lock().unwrap(), 1);
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_raised_budget_reaches_the_gateway_once_and_outlives_the_supervisor() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    let mut life = Life::start(dir.path(), &pods).await;
    life.assign(under(3)).await;
    life.open_gate(&pods).await;
    let of = |tokens| Some(TaskBudget { tokens: Some(tokens), cost_micro_usd: None });
    let run = assignment().key();
    for _ in 0..2 {
        let run = run.clone();
        life.send(Input::Budget { run, epoch: Epoch(3), budget: of(500) }).await;
    }
    life.send(permit(3)).await;
    let mut told = Vec::new();
    loop {
        match life.told(|_| true).await {
            ToGateway::Budget { budget, .. } => told.push(budget),
            ToGateway::Permit { .. } => break,
            _ => {}
        }
    }
    assert_eq!(told, [of(500)]);
    life.kill().await;

    let mut life = Life::start(dir.path(), &pods).await;
    let grant = life.registered().await;
    assert_eq!(grant.assignment.budget, of(500));
    // A controller that was away while the budget was raised says it with the assignment.
    life.assign(Assignment { budget: of(900), ..under(4) }).await;
    let message = life.told(|message| matches!(message, ToGateway::Budget { .. })).await;
    let ToGateway::Budget { budget, .. } = message else { unreachable!() };
    assert_eq!(budget, of(900));
    life.kill().await;
}
