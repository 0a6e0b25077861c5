//! What every test of attacks needs: image, targets that listen, the control, and the verdict.

use serde_json::{Value, json};

use super::{
    control::{self, Control},
    judge::{self, Effects, Scene},
    list::{self, Attack, Outcomes, Seen},
    parameters::{self, NODE},
    place::{self, Place},
    say,
    sink::{Metadata, Sink},
    trial::Knocking,
};
use crate::support::{cluster::Cluster, env, task::unique};

/// Everything that attacks are carried out with.
pub(super) struct Rig {
    pub(super) image: String,
    place: Place,
    sink: Sink,
    _metadata: Metadata,
    peers: [String; 2],
    other: String,
}

impl Rig {
    pub(super) async fn set_up(cluster: &Cluster) -> Self {
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

    pub(super) async fn parameters(
        &self,
        cluster: &Cluster,
        scene: &Scene,
        canaries: &[String],
    ) -> Value {
        let marker = &scene.marker;
        let (sink, peers) = (&self.sink, &self.peers);
        let mut all = parameters::parameters(cluster, marker, sink, peers, canaries).await;
        all["repositoryName"] = json!(scene.repository);
        all["otherRepository"] = json!(self.other);
        all["victimBranch"] = json!(judge::VICTIM);
        all["forcedBranch"] = json!(judge::FORCED);
        all
    }

    /// The attacks of these groups without walls.
    pub(super) async fn control(&self, cluster: &Cluster, groups: &[&str]) -> Outcomes {
        let scene = Scene::set(cluster, &unique("control")).await;
        // A person of the forge's own: the installation's token has no business in a pod.
        let (person, password) = (unique("hostile-writer"), unique("password"));
        cluster.forge.create_writer(&person, &password, &scene.repository).await;
        let login = format!("{person}:{password}");
        let canary = unique("canary-of-the-control");
        let parameters = self.parameters(cluster, &scene, std::slice::from_ref(&canary)).await;
        let secrets = (canary.as_str(), login.as_str());
        let what = (&parameters, groups);
        let pod = Control::start(cluster, &self.place, &self.image, what, secrets).await;
        let knocking = Knocking::at(&pod.address);
        let mut outcomes = pod.outcomes(cluster, &self.place).await;
        let branch = |kind: &str| format!("{}-{kind}", scene.marker);
        let mut effects = scene.effects(cluster).await;
        effects.extend(scene.diffs(cluster, branch).await);
        add_seen(&mut effects, knocking.opened().await, scene.lingering());
        judge::settle(&mut outcomes, &effects);
        pod.remove(cluster, &self.place).await;
        cluster.forge.delete_repository(&scene.repository).await;
        cluster.forge.delete_user(&person).await;
        outcomes
    }

    pub(super) async fn clear(self, cluster: &Cluster) {
        cluster.forge.delete_repository(&self.other).await;
        self.place.remove(cluster).await;
    }
}

/// Adds what was seen on this machine.
pub(super) fn add_seen(effects: &mut Effects, inbound: Option<String>, lingering: Option<String>) {
    let seen = [("net-inbound", inbound), ("run-linger", lingering)];
    effects.extend(seen.into_iter().filter_map(|(id, found)| Some((id, found?))));
}

/// Asserts that every attack of these groups succeeded without its defence and was held off by it.
pub(super) fn assert_score_0(
    groups: &[&str],
    control: &Outcomes,
    attack: &Outcomes,
    scores: &[usize],
) {
    say(&format!("what was tried:\n{}", list::table(groups, control, attack)));
    let rotten = missing(groups, control, "succeeded", |attack| attack.elsewhere.is_none());
    let untried = missing(groups, attack, "refused", |_| true);
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

/// Asserts that every attack of these groups that applies was tried and held off. Without a control: that these attacks
/// succeed where nothing holds them off is shown elsewhere. Those that are known to succeed have to, so that the list of them
/// stays true.
pub(super) fn assert_held_off(
    groups: &[&str],
    applies: impl Fn(&Attack) -> bool,
    open: &[&str],
    attack: &Outcomes,
    scores: &[usize],
) {
    say(&format!("what was tried:\n{}", list::table(groups, &Outcomes::new(), attack)));
    let is_open = |id: &str| open.contains(&id);
    let failed = missing(groups, attack, "refused", |one| applies(one) && !is_open(one.id));
    let (known, new): (Vec<_>, Vec<_>) = attack
        .iter()
        .filter(|(_, seen)| seen.outcome == "succeeded")
        .partition(|(id, _)| is_open(id));
    let score = new.len();
    say(&format!("the attackers count {scores:?}; score: {score}"));
    assert!(failed.is_empty(), "succeeded, or could not be tried: {failed:#?}");
    assert_eq!((score, known.len()), (0, open.len()), "new ones: {new:?}; known ones: {known:?}");
    assert!(scores.iter().all(|counted| *counted <= open.len()), "{scores:?}");
}

/// Attacks of these groups that do not have this outcome, with what they have.
fn missing(
    groups: &[&str],
    outcomes: &Outcomes,
    wanted: &str,
    of: impl Fn(&Attack) -> bool,
) -> Vec<(&'static str, Option<Seen>)> {
    let attacks = list::of(groups).into_iter().filter(of);
    let found = attacks.map(|attack| (attack.id, outcomes.get(attack.id).cloned()));
    found.filter(|(_, seen)| seen.as_ref().is_none_or(|seen| seen.outcome != wanted)).collect()
}
