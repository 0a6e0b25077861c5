//! Pull requests and issues at the forge. Requests are opened by code, found before they are opened,
//! never by a model; issues are read as data.

mod answer;
mod client;
mod error;
mod gitea;
mod github;
mod issue;
mod markdown;
mod refusal;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, Weak},
};

use agent_operator::{
    attempt::IssueText,
    domain::{Credential, TaskUid, assignment::IssueRef, report::PullRequest, text},
};
use async_trait::async_trait;

use self::{client::Http, gitea::Gitea, github::GitHub};
pub use self::{error::ForgeError, issue::FoundIssue};
use super::{
    git::{GitError, Login, RepositoryGrant},
    http_client::HttpClient,
    permit::Permit,
    upstream::{ForgeKind, Remote, Upstream, UpstreamMap},
};

/// Longest title: GitHub's and Gitea's limit of 255 characters, with bytes to be safe.
pub const TITLE_BYTES_MAX: usize = 255;
/// Longest body, marker included; GitHub's limit is 65,536 characters.
pub const BODY_BYTES_MAX: usize = 60_000;
/// Begins the hidden mark that ties a pull request to its task.
const MARKER: &str = "<!-- agent-operator-task-uid:";

/// A pull request as a forge lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundPullRequest {
    /// Address and number.
    pub pull_request: PullRequest,
    /// Its body, for the marker.
    pub body: String,
}

/// What to look for or to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullRequestDraft {
    /// Branch with the changes; exists in the repository itself, never in a fork.
    pub head: String,
    /// Branch that they go to.
    pub base: String,
    /// Title.
    pub title: String,
    /// Body, marker included.
    pub body: String,
}

/// What a forge says about the right to write to a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteRight {
    /// The credential may write.
    Granted,
    /// It may read at most.
    Denied,
    /// The forge does not say.
    Unsaid,
}

/// One repository at one forge, with the right to speak for one attempt.
#[async_trait]
pub trait Forge: Send + Sync {
    /// The newest pull request from the branch `head` of this repository whose body contains
    /// `marker`, whatever its state.
    async fn find_pull_request(
        &self,
        head: &str,
        marker: &str,
    ) -> Result<Option<FoundPullRequest>, ForgeError>;

    /// Opens a pull request; none when the forge has one from this branch already.
    async fn open_pull_request(
        &self,
        draft: &PullRequestDraft,
    ) -> Result<Option<PullRequest>, ForgeError>;

    /// The issue, in this repository or another one of the same forge. Owner, name and number have
    /// been checked.
    async fn read_issue(&self, issue: &IssueRef) -> Result<FoundIssue, ForgeError>;

    /// Whether the credential may write to the repository. git alone cannot find out everywhere:
    /// Gitea takes the offer of a push from readers too, because a push to a magic branch opens a
    /// pull request there, and refuses only what is really sent.
    async fn write_right(&self) -> Result<WriteRight, ForgeError>;
}

/// The order to have a pull request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullRequestOrder {
    /// The attempt's right to the repository.
    pub grant: RepositoryGrant,
    /// Title from the sandbox; cut and made one line here.
    pub title: String,
    /// Body from the sandbox; cut here.
    pub body: String,
    /// The published work branch.
    pub head_branch: String,
    /// The issue that the task comes from: merging closes it.
    pub issue: Option<IssueRef>,
    /// Nothing was verified; the request says so whatever the sandbox wrote.
    pub unverified: bool,
}

/// All forges of the upstream map. A clone is a handle to the same.
#[derive(Clone, Debug)]
pub struct Forges {
    http: Http,
    upstreams: UpstreamMap,
    /// One request at a time for one task, so that two questions never become two pull requests.
    turns: Arc<std::sync::Mutex<HashMap<TaskUid, Weak<tokio::sync::Mutex<()>>>>>,
}

impl Forges {
    /// Forges behind `upstreams`, reached by `client`.
    pub fn new(upstreams: Vec<Upstream>, client: HttpClient) -> Self {
        Self {
            http: Http::new(client),
            upstreams: UpstreamMap::new(upstreams),
            turns: Arc::default(),
        }
    }

    /// The task's pull request: found by head branch and marker, opened when there is none; whether it
    /// was opened by this. Repeating it gives the same one. `permit` is asked right before it is opened.
    pub async fn ensure_pull_request(
        &self,
        order: &PullRequestOrder,
        credential: &Credential,
        permit: &Permit,
    ) -> Result<(PullRequest, bool), ForgeError> {
        let turn = self.turn(&order.grant.task.uid);
        let _turn = turn.lock().await;
        let forge = self.forge(&order.grant.repository.url, credential)?;
        let marker = marker(&order.grant.task.uid);
        let closes = self.closing_line(order)?;
        let draft = PullRequestDraft {
            head: order.head_branch.clone(),
            base: order.grant.repository.base_branch.clone(),
            title: title(&order.title),
            body: body(&order.body, order.unverified, closes.as_deref(), &marker),
        };
        if let Some(found) = forge.find_pull_request(&draft.head, &marker).await? {
            return Ok((found.pull_request, false));
        }
        if let Some(opened) = permit.during(forge.open_pull_request(&draft)).await?? {
            return Ok((opened, true));
        }
        // Somebody was faster: this task on another node, or a person.
        let found = forge.find_pull_request(&draft.head, &marker).await?;
        found.map(|found| (found.pull_request, false)).ok_or_else(|| ForgeError::OpenPullRequest {
            host: credential.host.clone(),
            branch: draft.head,
        })
    }

    /// The text of `issue`, at the forge of the repository that the user calls `url`.
    pub async fn read_issue(
        &self,
        url: &str,
        issue: &IssueRef,
        credential: Option<&Credential>,
    ) -> Result<IssueText, ForgeError> {
        issue::check(issue)?;
        let credential = credential.ok_or(ForgeError::PresentCredential)?;
        let found = self.forge(url, credential)?.read_issue(issue).await?;
        Ok(issue::for_sandbox(issue, &found))
    }

    /// What the forge of the repository that the user calls `url` says about the right to write.
    pub async fn write_right(
        &self,
        url: &str,
        credential: &Credential,
    ) -> Result<WriteRight, ForgeError> {
        self.forge(url, credential)?.write_right().await
    }

    fn closing_line(&self, order: &PullRequestOrder) -> Result<Option<String>, ForgeError> {
        let Some(issue) = &order.issue else { return Ok(None) };
        issue::check(issue)?;
        let remote = self.upstreams.resolve(&order.grant.repository.url)?;
        Ok(Some(issue::closing_line(issue, &remote.path)))
    }

    /// The API of the repository that the user calls `url`.
    fn forge(&self, url: &str, credential: &Credential) -> Result<Box<dyn Forge>, ForgeError> {
        let remote = self.upstreams.resolve(url)?;
        let login = login(&remote, credential)?;
        match remote.forge {
            Some(ForgeKind::Gitea) => Ok(Box::new(Gitea::new(self.http.clone(), &remote, &login)?)),
            Some(ForgeKind::Github) => {
                Ok(Box::new(GitHub::new(self.http.clone(), &remote, &login)?))
            }
            None => Err(ForgeError::ForgeUnknown { host: remote.host }),
        }
    }

    fn turn(&self, task: &TaskUid) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = turns.get(task).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        turns.insert(task.clone(), Arc::downgrade(&turn));
        turn
    }
}

fn login(remote: &Remote, credential: &Credential) -> Result<Login, ForgeError> {
    if !remote.accepts_credential_of(&credential.host) {
        let host = remote.host.clone();
        return Err(ForgeError::UseCredential(GitError::MatchCredential { host }));
    }
    Login::of(credential).map_err(ForgeError::UseCredential)
}

/// The hidden mark of a task.
fn marker(task: &TaskUid) -> String {
    format!("{MARKER} {task} -->")
}

/// One printable line within the limit.
fn title(from_sandbox: &str) -> String {
    let line = neutralise(from_sandbox).split_whitespace().collect::<Vec<_>>().join(" ");
    let line = if line.is_empty() { "Changes by agent-operator".to_owned() } else { line };
    text::truncate(&line, TITLE_BYTES_MAX).to_owned()
}

/// What stands in a pull request whose branch no test was run on.
const UNVERIFIED: &str =
    "**Not verified:** there was nothing to test by, so no test was run on this branch.";

/// The sandbox's body; at its end our own word on what was not verified, the line that closes the issue
/// and the task's mark.
fn body(from_sandbox: &str, unverified: bool, closes: Option<&str>, marker: &str) -> String {
    let ours = [unverified.then_some(UNVERIFIED), closes, Some(marker)];
    let ending = ours.into_iter().flatten().collect::<Vec<_>>().join("\n\n");
    let neutral = neutralise(from_sandbox);
    let room = BODY_BYTES_MAX - ending.len() - 2;
    format!("{}\n\n{ending}", text::truncate(&neutral, room).trim_end())
}

/// Makes text from a sandbox safe to show at a forge; what could imitate our own mark is taken out.
fn neutralise(markdown: &str) -> String {
    markdown::neutralise(&text::printable(markdown).replace(MARKER, ""))
}
