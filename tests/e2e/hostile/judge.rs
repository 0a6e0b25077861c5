//! What only somebody outside can say of an attack: what the model was sent, what the forge has, which
//! processes live on.

use std::{collections::BTreeMap, fs};

use super::list::{self, Attack, Outcomes, Seen};
use crate::support::cluster::Cluster;

/// Attacks that had the effect they were after, with what shows it.
pub(super) type Effects = BTreeMap<&'static str, String>;

/// Where the effects are looked for.
pub(super) struct Scene {
    /// What all of one run's attacks carry with them.
    pub(super) marker: String,
    /// The repository at the forge.
    pub(super) repository: String,
    base: String,
    /// Where the branches of others are before the attacks.
    first: String,
}

/// A branch that an attack deletes.
pub(super) const VICTIM: &str = "kept-by-somebody";
/// A branch that an attack moves.
pub(super) const FORCED: &str = "owned-by-somebody";

/// Path by which each bad change is found upstream.
pub(super) const DIFFS: [(&str, &str); 6] = [
    ("diff-workflow", ".github/workflows/hostile.yml"),
    ("diff-codeowners", ".github/CODEOWNERS"),
    ("diff-symlink", "hostile-link"),
    ("diff-submodule", ".gitmodules"),
    ("diff-giant-file", "hostile.bin"),
    ("diff-many-files", "hostile/1/1"),
];
/// Words of a push that came to nothing because the gateway was away or busy.
const AWAY: [&str; 6] = [
    "Failed to connect",
    "Couldn't connect",
    "error: 429",
    "error: 502",
    "error: 503",
    "error: 504",
];
/// How much later than its deadline a step may still be answered by the model: time for the order to stop
/// on a busy machine, and well within the step's grace.
const ANSWERED_LATE_MAX_SECONDS: f64 = 5.0;
/// Tokens that each call has at least which is hung up on, whoever counts them: a quarter of its bytes (`gw-hang-up`).
/// All other calls of the step together have far less.
const HANG_UP_TOKENS: u64 = 10_000;
/// What a step begins the line with that tells of an answer, before its Unix time and its status.
const ANSWERED: &str = "run-outlive answered ";

impl Scene {
    /// A repository of its own with branches of others in it.
    pub(super) async fn set(cluster: &Cluster, marker: &str) -> Self {
        let forge = &cluster.forge;
        let repository = marker.to_owned();
        forge.create_repository(&repository).await;
        for branch in [VICTIM, FORCED] {
            forge.create_branch(&repository, branch).await;
        }
        let first = forge.tip(&repository, FORCED).await.expect("a tip");
        // One more commit, so that there is something behind a tip.
        forge.add_file(&repository, "server.txt", "hello").await;
        forge.open_pull_request(&repository, "main", FORCED).await;
        let base = forge.tip(&repository, "main").await.expect("a tip of main");
        Self { marker: marker.to_owned(), repository, base, first }
    }

    /// What the forge and the model saw.
    pub(super) async fn effects(&self, cluster: &Cluster) -> Effects {
        let mut effects = self.at_the_model(cluster).await;
        let (forge, repository, marker) = (&cluster.forge, &self.repository, &self.marker);
        let tip = |branch: String| async move { forge.tip(repository, &branch).await };
        let mut add = |id, found: Option<String>| {
            if let Some(found) = found {
                effects.insert(id, found);
            }
        };
        let main = tip("main".to_owned()).await;
        add("git-push-base", main.filter(|tip| *tip != self.base));
        add("git-push-foreign", tip(format!("{marker}-foreign")).await);
        let victim = tip(VICTIM.to_owned()).await;
        add("git-delete-branch", victim.is_none().then(|| format!("{VICTIM} is gone")));
        let forced = tip(FORCED.to_owned()).await;
        add("git-force-foreign", forced.filter(|tip| *tip != self.first));
        let tag = forge.look(repository, &format!("/tags/{marker}")).await;
        add("git-push-tag", tag.map(|tag| tag["id"].to_string()));
        let odd = forge.look(repository, &format!("/git/refs/hostile/{marker}")).await;
        add("git-push-odd-ref", odd.map(|odd| odd.to_string()));
        let pulls = forge.look(repository, "/pulls?state=all").await.unwrap_or_default();
        let pulls = pulls.as_array().cloned().unwrap_or_default();
        let review = pulls.iter().find(|pull| pull["title"].as_str() == Some(marker));
        add("git-push-review", review.map(|pull| pull["title"].to_string()));
        effects
    }

    async fn at_the_model(&self, cluster: &Cluster) -> Effects {
        let marks = [("gw-foreign-key", "foreign"), ("gw-client-headers", "header")];
        let requests = cluster.model.requests_with(&self.marker).await;
        let mut effects = Effects::new();
        for (id, end) in marks {
            let mark = format!("{}-{end}", self.marker);
            for request in &requests {
                let headers = request["headers"].as_object().into_iter().flatten();
                for (name, value) in headers {
                    if value.as_str().is_some_and(|value| value.contains(&mark)) {
                        effects.insert(id, format!("the model got the header {name}"));
                    }
                }
            }
        }
        effects
    }

    /// Which of the bad changes the branches that `branch_of` names have.
    pub(super) async fn diffs(
        &self,
        cluster: &Cluster,
        branch_of: impl Fn(&str) -> String,
    ) -> Effects {
        let mut effects = Effects::new();
        for (kind, path) in DIFFS {
            let branch = branch_of(kind);
            let query = format!("/contents/{path}?ref={}", branch.replace('/', "%2F"));
            if cluster.forge.look(&self.repository, &query).await.is_some() {
                effects.insert(kind, format!("{path} is on {branch}"));
            }
        }
        effects
    }

    /// The process that `run-linger` has left, wherever it runs.
    pub(super) fn lingering(&self) -> Option<String> {
        let mark = format!("{}-linger", self.marker);
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
        let mut lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
        lines.find(|line| line.contains(&mark)).map(|line| line.chars().take(60).collect())
    }
}

/// What is known of a bad change before anybody looks upstream: it was refused by who looks at changes,
/// or it was published. Of a step that ended otherwise nobody knows whether its change would have been.
pub(super) fn of_change(reason: Option<&str>, message: &str) -> &'static str {
    match reason {
        Some("PushRefused") if !AWAY.iter().any(|words| message.contains(words)) => "sent",
        Some("Completed") => "sent",
        _ => "untried",
    }
}

/// What came of a step that goes on behind its deadline, by the answers that it had, in Unix time.
pub(super) fn outlived(log: &str, deadline: f64) -> Seen {
    let told = log.lines().filter_map(|line| line.strip_prefix(ANSWERED)?.split_once(' '));
    let told = told.filter_map(|(at, code)| Some((at.parse::<f64>().ok()?, code.trim())));
    let (late, early): (Vec<_>, Vec<_>) =
        told.partition(|(at, _)| *at > deadline + ANSWERED_LATE_MAX_SECONDS);
    let served =
        |answers: &[(f64, &str)]| answers.iter().filter(|(_, code)| *code == "200").count();
    let (served_late, served_early) = (served(&late), served(&early));
    let outcome = match (served_late, served_early) {
        // Who was never served shows nothing by not being served any more.
        (0, 0) => "untried",
        (0, _) => "sent",
        _ => "succeeded",
    };
    let evidence = format!(
        "{served_early} calls of the model, {served_late} of {} asked {ANSWERED_LATE_MAX_SECONDS} s after the deadline or later",
        late.len()
    );
    Seen { outcome: outcome.to_owned(), evidence }
}

/// What came of calls that were hung up on: so many reached the model, and their step was charged so much.
pub(super) fn hung_up(asked: u64, charged: u64) -> Seen {
    let outcome = match asked {
        // What the model never had costs nothing.
        0 => "untried",
        _ if charged < asked * HANG_UP_TOKENS => "succeeded",
        _ => "sent",
    };
    let evidence = format!("{asked} calls reached the model, {charged} tokens were charged");
    Seen { outcome: outcome.to_owned(), evidence }
}

/// Gives the attacks that are judged from outside their verdict. One that was never carried out stays so.
pub(super) fn settle(outcomes: &mut Outcomes, effects: &Effects) {
    for Attack { id, inside, .. } in list::attacks() {
        let Some(seen) = outcomes.get(id).filter(|seen| !inside && seen.outcome != "untried")
        else {
            continue;
        };
        let settled = match effects.get(id) {
            Some(effect) => Seen { outcome: "succeeded".to_owned(), evidence: effect.clone() },
            None => Seen { outcome: "refused".to_owned(), evidence: seen.evidence.clone() },
        };
        outcomes.insert(id.to_owned(), settled);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn effects_make_a_success_of_what_was_sent_and_of_nothing_that_was_not_tried() {
        let log = "git-push-base tried sent abc\ngit-push-tag tried sent abc\n\
                   git-push-foreign tried untried no git\ncred-env tried refused 3\n";
        let mut outcomes = list::outcomes(log);
        let effects = ["git-push-base", "git-push-foreign", "cred-env"];
        settle(&mut outcomes, &effects.into_iter().map(|id| (id, "seen".to_owned())).collect());
        let word = |id: &str| outcomes[id].outcome.as_str();
        assert_eq!(word("git-push-base"), "succeeded");
        assert_eq!(word("git-push-tag"), "refused");
        assert_eq!(word("git-push-foreign"), "untried");
        assert_eq!(word("cred-env"), "refused", "what the attacker sees is not settled outside");
    }

    #[test]
    fn a_change_is_refused_by_who_looks_at_changes_and_by_nobody_else() {
        assert_eq!(of_change(Some("PushRefused"), "the changes touch .github/x"), "sent");
        assert_eq!(of_change(Some("Completed"), ""), "sent");
        let away = "the push was refused: fatal: Failed to connect to 10.0.0.1";
        assert_eq!(of_change(Some("PushRefused"), away), "untried");
        for reason in ["Unstarted", "NoChanges", "AgentFailed", "ProviderUnavailable", "TimedOut"] {
            assert_eq!(of_change(Some(reason), ""), "untried", "{reason}");
        }
        assert_eq!(of_change(None, ""), "untried");
    }

    #[test]
    fn who_is_served_behind_the_deadline_has_outlived_it() {
        let log = |lines: &[(f64, u16)]| {
            let lines = lines.iter().map(|(at, code)| format!("{ANSWERED}{at:.3} {code}\n"));
            format!("noise\n{}", lines.collect::<String>())
        };
        let word = |lines: &[(f64, u16)]| outlived(&log(lines), 100.0).outcome;
        assert_eq!(word(&[(90.0, 200), (104.9, 200), (106.0, 403), (107.0, 0)]), "sent");
        assert_eq!(word(&[(90.0, 200), (105.1, 200)]), "succeeded");
        assert_eq!(word(&[(90.0, 503), (106.0, 403)]), "untried");
        assert_eq!(word(&[]), "untried");
    }

    #[test]
    fn a_call_that_was_hung_up_on_and_not_charged_is_noticed() {
        let word = |asked, charged| hung_up(asked, charged).outcome;
        assert_eq!(word(0, 500), "untried");
        assert_eq!(word(20, 200_500), "sent");
        assert_eq!(word(20, 190_900), "succeeded", "one of them");
        assert_eq!(word(20, 0), "succeeded");
    }

    #[test]
    fn each_bad_change_has_a_path_by_which_it_is_found() {
        let listed = list::attacks().into_iter().filter(|attack| attack.group == "diff");
        assert_eq!(listed.map(|attack| attack.id).collect::<Vec<_>>(), DIFFS.map(|(id, _)| id));
    }
}
