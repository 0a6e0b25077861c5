//! GitHub and GitHub Enterprise, REST API.
//!
//! octocrab brings routes, pages and the form of errors. It runs on the gateway's own HTTP client,
//! so that certificate authorities, limits and the ban on redirects hold here too, and without its
//! own retries: the runner asks again, as long as its step lasts.

use std::convert::Infallible;

use agent_operator::domain::{assignment::IssueRef, report::PullRequest};
use async_trait::async_trait;
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::Full;
use octocrab::{
    AuthState, GitHubError, OctoBody, Octocrab, OctocrabBuilder, Page,
    service::middleware::base_uri::BaseUriLayer,
};
use serde::Serialize;
use serde_json::Value;

use super::{
    super::{git::Login, upstream::Remote},
    Forge, ForgeError, FoundIssue, FoundPullRequest, PullRequestDraft, WriteRight,
    answer::{ApiAccess, ApiIssue, ApiPullRequest},
    client::{Http, USER_AGENT, Unreached, authorization},
    refusal::{Asked, refusal},
};

/// Page size: GitHub's upper bound.
const PAGE_ITEMS: u8 = 100;
/// Pages searched, newest first. They hold the pull requests of one branch alone.
const PAGES_MAX: u32 = 20;

const LIST: Right = (
    "listing pull requests",
    "the permission \"Pull requests: read\" (fine-grained token) or the scope repo (classic token)",
);
const OPEN: Right = (
    "opening a pull request",
    "the permission \"Pull requests: write\" (fine-grained token) or the scope repo (classic token)",
);
const LOOK: Right = (
    "looking at the repository",
    "the permission \"Contents: write\" (fine-grained token) or the scope repo (classic token)",
);
const READ_ISSUE: Right = (
    "reading the task's issue",
    "the permission \"Issues: read\" (fine-grained token) or the scope repo (classic token)",
);

/// What tokens of app installations begin with.
const APP_TOKEN_PREFIX: &str = "ghs_";

/// An operation and the right that it needs.
type Right = (&'static str, &'static str);

/// One repository at a GitHub.
pub(super) struct GitHub {
    client: Octocrab,
    host: String,
    owner: String,
    /// `owner/name`.
    repository: String,
    /// The token is an app's: GitHub shows it no permissions of a user's.
    of_an_app: bool,
}

/// What to list.
#[derive(Serialize)]
struct Listing<'a> {
    state: &'static str,
    head: &'a str,
    per_page: u8,
    page: u32,
}

/// A new pull request.
#[derive(Serialize)]
struct Opening<'a> {
    title: &'a str,
    head: &'a str,
    base: &'a str,
    body: &'a str,
}

impl GitHub {
    /// The repository behind `remote`. Must be called in a tokio runtime: octocrab spawns a task that
    /// ends with the value.
    pub(super) fn new(http: Http, remote: &Remote, login: &Login) -> Result<Self, ForgeError> {
        let host = remote.host.clone();
        let Some((owner, _)) = remote.owner_and_name() else {
            return Err(ForgeError::AddressRepository { path: remote.path.clone(), host });
        };
        let api: Uri = remote
            .github_api()
            .parse()
            .map_err(|_| ForgeError::ForgeUnknown { host: host.clone() })?;
        let client = client(http, api, authorization(login, "Bearer")?);
        let (owner, repository) = (owner.to_owned(), remote.path.clone());
        let of_an_app = login.password().expose().starts_with(APP_TOKEN_PREFIX);
        Ok(Self { client, host, owner, repository, of_an_app })
    }

    fn asked<'a>(&'a self, (operation, right): Right, issue: Option<&'a str>) -> Asked<'a> {
        Asked { host: &self.host, operation, right, issue }
    }

    fn pulls(&self) -> String {
        format!("/repos/{}/pulls", self.repository)
    }
}

/// octocrab over the gateway's HTTP client.
fn client(http: Http, api: Uri, authorization: HeaderValue) -> Octocrab {
    let service = tower::service_fn(move |request: Request<OctoBody>| {
        let (http, authorization) = (http.clone(), authorization.clone());
        async move { exchange(&http, request, authorization).await }
    });
    let built: Result<Octocrab, Infallible> = OctocrabBuilder::new_empty()
        .with_service(service)
        .with_layer(&BaseUriLayer::new(api))
        .with_auth(AuthState::None)
        .build();
    built.unwrap_or_else(|never| match never {})
}

async fn exchange(
    http: &Http,
    request: Request<OctoBody>,
    authorization: HeaderValue,
) -> Result<Response<Full<Bytes>>, Unreached> {
    let mut request = request.map(Body::new);
    let headers = request.headers_mut();
    headers.insert(header::AUTHORIZATION, authorization);
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/vnd.github+json"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    let (parts, body) = http.exchange(request).await?;
    Ok(Response::from_parts(parts, Full::new(body)))
}

/// What an error of octocrab means.
fn failure(asked: &Asked<'_>, error: &octocrab::Error) -> ForgeError {
    match error {
        octocrab::Error::GitHub { source, .. } => {
            let headers = source.headers.clone().unwrap_or_default();
            refusal(asked, source.status_code, &headers, &words(source))
        }
        octocrab::Error::Service { source, .. } => asked.unreached(source.as_ref()),
        other => asked.misread(other),
    }
}

/// GitHub's message with what it says about single fields.
fn words(error: &GitHubError) -> String {
    let details = error.errors.iter().flatten().map(|detail| {
        let part = |name| detail.get(name).and_then(Value::as_str);
        part("message").or(detail.as_str()).map_or_else(
            || {
                format!(
                    "{} {}",
                    part("field").unwrap_or_default(),
                    part("code").unwrap_or_default()
                )
            },
            str::to_owned,
        )
    });
    let mut words = error.message.clone();
    for detail in details {
        words = format!("{words}: {detail}");
    }
    words
}

/// Whether the refusal says that the branch has an open pull request already.
fn exists_already(error: &octocrab::Error) -> bool {
    let octocrab::Error::GitHub { source, .. } = error else { return false };
    source.status_code == StatusCode::UNPROCESSABLE_ENTITY
        && words(source).contains("pull request already exists")
}

#[async_trait]
impl Forge for GitHub {
    async fn find_pull_request(
        &self,
        head: &str,
        marker: &str,
    ) -> Result<Option<FoundPullRequest>, ForgeError> {
        let asked = self.asked(LIST, None);
        let from = format!("{}:{head}", self.owner);
        for page in 1..=PAGES_MAX {
            let listing = Listing { state: "all", head: &from, per_page: PAGE_ITEMS, page };
            let listed = self.client.get(self.pulls(), Some(&listing)).await;
            let listed: Page<ApiPullRequest> = listed.map_err(|error| failure(&asked, &error))?;
            let last = listed.next.is_none();
            let mut items = listed.items.into_iter();
            let found = items.find_map(|one| one.matching(&self.repository, head, marker));
            if found.is_some() || last {
                return Ok(found);
            }
        }
        Ok(None)
    }

    async fn open_pull_request(
        &self,
        draft: &PullRequestDraft,
    ) -> Result<Option<PullRequest>, ForgeError> {
        let opening = Opening {
            title: &draft.title,
            head: &draft.head,
            base: &draft.base,
            body: &draft.body,
        };
        let opened: Result<ApiPullRequest, _> =
            self.client.post(self.pulls(), Some(&opening)).await;
        match opened {
            Ok(opened) => Ok(Some(opened.into())),
            Err(error) if exists_already(&error) => Ok(None),
            Err(error) => Err(failure(&self.asked(OPEN, None), &error)),
        }
    }

    async fn read_issue(&self, issue: &IssueRef) -> Result<FoundIssue, ForgeError> {
        let reference = issue.to_string();
        let asked = self.asked(READ_ISSUE, Some(&reference));
        let route = format!("/repos/{}/{}/issues/{}", issue.owner, issue.repo, issue.number);
        let found = self.client.get(route, None::<&()>).await;
        let found: ApiIssue = found.map_err(|error| failure(&asked, &error))?;
        found.into_issue().ok_or_else(|| asked.not_an_issue(&reference))
    }

    async fn write_right(&self) -> Result<WriteRight, ForgeError> {
        let route = format!("/repos/{}", self.repository);
        let found: Result<ApiAccess, _> = self.client.get(route, None::<&()>).await;
        let found = found.map_err(|error| failure(&self.asked(LOOK, None), &error))?;
        match found.write_right() {
            WriteRight::Denied if self.of_an_app => Ok(WriteRight::Unsaid),
            right => Ok(right),
        }
    }
}
