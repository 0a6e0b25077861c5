//! The list of attacks, and what was seen of each.

use std::collections::BTreeMap;

/// The list, which the attack program reads too.
const LIST: &str = include_str!("../../hostile/attacks.list");
/// Words of an outcome, the worst last: of several steps that carried an attack out, the worst counts.
const OUTCOMES: [&str; 4] = ["refused", "sent", "untried", "succeeded"];

/// Groups of attacks that one step after the other can carry out.
pub(super) const FROM_INSIDE: [&str; 8] =
    ["credentials", "gateway", "network", "k8s", "git", "diff", "process", "runner"];
/// Groups that use up what a step was given; `alone` needs a step of its own for each, and has no control.
pub(super) const LIMITS: [&str; 3] = ["limits", "disk", "alone"];

/// One attack of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attack {
    /// Its name.
    pub(super) id: &'static str,
    /// Its group, by which the program is told what to run.
    pub(super) group: &'static str,
    /// Number of the defence that it is aimed at.
    pub(super) defence: &'static str,
    /// Whether the attacker itself sees what came of it.
    pub(super) inside: bool,
    /// Why there is no control, and which test shows instead that the check can fail.
    pub(super) elsewhere: Option<&'static str>,
}

/// All attacks, in the list's order.
pub(super) fn attacks() -> Vec<Attack> {
    let lines = LIST.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines
        .map(|line| {
            let columns: Vec<&str> = line.splitn(5, '|').map(str::trim).collect();
            let [id, group, defence, judge, control] = columns[..] else {
                panic!("not five columns: {line}")
            };
            Attack {
                id,
                group,
                defence,
                inside: judge == "inside",
                elsewhere: control.strip_prefix("elsewhere "),
            }
        })
        .collect()
}

/// The attacks of these groups.
pub(super) fn of(groups: &[&str]) -> Vec<Attack> {
    attacks().into_iter().filter(|attack| groups.contains(&attack.group)).collect()
}

/// What was seen of one attack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// One of [`OUTCOMES`].
    pub(super) outcome: String,
    /// One line.
    pub(super) evidence: String,
}

/// Outcomes by attack.
pub(super) type Outcomes = BTreeMap<String, Seen>;

/// The outcomes in a log. Lines of anything else, and of attacks that the list does not have, are no
/// outcomes.
pub(super) fn outcomes(log: &str) -> Outcomes {
    let known = attacks();
    let mut found = Outcomes::new();
    for line in log.lines() {
        let mut words = line.splitn(4, ' ');
        let (Some(id), Some("tried"), Some(outcome)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        if known.iter().any(|attack| attack.id == id) && OUTCOMES.contains(&outcome) {
            let evidence = words.next().unwrap_or_default().to_owned();
            keep(&mut found, id, Seen { outcome: outcome.to_owned(), evidence });
        }
    }
    found
}

/// Adds what was seen; of two outcomes the worse stays, of equal ones the later.
pub(super) fn keep(outcomes: &mut Outcomes, id: &str, seen: Seen) {
    let rank = |seen: &Seen| OUTCOMES.iter().position(|word| *word == seen.outcome);
    match outcomes.get(id) {
        Some(known) if rank(known) > rank(&seen) => {}
        _ => {
            outcomes.insert(id.to_owned(), seen);
        }
    }
}

/// The scores that the program itself printed.
pub(super) fn scores(log: &str) -> Vec<usize> {
    log.lines().filter_map(|line| line.strip_prefix("score: ")?.trim().parse().ok()).collect()
}

/// A line an attack of these groups, with both outcomes.
pub(super) fn table(groups: &[&str], control: &Outcomes, attack: &Outcomes) -> String {
    let word = |outcomes: &Outcomes, id: &str| {
        outcomes.get(id).map_or("-", |seen| seen.outcome.as_str()).to_owned()
    };
    let rows = of(groups).into_iter().map(|Attack { id, defence, elsewhere, .. }| {
        let control = elsewhere.map_or_else(|| word(control, id), |_| "elsewhere".to_owned());
        let evidence = attack.get(id).map_or("", |seen| seen.evidence.as_str());
        let evidence: String = evidence.chars().take(90).collect();
        format!("{id:<28} {defence:>2}  {control:<10} {:<10} {evidence}", word(attack, id))
    });
    let head = format!("{:<28} {:>2}  {:<10} {:<10} evidence", "attack", "#", "control", "step");
    [head].into_iter().chain(rows).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        fs,
        net::TcpListener,
        path::Path,
        process::{Command, Stdio},
        thread,
    };

    use super::*;

    fn folder() -> &'static Path {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/hostile/attack"))
    }

    #[test]
    fn each_attack_has_a_name_of_its_own_and_a_defence() {
        let attacks = attacks();
        let names: BTreeSet<_> = attacks.iter().map(|attack| attack.id).collect();
        assert_eq!(names.len(), attacks.len());
        for attack in attacks {
            let defence: u32 = attack.defence.parse().expect("a number");
            assert!((1..=29).contains(&defence), "{attack:?}");
        }
    }

    #[test]
    fn each_attack_is_carried_out_by_one_test() {
        for attack in attacks() {
            let tests = [&FROM_INSIDE[..], &LIMITS[..]];
            let by = tests.iter().filter(|groups| groups.contains(&attack.group)).count();
            assert_eq!(by, 1, "{attack:?}");
        }
    }

    #[test]
    fn each_attack_stands_in_the_program() {
        let sources = fs::read_dir(folder()).expect("the program").flatten();
        let text: String =
            sources.filter_map(|entry| fs::read_to_string(entry.path()).ok()).collect();
        for Attack { id, .. } in attacks() {
            let space = id.replace("proc-unshare-", "");
            let made =
                id.starts_with("proc-unshare-") && text.contains(&format!("\"{space}\": 0x"));
            assert!(made || text.contains(&format!("\"{id}\"")), "{id} is only in the list");
        }
    }

    #[test]
    fn what_has_no_control_names_a_test_that_exists() {
        for attack in attacks() {
            let Some(elsewhere) = attack.elsewhere else { continue };
            let (test, reason) = elsewhere.split_once(": ").expect("TEST: REASON");
            assert!(reason.len() > 20, "{attack:?}");
            let (file, function) = test.split_once('#').expect("FILE#TEST");
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
            let content =
                fs::read_to_string(&source).unwrap_or_else(|error| panic!("{file}: {error}"));
            assert!(content.contains(&format!("fn {function}(")), "{test}");
        }
    }

    /// The program's outcomes of all attacks that a gateway has to answer, against one at this address.
    fn against(gateway: &str) -> Outcomes {
        let program = tempfile::tempdir().expect("a folder");
        let files = fs::read_dir(folder()).expect("the program").flatten().map(|file| file.path());
        for file in files.chain([folder().with_file_name("attacks.list")]).filter(|f| f.is_file()) {
            let name = file.file_name().expect("a name");
            fs::copy(&file, program.path().join(name)).expect("a copy");
        }
        let nowhere = ["192.0.2.1:1"];
        let parameters = serde_json::json!({
            "gateway": format!("http://{gateway}"), "token": "none", "marker": "none",
            "gifts": {"oneTime": "a", "otherOneTime": "a", "other": "a", "dead": "a"},
            "repository": "main", "otherRepository": "other", "canaries": [["a", "b"]],
            "victimBranch": "victim", "forcedBranch": "forced", "models": nowhere,
            "forges": nowhere, "sinks": nowhere, "apiServices": [], "kubelets": [],
            "hostPorts": [], "metadata": [], "dns": nowhere,
        });
        let mut command = Command::new("python3");
        command.arg(program.path().join("attack.py")).arg(parameters.to_string());
        command.args(["gateway", "git", "diff"]);
        command.args(of(&["limits"]).iter().map(|attack| attack.id).filter(|id| is_answered(id)));
        let output = command.stderr(Stdio::inherit()).output().expect("python3");
        outcomes(&String::from_utf8_lossy(&output.stdout))
    }

    fn is_answered(id: &str) -> bool {
        ["gw-", "git-", "diff-", "cred-gateway-"].iter().any(|prefix| id.starts_with(prefix))
    }

    #[test]
    #[ignore = "needs python3 and git: tests/run hostile"]
    fn no_attack_on_a_gateway_that_is_away_counts_as_refused() {
        let closing = TcpListener::bind("127.0.0.1:0").expect("a port");
        let closed = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addresses = [&closing, &closed].map(|listener| listener.local_addr().expect("bound"));
        drop(closed);
        // It takes every connection and ends it without a word.
        thread::spawn(move || closing.incoming().for_each(drop));
        for address in addresses {
            let outcomes = against(&address.to_string());
            for attack in attacks().into_iter().filter(|attack| is_answered(attack.id)) {
                // Who ends its half may be ended as a whole.
                if attack.id == "gw-half-closed" && address == addresses[0] {
                    continue;
                }
                let seen = outcomes.get(attack.id).unwrap_or_else(|| panic!("{attack:?}"));
                assert_eq!(seen.outcome, "untried", "{attack:?}: {}", seen.evidence);
            }
        }
    }

    #[test]
    fn the_worst_outcome_counts_and_other_lines_do_not() {
        let log = "cred-env tried refused 3 variables\nnoise tried succeeded\ncred-env tried maybe\n\
                   [implement] cred-env tried succeeded\ncred-env tried succeeded key\n\
                   cred-env tried untried late\nscore: 2\nscore: x\n";
        let found = outcomes(log);
        assert_eq!(found.len(), 1);
        assert_eq!(found["cred-env"].outcome, "succeeded");
        assert_eq!(found["cred-env"].evidence, "key");
        assert_eq!(scores(log), [2]);
    }
}
