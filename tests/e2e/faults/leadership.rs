//! Two replicas of the controller: a clean hand-over, a crash, and a leader that stands still for
//! longer than its Lease, each in the middle of a step (classes 1, 2 and 3).

use std::time::Duration;

use k8s_openapi::api::core::v1::ServiceAccount;
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, PostParams},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::trial::Trial;
use crate::support::{
    cluster::{Cluster, NAMESPACE, SYSTEM, run_phase},
    eventually,
    grpcurl::{self, Following},
    leaders::{self, Lead},
    logs, processes,
    task::{command_agent, merge, task, unique},
};

/// Long enough for a hand-over within the step, one row a second.
const ROWS: u64 = 20;
/// The same where both replicas are looked at first.
const ROWS_LOOKED_AT: u64 = 60;
const LIST: &str = "agentoperator.v1.StepService/ListRuns";
/// The goal for another term after a crash: the Lease, and a second.
const TAKE_OVER_GOAL: Duration = Duration::from_secs(6);
/// What fails the test, far above it: a machine with two busy cores is late with everything.
const TAKE_OVER_MAX: Duration = Duration::from_secs(30);

/// A task in the middle of its implement step.
struct Live {
    trial: Trial,
    task: String,
    token: String,
    rows: u64,
    lead: Lead,
}

impl Live {
    async fn start(prefix: &str, rows: u64) -> Self {
        let name = unique(prefix);
        let trial = Trial::watch(&name).await;
        let cluster = &trial.cluster;
        let token = logs::viewer_token(cluster, &unique("leaders")).await;
        let script = format!(
            "[ \"$AGENT_STEP\" = implement ] || {{ echo in step $AGENT_STEP; exit 0; }}; \
             date > change.txt; i=0; while [ $i -lt {rows} ]; do echo \"row $i \"; i=$((i+1)); sleep 1; done"
        );
        let mut spec = command_agent(&script);
        merge(&mut spec, &json!({"test": {"command": ["test", "-s", "change.txt"]}}));
        cluster.create(NAMESPACE, &task(&name, "Survive.", &spec)).await;
        // Its rows are read by the test itself.
        trial.adopt(&name, None).await;
        let running = cluster.run_in_phase(NAMESPACE, &name, "implement", "Running").await;
        let pod = running.status.and_then(|status| status.pod_name).expect("a pod");
        eventually("the step is in its middle", Duration::from_mins(1), || async {
            let log = cluster.log(NAMESPACE, &pod).await;
            if log.contains("row 2 ") { Ok(()) } else { Err(log) }
        })
        .await;
        let lead = leaders::lead(cluster).await.expect("somebody leads");
        Self { trial, task: name, token, rows, lead }
    }

    /// The process of the pod that leads.
    async fn leader_pid(&self) -> i32 {
        let pod =
            self.trial.cluster.pods(SYSTEM).get(&self.lead.pod).await.expect("the leader's pod");
        let pids = processes::program_of(&pod.uid().expect("a uid"), "controller");
        assert_eq!(pids.len(), 1, "one process leads");
        pids[0]
    }

    /// One run, one pod and one outcome a step, one pull request, the log whole and in order, and a history
    /// that breaks no promise.
    async fn ends_once(self) {
        let done = self.trial.cluster.complete(NAMESPACE, &self.task).await;
        let described = self.trial.cluster.describe(NAMESPACE, &self.task).await;
        let runs = self.trial.cluster.runs(NAMESPACE, &self.task).await;
        let steps: Vec<&str> = runs.iter().map(|run| run.spec.step.as_str()).collect();
        assert_eq!(steps, ["plan", "implement", "test", "pull-request"], "{described}");
        assert!(runs.iter().all(|run| run_phase(run) == "Succeeded"), "{described}");
        let pods = self.trial.cluster.task_pods(NAMESPACE, &self.task).await;
        assert_eq!(pods.len(), 4, "one pod a step: {described}");
        let status = done.status.expect("a status");
        let branch = status.repositories[0].work_branch.clone().expect("a work branch");
        assert_eq!(self.trial.cluster.forge.pull_requests(&branch).await.len(), 1);
        let request = json!({"namespace": NAMESPACE, "task": self.task, "follow": true});
        let events = eventually("the log is told to its end", Duration::from_mins(2), || async {
            grpcurl::call(Some(&self.token), logs::FOLLOW, &request).await
        })
        .await;
        let told = logs::Rows::of(&events);
        assert_eq!(told.gaps, Vec::<String>::new());
        assert_eq!(told.rows, (0..self.rows).collect::<Vec<_>>(), "each row once, in order");
        self.trial.judge(false).await;
    }

    async fn list(&self, address: Option<&str>, token: Option<&str>) -> Result<Vec<Value>, String> {
        let request = json!({"namespace": NAMESPACE, "task": self.task});
        grpcurl::call_at(address, token, LIST, &request).await
    }

    /// Each replica and the Service answer alike, live and with the caller's own rights.
    async fn every_replica_answers(&self) {
        let token = Some(self.token.as_str());
        let stranger = unique("stranger");
        let accounts: Api<ServiceAccount> =
            Api::namespaced(self.trial.cluster.client.clone(), NAMESPACE);
        let account = serde_json::from_value(json!({"metadata": {"name": stranger}}));
        let account = account.expect("an account");
        accounts.create(&PostParams::default(), &account).await.expect("a new account");
        let denied = grpcurl::token(NAMESPACE, &stranger).await;
        for pod in leaders::replicas(&self.trial.cluster, 2).await {
            let way = leaders::way_to(&pod).await;
            let at = Some(way.address.as_str());
            let listed = eventually(&format!("{pod} answers"), Duration::from_mins(1), || async {
                self.list(at, token).await
            })
            .await;
            let runs = listed[0]["runs"].as_array().expect("runs");
            let live = runs.iter().any(|run| run["phase"] == "Running");
            assert!(runs.len() >= 2 && live, "{pod}: {listed:?}");
            let nobody = self.list(at, None).await.expect_err("no token");
            assert!(nobody.contains("Unauthenticated"), "{pod}: {nobody}");
            let refused = self.list(at, Some(&denied)).await.expect_err("no right");
            assert!(refused.contains("PermissionDenied"), "{pod}: {refused}");
            let run = runs.last().and_then(|run| run["ref"]["name"].as_str()).expect("a name");
            let request = json!({"namespace": NAMESPACE, "run": run, "follow": true});
            let mut following = Following::start_at(at, &self.token, &request);
            let told =
                tokio::time::timeout(Duration::from_mins(1), following.until("\"row ")).await;
            assert!(told.expect("a line in time"), "{pod} tells the live step");
        }
        for _ in 0..4 {
            eventually("the Service answers", Duration::from_mins(1), || async {
                self.list(None, token).await
            })
            .await;
        }
        accounts.delete(&stranger, &DeleteParams::default()).await.expect("its end");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the local cluster: tests/run faults"]
async fn a_clean_hand_over_in_mid_step_loses_nothing_and_every_replica_answers() {
    leaders::with_two(Box::pin(async {
        let live = Live::start("handed-over", ROWS_LOOKED_AT).await;
        live.every_replica_answers().await;
        let asked = Instant::now();
        let params = DeleteParams::default();
        live.trial.cluster.pods(SYSTEM).delete(&live.lead.pod, &params).await.expect("it goes");
        let next = leaders::next_lead(&live.trial.cluster, live.lead.epoch).await;
        println!("clean hand-over seen after {:?}", asked.elapsed());
        assert_ne!(next.pod, live.lead.pod, "the one that waited");
        live.ends_once().await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the local cluster: tests/run faults"]
async fn a_leader_that_is_killed_in_mid_step_is_replaced_and_a_deleted_lease_lowers_no_epoch() {
    leaders::with_two(Box::pin(async {
        let live = Live::start("leader-killed", ROWS).await;
        let pid = live.leader_pid().await;
        let killed = Instant::now();
        assert!(processes::signal(pid, Signal::SIGKILL));
        let next = leaders::next_lead(&live.trial.cluster, live.lead.epoch).await;
        let took = killed.elapsed();
        let part = took.as_secs_f64() / TAKE_OVER_GOAL.as_secs_f64();
        println!("figure: crash of the leader: another term after {took:?}, {part:.2} of the goal");
        assert!(took <= TAKE_OVER_MAX, "{took:?}");
        leaders::delete_lease(&live.trial.cluster).await;
        let after = leaders::next_lead(&live.trial.cluster, next.epoch).await;
        println!("Lease deleted: epoch {} after {}", after.epoch, next.epoch);
        live.ends_once().await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the local cluster: tests/run faults"]
async fn a_leader_that_stands_still_for_longer_than_its_lease_does_no_harm_when_it_wakes_up() {
    leaders::with_two(Box::pin(async {
        let live = Live::start("leader-stopped", ROWS).await;
        let pid = live.leader_pid().await;
        let stopped = processes::Stopped::new(pid);
        let cluster = Cluster::connect().await;
        let next = leaders::next_lead(&cluster, live.lead.epoch).await;
        assert_ne!(next.pod, live.lead.pod, "the one that waited");
        // The step ends and the next one begins under the new leader; then the old one wakes up with
        // the world of before in its memory.
        cluster.run_in_phase(NAMESPACE, &live.task, "implement", "Succeeded").await;
        drop(stopped);
        live.ends_once().await;
        let lead = leaders::lead(&cluster).await.expect("somebody leads");
        assert!(lead.epoch >= next.epoch, "{lead:?} after {next:?}");
    }))
    .await;
}
