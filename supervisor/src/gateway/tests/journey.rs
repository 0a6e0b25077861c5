//! A step's whole way through the gateway: task, clone, push, publish, with a real git on both ends.

mod replaced;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use agent_operator::{
    attempt::{ApiError, Published, Redeemed, StepSpec, StopOrder},
    domain::{Credential, Epoch, Reason, Secret, StepName},
};

use super::rig::{
    Options, POD, Rig, Supervisor, bearer, company, credentials, eventually, grant, key,
};
use crate::{
    gateway::git::tests::upstream::{TOKEN, TestUpstream, client_async, run},
    link::contract::{DurableEvent, FromGateway, ToGateway},
};

struct Journey {
    rig: Rig,
    supervisor: Supervisor,
    tokens: Redeemed,
    directory: tempfile::TempDir,
    upstream: TestUpstream,
}

impl Journey {
    async fn start(step: StepName, token: &str) -> Self {
        let direct = |address| Options { forge: format!("http://{address}"), ..Options::default() };
        Self::start_with(step, token, direct).await
    }

    /// The same; `options` are made from the upstream's address.
    async fn start_with(
        step: StepName,
        token: &str,
        options: impl FnOnce(SocketAddr) -> Options,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("upstream");
        std::fs::create_dir_all(root.join("o")).unwrap();
        run(&root, "git", &["init", "-q", "--bare", "-b", "main", "o/r.git"]);
        run(&root, "git", &["init", "-q", "-b", "main", "work"]);
        let work = root.join("work");
        std::fs::write(work.join("README"), "hello\n").unwrap();
        run(&work, "git", &["add", "."]);
        run(&work, "git", &["commit", "-qm", "first"]);
        run(&work, "git", &["push", "-q", "../o/r.git", "main"]);
        let upstream = TestUpstream::start(root).await;
        let rig = Rig::start_with(options(upstream.address)).await;
        let supervisor = rig.with_credentials(grant("a", step, None), with_git(token)).await;
        let tokens = rig.redeem("a").await;
        Self { rig, supervisor, tokens, directory, upstream }
    }

    async fn step(&self) -> super::rig::Answer {
        let runner = bearer(&self.tokens.runner_token);
        // 503: the fetch is still going on.
        eventually(async || {
            let answer = self.rig.call(POD, "GET", "/v1/step", &runner, "").await;
            (answer.status != 503).then_some(answer)
        })
        .await
    }

    async fn open_gate(&self) {
        self.supervisor.open_gate("a", POD).await;
        let runner = bearer(&self.tokens.runner_token);
        let gate = self.rig.call(POD, "POST", "/v1/gate", &runner, "{\"sandbox\":{}}").await;
        assert!(gate.text().contains("\"open\""), "{gate:?}");
    }

    fn remote(&self) -> String {
        format!("http://x:{}@{}/git/main.git", self.tokens.agent_token, self.rig.address)
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    async fn publish(&self, commit: &str) -> super::rig::Answer {
        let body = serde_json::json!({"repository": "main", "commit": commit}).to_string();
        let runner = bearer(&self.tokens.runner_token);
        self.rig.call(POD, "POST", "/v1/publish", &runner, &body).await
    }
}

/// The credentials of an attempt that may push with `token`.
fn with_git(token: &str) -> Vec<Credential> {
    let mut all = credentials();
    all.push(Credential {
        id: "git/main".to_owned(),
        purpose: "git".to_owned(),
        host: "github.com".to_owned(),
        scheme: "basic".to_owned(),
        value: Secret::new(token),
    });
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_goes_from_the_sandbox_to_the_work_branch_upstream() {
    whole_way(&Journey::start(StepName::Implement, TOKEN).await).await;
}

/// Clone, commit and push into quarantine: the work tree and the commit.
async fn committed(journey: &Journey, step: &StepSpec) -> (PathBuf, String) {
    let clone = client_async(journey.path(), &["clone", "-q", &journey.remote(), "clone"]).await;
    assert!(clone.status.success(), "{}", String::from_utf8_lossy(&clone.stderr));
    let work = journey.path().join("clone");
    run(&work, "git", &["checkout", "-q", &step.repository.start_commit]);
    std::fs::write(work.join("new"), "new\n").unwrap();
    run(&work, "git", &["add", "."]);
    run(&work, "git", &["commit", "-qm", "change\n\nAgent-Operator-Task-Uid: 0a1b2c"]);
    let commit = run(&work, "git", &["rev-parse", "HEAD"]);
    let branch = format!("HEAD:refs/heads/{}", step.repository.work_branch);
    let push = client_async(&work, &["push", "-q", &journey.remote(), &branch]).await;
    assert!(push.status.success(), "{}", String::from_utf8_lossy(&push.stderr));
    (work, commit)
}

/// Clone, commit, push and publish.
async fn whole_way(journey: &Journey) {
    let answer = journey.step().await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(!answer.text().contains(TOKEN));
    let step: StepSpec = answer.json();
    assert_eq!((step.prompt.as_str(), step.repository.may_push), ("do", true));

    let early = client_async(journey.path(), &["clone", "-q", &journey.remote(), "early"]).await;
    assert!(!early.status.success(), "the gate is closed");
    journey.open_gate().await;
    let (_, commit) = committed(journey, &step).await;
    let held = journey.publish(&commit).await;
    assert_eq!(held.status, 503, "no permission to write: {held:?}");
    assert!(held.json::<ApiError>().retryable);
    let permit = ToGateway::Permit { epoch: Epoch(1), valid_millis: 30_000 };
    journey.supervisor.say(permit).await;
    let answer = eventually(async || {
        let answer = journey.publish(&commit).await;
        (answer.status != 503).then_some(answer)
    })
    .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json::<Published>().head_commit, commit);
    let bare = journey.upstream.root.join("o/r.git");
    assert_eq!(run(&bare, "git", &["rev-parse", "ai/task"]), commit);
    journey
        .supervisor
        .wait(|message| match message {
            FromGateway::Durable { event: DurableEvent::Published { head_commit, .. }, .. } => {
                (*head_commit == commit).then_some(())
            }
            _ => None,
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_attempt_on_a_cut_off_node_neither_publishes_nor_pushes_when_the_link_is_back() {
    let journey = Journey::start(StepName::Implement, TOKEN).await;
    let step: StepSpec = journey.step().await.json();
    journey.open_gate().await;
    let (work, commit) = committed(&journey, &step).await;
    // Cut off: the last permission has lapsed, and none comes any more. The commit waits.
    let lapsing = ToGateway::Permit { epoch: Epoch(4), valid_millis: 1 };
    journey.supervisor.say(lapsing).await;
    let held = eventually(async || {
        let held = journey.publish(&commit).await;
        held.text().contains("lapsed").then_some(held)
    })
    .await;
    assert!(held.status == 503 && held.json::<ApiError>().retryable, "{held:?}");
    // Healed: the leader of term 5 has given the run up meanwhile. Its permission is for the node, but
    // the attempt is ended by name, and a leader of the past gives no permission at all.
    let attempt = key("a");
    let order = StopOrder {
        reason: Reason::Cancelled,
        message: "the run was given up while its node was away".to_owned(),
        grace_millis: 10_000,
    };
    journey.supervisor.say(ToGateway::Stop { run: attempt.clone(), order }).await;
    for epoch in [5, 4] {
        let permit = ToGateway::Permit { epoch: Epoch(epoch), valid_millis: 30_000 };
        journey.supervisor.say(permit).await;
    }
    let refused = eventually(async || {
        let answer = journey.publish(&commit).await;
        (answer.status != 503).then_some(answer)
    })
    .await;
    assert_eq!(refused.status, 403, "{refused:?}");
    let branch = format!("HEAD:refs/heads/{}", step.repository.work_branch);
    let push = client_async(&work, &["push", "-q", "-f", &journey.remote(), &branch]).await;
    assert!(!push.status.success(), "the agent's token is dead");
    journey.supervisor.say(ToGateway::Revoke { run: attempt }).await;
    eventually(async || (journey.publish(&commit).await.status == 401).then_some(())).await;
    let bare = journey.upstream.root.join("o/r.git");
    let branches = run(&bare, "git", &["branch", "--list", "ai/*"]);
    assert_eq!(branches, "", "nothing of it is upstream");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_supervisor_has_lost_its_records_of_publishes_nothing_until_it_is_taken_up_again()
{
    let journey = Journey::start(StepName::Implement, TOKEN).await;
    let step: StepSpec = journey.step().await.json();
    journey.open_gate().await;
    let (_, commit) = committed(&journey, &step).await;
    // Its Hello did not name the attempt, so the permission was given without a verdict on it.
    let forgetful = journey.rig.connect().await;
    forgetful.say(ToGateway::Describe { run: key("a") }).await;
    forgetful.say(ToGateway::Synced).await;
    forgetful.say(ToGateway::Permit { epoch: Epoch(5), valid_millis: 30_000 }).await;
    let held = eventually(async || {
        let held = journey.publish(&commit).await;
        held.text().contains("lost its records").then_some(held)
    })
    .await;
    assert!(held.status == 503 && held.json::<ApiError>().retryable, "{held:?}");
    let bare = journey.upstream.root.join("o/r.git");
    assert_eq!(run(&bare, "git", &["branch", "--list", "ai/*"]), "");
    forgetful.say(ToGateway::Register(Box::new(grant("a", StepName::Implement, None)))).await;
    let published = eventually(async || {
        let answer = journey.publish(&commit).await;
        (answer.status != 503).then_some(answer)
    })
    .await;
    assert_eq!(published.status, 200, "{published:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn git_goes_through_a_proxy_with_a_password_to_an_upstream_under_a_private_authority() {
    let network = company(Some("user:p@ss")).await;
    let journey = Journey::start_with(StepName::Implement, TOKEN, |address| {
        network.serve_tls("forge.example", address).unwrap();
        Options { forge: "https://forge.example".to_owned(), ..Options::within(&network) }
    })
    .await;
    whole_way(&journey).await;
    let asked = network.asked();
    assert!(asked.len() >= 3, "list, fetch and push: {asked:?}");
    assert!(asked.iter().all(|line| line == "CONNECT forge.example:443"), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_may_not_push_can_neither_push_nor_publish() {
    let journey = Journey::start(StepName::Plan, TOKEN).await;
    assert_eq!(journey.step().await.status, 200);
    journey.open_gate().await;
    let clone = client_async(journey.path(), &["clone", "-q", &journey.remote(), "clone"]).await;
    assert!(clone.status.success(), "{}", String::from_utf8_lossy(&clone.stderr));
    let work = journey.path().join("clone");
    let push =
        client_async(&work, &["push", "-q", &journey.remote(), "HEAD:refs/heads/ai/task"]).await;
    assert!(!push.status.success());
    assert_eq!(journey.publish(&"0".repeat(40)).await.status, 403);
    for path in [
        "/git/other.git/info/refs",
        "/git/main.git/HEAD",
        "/git/main.git/objects/info/packs",
        "/git/main.git/info/refs",
        "/git/main.git/git-upload-pack",
    ] {
        let agent = [("authorization", basic(&journey.tokens.agent_token))];
        let answer = journey.rig.call(POD, "GET", path, &agent, "").await;
        assert_eq!(answer.status, 404, "{path}");
        journey.supervisor.refusal("git", &format!("GET {path}")).await;
    }
    journey.supervisor.refusal("git", "publish").await;
    journey.supervisor.refusal("git", "git-receive-pack").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_that_the_upstream_refuses_ends_the_step_with_the_reason() {
    let journey = Journey::start(StepName::Plan, "wrong-token").await;
    let answer = journey.step().await;
    assert_eq!(answer.status, 422, "{answer:?}");
    let error: ApiError = answer.json();
    assert_eq!((error.reason, error.retryable), (Some(Reason::ProviderUnavailable), false));
    assert!(!error.message.contains("wrong-token"));
}

fn basic(token: &str) -> String {
    let (_, value) = super::rig::proxy(token).remove(0);
    value
}

#[tokio::test]
async fn a_push_is_recorded_once_and_a_refused_one_is_counted_and_recorded_with_its_reason() {
    let (lines, _guard) = crate::testing::Lines::keep();
    let journey = Journey::start(StepName::Implement, TOKEN).await;
    let step: StepSpec = journey.step().await.json();
    journey.open_gate().await;
    let (work, commit) = committed(&journey, &step).await;
    let acts =
        |act: &str| lines.all().into_iter().filter(|line| line["act"] == act).collect::<Vec<_>>();

    std::fs::create_dir_all(work.join(".github/workflows")).unwrap();
    std::fs::write(work.join(".github/workflows/ci.yml"), "on: push\n").unwrap();
    run(&work, "git", &["add", "."]);
    run(&work, "git", &["commit", "-qm", "ci\n\nAgent-Operator-Task-Uid: 0a1b2c"]);
    let hostile = run(&work, "git", &["rev-parse", "HEAD"]);
    let branch = format!("HEAD:refs/heads/{}", step.repository.work_branch);
    let push = client_async(&work, &["push", "-q", &journey.remote(), &branch]).await;
    assert!(push.status.success());
    for _ in 0..2 {
        journey.supervisor.say(ToGateway::Permit { epoch: Epoch(1), valid_millis: 60_000 }).await;
        let refused = journey.publish(&hostile).await;
        assert_eq!(refused.status, 409, "{refused:?}");
        let error: ApiError = refused.json();
        assert_eq!(error.reason, Some(Reason::PushRefused));
        assert!(error.message.contains(".github/workflows/ci.yml"), "{error:?}");
    }
    let target = "protected path .github/workflows/ci.yml";
    journey.supervisor.refusal("git", target).await;
    let refused = acts("refused");
    assert_eq!(refused.iter().filter(|line| line["refused"] == target).count(), 1, "{refused:?}");
    assert!(acts("pushed").is_empty());

    for _ in 0..2 {
        let published = eventually(async || {
            let answer = journey.publish(&commit).await;
            (answer.status != 503).then_some(answer)
        })
        .await;
        assert_eq!(published.status, 200, "{published:?}");
    }
    let pushed = acts("pushed");
    assert_eq!(pushed.len(), 1, "{pushed:?}");
    assert_eq!((&pushed[0]["commit"], &pushed[0]["run"]), (&commit.into(), &"run-a".into()));
}
