//! What can go wrong between a sandbox, its quarantine and the upstream repository.

use agent_operator::domain::Reason;

use super::super::{permit::PermitError, upstream::UrlError};

/// A failed git operation. Messages are one sentence with the remedy and never hold a credential.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// The clone URL cannot be used.
    #[error(transparent)]
    ResolveUrl(#[from] UrlError),
    /// A branch name that git would not take.
    #[error("{branch:?} is no valid branch name; choose one that `git check-ref-format` accepts")]
    CheckBranchName {
        /// The name, cut and made printable.
        branch: String,
    },
    /// No full commit id.
    #[error("{commit:?} is no full commit id; give all its hexadecimal digits in lower case")]
    CheckCommitId {
        /// The id, cut and made printable.
        commit: String,
    },
    /// The credential belongs to another host.
    #[error(
        "the git credential may not be sent to {host}; add the host to the Secret's annotation agents.wearn.dev/allowed-hosts"
    )]
    MatchCredential {
        /// The repository's host.
        host: String,
    },
    /// The credential cannot be presented.
    #[error(
        "the git credential is empty or more than one line; store the bare token in the Secret"
    )]
    ReadCredential,
    /// 401, 403, or asked for a credential where there is none.
    #[error(
        "{url} refuses the git credential ({detail}); check that the token in gitCredentialsRef is valid and may {operation} this repository"
    )]
    Authenticate {
        /// The upstream URL.
        url: String,
        /// `read` or `write to`.
        operation: &'static str,
        /// What the upstream said, cut and made printable.
        detail: String,
    },
    /// 404: no such repository, or none that this credential may see.
    #[error(
        "{url} does not exist or is hidden from this credential ({detail}); check repository.url and the token's access"
    )]
    FindRepository {
        /// The upstream URL.
        url: String,
        /// What the upstream said, cut and made printable.
        detail: String,
    },
    /// The upstream answers with a redirect, which would take the credential elsewhere.
    #[error(
        "{url} redirects to another address; write the repository's present URL into repository.url"
    )]
    FollowRedirect {
        /// The upstream URL.
        url: String,
    },
    /// The base branch is missing.
    #[error("branch {branch} does not exist in {url}; create it or correct repository.branch")]
    FindBranch {
        /// The branch.
        branch: String,
        /// The upstream URL.
        url: String,
    },
    /// The work branch was deleted after the task had published to it.
    #[error(
        "work branch {branch} was deleted upstream after this task had published {commit}; restore it before the task is created anew, or leave it and the task ends here"
    )]
    FindWorkBranch {
        /// The branch.
        branch: String,
        /// What it pointed at.
        commit: String,
    },
    /// A recorded commit is no longer upstream.
    #[error(
        "commit {commit} is no longer in {url}; it was removed by a forced push, start the task anew"
    )]
    FindCommit {
        /// The commit.
        commit: String,
        /// The upstream URL.
        url: String,
    },
    /// Both the work branch and its own name with suffix are somebody else's.
    #[error(
        "branches {branch} and {own} both exist and are not this task's; choose another repository.workBranch"
    )]
    ChooseBranch {
        /// The branch asked for.
        branch: String,
        /// The name with suffix.
        own: String,
    },
    /// A branch upstream is a folder of the work branch, or lies below it.
    #[error(
        "branch {other} leaves no room for {branch}: git cannot hold both; delete or rename {other}, or choose another repository.workBranch"
    )]
    BlockBranch {
        /// The branch that cannot be made.
        branch: String,
        /// The one in its way, cut and made printable.
        other: String,
    },
    /// The upstream is down, slow or limits the rate.
    #[error("{url} is not available ({detail}); it is tried again")]
    ReachUpstream {
        /// The upstream URL.
        url: String,
        /// What git said, cut and made printable.
        detail: String,
    },
    /// The work branch is not where the task left it.
    #[error(
        "branch {branch} was changed by somebody else since this task last saw it; move those commits to another branch or start the task anew"
    )]
    SwapBranch {
        /// The branch.
        branch: String,
    },
    /// The upstream refused the push (protected branch, hook, rule).
    #[error(
        "the push to {branch} was refused upstream ({detail}); allow it there or choose another repository.workBranch"
    )]
    PushBranch {
        /// The branch.
        branch: String,
        /// What the upstream said, cut and made printable.
        detail: String,
    },
    /// A step without the right to push.
    #[error("this step may not push; only the implement step changes the work branch")]
    GrantPush,
    /// The commit to publish is not in the quarantine.
    #[error("commit {commit} is not in this attempt's quarantine; push it to the gateway first")]
    FindPushed {
        /// The commit.
        commit: String,
    },
    /// The commit does not descend from the start commit.
    #[error(
        "commit {commit} does not descend from {start}, where the step started; commit on top of it"
    )]
    CheckDescent {
        /// The commit.
        commit: String,
        /// The start commit.
        start: String,
    },
    /// The commit changes no file.
    #[error("commit {commit} changes no file; nothing was published")]
    CheckDiff {
        /// The commit.
        commit: String,
    },
    /// The tip lacks the task's trailer.
    #[error(
        "commit {commit} lacks this task's trailer Agent-Operator-Task-Uid; the last commit of a step must carry it"
    )]
    CheckTrailer {
        /// The commit.
        commit: String,
    },
    /// Too many or too large objects.
    #[error(
        "the changes are too large ({found} {unit}, at most {limit} are published); leave build output and binaries out"
    )]
    CheckSize {
        /// What was found.
        found: u64,
        /// What is allowed.
        limit: u64,
        /// Of what.
        unit: &'static str,
    },
    /// The commit changes what only people change.
    #[error(
        "the changes touch {path}, which only people may change; leave it out of the task, or take it out of the chart value gateway.git.protectedPaths"
    )]
    ProtectPath {
        /// The path, cut and made printable.
        path: String,
    },
    /// The commit brings an entry that is not published.
    #[error("{path:?} is {what}, which is not published; leave it out of every commit of the step")]
    CheckEntry {
        /// The path, cut and made printable.
        path: String,
        /// What it is.
        what: &'static str,
    },
    /// A commit of the step says more than text.
    #[error(
        "commit {commit} has {what}, which is not published; word the commits of the step otherwise"
    )]
    CheckMessage {
        /// The commit.
        commit: String,
        /// What it has.
        what: &'static str,
    },
    /// The commit, or one before it, holds a secret of the task.
    #[error(
        "the changes hold the value of the credential {credential}; take it out of every commit of the step, and replace the credential"
    )]
    FindSecret {
        /// The credential's id.
        credential: String,
    },
    /// What a sandbox made does not fit into git's heap, or ends git otherwise.
    #[error(
        "git {operation} cannot look at what was pushed within its memory ({detail}); push less, or smaller files and messages"
    )]
    ExhaustMemory {
        /// The git subcommand.
        operation: String,
        /// What git said, cut and made printable.
        detail: String,
    },
    /// The attempt has pushed too much.
    #[error("this attempt has pushed more than {limit} bytes; nothing more is taken")]
    FillQuarantine {
        /// The limit.
        limit: u64,
    },
    /// The gateway may not write upstream at this moment.
    #[error(transparent)]
    Permit(#[from] PermitError),
    /// The attempt was revoked while the operation ran.
    #[error("the attempt is over; nothing more is served or published for it")]
    AttemptEnded,
    /// A child did not end in time.
    #[error("git {operation} took longer than {seconds} s on this node; it is tried again")]
    AwaitGit {
        /// The git subcommand.
        operation: String,
        /// The limit.
        seconds: u64,
    },
    /// A child printed more than its limit.
    #[error(
        "git {operation} printed more than {limit} bytes; the repository has too many refs for this gateway"
    )]
    BoundOutput {
        /// The git subcommand.
        operation: String,
        /// The limit.
        limit: usize,
    },
    /// A child failed for a reason of this node.
    #[error("git {operation} failed on this node ({detail}); it is tried again")]
    RunGit {
        /// The git subcommand.
        operation: String,
        /// What git said, cut and made printable.
        detail: String,
    },
    /// The file system failed.
    #[error("the gateway's git directory cannot be used ({operation}); check the node's disk")]
    UseDisk {
        /// What was done.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

impl GitError {
    /// The reason that the step ends with when it cannot go on; none for faults of the caller or of
    /// this node.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::ResolveUrl(_)
            | Self::CheckBranchName { .. }
            | Self::MatchCredential { .. }
            | Self::ReadCredential
            | Self::FollowRedirect { .. }
            | Self::FindBranch { .. }
            | Self::FindWorkBranch { .. }
            | Self::FindCommit { .. }
            | Self::ChooseBranch { .. }
            | Self::BlockBranch { .. }
            | Self::BoundOutput { .. } => Some(Reason::InvalidTask),
            // The preflight saw the credential accepted: by now it has expired, or the server's mind
            // has changed, and both may be mended while the task waits.
            Self::Authenticate { .. }
            | Self::FindRepository { .. }
            | Self::ReachUpstream { .. } => Some(Reason::ProviderUnavailable),
            Self::SwapBranch { .. }
            | Self::PushBranch { .. }
            | Self::CheckDescent { .. }
            | Self::CheckTrailer { .. }
            | Self::ProtectPath { .. }
            | Self::CheckEntry { .. }
            | Self::CheckMessage { .. }
            | Self::FindSecret { .. }
            | Self::ExhaustMemory { .. }
            | Self::FillQuarantine { .. }
            | Self::CheckSize { .. } => Some(Reason::PushRefused),
            Self::CheckDiff { .. } => Some(Reason::NoChanges),
            Self::CheckCommitId { .. }
            | Self::GrantPush
            | Self::FindPushed { .. }
            | Self::Permit(_)
            | Self::AttemptEnded
            | Self::AwaitGit { .. }
            | Self::RunGit { .. }
            | Self::UseDisk { .. } => None,
        }
    }

    /// What a refused push is counted under; none when it was not refused for what it holds.
    pub fn refused_push(&self) -> Option<String> {
        match self {
            Self::ProtectPath { path } => Some(format!("protected path {path}")),
            Self::CheckEntry { path, what } => Some(format!("{what} at {path}")),
            Self::CheckMessage { what, .. } => Some(format!("commit with {what}")),
            Self::FindSecret { credential } => Some(format!("secret {credential} in a push")),
            Self::ExhaustMemory { .. } => Some("push that does not fit into memory".to_owned()),
            Self::CheckSize { unit, .. } => Some(format!("push with too many {unit}")),
            Self::FillQuarantine { .. } => Some("too many pushes".to_owned()),
            Self::CheckDescent { .. } => Some("push that does not descend".to_owned()),
            _ => None,
        }
    }

    /// Whether the same request may succeed later.
    pub fn retryable(&self) -> bool {
        matches!(
            self,
            Self::ReachUpstream { .. }
                | Self::Permit(_)
                | Self::AwaitGit { .. }
                | Self::RunGit { .. }
                | Self::UseDisk { .. }
        )
    }

    /// A bounded label for logs and metrics.
    pub fn kind(&self) -> &'static str {
        match self.reason() {
            Some(reason) => reason.as_str(),
            None if self.retryable() => "retryable",
            None => "refused",
        }
    }
}
