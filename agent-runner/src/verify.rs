//! Which command tests a repository, and running it. Its exit code is the verdict.

use std::path::Path;

use agent_operator::domain::{Reason, limits::OUTPUT_BYTES_MAX, report::StepFacts};
use serde::Deserialize;

use crate::{
    confine::{EXIT_NOT_FOUND, Invocation},
    context::Context,
    output::Shown,
    process::Errors,
    result::{Failure, StepEnd},
};

/// Largest project file that is looked into; real ones have some kilobytes.
const PROJECT_FILE_BYTES_MAX: u64 = 1024 * 1024;
/// What `npm init` writes as the test script: it always fails and tests nothing.
const NPM_PLACEHOLDER: &str = "no test specified";

/// Commands that test a repository, in order; the last is the test itself.
type Commands = Vec<Vec<String>>;

/// Tests the work tree with `given`, or with what the repository looks like.
pub(crate) fn verify(
    context: &Context<'_>,
    directory: &Path,
    given: Option<&[String]>,
) -> Result<StepEnd, Failure> {
    let commands = match given {
        Some(command) if !command.is_empty() => vec![command.to_vec()],
        _ => detect(directory).ok_or_else(|| {
            let message = "no test command is given and none was found in the repository; \
                           set spec.test.command";
            Failure::new(Reason::Unverifiable, message)
        })?,
    };
    let mut end = None;
    for command in commands {
        let finished = run(context, directory, command)?;
        let failed = finished.reason != Reason::Completed;
        end = Some(finished);
        if failed {
            break;
        }
    }
    end.ok_or_else(|| Failure::new(Reason::Unverifiable, "the test command is empty"))
}

fn run(context: &Context<'_>, directory: &Path, command: Vec<String>) -> Result<StepEnd, Failure> {
    let shown = shell_words(&command);
    context.status(&format!("running {shown}"));
    let mut environment = context.base_environment();
    context.add_proxy(&mut environment);
    // Test runners then run once, without watching and without asking.
    environment.insert("CI".to_owned(), "true".into());
    let invocation =
        Invocation { command: command.clone(), directory: directory.to_owned(), environment };
    let mut output = Shown::new(context.printer, OUTPUT_BYTES_MAX);
    let ended = context
        .run(&invocation, b"", &mut output, Errors::Merged)
        .map_err(|error| Failure::new(Reason::VerifyFailed, error.to_string()))?;
    let exit_code = ended.exit_code;
    let (reason, message) = match exit_code {
        0 => (Reason::Completed, format!("`{shown}` passed")),
        EXIT_NOT_FOUND => {
            (Reason::VerifyFailed, format!("`{shown}` exited with 127: is it in the agent image?"))
        }
        code => (Reason::VerifyFailed, format!("`{shown}` exited with {code}")),
    };
    context.status(&message);
    let facts =
        StepFacts { output: Some(output.finish()), command: Some(command), ..StepFacts::default() };
    let mut end = StepEnd::completed(message, facts);
    (end.reason, end.exit_code) = (reason, exit_code);
    // Tests that were cut off have no verdict, whatever code they left.
    Ok(match ended.stopped {
        Some(stopping) => StepEnd { facts: end.facts, ..Failure::from(stopping).into() },
        None => end,
    })
}

/// The test commands of the repository in `directory`; none where nothing says how to test it.
pub(crate) fn detect(directory: &Path) -> Option<Commands> {
    let has = |name: &str| directory.join(name).exists();
    if let Some(commands) = node(directory) {
        return Some(commands);
    }
    if has("Cargo.toml") {
        return Some(vec![words("cargo test")]);
    }
    if has("go.mod") {
        return Some(vec![words("go test ./...")]);
    }
    if ["pyproject.toml", "pytest.ini", "setup.cfg", "setup.py", "tox.ini"].into_iter().any(has)
        && (has("pytest.ini") || has("tests") || has("test") || mentions_pytest(directory))
    {
        return Some(vec![words("python3 -m pytest")]);
    }
    let makefile = ["GNUmakefile", "makefile", "Makefile"].into_iter().find(|name| has(name))?;
    has_test_target(&read(&directory.join(makefile))?).then(|| vec![words("make test")])
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PackageJson {
    #[serde(default)]
    scripts: std::collections::BTreeMap<String, serde_json::Value>,
    #[serde(default)]
    dependencies: std::collections::BTreeMap<String, serde_json::Value>,
    #[serde(default)]
    dev_dependencies: std::collections::BTreeMap<String, serde_json::Value>,
}

fn node(directory: &Path) -> Option<Commands> {
    let package: PackageJson =
        serde_json::from_str(&read(&directory.join("package.json"))?).ok()?;
    let script = package.scripts.get("test")?.as_str()?;
    if script.contains(NPM_PLACEHOLDER) {
        return None;
    }
    let mut commands = Vec::new();
    if directory.join("package-lock.json").exists() {
        commands.push(words("npm ci --no-audit --no-fund"));
    } else if !package.dependencies.is_empty() || !package.dev_dependencies.is_empty() {
        commands.push(words("npm install --no-audit --no-fund --no-save"));
    }
    commands.push(words("npm test"));
    Some(commands)
}

fn mentions_pytest(directory: &Path) -> bool {
    ["pyproject.toml", "setup.cfg", "tox.ini"]
        .into_iter()
        .filter_map(|name| read(&directory.join(name)))
        .any(|text| text.contains("pytest"))
}

/// Whether a Makefile has the target `test`: a line `test:` or one that lists it among others.
fn has_test_target(makefile: &str) -> bool {
    makefile.lines().any(|line| {
        if line.starts_with(['\t', '#', ' ']) {
            return false;
        }
        line.split_once(':').is_some_and(|(targets, rest)| {
            !rest.starts_with('=') && targets.split_ascii_whitespace().any(|name| name == "test")
        })
    })
}

fn read(path: &Path) -> Option<String> {
    crate::files::read_bounded(path, PROJECT_FILE_BYTES_MAX).ok()
}

fn words(command: &str) -> Vec<String> {
    command.split(' ').map(str::to_owned).collect()
}

/// The command as one would type it.
pub(crate) fn shell_words(command: &[String]) -> String {
    let quote = |word: &String| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-+=:,/@%".contains(&byte);
        if !word.is_empty() && word.bytes().all(plain) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    command.iter().map(quote).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn detected(files: &[(&str, &str)]) -> Option<Vec<String>> {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        detect(directory.path())
            .map(|commands| commands.iter().map(|command| command.join(" ")).collect())
    }

    #[test]
    fn a_node_project_is_tested_by_npm() {
        let package = ("package.json", r#"{"scripts": {"test": "node --test"}}"#);
        assert_eq!(detected(&[package]).unwrap(), ["npm test"]);
        let commands = detected(&[package, ("package-lock.json", "{}")]).unwrap();
        assert_eq!(commands, ["npm ci --no-audit --no-fund", "npm test"]);
        let with_dependency =
            ("package.json", r#"{"scripts": {"test": "x"}, "devDependencies": {"x": "1"}}"#);
        assert_eq!(detected(&[with_dependency]).unwrap().len(), 2);
    }

    #[test]
    fn a_placeholder_script_is_no_test() {
        let script = r#"{"scripts": {"test": "echo \"Error: no test specified\" && exit 1"}}"#;
        assert_eq!(detected(&[("package.json", script)]), None);
        let with_makefile = [("package.json", script), ("Makefile", "build test: x\n\ttrue\n")];
        assert_eq!(detected(&with_makefile).unwrap(), ["make test"]);
    }

    #[test]
    fn other_projects_are_known_by_their_files() {
        assert_eq!(detected(&[("Cargo.toml", "")]).unwrap(), ["cargo test"]);
        assert_eq!(detected(&[("go.mod", "")]).unwrap(), ["go test ./..."]);
        assert_eq!(detected(&[("pytest.ini", "")]).unwrap(), ["python3 -m pytest"]);
        let python = [("pyproject.toml", "[tool.pytest.ini_options]")];
        assert_eq!(detected(&python).unwrap(), ["python3 -m pytest"]);
        let python = [("setup.py", ""), ("tests/test_a.py", "")];
        assert_eq!(detected(&python).unwrap(), ["python3 -m pytest"]);
    }

    #[test]
    fn what_says_nothing_about_tests_is_not_tested() {
        assert_eq!(detected(&[("README.md", "make test")]), None);
        assert_eq!(detected(&[("pyproject.toml", "[project]")]), None);
        assert_eq!(detected(&[("Makefile", "test := 1\nall:\n\ttest: x\n")]), None);
        assert_eq!(detected(&[("package.json", "not json")]), None);
    }

    #[test]
    fn commands_are_shown_as_typed() {
        let command = ["sh", "-c", "it's done"].map(str::to_owned);
        assert_eq!(shell_words(&command), r"sh -c 'it'\''s done'");
    }
}
