//! Names that reach a git command line: checked by pattern first, whoever wrote them.

use std::fmt;

use agent_operator::domain::names::BRANCH_BYTES_MAX;

use super::error::GitError;

/// A branch name that `git check-ref-format --branch` accepts, without `refs/heads/`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Branch(String);

impl Branch {
    /// Checks `name`.
    pub(super) fn parse(name: &str) -> Result<Self, GitError> {
        let plain = !name.is_empty()
            && name.len() <= BRANCH_BYTES_MAX
            && name != "@"
            && name != "HEAD"
            && !name.starts_with(['-', '/'])
            && !name.ends_with(['/', '.'])
            && !name.contains("..")
            && !name.contains("@{")
            && !name.starts_with("refs/")
            && name.chars().all(plain_char)
            && name.split('/').all(plain_component);
        if plain {
            Ok(Self(name.to_owned()))
        } else {
            let branch = agent_operator::domain::text::truncate(name, 200);
            Err(GitError::CheckBranchName {
                branch: agent_operator::domain::text::printable(branch),
            })
        }
    }

    /// The full ref name.
    pub(super) fn full_ref(&self) -> String {
        format!("refs/heads/{}", self.0)
    }
}

impl fmt::Display for Branch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn plain_char(c: char) -> bool {
    !c.is_control() && !c.is_whitespace() && !"~^:?*[\\".contains(c)
}

fn plain_component(component: &str) -> bool {
    !component.is_empty()
        && !component.starts_with('.')
        && !component.to_ascii_lowercase().ends_with(".lock")
}

/// A full object id in lower-case hex, SHA-1 or SHA-256.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct CommitId(String);

impl CommitId {
    /// Checks `id`.
    pub(super) fn parse(id: &str) -> Result<Self, GitError> {
        let hex = id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if hex && matches!(id.len(), 40 | 64) {
            Ok(Self(id.to_owned()))
        } else {
            let commit = agent_operator::domain::text::truncate(id, 80);
            Err(GitError::CheckCommitId { commit: agent_operator::domain::text::printable(commit) })
        }
    }

    /// The id.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CommitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_branch_names_pass() {
        for name in ["main", "ai/add-healthcheck", "feature/x_1.2", "überarbeitung", "a@b", "v1.0"]
        {
            assert!(Branch::parse(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn names_that_git_refuses_or_could_take_for_something_else_are_refused() {
        for name in [
            "",
            "-x",
            "--upload-pack=id",
            "a..b",
            "a b",
            "a\nb",
            "a~1",
            "a^",
            "a:b",
            "a?",
            "a*",
            "a[b",
            "a\\b",
            "/a",
            "a/",
            "a//b",
            ".a",
            "a/.b",
            "a.lock",
            "a/b.LOCK",
            "a.",
            "@",
            "a@{1}",
            "HEAD",
            "refs/heads/x",
            "../../x",
            "a\u{7f}b",
            "a\u{0}b",
        ] {
            assert!(Branch::parse(name).is_err(), "{name:?}");
        }
        assert!(Branch::parse(&"x".repeat(BRANCH_BYTES_MAX + 1)).is_err());
        assert!(Branch::parse(&"x".repeat(10_000)).is_err());
    }

    #[test]
    fn fuzz_what_passes_as_a_branch_passes_with_git_too() {
        let corpus =
            ["main", "ai/add-healthcheck", "feature/x_1.2", "a@{1}", "a..b", "a.lock", "-x"];
        agent_operator_doubles::fuzz::fuzz(&corpus.map(|name| name.as_bytes().to_vec()), |bytes| {
            let Ok(name) = std::str::from_utf8(bytes) else { return };
            assert!(CommitId::parse(name).is_err() || matches!(name.len(), 40 | 64));
            let Ok(branch) = Branch::parse(name) else { return };
            assert!(name.len() <= BRANCH_BYTES_MAX && branch.to_string() == name);
            let git = std::process::Command::new("git")
                .args(["check-ref-format", "--branch", name])
                .output()
                .unwrap();
            assert!(git.status.success(), "git refuses {name:?}");
            assert_eq!(String::from_utf8_lossy(&git.stdout).trim_end_matches('\n'), name);
        });
    }

    #[test]
    fn a_commit_id_is_full_lower_case_hex() {
        assert!(CommitId::parse(&"a".repeat(40)).is_ok());
        assert!(CommitId::parse(&"0".repeat(64)).is_ok());
        for id in ["", "main", "HEAD", "--all", &"A".repeat(40), &"g".repeat(40), &"a".repeat(39)] {
            assert!(CommitId::parse(id).is_err(), "{id}");
        }
    }
}
