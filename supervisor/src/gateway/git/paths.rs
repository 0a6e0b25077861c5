//! Which paths a task may not change, and which names and entries no forge should get from a sandbox.

use std::collections::BTreeSet;

/// Longest path that is published: `PATH_MAX` of Linux, beyond which nobody can check it out.
const PATH_BYTES_MAX: usize = 4096;
/// Most protected paths: each changed path is compared with all of them.
const PROTECTED_MAX: usize = 256;

/// What a task may not change unless the installation says otherwise: files that are programs for the
/// forge, that say who must review, or that fetch other repositories.
pub const PROTECTED_BY_DEFAULT: [&str; 9] = [
    ".github/workflows",
    ".github/actions",
    ".gitea/workflows",
    ".forgejo/workflows",
    "CODEOWNERS",
    ".github/CODEOWNERS",
    ".gitea/CODEOWNERS",
    "docs/CODEOWNERS",
    ".gitmodules",
];

/// A protected path is malformed.
#[derive(Debug, thiserror::Error)]
pub enum ProtectedError {
    /// Not a path below the repository's root.
    #[error(
        "git.protectedPaths {0:?} is not a file or folder below the repository's root, such as .github/workflows"
    )]
    Parse(String),
    /// Too many.
    #[error("git.protectedPaths has more than {PROTECTED_MAX} entries")]
    Count,
}

/// Files and folders that only people change. Compared without regard to case, as some file systems
/// and forges do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProtectedPaths(BTreeSet<String>);

impl Default for ProtectedPaths {
    fn default() -> Self {
        Self(PROTECTED_BY_DEFAULT.iter().map(|path| path.to_lowercase()).collect())
    }
}

impl ProtectedPaths {
    /// Each of `paths` protects itself and all that is below it.
    pub fn new(paths: &[String]) -> Result<Self, ProtectedError> {
        if paths.len() > PROTECTED_MAX {
            return Err(ProtectedError::Count);
        }
        paths.iter().map(|path| Self::parse(path)).collect::<Result<_, _>>().map(Self)
    }

    fn parse(path: &str) -> Result<String, ProtectedError> {
        let trimmed = path.strip_suffix('/').unwrap_or(path);
        let good = trimmed.split('/').all(|part| !matches!(part, "" | "." | ".."))
            && !trimmed.chars().any(char::is_control)
            && trimmed.len() <= PATH_BYTES_MAX;
        if good { Ok(trimmed.to_lowercase()) } else { Err(ProtectedError::Parse(path.to_owned())) }
    }

    /// Whether `path` or a folder that it is in is protected.
    pub(super) fn cover(&self, path: &str) -> bool {
        let path = path.to_lowercase();
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        ends.into_iter().any(|end| self.0.contains(&path[..end]))
    }
}

/// What is wrong with a path by itself.
pub(super) fn odd_name(path: &[u8]) -> Option<&'static str> {
    if path.len() > PATH_BYTES_MAX {
        return Some("a path longer than 4096 bytes");
    }
    let Ok(text) = std::str::from_utf8(path) else { return Some("a name that is not UTF-8") };
    let hidden = text.chars().any(agent_operator::domain::text::is_unprintable);
    hidden.then_some("a name with control or direction characters")
}

/// Whether a symbolic link at `path` with `target` stays in the repository and out of `.git`.
pub(super) fn link_stays_inside(path: &str, target: &str) -> bool {
    if target.is_empty() || target.starts_with('/') || target.contains(['\0', '\\']) {
        return false;
    }
    let mut depth = path.matches('/').count();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." if depth == 0 => return false,
            ".." => depth -= 1,
            part if is_dot_git(part) => return false,
            _ => depth += 1,
        }
    }
    true
}

/// `.git` as any file system may read it: case, trailing dots and spaces, streams, short names.
fn is_dot_git(part: &str) -> bool {
    let name = part.split(':').next().unwrap_or_default();
    let name = name.trim_end_matches(['.', ' ']).to_lowercase();
    name == ".git" || name == "git~1"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn protected(paths: &[&str]) -> ProtectedPaths {
        ProtectedPaths::new(&paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>())
            .unwrap()
    }

    #[test]
    fn a_protected_path_covers_itself_and_what_is_below_in_any_case() {
        let list = ProtectedPaths::default();
        for path in [
            ".github/workflows/ci.yml",
            ".GitHub/Workflows/deep/er.yaml",
            ".github/workflows",
            "CODEOWNERS",
            "docs/codeowners",
            ".gitmodules",
            ".GITMODULES",
        ] {
            assert!(list.cover(path), "{path}");
        }
        for path in
            [".github/workflows.md", ".github", "src/CODEOWNERS", "x/.github/workflows/a", "a"]
        {
            assert!(!list.cover(path), "{path}");
        }
        assert!(protected(&["deploy/"]).cover("deploy/prod.yaml"));
        assert!(
            !protected(&[]).cover(".github/workflows/ci.yml"),
            "an empty list protects nothing"
        );
    }

    #[test]
    fn an_entry_that_could_never_cover_anything_is_refused() {
        for path in ["", "/", "/etc", "a//b", "../x", "a/./b", "a\nb"] {
            assert!(ProtectedPaths::new(&[path.to_owned()]).is_err(), "{path:?}");
        }
        assert!(ProtectedPaths::new(&vec!["a".to_owned(); PROTECTED_MAX + 1]).is_err());
    }

    #[test]
    fn links_that_lead_out_or_into_dot_git_are_told_apart() {
        for (path, target) in [
            ("a", "b"),
            ("a/b", "../c"),
            ("a/b", "./c/../d"),
            ("a/b/c", "../../d"),
            ("a", ".github/x"),
            ("a", "..."),
        ] {
            assert!(link_stays_inside(path, target), "{path} > {target}");
        }
        for (path, target) in [
            ("a", "/etc/passwd"),
            ("a", ".."),
            ("a", "../x"),
            ("a/b", "../../x"),
            ("a/b", "c/../../../x"),
            ("a", ".git/config"),
            ("a", "x/.GIT"),
            ("a", ".git./hooks"),
            ("a", "GIT~1/config"),
            ("a", ".git::$INDEX_ALLOCATION/x"),
            ("a", "..\\..\\x"),
            ("a", ""),
        ] {
            assert!(!link_stays_inside(path, target), "{path} > {target}");
        }
    }

    #[test]
    fn names_that_hide_something_are_odd() {
        for name in ["plain", "ä/ö.txt", "with space", "-x", "a'b\"c"] {
            assert_eq!(odd_name(name.as_bytes()), None, "{name}");
        }
        for name in [&b"a\nb"[..], b"a\x1b[2Jb", b"\xff\xfe", "a\u{202e}gpj.exe".as_bytes()] {
            assert!(odd_name(name).is_some(), "{name:?}");
        }
        assert!(odd_name(&[b'a'; PATH_BYTES_MAX + 1]).is_some());
    }
}
