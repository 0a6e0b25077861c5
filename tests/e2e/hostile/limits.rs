//! Steps that take more than they were given: memory, shared memory, open files, disk, log, the gateway's patience,
//! and time. What they get is judged as every attack is; that nobody beside them notices, by a neighbour that works
//! all the while and by the promises of the reliability page.

use agent_operator::crd::AgentRunStatus;
use serde_json::{Value, json};

use super::{
    judge::{self, Effects, Scene},
    list::{self, Outcomes, Seen},
    parameters::{MEMORY_LIMIT, WORKSPACE_LIMIT},
    place::PROGRAM,
    promises::Watch,
    rig::{Rig, assert_score_0},
    trial::{self, Neighbour, hostile_task},
};
use crate::support::{
    cluster::{Cluster, NAMESPACE},
    task::{merge, unique},
};

/// How long the step may take that will not end.
const OUTLIVED_SECONDS: u32 = 15;
/// Attacks in a step of this name alone; the task goes on behind it, if it is let.
const ONE_STEP: &str = r#"[ "$AGENT_STEP" != implement ] || date > change.txt
[ "$AGENT_STEP" = "$1" ] || { echo "nothing in $AGENT_STEP"; exit 0; }
shift; exec python3 "$0" "$@""#;

#[tokio::test]
#[ignore = "needs the local cluster: tests/run hostile"]
async fn a_step_gets_no_more_than_its_limits_and_nobody_beside_it_notices() {
    let cluster = Cluster::connect().await;
    let rig = Rig::set_up(&cluster).await;
    // Side by side: both wait for most of their time.
    let (control, (attack, scores)) =
        tokio::join!(rig.control(&cluster, &list::LIMITS), take_too_much(&cluster, &rig));
    rig.clear(&cluster).await;
    // The many of one step, and the flood of another.
    assert_eq!(scores.len(), 2, "{scores:?}");
    assert_score_0(&list::LIMITS, &control, &attack, &scores);
}

/// What comes of all of it in steps, while a neighbour works.
async fn take_too_much(cluster: &Cluster, rig: &Rig) -> (Outcomes, Vec<usize>) {
    let marker = unique("limits");
    let watch = Watch::begin(cluster, &marker).await;
    let scene = Scene::set(cluster, &marker).await;
    let neighbour_name = format!("{marker}-neighbour");
    let neighbour =
        Neighbour::settle(cluster, &neighbour_name, &rig.image, &scene.repository).await;
    let parameters = rig.parameters(cluster, &scene, &[]).await;
    let greedy = Greedy { cluster, scene: &scene, image: &rig.image, parameters };
    let tasks = greedy.make_all().await;
    trial::ended(cluster, &tasks).await;
    let left = neighbour.leave(cluster).await;
    let seen = greedy.outcomes(&tasks).await;
    watch.judge(cluster, &tasks, &left).await;
    cluster.forge.delete_repository(&scene.repository).await;
    seen
}

/// The tasks that take too much.
struct Greedy<'a> {
    cluster: &'a Cluster,
    scene: &'a Scene,
    image: &'a str,
    parameters: Value,
}

impl Greedy<'_> {
    /// One task for the group, and one for each attack after which a step cannot go on.
    async fn make_all(&self) -> Vec<String> {
        let mut tasks = vec![self.make("limits", "implement", &json!({})).await];
        for attack in list::of(&["disk"]) {
            tasks.push(self.make(attack.id, "plan", &json!({})).await);
        }
        tasks.push(self.make("run-log-flood", "plan", &json!({})).await);
        let timeout = json!({"stepTimeout": format!("{OUTLIVED_SECONDS}s")});
        tasks.push(self.make("run-outlive", "plan", &timeout).await);
        tasks
    }

    async fn make(&self, what: &str, step: &str, overrides: &Value) -> String {
        let name = format!("{}-{what}", self.scene.marker);
        let parameters = self.parameters.to_string();
        let command = ["sh", "-c", ONE_STEP, PROGRAM, step, &parameters, what];
        let mut spec = json!({
            "agent": {"type": "Command", "command": command},
            "resources": {"memory": MEMORY_LIMIT, "storage": WORKSPACE_LIMIT},
        });
        merge(&mut spec, overrides);
        let task = hostile_task(&name, self.image, &self.scene.repository, &spec);
        self.cluster.create(NAMESPACE, &task).await;
        name
    }

    /// What came of all of them, and the scores that the attackers print themselves.
    async fn outcomes(&self, tasks: &[String]) -> (Outcomes, Vec<usize>) {
        let (mut outcomes, mut scores) = (Outcomes::new(), Vec::new());
        for task in tasks {
            for (_, log) in trial::logs(self.cluster, task).await {
                scores.extend(list::scores(&log));
                for (id, seen) in list::outcomes(&log) {
                    list::keep(&mut outcomes, &id, seen);
                }
            }
        }
        for attack in list::of(&["disk"]) {
            let seen = self.thrown_out(attack.id).await;
            list::keep(&mut outcomes, attack.id, seen);
        }
        let mut effects = Effects::new();
        let outlived = self.outlived().await;
        if outlived.outcome == "succeeded" {
            effects.insert("run-outlive", outlived.evidence.clone());
        }
        list::keep(&mut outcomes, "run-outlive", outlived);
        let (reason, message) = self.end_of("run-outlive").await;
        if reason != "TimedOut" {
            effects.insert("run-outlive", format!("{reason}: {message}"));
        }
        judge::settle(&mut outcomes, &effects);
        (outcomes, scores)
    }

    /// Whoever took too much of a disk has lost its pod for it, and is charged for that itself.
    async fn thrown_out(&self, id: &str) -> Seen {
        let (reason, message) = self.end_of(id).await;
        let for_it = reason == "AgentFailed" && message.contains("exceeds the limit");
        let outcome = if for_it { "refused" } else { "untried" };
        Seen { outcome: outcome.to_owned(), evidence: format!("{reason}: {message}") }
    }

    /// Whether the step that goes on behind its deadline was still served.
    async fn outlived(&self) -> Seen {
        let status = self.first_status("run-outlive").await;
        let opened = status.start_time.expect("it ran").as_millisecond();
        #[allow(clippy::cast_precision_loss, reason = "milliseconds of this century fit")]
        let deadline = opened as f64 / 1000.0 + f64::from(OUTLIVED_SECONDS);
        let log = self.cluster.log(NAMESPACE, &status.pod_name.unwrap_or_default()).await;
        judge::outlived(&log, deadline)
    }

    async fn first_status(&self, what: &str) -> AgentRunStatus {
        let runs = self.cluster.runs(NAMESPACE, &format!("{}-{what}", self.scene.marker)).await;
        runs.into_iter().next().and_then(|run| run.status).unwrap_or_default()
    }

    /// Reason and message of the first step's end.
    async fn end_of(&self, what: &str) -> (String, String) {
        let status = self.first_status(what).await;
        (status.reason.unwrap_or_default(), status.message.unwrap_or_default())
    }
}
