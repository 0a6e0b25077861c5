//! What the gateway refuses is told exactly once: in the status of the run by kind and target, in the audit, and in the
//! counter of its kind. Of what it does not refuse, and that is all that we ask for ourselves, nothing is told.

use std::collections::{BTreeMap, BTreeSet};

use agent_operator::crd::agent_run::RefusalStatus;
use agent_operator_supervisor::{gateway::grants::RefusalKind, steps::egress::DROPPED};
use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::{
    judge::{self, Scene},
    list, parameters,
    place::{self, PROGRAM},
    say,
    sink::{Metadata, Sink},
    trial::{self, hostile_task},
};
use crate::{
    life::telemetry::{Scrape, scrape},
    support::{
        cluster::{Cluster, NAMESPACE, SYSTEM},
        release::must,
        task::{task, unique},
    },
};

/// Tasks side by side: as many pods as a machine with two cores starts in good time.
const AT_ONCE: usize = 6;
/// The attack, and then an end of the task: what it would do besides is not asked.
const ONE_ATTACK: &str = r#"python3 "$0" "$@"; exit 3"#;
/// What counts the refused requests of all attempts of a gateway.
const COUNTER: &str = "agent_operator_gateway_refusals_total";

/// How many refusals an attack is told to have had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// As many as the answers that it got say.
    AsAnswered,
    /// So many, for the attacker does not see the answers.
    Exactly(u64),
    /// Some: connections that are not taken have no answer, and their number is a matter of time.
    Some,
}

impl Wanted {
    fn of(id: &str) -> Self {
        match id {
            "gw-connection-flood" => Self::Some,
            // The end of the connection may be faster than the answer; and git asks once whether it may push.
            "gw-oversize-head" | "gw-oversize-body" | "git-delete-branch" | "git-force-foreign"
            | "git-fetch-bomb" => Self::Exactly(1),
            _ if id.starts_with("git-push-") => Self::Exactly(1),
            _ => Self::AsAnswered,
        }
    }

    /// What is wrong with so many refusals after these answers.
    fn complaint(self, answers: &[u16], told: u64) -> Option<String> {
        let refused = answers.iter().filter(|code| (400..500).contains(*code)).count() as u64;
        // Who is asked to come again, or had no answer, was not told what became of the request.
        let unclear = answers.iter().any(|code| matches!(code, 0 | 429 | 500..));
        let well = match self {
            Self::AsAnswered => !unclear && told == refused,
            Self::Exactly(number) => told == number,
            Self::Some => told > 0,
        };
        (!well).then(|| format!("{told} refusals told, wanted {self:?} of answers {answers:?}"))
    }
}

/// Status codes that the attack `id` was answered with.
fn answers(log: &str, id: &str) -> Vec<u16> {
    let lines = log.lines().filter_map(|line| line.strip_prefix(id)?.strip_prefix(" answered "));
    lines.flat_map(str::split_ascii_whitespace).filter_map(|code| code.parse().ok()).collect()
}

/// Refusals by kind and target.
type Told = BTreeMap<(String, String), u64>;

/// As a status tells them; the same kind and target twice is a complaint.
fn told(refusals: &[RefusalStatus], complaints: &mut Vec<String>) -> Told {
    let mut told = Told::new();
    for RefusalStatus { kind, target, count } in refusals {
        let count = u64::try_from(*count).unwrap_or_default();
        if told.insert((kind.clone(), target.clone()), count).is_some() {
            complaints.push(format!("{kind} {target} stands twice in a status"));
        }
    }
    told
}

/// What differs between a run's status and its records in the audit.
fn differing(told: &Told, records: &[(String, String)]) -> Vec<String> {
    let mut complaints = Vec::new();
    let all: BTreeSet<_> = told.keys().chain(records).collect();
    for pair in all {
        let recorded = records.iter().filter(|record| *record == pair).count();
        let counted = told.get(pair).copied().unwrap_or_default();
        if recorded != 1 || counted == 0 {
            complaints.push(format!("{pair:?}: {recorded} records, {counted} in the status"));
        }
    }
    complaints
}

/// Kinds and targets that this container beside each supervisor has recorded, or the supervisor itself, by run.
async fn audit(container: &str) -> BTreeMap<String, Vec<(String, String)>> {
    let pods = "app.kubernetes.io/component=supervisor";
    let line = ["-n", SYSTEM, "logs", "-l", pods, "-c", container, "--tail=-1"];
    let text = must("kubectl", &line).await;
    let mut records = BTreeMap::<_, Vec<_>>::new();
    for line in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        if line["target"] == "audit" && line["act"] == "refused" {
            let word = |field: &str| line[field].as_str().unwrap_or_default().to_owned();
            records.entry(word("run")).or_default().push((word("kind"), word("refused")));
        }
    }
    records
}

/// By how much the counters of all gateways have risen.
fn risen(before: &Scrape, after: &Scrape) -> BTreeMap<&'static str, u64> {
    let of = |kind: RefusalKind| {
        let label = format!("kind=\"{}\"", kind.as_str());
        let rise = after.sum(COUNTER, &[&label]) - before.sum(COUNTER, &[&label]);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small count")]
        let rise = rise.round() as u64;
        (kind.as_str(), rise)
    };
    RefusalKind::ALL.into_iter().map(of).collect()
}

/// Everything that was told of the runs of one task.
#[derive(Default)]
struct Account {
    complaints: Vec<String>,
    by_kind: BTreeMap<String, u64>,
    all: u64,
}

impl Account {
    /// Adds the runs of `task`, each held to its records; how many refusals they had.
    async fn add(
        &mut self,
        cluster: &Cluster,
        task: &str,
        audit: &BTreeMap<String, Vec<(String, String)>>,
    ) -> u64 {
        let mut of_task = 0;
        for run in cluster.runs(NAMESPACE, task).await {
            let name = run.name_any();
            let refusals = run.status.unwrap_or_default().refusals;
            let told = told(&refusals, &mut self.complaints);
            let records = audit.get(&name).map_or(&[][..], Vec::as_slice);
            let differing = differing(&told, records).into_iter();
            self.complaints.extend(differing.map(|words| format!("{name}: {words}")));
            for ((kind, _), count) in told {
                *self.by_kind.entry(kind).or_default() += count;
                of_task += count;
            }
        }
        self.all += of_task;
        of_task
    }

    /// Holds the sums of all statuses to what the counters say.
    fn hold_to(&mut self, risen: &BTreeMap<&'static str, u64>) {
        for (kind, rise) in risen {
            let told = self.by_kind.get(*kind).copied().unwrap_or_default();
            if told != *rise {
                self.complaints.push(format!("{kind}: counted {rise} times, {told} in statuses"));
            }
        }
    }
}

/// A one-time token that was redeemed already counts for the run that it was made for, whoever shows it: the neighbour's
/// is among the attackers' gifts (`gw-foreign-one-time`).
const SHOWN_BY_OTHERS: (&str, &str) = ("auth", "second redemption");

/// Asserts that nothing of a task that attacks nothing was refused, but for what others do with its token.
pub(super) async fn assert_none(cluster: &Cluster, task: &str) {
    for run in cluster.runs(NAMESPACE, task).await {
        let mut refusals = run.status.clone().unwrap_or_default().refusals;
        refusals.retain(|one| (one.kind.as_str(), one.target.as_str()) != SHOWN_BY_OTHERS);
        assert!(refusals.is_empty(), "{} attacked nothing: {refusals:?}", run.name_any());
    }
}

/// Asserts that the packets which the step that attacks the network sent past its gateway are told of its run, once.
pub(super) async fn assert_dropped(cluster: &Cluster, task: &str) {
    let least = list::of(&["network"]).iter().filter(|one| one.id.starts_with("net-tcp-")).count();
    let records = audit("supervisor").await;
    let runs = cluster.runs(NAMESPACE, task).await;
    let run = runs.into_iter().find(|run| run.spec.step == "implement").expect("a run");
    let of_run = records.get(&run.name_any()).map_or(&[][..], Vec::as_slice);
    let recorded = of_run.iter().filter(|(kind, _)| kind == DROPPED).count();
    let refusals = run.status.unwrap_or_default().refusals;
    let told: Vec<_> = refusals.iter().filter(|one| one.kind == DROPPED).collect();
    assert_eq!((told.len(), recorded), (1, 1), "{told:?}");
    let packets = usize::try_from(told[0].count).unwrap_or_default();
    assert!(packets >= least, "{packets} packets of {least} connections at least");
    say(&format!("{packets} packets past the gateway were dropped, and told of their run"));
}

/// Attacks that ask the gateway for something.
fn attacks() -> Vec<&'static str> {
    let groups = list::of(&["gateway", "git"]).into_iter().map(|attack| attack.id);
    groups.chain(["gw-header-count"]).collect()
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run hostile"]
async fn each_refused_request_of_an_attack_is_told_exactly_once_and_our_own_traffic_never() {
    let cluster = Cluster::connect().await;
    let (image, sink) = (place::image().await, Sink::start().await);
    let marker = unique("refusals");
    let scene = Scene::set(&cluster, &marker).await;
    let parameters = parameters_of(&cluster, &scene, &sink).await;
    let before = scrape(&cluster).await;
    // A task that only works, with the agent's real CLI, all the while.
    let company = format!("{marker}-company");
    let prompt = format!("Add a /healthz endpoint. {company}");
    cluster.create(NAMESPACE, &task(&company, &prompt, &json!({}))).await;
    let attacks = attacks();
    let name_of = |id: &str| format!("{marker}-{id}");
    for some in attacks.chunks(AT_ONCE) {
        let names: Vec<String> = some.iter().map(|id| name_of(id)).collect();
        for (id, name) in some.iter().zip(&names) {
            let command = ["sh", "-c", ONE_ATTACK, PROGRAM, &parameters, id];
            let spec = json!({"agent": {"type": "Command", "command": command}});
            let task = hostile_task(name, &image, &scene.repository, &spec);
            cluster.create(NAMESPACE, &task).await;
        }
        trial::ended(&cluster, &names).await;
    }
    cluster.complete(NAMESPACE, &company).await;

    let (after, audit) = (scrape(&cluster).await, audit("gateway").await);
    let mut account = Account::default();
    let of_company = account.add(&cluster, &company, &audit).await;
    assert_eq!(of_company, 0, "of a task that attacks nothing: {:?}", account.by_kind);
    for id in &attacks {
        let told = account.add(&cluster, &name_of(id), &audit).await;
        let log: String =
            trial::logs(&cluster, &name_of(id)).await.into_iter().map(|(_, log)| log).collect();
        let outcome = list::outcomes(&log).remove(*id).map(|seen| seen.outcome);
        if !matches!(outcome.as_deref(), Some("refused" | "sent")) {
            account.complaints.push(format!("{id} ended as {outcome:?}"));
        }
        let complaint = Wanted::of(id).complaint(&answers(&log, id), told);
        account.complaints.extend(complaint.map(|words| format!("{id}: {words}")));
    }
    account.hold_to(&risen(&before, &after));
    let (all, by_kind) = (account.all, &account.by_kind);
    say(&format!(
        "{} attacks had {all} requests refused, each told once: {by_kind:?}",
        attacks.len()
    ));
    cluster.forge.delete_repository(&scene.repository).await;
    assert!(account.complaints.is_empty(), "{:#?}", account.complaints);
    assert!(RefusalKind::ALL.iter().all(|kind| by_kind.contains_key(kind.as_str())), "{by_kind:?}");
}

/// What the program is told. Tokens of others are made up: what is refused is the same.
async fn parameters_of(cluster: &Cluster, scene: &Scene, sink: &Sink) -> String {
    let peers = ["192.0.2.1".to_owned(), "192.0.2.2".to_owned()];
    let mut all = parameters::parameters(cluster, &scene.marker, sink, &peers, &[]).await;
    all["metadata"] = json!([Metadata::address()]);
    all["gifts"] = json!({"oneTime": "a", "otherOneTime": "b", "other": "c", "dead": "d"});
    all["repositoryName"] = json!(scene.repository);
    all["otherRepository"] = json!("another-repository");
    all["victimBranch"] = json!(judge::VICTIM);
    all["forcedBranch"] = json!(judge::FORCED);
    all.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(kind: &str, target: &str, count: i64) -> RefusalStatus {
        RefusalStatus { kind: kind.to_owned(), target: target.to_owned(), count }
    }

    #[test]
    fn one_refusal_more_or_less_than_was_answered_is_noticed() {
        let log = "gw-a answered 404 403 200\ngw-ab answered 404\ngw-a tried refused x\n";
        let answers = answers(log, "gw-a");
        assert_eq!(answers, [404, 403, 200]);
        let wanted = Wanted::of("gw-a");
        assert_eq!(wanted.complaint(&answers, 2), None);
        for told in [0, 1, 3] {
            assert!(wanted.complaint(&answers, told).is_some(), "{told}");
        }
        for unclear in [0, 429, 502] {
            assert!(wanted.complaint(&[404, unclear], 1).is_some(), "{unclear}");
        }
        assert!(Wanted::of("git-push-tag").complaint(&[], 2).is_some());
        assert!(Wanted::of("gw-connection-flood").complaint(&[], 0).is_some());
    }

    #[test]
    fn a_record_too_many_and_one_too_few_are_noticed() {
        let mut complaints = Vec::new();
        let status = [refusal("git", "push", 2), refusal("model", "x", 1)];
        let of_status = told(&status, &mut complaints);
        let record = |kind: &str, target: &str| (kind.to_owned(), target.to_owned());
        let records = [record("git", "push"), record("model", "x")];
        assert_eq!((differing(&of_status, &records), complaints.len()), (vec![], 0));
        assert_eq!(differing(&of_status, &records[..1]).len(), 1);
        let twice = [records.clone(), records.clone()].concat();
        assert_eq!(differing(&of_status, &twice).len(), 2);
        let more = [&records[..], &[record("auth", "y")]].concat();
        assert_eq!(differing(&of_status, &more).len(), 1);
        told(&[refusal("git", "push", 1), refusal("git", "push", 1)], &mut complaints);
        assert_eq!(complaints.len(), 1);
    }

    #[test]
    fn sums_that_differ_from_the_counters_are_noticed() {
        let by_kind = BTreeMap::from([("git".to_owned(), 2)]);
        let account = || Account { by_kind: by_kind.clone(), ..Account::default() };
        for (git, auth, complaints) in [(2, 0, 0), (3, 0, 1), (2, 1, 1)] {
            let mut account = account();
            account.hold_to(&BTreeMap::from([("git", git), ("auth", auth)]));
            assert_eq!(account.complaints.len(), complaints, "{git} {auth}");
        }
    }
}
