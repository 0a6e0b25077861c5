//! What a git run left behind, and what of it is shown.

use std::{ops::RangeInclusive, process::ExitStatus};

use agent_operator::domain::text;

use super::error::GitError;

/// How much of a child's words goes into an error's detail.
const DETAIL_BYTES_MAX: usize = 300;

/// git's words, and those of its libraries, where an allocation fails.
const OUT_OF_MEMORY: [&str; 4] =
    ["Out of memory", "out of memory", "Cannot allocate memory", "unable to create thread"];
/// How git marks the words of the other side.
const REMOTE: &str = "remote:";
/// Exit codes that stand for the signal that ended a child of git; 128 and 129 git says for other things.
const SIGNALLED: RangeInclusive<i32> = 130..=159;

/// What a run left behind.
#[derive(Debug)]
pub(super) struct Finished {
    /// The git subcommand.
    pub(super) operation: String,
    /// Exit code; none when a signal ended it.
    pub(super) code: Option<i32>,
    /// Standard output, whole.
    pub(super) stdout: Vec<u8>,
    /// Standard error, cut.
    pub(super) stderr: String,
}

impl Finished {
    /// What an ended child left; `stderr` as far as it was kept.
    pub(super) fn new(
        operation: String,
        status: ExitStatus,
        stdout: Vec<u8>,
        stderr: Option<Vec<u8>>,
    ) -> Self {
        let stderr = String::from_utf8_lossy(&stderr.unwrap_or_default()).into_owned();
        Self { operation, code: status.code(), stdout, stderr }
    }

    /// Whether git's heap was at its limit, or a signal ended it: the gateway's own orders to end are
    /// never seen here.
    fn ran_out_of_memory(&self) -> bool {
        match self.code {
            Some(0) => false,
            None => true,
            Some(code) if SIGNALLED.contains(&code) => true,
            // An upstream that is out of memory is another matter.
            Some(_) => self
                .stderr
                .lines()
                .filter(|line| !line.starts_with(REMOTE))
                .any(|line| OUT_OF_MEMORY.iter().any(|words| line.contains(words))),
        }
    }

    /// Of a git that reads what a sandbox made: the limit of its memory is the fault of what it read.
    pub(super) fn within_memory(self) -> Result<Self, GitError> {
        if self.ran_out_of_memory() {
            let detail = self.detail();
            return Err(GitError::ExhaustMemory { operation: self.operation, detail });
        }
        Ok(self)
    }

    /// The output as text when the exit code is 0.
    pub(super) fn success(self) -> Result<String, GitError> {
        self.whole().map(|stdout| String::from_utf8_lossy(&stdout).into_owned())
    }

    /// The output as it is when the exit code is 0.
    pub(super) fn whole(self) -> Result<Vec<u8>, GitError> {
        if self.code == Some(0) {
            return Ok(self.stdout);
        }
        let detail = self.detail();
        Err(GitError::RunGit { operation: self.operation, detail })
    }

    /// What the upstream itself said, followed by git's own last words; cut and printable.
    pub(super) fn upstream_words(&self) -> String {
        let said: Vec<&str> = self
            .stderr
            .lines()
            .filter_map(|line| line.strip_prefix(REMOTE))
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        let detail = self.detail();
        if said.is_empty() {
            return detail;
        }
        let words = text::printable(&said.join(" "));
        format!("{}; {detail}", text::truncate(&words, DETAIL_BYTES_MAX))
    }

    /// The last words of standard error that say something, cut and printable.
    pub(super) fn detail(&self) -> String {
        let line = self
            .stderr
            .lines()
            .rev()
            .map(str::trim)
            .find(|line| line.starts_with("fatal:") || line.starts_with("error:"))
            .or_else(|| self.stderr.lines().rev().map(str::trim).find(|line| !line.is_empty()));
        match (line, self.code) {
            (Some(line), _) => text::truncate(&text::printable(line), DETAIL_BYTES_MAX).to_owned(),
            (None, Some(code)) => format!("exit code {code}"),
            (None, None) => "ended by a signal".to_owned(),
        }
    }
}

/// What a failed operation on `url` means, by the words of git (run with the C locale).
pub(super) fn upstream_error(finished: &Finished, url: &str, operation: &'static str) -> GitError {
    const REFUSED: &[&str] = &[
        "authentication failed",
        "could not read username",
        "could not read password",
        "returned error: 401",
        "returned error: 403",
    ];
    const MISSING: &[&str] = &["' not found", "returned error: 404", "returned error: 410"];
    const REDIRECT: &[&str] = &["returned error: 30", "unable to update url base from redirection"];
    const UNAVAILABLE: &[&str] = &[
        "returned error: 5",
        "returned error: 429",
        "returned error: 408",
        "unable to access",
        "rpc failed",
        "early eof",
        "unexpected disconnect",
        "hung up unexpectedly",
        "operation too slow",
        "timed out",
    ];
    let text = finished.stderr.to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    let url = url.to_owned();
    let detail = finished.detail();
    if says(REFUSED) {
        GitError::Authenticate { url, operation, detail: finished.upstream_words() }
    } else if says(MISSING) {
        GitError::FindRepository { url, detail: finished.upstream_words() }
    } else if says(REDIRECT) {
        GitError::FollowRedirect { url }
    } else if says(UNAVAILABLE) {
        GitError::ReachUpstream { url, detail }
    } else {
        GitError::RunGit { operation: finished.operation.clone(), detail }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(code: Option<i32>, stderr: &str) -> Finished {
        let (operation, stdout) = ("rev-list".to_owned(), Vec::new());
        Finished { operation, code, stdout, stderr: stderr.to_owned() }
    }

    #[test]
    fn what_ends_git_by_its_memory_is_told_apart_from_other_failures() {
        for (code, words) in [
            (Some(128), "fatal: Out of memory, realloc failed"),
            (Some(128), "fatal: mmap failed: Cannot allocate memory"),
            (Some(128), "error: inflate: out of memory"),
            (Some(139), ""),
            (None, ""),
        ] {
            let error = finished(code, words).within_memory().unwrap_err();
            assert!(!error.retryable() && error.refused_push().is_some(), "{error}");
            assert_eq!(error.reason(), Some(agent_operator::domain::Reason::PushRefused));
        }
        for (code, words) in [
            (Some(128), "fatal: bad object"),
            (
                Some(1),
                "remote: fatal: Out of memory, malloc failed\nerror: failed to push some refs",
            ),
            (Some(1), ""),
            (Some(0), ""),
        ] {
            assert!(finished(code, words).within_memory().is_ok(), "{code:?} {words}");
        }
    }
}
