//! Gitea and Forgejo, API v1.

use agent_operator::domain::{assignment::IssueRef, report::PullRequest};
use async_trait::async_trait;
use http::{HeaderValue, Method, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use super::{
    super::{git::Login, upstream::Remote},
    Forge, ForgeError, FoundIssue, FoundPullRequest, PullRequestDraft, WriteRight,
    answer::{ApiAccess, ApiIssue, ApiPullRequest},
    client::{Answer, Call, Http, authorization},
    refusal::Asked,
};

/// Page size: Gitea's default upper bound.
const PAGE_ITEMS: usize = 50;
/// Pages searched, newest first: a task lives hours, in which nobody opens 1,000 pull requests.
const PAGES_MAX: usize = 20;
/// Everything but what a path segment may hold as it is.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

const LIST: Right = ("listing pull requests", "the scope read:repository");
const OPEN: Right = ("opening a pull request", "the scope write:repository");
const LOOK: Right = ("looking at the repository", "the scope write:repository");
const READ_ISSUE: Right = ("reading the task's issue", "the scope read:issue");

/// An operation and the right that it needs.
type Right = (&'static str, &'static str);

/// One repository at a Gitea.
pub(super) struct Gitea {
    http: Http,
    host: String,
    repository: String,
    /// Of all repositories.
    api: String,
    authorization: HeaderValue,
}

impl Gitea {
    /// The repository behind `remote`.
    pub(super) fn new(http: Http, remote: &Remote, login: &Login) -> Result<Self, ForgeError> {
        let host = remote.host.clone();
        if remote.owner_and_name().is_none() {
            return Err(ForgeError::AddressRepository { path: remote.path.clone(), host });
        }
        let api = format!("{}/api/v1/repos", remote.base_url);
        let authorization = authorization(login, "token")?;
        Ok(Self { http, host, repository: remote.path.clone(), api, authorization })
    }

    fn asked<'a>(&'a self, (operation, right): Right, issue: Option<&'a str>) -> Asked<'a> {
        Asked { host: &self.host, operation, right, issue }
    }

    async fn call(
        &self,
        asked: Asked<'_>,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Answer, ForgeError> {
        let url = format!("{}/{path}", self.api);
        self.http.call(Call { asked, method, url, body }, &self.authorization).await
    }

    /// The path of the repository `owner/name`.
    fn path_of(repository: &str) -> String {
        let segments: Vec<String> = repository
            .split('/')
            .map(|segment| utf8_percent_encode(segment, SEGMENT).to_string())
            .collect();
        segments.join("/")
    }
}

fn read<T: serde::de::DeserializeOwned>(asked: Asked<'_>, body: Value) -> Result<T, ForgeError> {
    serde_json::from_value(body).map_err(|error| asked.misread(&error))
}

#[async_trait]
impl Forge for Gitea {
    async fn find_pull_request(
        &self,
        head: &str,
        marker: &str,
    ) -> Result<Option<FoundPullRequest>, ForgeError> {
        let asked = self.asked(LIST, None);
        let repository = Self::path_of(&self.repository);
        for page in 1..=PAGES_MAX {
            let path = format!("{repository}/pulls?state=all&limit={PAGE_ITEMS}&page={page}");
            let answer = self.call(asked, Method::GET, &path, None).await?;
            let listed: Vec<ApiPullRequest> = read(asked, answer.body)?;
            // The server may have a smaller page than asked for: only an empty one is the last.
            if listed.is_empty() {
                return Ok(None);
            }
            let mut listed = listed.into_iter();
            if let Some(found) = listed.find_map(|one| one.matching(&self.repository, head, marker))
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    async fn open_pull_request(
        &self,
        draft: &PullRequestDraft,
    ) -> Result<Option<PullRequest>, ForgeError> {
        let asked = self.asked(OPEN, None);
        let body = json!({
            "head": draft.head,
            "base": draft.base,
            "title": draft.title,
            "body": draft.body,
        });
        let path = format!("{}/pulls", Self::path_of(&self.repository));
        let answer = self.call(asked, Method::POST, &path, Some(body)).await?;
        if answer.status == StatusCode::CONFLICT {
            return Ok(None);
        }
        read::<ApiPullRequest>(asked, answer.body).map(|opened| Some(opened.into()))
    }

    async fn read_issue(&self, issue: &IssueRef) -> Result<FoundIssue, ForgeError> {
        let reference = issue.to_string();
        let asked = self.asked(READ_ISSUE, Some(&reference));
        let repository = Self::path_of(&format!("{}/{}", issue.owner, issue.repo));
        let path = format!("{repository}/issues/{}", issue.number);
        let answer = self.call(asked, Method::GET, &path, None).await?;
        let found: ApiIssue = read(asked, answer.body)?;
        found.into_issue().ok_or_else(|| asked.not_an_issue(&reference))
    }

    async fn write_right(&self) -> Result<WriteRight, ForgeError> {
        let asked = self.asked(LOOK, None);
        let path = Self::path_of(&self.repository);
        let answer = self.call(asked, Method::GET, &path, None).await?;
        read::<ApiAccess>(asked, answer.body).map(|access| access.write_right())
    }
}
