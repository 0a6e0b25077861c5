//! docs/security.md names for each defence the tests that show it. All defences are there, and so are
//! the tests; what is not shown says `open`.

use std::{collections::BTreeMap, ops::RangeInclusive};

use super::{
    reliability::{named, tests},
    tree::{read, root},
};

/// Numbers of the defences.
const DEFENCES: RangeInclusive<u32> = 1..=29;
/// Defences of which a part is not shown yet: their row says `open:` and what is missing.
const OPEN: [u32; 0] = [];
/// The attacks of the hostile agent, a line each that begins with the attack's id.
const ATTACKS: &str = "tests/hostile/attacks.list";

/// Where the database of advisories is out of reach, `tests/deny` and the stage lint say so; here it is in
/// reach, and nothing leaves them out.
#[test]
fn ci_checks_advisories_each_day_and_fails_without_their_database() {
    let workflow: serde_json::Value =
        serde_saphyr::from_str(&read(".github/workflows/ci.yml")).unwrap();
    assert!(workflow["on"]["schedule"][0]["cron"].is_string());
    let job = &workflow["jobs"]["deny"];
    assert!(job["if"].is_null() && job["continue-on-error"].is_null(), "it may be left out");
    let steps = job["steps"].as_array().unwrap();
    let step = steps.iter().find(|step| {
        step["uses"]
            .as_str()
            .is_some_and(|uses| uses.starts_with("EmbarkStudios/cargo-deny-action"))
    });
    let step = step.expect("a step runs cargo-deny");
    // Without a list it checks everything that deny.toml has.
    assert_eq!(step["with"], serde_json::json!({"command": "check"}));
    assert!(read("deny.toml").contains("\n[advisories]\n"));
    let script = read("tests/deny");
    assert!(
        script.contains("die \"advisories cannot be checked\"") && script.contains("NOT checked")
    );
    // CI is set on many a machine that cannot reach GitHub, and what is skipped there has to be said, not to fail.
    assert!(!script.contains("${CI"), "tests/deny reads the variable CI");
}

/// The rows of the table: number, and the columns of tests and of what is not covered.
fn rows(page: &str) -> Result<BTreeMap<u32, (String, String)>, String> {
    let (_, section) = page.split_once("\n## Defences\n").ok_or("no section of defences")?;
    let section = section.split("\n## ").next().unwrap_or_default();
    let mut rows = BTreeMap::new();
    for line in section.lines().filter(|line| line.starts_with("| ")) {
        let line = line.trim().trim_start_matches('|').trim_end_matches('|');
        let cells: Vec<_> = line.split(" | ").map(str::trim).collect();
        let Some(number) = cells.first().and_then(|cell| cell.parse().ok()) else { continue };
        let [_, _, shown, rest] = cells.as_slice() else {
            return Err(format!("defence {number} has {} columns", cells.len()));
        };
        if rows.insert(number, ((*shown).to_owned(), (*rest).to_owned())).is_some() {
            return Err(format!("defence {number} has two rows"));
        }
    }
    Ok(rows)
}

/// Ids of the attacks; none where there is no hostile agent in the tree.
fn attacks() -> Option<Vec<String>> {
    let path = root().join(ATTACKS);
    path.is_file().then(|| {
        let text = read(ATTACKS);
        let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
        lines.map(|line| line.split('|').next().unwrap_or_default().trim().to_owned()).collect()
    })
}

/// What is wrong with the page. An attack proves nothing where the list of attacks is not there.
fn faults(
    page: &str,
    is_test: impl Fn(&str) -> bool,
    attacks: Option<&[String]>,
) -> Result<Vec<String>, String> {
    let rows = rows(page)?;
    let mut found = Vec::new();
    for number in DEFENCES {
        let Some((shown, _)) = rows.get(&number) else {
            found.push(format!("defence {number} has no row"));
            continue;
        };
        let mut proofs = 0;
        for name in named(shown) {
            let exists = match name.strip_prefix("hostile:") {
                None => is_test(name),
                Some(id) => {
                    let Some(attacks) = attacks else { continue };
                    match id.strip_suffix('*') {
                        Some(start) => attacks.iter().any(|attack| attack.starts_with(start)),
                        None => attacks.iter().any(|attack| attack == id),
                    }
                }
            };
            if exists {
                proofs += 1;
            } else {
                found.push(format!("defence {number}: there is no {name}"));
            }
        }
        let open = shown.contains("open: ");
        if open != OPEN.contains(&number) {
            found.push(format!("defence {number}: `open` in the row and in the test differ"));
        }
        if proofs == 0 && !open {
            found.push(format!("defence {number} names no test"));
        }
    }
    found.extend(rows.keys().filter(|n| !DEFENCES.contains(n)).map(|n| format!("{n} is none")));
    Ok(found)
}

#[test]
fn every_defence_names_tests_and_attacks_that_exist() {
    let (page, tests, attacks) = (read("docs/security.md"), tests(), attacks());
    assert!(tests.len() > 300, "tests must be seen: {}", tests.len());
    let found = faults(&page, |name| tests.contains(name), attacks.as_deref());
    assert_eq!(found, Ok(Vec::new()));
    // Every attack belongs to a defence that is there.
    let list = if attacks.is_some() { read(ATTACKS) } else { String::new() };
    for line in list.lines().filter(|line| !line.starts_with('#')) {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        if let Some(number) = cells.get(2) {
            let number = number.parse::<u32>();
            assert!(number.is_ok_and(|number| DEFENCES.contains(&number)), "{line}");
        }
    }
    println!("{} of {} defences are open in part: {OPEN:?}", OPEN.len(), DEFENCES.count());
    if attacks.is_none() {
        println!("{ATTACKS} is not there: no attack is counted as a proof");
    }
}

#[test]
fn every_fuzz_target_of_the_page_exists() {
    let (page, tests) = (read("docs/security.md"), tests());
    let (_, section) = page.split_once("\n## Fuzz targets\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let mut targets = 0;
    for line in section.lines().filter(|line| line.starts_with("| ") && !line.contains("target |"))
    {
        let cell = line.split(" | ").nth(1).unwrap();
        for target in named(cell) {
            targets += 1;
            assert!(tests.contains(target), "there is no {target}");
        }
    }
    assert!(targets >= 14, "{targets}");
}

#[test]
fn a_row_without_a_test_with_a_wrong_one_or_missing_is_found() {
    let page = read("docs/security.md");
    let attacks = vec!["cred-env".to_owned()];
    let judge = |page: &str| {
        let all = |name: &str| name != "no_such_test";
        faults(page, all, Some(&attacks)).unwrap_or_else(|fault| vec![fault])
    };
    let about = |page: &str, words: &str| judge(page).iter().any(|fault| fault.contains(words));
    let row = page.lines().find(|line| line.starts_with("| 18 |")).unwrap();
    assert!(!about(&page, "defence 18"));
    assert!(about(&page.replace(row, ""), "defence 18 has no row"));
    assert!(about(&page.replace(row, &format!("{row}\n{row}")), "two rows"));
    assert!(about(&page.replace(row, "| 18 | x | nothing | |"), "defence 18 names no test"));
    assert!(about(&page.replace(row, "| 18 | x | open: all | |"), "differ"));
    assert!(about(&page.replace(row, "| 18 | x | `no_such_test` | |"), "there is no no_such_test"));
    assert!(about(&page.replace(row, "| 18 | x | `hostile:y` | |"), "there is no hostile:y"));
    assert!(!about(&page.replace(row, "| 18 | x | `hostile:cred-*` | |"), "defence 18"));
}
