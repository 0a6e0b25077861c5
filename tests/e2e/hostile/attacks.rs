//! Every attack, first where it must succeed and then where it must not.

use serde_json::{Value, json};

use super::{
    control::{self, Control},
    judge::{self, DIFFS, Effects, Scene},
    list::{self, Attack, Outcomes, Seen},
    parameters::{self, NODE},
    place::{self, Place},
    say,
    sink::{Metadata, Sink},
    trial::{self, Knocking, Neighbour},
};
use crate::support::{
    cluster::{Cluster, NAMESPACE},
    env, grpcurl,
    logs::{FOLLOW, viewer_token},
    task::{command_agent, unique},
};

#[tokio::test]
#[ignore = "needs the local cluster: tests/run hostile"]
async fn no_attack_from_inside_a_step_succeeds_and_each_does_without_its_defence() {
    let cluster = Cluster::connect().await;
    let rig = Rig::set_up(&cluster).await;
    let control = rig.control(&cluster).await;
    let (attack, scores) = rig.attack(&cluster).await;
    rig.clear(&cluster).await;
    say(&format!("what was tried:\n{}", list::table(&control, &attack)));

    let rotten = missing(&control, "succeeded", |attack| attack.elsewhere.is_none());
    let untried = missing(&attack, "refused", |_| true);
    let score = attack.values().filter(|seen| seen.outcome == "succeeded").count();
    say(&format!("the attackers count {scores:?}; score: {score}"));
    let complaint = format!(
        "{} attacks do not succeed without their defence: {rotten:#?}\n\
         {} attacks succeed, or could not be tried, in a step: {untried:#?}",
        rotten.len(),
        untried.len()
    );
    assert!(rotten.is_empty() && untried.is_empty(), "{complaint}");
    assert_eq!(score, 0);
    assert!(scores.iter().all(|score| *score == 0), "the attackers count {scores:?}");
}

/// Attacks that do not have this outcome, with what they have.
fn missing(
    outcomes: &Outcomes,
    wanted: &str,
    of: impl Fn(&Attack) -> bool,
) -> Vec<(&'static str, Option<Seen>)> {
    let attacks = list::attacks().into_iter().filter(of);
    let found = attacks.map(|attack| (attack.id, outcomes.get(attack.id).cloned()));
    found.filter(|(_, seen)| seen.as_ref().is_none_or(|seen| seen.outcome != wanted)).collect()
}

/// What both runs need.
struct Rig {
    image: String,
    place: Place,
    sink: Sink,
    _metadata: Metadata,
    peers: [String; 2],
    other: String,
}

impl Rig {
    async fn set_up(cluster: &Cluster) -> Self {
        let image = place::image().await;
        let place = Place::make(cluster).await;
        let (sink, metadata) = (Sink::start().await, Metadata::start().await);
        let nodes = env("AO_NODES");
        let elsewhere = nodes.split(' ').find(|node| *node != NODE).expect("a second node");
        let peers = [
            control::peer(cluster, &place, &image, ("peer-near", NODE)).await,
            control::peer(cluster, &place, &image, ("peer-far", elsewhere)).await,
        ];
        let other = unique("hostile-other");
        cluster.forge.create_repository(&other).await;
        Self { image, place, sink, _metadata: metadata, peers, other }
    }

    async fn parameters(&self, cluster: &Cluster, scene: &Scene, canaries: &[String]) -> Value {
        let marker = &scene.marker;
        let (sink, peers) = (&self.sink, &self.peers);
        let mut all = parameters::parameters(cluster, marker, sink, peers, canaries).await;
        all["repositoryName"] = json!(scene.repository);
        all["otherRepository"] = json!(self.other);
        all["victimBranch"] = json!(judge::VICTIM);
        all["forcedBranch"] = json!(judge::FORCED);
        all
    }

    /// Everything without walls.
    async fn control(&self, cluster: &Cluster) -> Outcomes {
        let scene = Scene::set(cluster, &unique("control")).await;
        // A person of the forge's own: the installation's token has no business in a pod.
        let (person, password) = (unique("hostile-writer"), unique("password"));
        cluster.forge.create_writer(&person, &password, &scene.repository).await;
        let login = format!("{person}:{password}");
        let canary = unique("canary-of-the-control");
        let parameters = self.parameters(cluster, &scene, std::slice::from_ref(&canary)).await;
        let secrets = (canary.as_str(), login.as_str());
        let pod = Control::start(cluster, &self.place, &self.image, &parameters, secrets).await;
        let knocking = Knocking::at(&pod.address);
        let mut outcomes = pod.outcomes(cluster, &self.place).await;
        let branch = |kind: &str| format!("{}-{kind}", scene.marker);
        let mut effects = scene.effects(cluster).await;
        effects.extend(scene.diffs(cluster, branch).await);
        add_seen(&mut effects, knocking.opened().await, scene.lingering());
        judge::settle(&mut outcomes, &effects);
        cluster.forge.delete_repository(&scene.repository).await;
        cluster.forge.delete_user(&person).await;
        outcomes
    }

    /// Everything from inside; also the scores that the attackers print themselves.
    async fn attack(&self, cluster: &Cluster) -> (Outcomes, Vec<usize>) {
        let marker = unique("attack");
        let scene = Scene::set(cluster, &marker).await;
        let (model_key, git_token) = cluster.agent_secrets().await;
        let mut parameters = self.parameters(cluster, &scene, &[model_key, git_token]).await;
        parameters["gifts"] = json!(trial::gifts_path());
        parameters["namespace"] = json!(NAMESPACE);
        let neighbour_name = format!("{marker}-neighbour");
        let neighbour =
            Neighbour::settle(cluster, &neighbour_name, &self.image, &scene.repository).await;
        let task = trial::attacking(&marker, &self.image, &scene.repository, &parameters);
        cluster.create(NAMESPACE, &task).await;
        let diffs = self.bad_changes(cluster, &scene).await;
        let pod = trial::give(cluster, &neighbour, &marker).await;
        let knocking = Knocking::at(&place::address_of(&pod));
        trial::ended(cluster, &[&[marker.clone()][..], &diffs[..]].concat()).await;
        let lingering = scene.lingering();
        neighbour.leave(cluster).await;

        let (mut outcomes, mut scores) = (Outcomes::new(), Vec::new());
        for (step, log) in trial::logs(cluster, &marker).await {
            say(&format!("{step}: the attacker counts {:?}", list::scores(&log)));
            scores.extend(list::scores(&log));
            for (id, seen) in list::outcomes(&log) {
                list::keep(&mut outcomes, &id, seen);
            }
        }
        // Plan, implement and test at least; a step that says nothing has not attacked.
        assert!(scores.len() >= 3, "{}", cluster.describe(NAMESPACE, &marker).await);
        let mut effects = scene.effects(cluster).await;
        add_seen(&mut effects, knocking.opened().await, lingering);
        effects.extend(self.forgeries(cluster, &marker).await);
        effects.extend(self.upstream(cluster, &scene, &mut outcomes).await);
        judge::settle(&mut outcomes, &effects);
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
            let task =
                trial::hostile_task(&name, &self.image, &scene.repository, &command_agent(&script));
            cluster.create(NAMESPACE, &task).await;
            names.push(name);
        }
        names
    }

    /// Which of them have got there; each whose implement step has run counts as carried out.
    async fn upstream(&self, cluster: &Cluster, scene: &Scene, outcomes: &mut Outcomes) -> Effects {
        for (kind, _) in DIFFS {
            let runs = cluster.runs(NAMESPACE, &format!("{}-{kind}", scene.marker)).await;
            let Some(run) = runs.into_iter().find(|run| run.spec.step == "implement") else {
                continue;
            };
            let status = run.status.unwrap_or_default();
            let changed = !matches!(
                status.reason.as_deref(),
                Some("Unstarted" | "NoChanges" | "AgentFailed")
            );
            let outcome = if changed { "sent" } else { "untried" };
            let evidence = [status.reason, status.message]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join(": ");
            list::keep(outcomes, kind, Seen { outcome: outcome.to_owned(), evidence });
        }
        scene.diffs(cluster, |kind| format!("ai/{}-{kind}", scene.marker)).await
    }

    /// Whether somebody believed what only the runner may say.
    async fn forgeries(&self, cluster: &Cluster, task: &str) -> Effects {
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

    async fn clear(self, cluster: &Cluster) {
        cluster.forge.delete_repository(&self.other).await;
        self.place.remove(cluster).await;
    }
}

/// Adds what was seen on this machine.
fn add_seen(effects: &mut Effects, inbound: Option<String>, lingering: Option<String>) {
    let seen = [("net-inbound", inbound), ("run-linger", lingering)];
    effects.extend(seen.into_iter().filter_map(|(id, found)| Some((id, found?))));
}
