//! What a git run left behind, and what of it is shown.

use agent_operator::domain::text;

use super::error::GitError;

/// How much of a child's words goes into an error's detail.
const DETAIL_BYTES_MAX: usize = 300;

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
    /// Whether git's heap was at its limit.
    pub(super) fn ran_out_of_memory(&self) -> bool {
        self.code != Some(0) && self.stderr.contains("Out of memory")
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
            .filter_map(|line| line.strip_prefix("remote:"))
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
