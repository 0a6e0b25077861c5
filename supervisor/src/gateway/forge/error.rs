//! What can go wrong with a forge's API.

use agent_operator::domain::Reason;

use super::super::{git::GitError, permit::PermitError, upstream::UrlError};

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
    /// The forge's kind has no implementation yet.
    #[error(
        "pull requests at {host} ({kind}) are not supported by this version; use a Gitea or Forgejo upstream"
    )]
    ForgeUnsupported {
        /// The repository's host.
        host: String,
        /// Kind of its API.
        kind: &'static str,
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
    /// The credential cannot be used for this repository.
    #[error(transparent)]
    UseCredential(GitError),
    /// The API client cannot be set up.
    #[error(
        "the client for forge APIs cannot be set up ({detail}); check the certificate authorities of the image"
    )]
    BuildClient {
        /// Why.
        detail: String,
    },
    /// 401 or 403.
    #[error(
        "{host} refuses the git credential for {operation}; give the token in gitCredentialsRef the right to read and write pull requests"
    )]
    Authenticate {
        /// The host.
        host: String,
        /// What was tried.
        operation: &'static str,
    },
    /// 404: repository or branch is missing or hidden.
    #[error(
        "{host} does not find the repository or a branch for {operation}; check repository.url, repository.branch and the token's access"
    )]
    FindRepository {
        /// The host.
        host: String,
        /// What was tried.
        operation: &'static str,
    },
    /// Another 4xx or a redirect: the request itself is not acceptable.
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
            Self::ReachForge { .. } => Some(Reason::ProviderUnavailable),
            Self::OpenPullRequest { .. } => Some(Reason::PushRefused),
            Self::BuildClient { .. } | Self::Permit(_) => None,
            Self::ForgeUnknown { .. }
            | Self::ForgeUnsupported { .. }
            | Self::ResolveUrl(_)
            | Self::AddressRepository { .. }
            | Self::Authenticate { .. }
            | Self::FindRepository { .. }
            | Self::RefuseRequest { .. }
            | Self::ReadAnswer { .. } => Some(Reason::InvalidTask),
        }
    }

    /// Whether the same request may succeed later.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::ReachForge { .. } | Self::Permit(_))
    }
}
