//! Which command tests a repository, by the files at its root. Pure: the same answer for a work tree
//! and for a bare mirror.

use serde::Deserialize;

/// What `npm init` writes as the test script: it always fails and tests nothing.
const NPM_PLACEHOLDER: &str = "no test specified";

/// Commands that test a repository, in order; the last is the test itself.
pub type Commands = Vec<Vec<String>>;

/// Names at the root that are read, not only looked for.
pub const READ_FILES: [&str; 7] = [
    "package.json",
    "pyproject.toml",
    "setup.cfg",
    "tox.ini",
    "GNUmakefile",
    "makefile",
    "Makefile",
];

/// Largest project file that is looked into; real ones have some kilobytes.
pub const PROJECT_FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The root of a repository.
pub trait Root {
    /// Whether it has a file or folder of that name.
    fn has(&self, name: &str) -> bool;

    /// Text of one of the [`READ_FILES`]; none when it is absent, no text or larger than
    /// [`PROJECT_FILE_BYTES_MAX`].
    fn read(&self, name: &str) -> Option<String>;
}

/// The test commands of a repository; none where nothing says how to test it.
pub fn test_commands(root: &impl Root) -> Option<Commands> {
    if let Some(commands) = node(root) {
        return Some(commands);
    }
    if root.has("Cargo.toml") {
        return Some(vec![words("cargo test")]);
    }
    if root.has("go.mod") {
        return Some(vec![words("go test ./...")]);
    }
    let has = |name: &str| root.has(name);
    if ["pyproject.toml", "pytest.ini", "setup.cfg", "setup.py", "tox.ini"].into_iter().any(has)
        && (has("pytest.ini") || has("tests") || has("test") || mentions_pytest(root))
    {
        return Some(vec![words("python3 -m pytest")]);
    }
    let makefile = ["GNUmakefile", "makefile", "Makefile"].into_iter().find(|name| has(name))?;
    has_test_target(&root.read(makefile)?).then(|| vec![words("make test")])
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

fn node(root: &impl Root) -> Option<Commands> {
    let package: PackageJson = serde_json::from_str(&root.read("package.json")?).ok()?;
    let script = package.scripts.get("test")?.as_str()?;
    if script.contains(NPM_PLACEHOLDER) {
        return None;
    }
    let mut commands = Vec::new();
    if root.has("package-lock.json") {
        commands.push(words("npm ci --no-audit --no-fund"));
    } else if !package.dependencies.is_empty() || !package.dev_dependencies.is_empty() {
        commands.push(words("npm install --no-audit --no-fund --no-save"));
    }
    commands.push(words("npm test"));
    Some(commands)
}

fn mentions_pytest(root: &impl Root) -> bool {
    ["pyproject.toml", "setup.cfg", "tox.ini"]
        .into_iter()
        .filter_map(|name| root.read(name))
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

fn words(command: &str) -> Vec<String> {
    command.split(' ').map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Files<'a>(&'a [(&'a str, &'a str)]);

    impl Root for Files<'_> {
        fn has(&self, name: &str) -> bool {
            self.0.iter().any(|(path, _)| path.split('/').next() == Some(name))
        }

        fn read(&self, name: &str) -> Option<String> {
            assert!(READ_FILES.contains(&name), "{name} has to be listed to be read");
            let (_, text) = self.0.iter().find(|(path, _)| *path == name)?;
            Some((*text).to_owned())
        }
    }

    fn detected(files: &[(&str, &str)]) -> Option<Vec<String>> {
        let commands = test_commands(&Files(files))?;
        Some(commands.iter().map(|command| command.join(" ")).collect())
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
}
