//! What the agent image itself has to bring, looked at before anything of it runs. The runner and the
//! agent CLI come into the pod with the runner volume; git and the C library that the CLI is linked to
//! do not.

use std::{
    env,
    ffi::OsStr,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use agent_operator::domain::assignment::AgentKind;

use crate::context::DEFAULT_PATH;

/// Loader of programs that are linked to glibc, as the ABI of each architecture fixes it; none: not
/// known, and not looked for.
const GLIBC_LOADER: Option<&str> = if cfg!(target_arch = "x86_64") {
    Some("/lib64/ld-linux-x86-64.so.2")
} else if cfg!(target_arch = "aarch64") {
    Some("/lib/ld-linux-aarch64.so.1")
} else {
    None
};
/// What the names of musl's loaders begin with; the architecture follows.
const MUSL_LOADER_PREFIX: &str = "ld-musl-";

/// Everything that is missing for `agent` in the image whose root is `root` and whose environment has
/// `path`, in one sentence; none: nothing is.
pub(crate) fn lacks(root: &Path, path: Option<&OsStr>, agent: &AgentKind) -> Option<String> {
    let path = path.unwrap_or_else(|| OsStr::new(DEFAULT_PATH));
    let mut missing = Vec::new();
    if !has_program(root, path, "git") {
        missing.push(format!("the agent image has no git in its PATH ({})", path.display()));
    }
    if *agent == AgentKind::ClaudeCode {
        missing.extend(GLIBC_LOADER.and_then(|loader| lacks_glibc(root, loader)));
    }
    (!missing.is_empty()).then(|| missing.join("; "))
}

fn lacks_glibc(root: &Path, loader: &str) -> Option<String> {
    if below(root, Path::new(loader)).exists() {
        return None;
    }
    let has = musl(root).map_or_else(String::new, |name| format!(" and has musl (/lib/{name})"));
    Some(format!("Claude Code needs glibc, but the agent image lacks {loader}{has}"))
}

/// The file name of musl's loader.
fn musl(root: &Path) -> Option<String> {
    let entries = fs::read_dir(root.join("lib")).ok()?;
    let mut names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.find(|name| name.starts_with(MUSL_LOADER_PREFIX))
}

fn has_program(root: &Path, path: &OsStr, name: &str) -> bool {
    env::split_paths(path).filter(|folder| folder.is_absolute()).any(|folder| {
        let file = below(root, &folder).join(name);
        fs::metadata(file)
            .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    })
}

/// `absolute` as seen from outside of `root`.
fn below(root: &Path, absolute: &Path) -> PathBuf {
    root.join(absolute.strip_prefix("/").unwrap_or(absolute))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Image(tempfile::TempDir);

    impl Image {
        fn with(files: &[(&str, u32)]) -> Self {
            let root = tempfile::tempdir().unwrap();
            for (path, mode) in files {
                let file = below(root.path(), Path::new(path));
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(&file, "").unwrap();
                fs::set_permissions(&file, fs::Permissions::from_mode(*mode)).unwrap();
            }
            Self(root)
        }

        fn lacks(&self, path: Option<&str>, agent: &AgentKind) -> Option<String> {
            lacks(self.0.path(), path.map(OsStr::new), agent)
        }
    }

    fn command() -> AgentKind {
        AgentKind::Command { command: vec!["true".to_owned()] }
    }

    fn loader() -> &'static str {
        GLIBC_LOADER.expect("tests run where Claude Code is built for")
    }

    #[test]
    fn a_glibc_image_with_git_lacks_nothing() {
        let image = Image::with(&[("/usr/bin/git", 0o755), (loader(), 0o755)]);
        assert_eq!(image.lacks(None, &AgentKind::ClaudeCode), None);
        assert_eq!(image.lacks(Some("/bin:/usr/bin"), &command()), None);
    }

    #[test]
    fn git_counts_only_where_it_would_be_found_and_can_be_run() {
        let image = Image::with(&[("/opt/git/bin/git", 0o755), ("/usr/bin/git", 0o644)]);
        let words = image.lacks(None, &command()).unwrap();
        assert!(words.contains("no git") && words.contains("/usr/local/bin"), "{words}");
        assert_eq!(image.lacks(Some("/usr/bin:/opt/git/bin"), &command()), None);
        assert!(image.lacks(Some("opt/git/bin:"), &command()).is_some());
    }

    #[test]
    fn musl_is_named_and_is_no_trouble_for_a_program_of_the_image() {
        let files = [("/usr/bin/git", 0o755), ("/lib/ld-musl-x86_64.so.1", 0o755)];
        let image = Image::with(&files);
        let words = image.lacks(None, &AgentKind::ClaudeCode).unwrap();
        assert!(words.contains("/lib/ld-musl-x86_64.so.1") && words.contains(loader()), "{words}");
        assert!(!words.contains("no git"), "{words}");
        assert_eq!(image.lacks(None, &command()), None);
    }

    #[test]
    fn everything_that_is_missing_is_said_at_once() {
        let words = Image::with(&[]).lacks(None, &AgentKind::ClaudeCode).unwrap();
        assert!(words.contains("no git") && words.contains("needs glibc"), "{words}");
        assert!(!words.contains("musl"), "{words}");
    }
}
