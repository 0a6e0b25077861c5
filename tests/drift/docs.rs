//! The documentation: its links lead somewhere, its remedies cover every reason, its examples are YAML.

use std::{collections::BTreeMap, path::Path};

use super::{
    reference_text::reasons_with_remedies,
    tree::{read, root},
};

/// Every page, relative to the root.
fn pages() -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut folders = vec![root().to_owned(), root().join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && path.starts_with(root().join("docs")) {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path.strip_prefix(root()).unwrap().display().to_string());
            }
        }
    }
    found.sort();
    assert!(found.len() > 10, "{found:?}");
    found
}

/// A page without its code blocks.
fn prose(text: &str) -> String {
    let mut inside = false;
    let lines = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        inside ^= fence;
        !inside && !fence
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Anchor of a heading, as forges make it.
fn anchor(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Targets of the links of a page.
fn links(text: &str) -> Vec<String> {
    let text = prose(text);
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.map(str::to_owned).collect()
}

#[test]
fn relative_links_lead_to_files_and_headings() {
    let mut dead = Vec::new();
    let mut seen = 0;
    for page in pages() {
        for link in links(&read(&page)) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            seen += 1;
            let (file, heading) = link.split_once('#').unwrap_or((&link, ""));
            let target = match file {
                "" => root().join(&page),
                file => root()
                    .join(&page)
                    .parent()
                    .map_or_else(|| root().join(file), |folder| folder.join(file)),
            };
            let exists = target.exists();
            let anchored = heading.is_empty()
                || (target.is_file()
                    && prose(&read(&target))
                        .lines()
                        .any(|line| line.starts_with('#') && anchor(line) == heading));
            if !exists || !anchored {
                dead.push(format!("{page}: {link}"));
            }
        }
    }
    assert!(seen > 30, "links must be seen");
    assert!(dead.is_empty(), "dead links:\n{}", dead.join("\n"));
}

#[test]
fn every_page_is_in_the_index() {
    let index = links(&read("docs/README.md"));
    for page in pages() {
        let Some(below) = page.strip_prefix("docs/") else { continue };
        let listed = index.iter().any(|link| link == below || link == &format!("./{below}"));
        let decision = below.starts_with("adr/");
        assert!(decision || below == "README.md" || listed, "docs/README.md does not link {below}");
    }
}

#[test]
fn every_reason_has_a_remedy() {
    let page = read("docs/how-to/watch-and-debug.md");
    let rows: BTreeMap<&str, usize> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(name, rest)| (name, rest.len()))
        .collect();
    let missing: Vec<String> = reasons_with_remedies()
        .into_iter()
        .filter(|name| rows.get(name.as_str()).is_none_or(|length| *length < 20))
        .collect();
    assert!(missing.is_empty(), "docs/how-to/watch-and-debug.md says no remedy for {missing:?}");
}

/// Code blocks of `language` in a page.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let opening = format!("```{language}\n");
    let found = text.split(&opening).skip(1);
    found.filter_map(|rest| rest.split("```").next()).map(str::to_owned).collect()
}

#[test]
fn tables_of_kubectl_show_the_columns_that_there_are() {
    let columns: Vec<Vec<String>> = agent_operator::crd::all_crds()
        .iter()
        .map(|crd| {
            let columns = crd.spec.versions[0].additional_printer_columns.iter().flatten();
            columns.map(|column| column.name.to_uppercase()).collect()
        })
        .collect();
    let mut seen = 0;
    for page in pages() {
        for block in blocks(&read(&page), "text") {
            let heads =
                block.lines().filter(|line| line.starts_with("NAME ") && line.contains("PHASE"));
            for head in heads {
                seen += 1;
                // Columns are at least three blanks apart; names may have one in them.
                let shown: Vec<&str> =
                    head.split("   ").map(str::trim).filter(|word| !word.is_empty()).collect();
                let known = columns.iter().any(|columns| {
                    shown[1..].iter().all(|word| columns.iter().any(|column| column == word))
                });
                assert!(known, "{page} shows columns that no resource has: {shown:?}");
            }
        }
    }
    assert!(seen >= 2, "tables must be seen");
}

/// The block that is run is the page's; the README shows the same one.
#[test]
fn commands_of_the_readme_to_follow_a_task_are_those_that_a_test_runs() {
    let blocks = |page: &str| -> Vec<String> {
        let all = blocks(&read(page), "console").into_iter();
        all.filter(|block| block.contains("StepService/Follow")).collect()
    };
    let shown = blocks("README.md");
    assert_eq!(shown, blocks("docs/how-to/watch-and-debug.md"));
    assert_eq!(shown.len(), 1, "the block must be seen");
}

#[test]
fn scripts_that_pages_name_exist() {
    for page in pages() {
        let text = read(&page);
        let words = text.split(|c: char| c.is_whitespace() || "`()\"'|,;:".contains(c));
        for word in words {
            let word = word.trim_end_matches('.');
            let path = Path::new(word);
            if word.starts_with("deploy/") && !word.contains(['*', '{', '<', '$']) {
                let built = path.starts_with("deploy/dist");
                assert!(built || root().join(path).exists(), "{page} names {word}");
            }
        }
    }
}

/// The commands of these pages are run by `tests/e2e/life`, in blocks of the first two kinds; nothing else on them
/// may look like a command, or it would stand there untried.
#[test]
fn pages_whose_commands_are_run_have_no_other_blocks() {
    let run = read("tests/e2e/life/tutorial.rs")
        + &read("tests/e2e/life/pages.rs")
        + &read("tests/e2e/life/company.rs")
        + &read("tests/e2e/life/platform.rs");
    let mut seen = 0;
    for page in pages().into_iter().filter(|page| run.contains(&format!("\"{page}\""))) {
        let text = read(&page);
        let fences = text.lines().filter_map(|line| line.trim_start().strip_prefix("```"));
        let openings: Vec<&str> = fences.step_by(2).collect();
        for language in openings {
            let known = ["sh", "console", "text", "yaml"].contains(&language);
            assert!(known, "{page} has a block of {language:?}, which no test runs");
            seen += 1;
        }
        // Blocks by indentation alone are seen by no test.
        let indented =
            text.lines().any(|line| line.starts_with("    kubectl") || line.starts_with("    $ "));
        assert!(!indented, "{page} has a command outside of a block");
    }
    assert!(seen >= 20, "blocks must be seen: {seen}");
}

#[test]
fn every_act_of_the_audit_and_every_kind_of_refusal_is_explained() {
    let page = read("docs/reference/audit.md");
    let words = |file: &str, function: &str| {
        let source = read(file);
        let body = source.split(function).nth(1).expect("the function is there");
        let body = body.split("\n    }\n").next().unwrap();
        let words = body.split("=> \"").skip(1).filter_map(|rest| rest.split('"').next());
        words.map(str::to_owned).collect::<Vec<_>>()
    };
    let acts = words("src/telemetry/audit.rs", "pub fn as_str");
    let kinds = words("supervisor/src/gateway/grants/refusals.rs", "pub fn as_str");
    assert!(acts.len() >= 5 && kinds.len() >= 5, "{acts:?} {kinds:?}");
    for act in &acts {
        assert!(page.contains(&format!("| `{act}` |")), "docs/reference/audit.md lacks {act}");
    }
    for kind in &kinds {
        assert!(page.contains(&format!("`{kind}` (")), "docs/reference/audit.md lacks {kind}");
    }
    let rows = page.lines().filter(|line| line.starts_with("| `") && !line.contains("`act`"));
    assert_eq!(rows.count(), acts.len(), "a row for an act that is gone");
}
