//! The parts of a forge's answers that are looked at. GitHub and Gitea agree on them; everything
//! else in an answer may change or be absent.

use agent_operator::domain::report::PullRequest;
use serde::Deserialize;
use serde_json::Value;

use super::{FoundIssue, FoundPullRequest, WriteRight};

/// A pull request.
#[derive(Debug, Deserialize)]
pub(super) struct ApiPullRequest {
    number: i64,
    html_url: String,
    #[serde(default)]
    body: Option<String>,
    head: ApiBranch,
}

#[derive(Debug, Deserialize)]
struct ApiBranch {
    #[serde(rename = "ref")]
    name: String,
    #[serde(default)]
    repo: Option<ApiRepository>,
}

#[derive(Debug, Deserialize)]
struct ApiRepository {
    full_name: String,
}

/// A repository, for what the asking credential may do with it.
#[derive(Debug, Deserialize)]
pub(super) struct ApiAccess {
    #[serde(default)]
    permissions: Option<ApiPermissions>,
}

#[derive(Debug, Deserialize)]
struct ApiPermissions {
    push: bool,
}

/// An issue; both forges list pull requests as issues too.
#[derive(Debug, Deserialize)]
pub(super) struct ApiIssue {
    title: String,
    #[serde(default)]
    body: Option<String>,
    #[serde(default)]
    pull_request: Option<Value>,
}

impl ApiPullRequest {
    /// Itself, when it comes from the branch `head` of `repository` (`owner/name`) and carries
    /// `marker`. A fork may have a branch of the same name, and a deleted fork leaves no repository.
    pub(super) fn matching(
        self,
        repository: &str,
        head: &str,
        marker: &str,
    ) -> Option<FoundPullRequest> {
        let body = self.body.clone().unwrap_or_default();
        let from = self.head.repo.as_ref();
        let ours = self.head.name == head
            && from.is_some_and(|from| from.full_name.eq_ignore_ascii_case(repository))
            && body.contains(marker);
        ours.then(|| FoundPullRequest { pull_request: self.into(), body })
    }
}

impl From<ApiPullRequest> for PullRequest {
    fn from(found: ApiPullRequest) -> Self {
        Self { url: found.html_url, number: found.number }
    }
}

impl ApiAccess {
    /// The right to write; a forge that does not know who asks names none.
    pub(super) fn write_right(&self) -> WriteRight {
        match self.permissions {
            Some(ApiPermissions { push: true }) => WriteRight::Granted,
            Some(ApiPermissions { push: false }) => WriteRight::Denied,
            None => WriteRight::Unsaid,
        }
    }
}

impl ApiIssue {
    /// The issue; none when the number is a pull request's.
    pub(super) fn into_issue(self) -> Option<FoundIssue> {
        let body = self.body.unwrap_or_default();
        self.pull_request.is_none().then_some(FoundIssue { title: self.title, body })
    }
}
