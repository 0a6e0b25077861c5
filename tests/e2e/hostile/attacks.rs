//! Every attack, first where it must succeed and then where it must not.

use agent_operator::domain::Usage;
use serde_json::json;

use super::{
    judge::{self, DIFFS, Effects, Scene},
    list::{self, Outcomes, Seen},
    place,
    promises::Watch,
    refusals,
    rig::{Rig, add_seen, assert_score_0},
    say,
    trial::{self, Knocking, Neighbour},
};
use crate::support::{
    cluster::{Cluster, NAMESPACE},
    grpcurl,
    logs::{FOLLOW, viewer_token},
    task::{command_agent, unique},
};

#[tokio::test]
#[ignore = "needs the local cluster: tests/run hostile"]
async fn no_attack_from_inside_a_step_succeeds_and_each_does_without_its_defence() {
    let cluster = Cluster::connect().await;
    let rig = Rig::set_up(&cluster).await;
    let control = rig.control(&cluster, &list::FROM_INSIDE).await;
    let (attack, scores) = Attacks { rig: &rig }.attack(&cluster).await;
    rig.clear(&cluster).await;
    assert_score_0(&list::FROM_INSIDE, &control, &attack, &scores);
}

/// The attacks on one scene.
struct Attacks<'a> {
    rig: &'a Rig,
}

impl Attacks<'_> {
    /// Everything from inside; also the scores that the attackers print themselves.
    async fn attack(&self, cluster: &Cluster) -> (Outcomes, Vec<usize>) {
        let marker = unique("attack");
        let watch = Watch::begin(cluster, &marker).await;
        let scene = Scene::set(cluster, &marker).await;
        let (model_key, git_token) = cluster.agent_secrets().await;
        let mut parameters = self.rig.parameters(cluster, &scene, &[model_key, git_token]).await;
        parameters["gifts"] = json!(trial::gifts_path());
        parameters["namespace"] = json!(NAMESPACE);
        let neighbour_name = format!("{marker}-neighbour");
        let neighbour =
            Neighbour::settle(cluster, &neighbour_name, &self.rig.image, &scene.repository).await;
        let image = &self.rig.image;
        let task = trial::attacking(&marker, image, &scene.repository, &parameters, &json!({}));
        cluster.create(NAMESPACE, &task).await;
        let diffs = self.bad_changes(cluster, &scene).await;
        let pod = trial::give(cluster, &neighbour, &marker).await;
        let knocking = Knocking::at(&place::address_of(&pod));
        trial::ended(cluster, &[&[marker.clone()][..], &diffs[..]].concat()).await;
        let lingering = scene.lingering();
        let left = neighbour.leave(cluster).await;

        let (mut outcomes, scores) = told(cluster, &marker).await;
        let mut effects = scene.effects(cluster).await;
        add_seen(&mut effects, knocking.opened().await, lingering);
        effects.extend(forgeries(cluster, &marker).await);
        add_hung_up(cluster, &marker, &mut outcomes, &mut effects).await;
        effects.extend(self.upstream(cluster, &scene, &mut outcomes).await);
        judge::settle(&mut outcomes, &effects);
        watch.judge(cluster, &[&[marker][..], &diffs[..]].concat(), &left).await;
        refusals::assert_none(cluster, &left.name).await;
        refusals::assert_dropped(cluster, &scene.marker).await;
        cluster.forge.delete_repository(&scene.repository).await;
        (outcomes, scores)
    }

    /// A task for each change that must not get upstream; their names.
    async fn bad_changes(&self, cluster: &Cluster, scene: &Scene) -> Vec<String> {
        let mut names = Vec::new();
        for (kind, _) in DIFFS {
            let name = format!("{}-{kind}", scene.marker);
            let script = format!(
                "[ \"$AGENT_STEP\" != implement ] || python3 /hostile/diffs.py {kind}; echo changed"
            );
            let task = trial::hostile_task(
                &name,
                &self.rig.image,
                &scene.repository,
                &command_agent(&script),
            );
            cluster.create(NAMESPACE, &task).await;
            names.push(name);
        }
        names
    }

    /// Which of them have got there; each whose push was judged counts as carried out.
    async fn upstream(&self, cluster: &Cluster, scene: &Scene, outcomes: &mut Outcomes) -> Effects {
        for (kind, _) in DIFFS {
            let runs = cluster.runs(NAMESPACE, &format!("{}-{kind}", scene.marker)).await;
            let Some(run) = runs.into_iter().find(|run| run.spec.step == "implement") else {
                continue;
            };
            let status = run.status.unwrap_or_default();
            let message = status.message.as_deref().unwrap_or_default();
            let outcome = judge::of_change(status.reason.as_deref(), message);
            let evidence = [status.reason, status.message]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join(": ");
            list::keep(outcomes, kind, Seen { outcome: outcome.to_owned(), evidence });
        }
        scene.diffs(cluster, |kind| format!("ai/{}-{kind}", scene.marker)).await
    }
}

/// What the attacker in the steps of a task says, and the scores that it prints itself.
pub(super) async fn told(cluster: &Cluster, task: &str) -> (Outcomes, Vec<usize>) {
    let (mut outcomes, mut scores) = (Outcomes::new(), Vec::new());
    for (step, log) in trial::logs(cluster, task).await {
        say(&format!("{step}: the attacker counts {:?}", list::scores(&log)));
        scores.extend(list::scores(&log));
        for (id, seen) in list::outcomes(&log) {
            list::keep(&mut outcomes, &id, seen);
        }
    }
    // Plan, implement and test at least; a step that says nothing has not attacked.
    assert!(scores.len() >= 3, "{}", cluster.describe(NAMESPACE, task).await);
    (outcomes, scores)
}

/// Adds what came of the calls that the implement step of `task` has hung up on.
pub(super) async fn add_hung_up(
    cluster: &Cluster,
    task: &str,
    outcomes: &mut Outcomes,
    effects: &mut Effects,
) {
    let asked = cluster.model.requests_with(&format!("{task}-hang-up")).await;
    let asked = asked.iter().filter(|request| request["status"] == 200).count() as u64;
    let runs = cluster.runs(NAMESPACE, task).await;
    let run = runs.into_iter().find(|run| run.spec.step == "implement");
    let usage = run.and_then(|run| run.status?.usage);
    let charged = usage.map_or(0, |usage| Usage::from(usage).total_tokens());
    let seen = judge::hung_up(asked, charged);
    if seen.outcome == "succeeded" {
        effects.insert("gw-hang-up", seen.evidence.clone());
    }
    list::keep(outcomes, "gw-hang-up", seen);
}

/// Whether somebody believed what only the runner may say.
pub(super) async fn forgeries(cluster: &Cluster, task: &str) -> Effects {
    let mut effects = Effects::new();
    let token = viewer_token(cluster, &format!("{task}-viewer")).await;
    let request = json!({"namespace": NAMESPACE, "task": task, "follow": true});
    let events = grpcurl::call(Some(&token), FOLLOW, &request).await.expect("its stream");
    let gap = events.iter().find(|event| event["gap"].is_object());
    effects.extend(gap.map(|gap| ("run-forged-marks", gap["gap"].to_string())));
    for run in cluster.runs(NAMESPACE, task).await {
        let message = run.status.and_then(|status| status.message).unwrap_or_default();
        if message.contains("forged") {
            effects.insert("run-forged-files", message);
        }
    }
    effects
}
