//! From the quarantine to the work branch upstream: inspected without any model, then moved by
//! compare-and-swap.

use std::{sync::Arc, time::Duration};

use agent_operator::{
    attempt::Published,
    domain::{Credential, text},
};

use super::{
    GitService, GrantNames, Login, RepositoryGrant,
    command::{At, Git, Run},
    error::GitError,
    finished::{Finished, upstream_error},
    inspect::Inspection,
    login,
    mirror::{self, Mirror},
    names::{Branch, CommitId},
    quarantine::{Quarantine, State},
};
use crate::{gateway::permit::Permit, scrub::Watchlist};

/// A push of [`GitLimits::push_bytes_max`] over a slow line, and the upstream's own hooks.
const PUSH_TIMEOUT: Duration = Duration::from_mins(10);

/// How much of the upstream's words goes into an error.
const SUMMARY_BYTES_MAX: usize = 300;

/// How one compare-and-swap went.
#[derive(Debug, PartialEq, Eq)]
enum Swap {
    /// The branch points at the commit.
    Done,
    /// The branch was not where it was expected.
    Moved,
}

/// What the upstream answered to a push of one ref.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// The branch points at the commit.
    Taken,
    /// Refused, with its words.
    Refused(String),
}

impl GitService {
    pub(super) async fn publish_in_turn(
        &self,
        grant: &RepositoryGrant,
        credential: &Credential,
        commit: &str,
        secrets: &Watchlist,
        permit: &Permit,
    ) -> Result<(Published, bool), GitError> {
        let commit = CommitId::parse(commit)?;
        if !grant.may_push {
            return Err(GitError::GrantPush);
        }
        let missing = || GitError::FindPushed { commit: commit.to_string() };
        let quarantine = Quarantine::of(&self.inner.quarantines, grant);
        let mut state = quarantine.load().await?.ok_or_else(missing)?;
        let inspection = Inspection {
            git: &self.inner.git,
            quarantine: &quarantine,
            grant,
            state: &state,
            limits: self.inner.limits,
            protected: &self.inner.protected,
            secrets,
        };
        inspection.check(&commit).await?;
        let remote = self.inner.upstreams.resolve(&grant.repository.url)?;
        let way = Way {
            git: &self.inner.git,
            mirror: self.inner.mirrors.get(&grant.namespace, remote.clone_url()),
            login: login(&remote, Some(credential))?,
            quarantine: &quarantine,
            permit,
        };
        let branch = way.publish(grant, &state, &commit).await?;
        let published =
            Published { work_branch: branch.to_string(), head_commit: commit.to_string() };
        let news = state.published.as_ref() != Some(&published);
        state.published = Some(published.clone());
        quarantine.save(&state).await?;
        tracing::info!(%branch, %commit, "work branch moved upstream");
        Ok((published, news))
    }
}

/// Everything that a push needs.
struct Way<'a> {
    git: &'a Git,
    mirror: Mirror,
    login: Option<Arc<Login>>,
    quarantine: &'a Quarantine,
    permit: &'a Permit,
}

impl Way<'_> {
    /// Moves the work branch to `commit`, or the branch with suffix when the name was taken by
    /// somebody else since the start.
    async fn publish(
        &self,
        grant: &RepositoryGrant,
        state: &State,
        commit: &CommitId,
    ) -> Result<Branch, GitError> {
        let (branch, expected) = match &state.published {
            Some(published) => (&published.work_branch, Some(&published.head_commit)),
            None => (&state.start.work_branch, state.start.expected.as_ref()),
        };
        let branch = Branch::parse(branch)?;
        // The lease alone would let the branch go back to an earlier commit of ours.
        if let Some(last) = expected {
            let last = CommitId::parse(last)?;
            let at = At::Quarantine(self.quarantine.path());
            if !mirror::descends(self.git, at, commit, &last).await? {
                let (commit, start) = (commit.to_string(), last.to_string());
                return Err(GitError::CheckDescent { commit, start });
            }
        }
        if self.swap(&branch, expected.map(String::as_str), commit).await? == Swap::Done {
            return Ok(branch);
        }
        let moved = || GitError::SwapBranch { branch: branch.to_string() };
        let names = GrantNames::of(grant)?;
        if expected.is_some() || branch == names.own {
            return Err(moved());
        }
        let login = self.login.as_deref();
        let tips = self.mirror.list(login, &[&branch]).await?.tips;
        let Some(tip) = tips.get(&branch) else { return Err(moved()) };
        self.mirror.refresh(self.login.clone(), &tips).await?;
        let base = CommitId::parse(&state.base_commit)?;
        if self.mirror.carries_trailer(&base, tip, grant.task.uid.as_str()).await? {
            return Err(moved());
        }
        match self.swap(&names.own, None, commit).await? {
            Swap::Done => Ok(names.own),
            Swap::Moved => Err(GitError::SwapBranch { branch: names.own.to_string() }),
        }
    }

    /// One compare-and-swap. The lease makes git refuse when the upstream's branch is not at
    /// `expected`, and the upstream compares once more when it moves the ref. It never discards
    /// commits: `commit` descends from `expected`. A branch that is at `commit` already is done.
    async fn swap(
        &self,
        branch: &Branch,
        expected: Option<&str>,
        commit: &CommitId,
    ) -> Result<Swap, GitError> {
        let name = branch.full_ref();
        let lease = format!("--force-with-lease={name}:{}", expected.unwrap_or_default());
        let refspec = format!("{commit}:{name}");
        let args = [
            "push",
            "--porcelain",
            "--no-verify",
            "--no-follow-tags",
            "--no-signed",
            &lease,
            "--",
            self.mirror.url(),
            &refspec,
        ];
        let run = Run::hostile(self.quarantine.path(), &args);
        let run = run.upstream(self.mirror.url(), self.login.as_deref(), PUSH_TIMEOUT);
        let room = self.git.room(&run).await?;
        // Asked for only now: it may have waited for minutes.
        let pushed = self.permit.during(self.git.run_in(room, run)).await??;
        let detail = match interpret(&pushed, branch, self.mirror.url())? {
            Answer::Taken => return Ok(Swap::Done),
            Answer::Refused(detail) => detail,
        };
        // Servers word a lost race each in their own way; where the branch is now tells it apart
        // from a rule that forbids the push.
        let tips = self.mirror.list(self.login.as_deref(), &[branch]).await?.tips;
        match tips.get(branch).map(CommitId::as_str) {
            Some(tip) if tip == commit.as_str() => Ok(Swap::Done),
            tip if tip != expected => Ok(Swap::Moved),
            _ => Err(GitError::PushBranch { branch: branch.to_string(), detail }),
        }
    }
}

/// Reads the porcelain output of a push of one ref.
fn interpret(pushed: &Finished, branch: &Branch, url: &str) -> Result<Answer, GitError> {
    let stdout = String::from_utf8_lossy(&pushed.stdout);
    let line = stdout.lines().find(|line| line.contains(&format!(":{}\t", branch.full_ref())));
    match line {
        Some(line) if line.starts_with('!') => {
            let summary = text::printable(line.rsplit('\t').next().unwrap_or_default());
            Ok(Answer::Refused(text::truncate(&summary, SUMMARY_BYTES_MAX).to_owned()))
        }
        Some(_) if pushed.code == Some(0) => Ok(Answer::Taken),
        _ => Err(upstream_error(pushed, url, "write to")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(code: i32, stdout: &str, stderr: &str) -> Finished {
        Finished {
            operation: "push".to_owned(),
            code: Some(code),
            stdout: stdout.as_bytes().to_vec(),
            stderr: stderr.to_owned(),
        }
    }

    fn read(code: i32, stdout: &str, stderr: &str) -> Result<Answer, GitError> {
        interpret(&finished(code, stdout, stderr), &Branch::parse("ai/x").unwrap(), "http://f/o/r")
    }

    #[test]
    fn the_porcelain_lines_of_git_are_understood() {
        for line in ["*\tc:refs/heads/ai/x\t[new branch]", "=\tc:refs/heads/ai/x\t[up to date]"] {
            assert_eq!(read(0, &format!("To u\n{line}\nDone\n"), "").unwrap(), Answer::Taken);
        }
        let stale = "To u\n!\tc:refs/heads/ai/x\t[rejected] (stale info)\nDone\n";
        let refused = Answer::Refused("[rejected] (stale info)".to_owned());
        assert_eq!(read(1, stale, "error: failed").unwrap(), refused);
    }

    #[test]
    fn a_push_without_an_answer_is_never_taken_for_done() {
        assert!(read(0, "", "").is_err());
        assert!(matches!(
            read(128, "", "fatal: unable to access 'u': The requested URL returned error: 503"),
            Err(GitError::ReachUpstream { .. })
        ));
        assert!(matches!(
            read(128, "", "fatal: unable to access 'u': The requested URL returned error: 403"),
            Err(GitError::Authenticate { operation: "write to", .. })
        ));
    }
}
