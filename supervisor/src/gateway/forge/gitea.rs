//! Gitea and Forgejo, API v1.

use agent_operator::domain::report::PullRequest;
use async_trait::async_trait;
use http::{Method, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    super::{git::Login, upstream::Remote},
    Forge, ForgeError, FoundPullRequest, PullRequestDraft,
    client::{Answer, Call, Http},
};

/// Page size: Gitea's default upper bound.
const PAGE_ITEMS: usize = 50;
/// Pages searched, newest first: a task lives hours, in which nobody opens 1,000 pull requests.
const PAGES_MAX: usize = 20;
/// Everything but what a path segment may hold as it is.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// One repository at a Gitea.
pub(super) struct Gitea {
    http: Http,
    host: String,
    repository: String,
    api: String,
    login: Login,
}

/// A pull request in the API; fields that are not listed are not looked at.
#[derive(Debug, Deserialize)]
struct ApiPullRequest {
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

impl Gitea {
    /// The repository behind `remote`.
    pub(super) fn new(http: Http, remote: &Remote, login: Login) -> Result<Self, ForgeError> {
        let host = remote.host.clone();
        let Some((owner, name)) = remote.owner_and_name() else {
            return Err(ForgeError::AddressRepository { path: remote.path.clone(), host });
        };
        let encode = |segment| utf8_percent_encode(segment, SEGMENT).to_string();
        let api = format!("{}/api/v1/repos/{}/{}", remote.base_url, encode(owner), encode(name));
        Ok(Self { http, host, repository: remote.path.clone(), api, login })
    }

    async fn call(
        &self,
        operation: &'static str,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Answer, ForgeError> {
        let url = format!("{}{path}", self.api);
        let call = Call { host: &self.host, operation, method, url, body };
        self.http.call(call, &self.login).await
    }

    fn read<T: serde::de::DeserializeOwned>(
        &self,
        operation: &'static str,
        body: Value,
    ) -> Result<T, ForgeError> {
        serde_json::from_value(body).map_err(|error| ForgeError::ReadAnswer {
            host: self.host.clone(),
            operation,
            detail: error.to_string(),
        })
    }

    fn is_from(&self, pull_request: &ApiPullRequest, head: &str) -> bool {
        // A fork may have a branch of the same name.
        pull_request.head.name == head
            && pull_request
                .head
                .repo
                .as_ref()
                .is_none_or(|repo| repo.full_name.eq_ignore_ascii_case(&self.repository))
    }
}

impl From<ApiPullRequest> for PullRequest {
    fn from(found: ApiPullRequest) -> Self {
        Self { url: found.html_url, number: found.number }
    }
}

#[async_trait]
impl Forge for Gitea {
    async fn find_pull_request(
        &self,
        head: &str,
        marker: &str,
    ) -> Result<Option<FoundPullRequest>, ForgeError> {
        const OPERATION: &str = "listing pull requests";
        for page in 1..=PAGES_MAX {
            let path = format!("/pulls?state=all&limit={PAGE_ITEMS}&page={page}");
            let answer = self.call(OPERATION, Method::GET, &path, None).await?;
            let listed: Vec<ApiPullRequest> = self.read(OPERATION, answer.body)?;
            // The server may have a smaller page than asked for: only an empty one is the last.
            if listed.is_empty() {
                return Ok(None);
            }
            for found in listed {
                let body = found.body.clone().unwrap_or_default();
                if self.is_from(&found, head) && body.contains(marker) {
                    return Ok(Some(FoundPullRequest { pull_request: found.into(), body }));
                }
            }
        }
        Ok(None)
    }

    async fn open_pull_request(
        &self,
        draft: &PullRequestDraft,
    ) -> Result<Option<PullRequest>, ForgeError> {
        const OPERATION: &str = "opening a pull request";
        let body = json!({
            "head": draft.head,
            "base": draft.base,
            "title": draft.title,
            "body": draft.body,
        });
        let answer = self.call(OPERATION, Method::POST, "/pulls", Some(body)).await?;
        if answer.status == StatusCode::CONFLICT {
            return Ok(None);
        }
        self.read::<ApiPullRequest>(OPERATION, answer.body).map(|opened| Some(opened.into()))
    }
}
