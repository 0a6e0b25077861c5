//! What can go wrong with a forge's API.

use std::time::Duration;

use agent_operator::domain::Reason;

use super::super::{git::GitError, permit::PermitError, upstream::UrlError};

/// Longest wait that a step sits out: its pod holds resources meanwhile.
const HELD_WAIT_MAX: Duration = Duration::from_mins(5);

/// A failed forge call. Messages are one sentence with the remedy and never hold a credential.
#[derive(Debug, thiserror::Error)]
pub enum ForgeError {
    /// No forge API is known for the host.
    #[error(
        "no forge API is known for {host}; name the host and its kind in the chart value `upstreams`"
    )]
    ForgeUnknown {
        /// The repository's host.
        host: String,
    },
    /// The clone URL cannot be used.
    #[error(transparent)]
    ResolveUrl(#[from] UrlError),
    /// The path is not owner and name.
    #[error(
        "repository path {path:?} is not owner/name, as {host} addresses repositories; correct repository.url"
    )]
    AddressRepository {
        /// The path.
        path: String,
        /// The host.
        host: String,
    },
    /// Owner, name or number of the issue could not be one.
    #[error(
        "{issue:?} is no issue of a repository; write its owner, name and number into source.github as the forge shows them"
    )]
    AddressIssue {
        /// The issue, cut and made printable.
        issue: String,
    },
    /// The credential cannot be written into a header.
    #[error("the git credential is not usable in a header; store the bare token in the Secret")]
    PresentCredential,
    /// The credential cannot be used for this repository.
    #[error(transparent)]
    UseCredential(GitError),
    /// 401.
    #[error(
        "{host} does not accept the git credential for {operation} ({detail}); it is wrong, expired or revoked: put a valid token into the Secret of gitCredentialsRef"
    )]
    Authenticate {
        /// The host.
        host: String,
        /// What was tried.
        operation: &'static str,
        /// What the forge said, cut and made printable.
        detail: String,
    },
    /// 403 that is no limit.
    #[error("{host} forbids {operation} ({detail}); give the token in gitCredentialsRef {missing}")]
    Authorize {
        /// The host.
        host: String,
        /// What was tried.
        operation: &'static str,
        /// What the forge said, cut and made printable.
        detail: String,
        /// The right that it needs.
        missing: String,
    },
    /// 404: repository or branch is missing or hidden.
    #[error(
        "{host} does not find the repository or a branch for {operation}; check repository.url and repository.branch, and give the token in gitCredentialsRef {missing}"
    )]
    FindRepository {
        /// The host.
        host: String,
        /// What was tried.
        operation: &'static str,
        /// The right without which a forge hides it.
        missing: String,
    },
    /// The task's issue is missing, hidden, moved away or no issue.
    #[error(
        "{host} does not find the issue {issue}; check source.github, and give the token in gitCredentialsRef {missing}"
    )]
    FindIssue {
        /// The host.
        host: String,
        /// `owner/repo#number`.
        issue: String,
        /// The right without which a forge hides it.
        missing: String,
    },
    /// The repository was renamed or moved: a redirect would take the credential elsewhere.
    #[error(
        "{host} answers {operation} with a redirect; write the repository's present URL into repository.url"
    )]
    FollowRedirect {
        /// The host.
        host: String,
        /// What was tried.
        operation: &'static str,
    },
    /// Another 4xx: the request itself is not acceptable.
    #[error(
        "{host} refuses {operation} with status {status} ({detail}); correct the task's repository or the forge's settings"
    )]
    RefuseRequest {
        /// The host.
        host: String,
        /// What was tried.
        operation: &'static str,
        /// HTTP status.
        status: u16,
        /// What the forge said, cut and made printable.
        detail: String,
    },
    /// A pull request for the branch exists and is not ours.
    #[error(
        "{host} has a pull request from branch {branch} already that is not this task's; close it or choose another repository.workBranch"
    )]
    OpenPullRequest {
        /// The host.
        host: String,
        /// The head branch.
        branch: String,
    },
    /// 5xx, rate limit, timeout, broken connection.
    #[error("{host} is not available for {operation} ({detail}); it is tried again")]
    ReachForge {
        /// The host.
        host: String,
        /// What was tried.
        operation: &'static str,
        /// What happened.
        detail: String,
        /// How long to wait, if the forge said so.
        wait: Option<Duration>,
    },
    /// The answer is not what the API promises.
    #[error(
        "{host} answers {operation} in a form that is not understood ({detail}); check that `upstreams` names the right kind of forge"
    )]
    ReadAnswer {
        /// The host.
        host: String,
        /// What was tried.
        operation: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// The gateway may not write upstream at this moment.
    #[error(transparent)]
    Permit(#[from] PermitError),
}

impl ForgeError {
    /// The reason that the step ends with when it cannot go on; none for faults of this node.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::UseCredential(error) => error.reason(),
            // As with git: the preflight saw the credential accepted and the repository there, so a new
            // token, or a right given to the old one, may come while the task waits.
            Self::Authenticate { .. }
            | Self::Authorize { .. }
            | Self::FindRepository { .. }
            | Self::ReachForge { .. } => Some(Reason::ProviderUnavailable),
            Self::OpenPullRequest { .. } => Some(Reason::PushRefused),
            Self::Permit(_) => None,
            Self::ForgeUnknown { .. }
            | Self::ResolveUrl(_)
            | Self::AddressRepository { .. }
            | Self::AddressIssue { .. }
            | Self::PresentCredential
            // Nobody has looked for the issue before: its number may be wrong for good.
            | Self::FindIssue { .. }
            | Self::FollowRedirect { .. }
            | Self::RefuseRequest { .. }
            | Self::ReadAnswer { .. } => Some(Reason::InvalidTask),
        }
    }

    /// Whether the step should ask again: the same request may succeed while it lasts. After a
    /// longer wait another attempt does, under the provider's retry budget.
    pub fn retryable(&self) -> bool {
        match self {
            Self::ReachForge { wait, .. } => wait.is_none_or(|wait| wait <= HELD_WAIT_MAX),
            Self::Permit(_) => true,
            _ => false,
        }
    }

    /// How long the forge asks to wait.
    pub fn wait(&self) -> Option<Duration> {
        match self {
            Self::ReachForge { wait, .. } => *wait,
            _ => None,
        }
    }
}
