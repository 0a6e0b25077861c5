//! What leaves the repository: the workflows call only what exists and may do only what they need,
//! and the release script moves everything that has a version.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use super::tree::{read, root};

/// Everything that a version stands in.
const VERSIONED: [&str; 7] = [
    "Cargo.toml",
    "Cargo.lock",
    "CHANGELOG.md",
    "deploy/helm/agent-operator/Chart.yaml",
    "deploy/helm/agent-operator/values.yaml",
    "deploy/samples/agentrun.yaml",
    "docs/reference/values.md",
];

fn workflows() -> Vec<(String, Value)> {
    let folder = fs::read_dir(root().join(".github/workflows")).unwrap();
    let mut found: Vec<(String, Value)> = folder
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, serde_saphyr::from_str(&fs::read_to_string(path).unwrap()).unwrap())
        })
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(found.len() >= 2);
    found
}

/// Every step of a workflow, with its job's name.
fn steps(workflow: &Value) -> Vec<(&str, &Value)> {
    let jobs = workflow["jobs"].as_object().unwrap();
    jobs.iter()
        .flat_map(|(name, job)| {
            job["steps"].as_array().unwrap().iter().map(move |step| (name.as_str(), step))
        })
        .collect()
}

/// Words of a script, without quotes around them.
fn words(script: &str) -> Vec<&str> {
    let ends = |c: char| c.is_whitespace() || "\"';()<>|&".contains(c);
    script.split(ends).filter(|word| !word.is_empty()).collect()
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

#[test]
fn every_path_that_a_workflow_names_exists() {
    let mut seen = BTreeSet::new();
    for (file, workflow) in workflows() {
        for (job, step) in steps(&workflow) {
            let Some(script) = step["run"].as_str() else { continue };
            for line in script.replace("\\\n", " ").lines() {
                for (index, word) in words(line).into_iter().enumerate() {
                    if !["deploy/", "tests/", ".ci/", ".github/"]
                        .iter()
                        .any(|p| word.starts_with(p))
                    {
                        continue;
                    }
                    let path = root().join(word);
                    assert!(path.exists(), "{file}, {job}: {word} does not exist");
                    assert!(
                        index > 0 || is_executable(&path),
                        "{file}, {job}: {word} cannot be run"
                    );
                    seen.insert(word.to_owned());
                }
            }
        }
    }
    for expected in
        ["tests/run", "deploy/images/build", "deploy/release", "deploy/crds/install.yaml"]
    {
        assert!(seen.contains(expected), "no workflow uses {expected}");
    }
}

#[test]
fn every_stage_and_option_that_a_workflow_uses_exists() {
    let runner = read("tests/run");
    let stages = runner.lines().find_map(|line| line.strip_prefix("STAGES=(")).unwrap();
    let stages: Vec<_> = stages.trim_end_matches(')').split_whitespace().collect();
    let mut options = 0;
    for (file, workflow) in workflows() {
        for (job, step) in steps(&workflow) {
            let Some(script) = step["run"].as_str() else { continue };
            let words = words(script);
            for program in ["deploy/images/build", "deploy/release"] {
                if words.first() != Some(&program) {
                    continue;
                }
                let code = read(program);
                // Up to the next command of the same script.
                for option in script.lines().next().unwrap().split_whitespace() {
                    if option.starts_with("--") {
                        assert!(
                            code.contains(&format!("  {option}")),
                            "{file}, {job}: {program} knows no {option}"
                        );
                        options += 1;
                    }
                }
            }
            if let Some(at) = words.iter().position(|word| *word == "tests/run") {
                for stage in
                    words[at + 1..].iter().filter(|word| word.chars().all(char::is_alphanumeric))
                {
                    assert!(
                        stages.contains(stage) || *stage == "matrix",
                        "{file}, {job}: no stage {stage}"
                    );
                }
            }
        }
        for stage in workflow["jobs"]["checks"]["strategy"]["matrix"]["stage"]
            .as_array()
            .into_iter()
            .flatten()
        {
            assert!(stages.contains(&stage.as_str().unwrap()), "{file}: no stage {stage}");
        }
    }
    assert!(options >= 8, "the test must see the options: {options}");
}

#[test]
fn actions_are_pinned_to_a_release() {
    for (file, workflow) in workflows() {
        for (job, step) in steps(&workflow) {
            let Some(action) = step["uses"].as_str() else { continue };
            let (_, version) = action.split_once('@').expect("a version");
            let digits = version.strip_prefix('v').unwrap_or_default();
            assert!(
                digits.starts_with(|c: char| c.is_ascii_digit()),
                "{file}, {job}: {action} is a moving branch"
            );
        }
    }
}

#[test]
fn workflows_read_unless_a_job_says_what_it_writes() {
    let mut writers = BTreeSet::new();
    for (file, workflow) in workflows() {
        assert_eq!(workflow["permissions"], serde_json::json!({"contents": "read"}), "{file}");
        for (job, definition) in workflow["jobs"].as_object().unwrap() {
            for (scope, right) in definition["permissions"].as_object().into_iter().flatten() {
                if right == "write" {
                    writers.insert(format!("{file} {job} {scope}"));
                }
            }
            let minutes = definition["timeout-minutes"].as_u64();
            assert!(minutes.is_some(), "{file}, {job}: without a limit it may hang for six hours");
        }
        for (job, step) in steps(&workflow) {
            if step["uses"].as_str().is_some_and(|action| action.starts_with("actions/checkout@")) {
                let kept = &step["with"]["persist-credentials"];
                assert_eq!(
                    kept, false,
                    "{file}, {job}: the token stays in .git for every later step"
                );
            }
        }
    }
    let expected = [
        "release.yml images packages",
        "release.yml manifests packages",
        "release.yml publish contents",
        "release.yml publish packages",
    ];
    assert_eq!(writers, expected.map(str::to_owned).into());
}

#[test]
fn every_image_of_the_chart_is_released() {
    let values = read("deploy/helm/agent-operator/values.yaml");
    let build = read("deploy/images/build");
    let release = read(".github/workflows/release.yml");
    let images: Vec<_> = values
        .lines()
        .filter_map(|line| line.split_once(": ghcr.io/jcwearn/agent-operator/")?.1.split_once(':'))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(
        build.lines().find_map(|line| line.strip_prefix("ALL=(")),
        Some(format!("{})", images.join(" ")).as_str())
    );
    assert!(release.contains(&format!("for name in {}; do", images.join(" "))));
}

/// A copy of everything that has a version.
fn copy() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in VERSIONED {
        let to = folder.path().join(file);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(root().join(file), to).unwrap();
    }
    folder
}

/// Runs `deploy/release` on a copy; gives what it printed, or its refusal.
fn release(folder: &Path, arguments: &[&str]) -> Result<String, String> {
    let script: PathBuf = root().join("deploy/release");
    let output = Command::new(script).arg("--root").arg(folder).args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

/// The version that everything is at.
fn present() -> String {
    let chart = read("deploy/helm/agent-operator/Chart.yaml");
    chart.lines().find_map(|line| line.strip_prefix("version: ")).unwrap().to_owned()
}

#[test]
fn a_release_moves_crates_chart_images_and_changelog_together() {
    let folder = copy();
    let present = present();
    release(folder.path(), &["9.8.7"]).unwrap();
    release(folder.path(), &["--check", "9.8.7"]).unwrap();
    for file in VERSIONED {
        let (before, after) = (read(file), fs::read_to_string(folder.path().join(file)).unwrap());
        assert_ne!(before, after, "{file} was left behind");
        // Nothing else moved: with the version put back, the files are the same.
        if file != "CHANGELOG.md" {
            assert_eq!(after.replace("9.8.7", &present), before, "{file}");
        }
    }
    let notes = release(folder.path(), &["--notes", "9.8.7"]).unwrap();
    assert!(notes.contains("### "), "{notes}");
    let changelog = fs::read_to_string(folder.path().join("CHANGELOG.md")).unwrap();
    assert!(changelog.contains("## [Unreleased]\n\n## [9.8.7] - 20"), "{changelog}");
}

#[test]
fn the_version_that_everything_is_at_is_released_once() {
    let folder = copy();
    let (present, changelog) = (present(), folder.path().join("CHANGELOG.md"));
    // As before the first release: the changelog knows no version.
    let unreleased = read("CHANGELOG.md");
    let unreleased = unreleased.split("\n## [").take(2).collect::<Vec<_>>().join("\n## [");
    fs::write(&changelog, unreleased).unwrap();
    release(folder.path(), &[&present]).unwrap();
    release(folder.path(), &["--check", &present]).unwrap();
    for file in VERSIONED.iter().filter(|file| **file != "CHANGELOG.md") {
        assert_eq!(fs::read_to_string(folder.path().join(file)).unwrap(), read(file), "{file}");
    }
    assert!(fs::read_to_string(&changelog).unwrap().contains(&format!("\n## [{present}] - 20")));
    let message = release(folder.path(), &[&present]).unwrap_err();
    assert!(message.contains("has a part for"), "{message}");
}

#[test]
fn a_wrong_release_is_refused_and_changes_nothing() {
    let folder = copy();
    for (arguments, words) in [
        (vec!["v9.8.7"], "without a v"),
        (vec!["9.8"], "is not a version"),
        (vec!["09.8.7"], "is not a version"),
        (vec!["0.0.1"], "is older than the present"),
        (vec!["--check", "9.8.7"], "not at 9.8.7"),
        (vec!["--force", "9.8.7"], "unknown argument"),
        (vec![], "which version?"),
    ] {
        let message = release(folder.path(), &arguments).unwrap_err();
        assert!(message.contains(words), "{arguments:?}: {message}");
    }
    for file in VERSIONED {
        assert_eq!(fs::read_to_string(folder.path().join(file)).unwrap(), read(file), "{file}");
    }
}

/// Before it, the CLI sent its key to a base URL of a repository's settings without being asked
/// (CVE-2026-21852); holes of older versions are below as well.
const CLI_VERSION_MIN: [u32; 3] = [2, 0, 65];

#[test]
fn the_agent_cli_is_pinned_above_known_holes_and_by_content() {
    let versions = read("deploy/images/versions.env");
    let value = |name: &str| {
        let line = versions.lines().find_map(|line| line.strip_prefix(&format!("{name}=")));
        line.unwrap_or_else(|| panic!("{name} is missing")).to_owned()
    };
    let version: Vec<u32> =
        value("CLAUDE_CODE_VERSION").split('.').map(|part| part.parse().unwrap()).collect();
    assert!(version.as_slice() >= CLI_VERSION_MIN.as_slice(), "{version:?}");
    for name in ["CLAUDE_CODE", "NODE"] {
        for arch in ["X64", "ARM64"] {
            assert!(value(&format!("{name}_INTEGRITY_{arch}")).starts_with("sha512-"), "{name}");
        }
    }
}
