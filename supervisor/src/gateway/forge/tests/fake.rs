//! A forge in memory, with one repository `o/r`.

use agent_operator::domain::assignment::IssueRef;

use super::{super::refusal::Asked, conformance::Stage, *};

/// A pull request or an issue: they share their numbers.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) title: String,
    pub(super) body: String,
    pub(super) open: bool,
    /// For a pull request: repository (none: a deleted fork) and branch that it comes from.
    pub(super) head: Option<(Option<String>, String)>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) branches: Vec<String>,
    /// Number 1 is the first.
    pub(super) entries: Vec<Entry>,
}

impl State {
    /// Whether the branch has an open pull request of this repository.
    pub(super) fn has_open(&self, head: &str) -> bool {
        let ours = |entry: &Entry| {
            entry
                .head
                .as_ref()
                .is_some_and(|(from, branch)| from.as_deref() == Some("o/r") && branch == head)
        };
        self.entries.iter().any(|entry| entry.open && ours(entry))
    }

    /// Adds an entry and gives its number.
    pub(super) fn add(&mut self, entry: Entry) -> i64 {
        self.entries.push(entry);
        i64::try_from(self.entries.len()).unwrap()
    }

    pub(super) fn entry(&self, number: i64) -> Option<&Entry> {
        self.entries.get(usize::try_from(number).ok()?.checked_sub(1)?)
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Fake(pub(super) Arc<Mutex<State>>);

/// The same repository for somebody who may only read it.
pub(super) struct Reader(pub(super) Fake);

pub(super) fn url_of(number: i64) -> String {
    format!("http://forge/o/r/pull/{number}")
}

impl Stage for Fake {
    fn branch(&self, name: &str) {
        self.0.lock().unwrap().branches.push(name.to_owned());
    }

    fn issue(&self, title: &str, body: &str) -> IssueRef {
        let entry =
            Entry { title: title.to_owned(), body: body.to_owned(), open: true, head: None };
        let number = self.0.lock().unwrap().add(entry);
        IssueRef { owner: "o".to_owned(), repo: "r".to_owned(), number }
    }

    fn close(&self, number: i64) {
        let at = usize::try_from(number).unwrap() - 1;
        self.0.lock().unwrap().entries[at].open = false;
    }
}

#[async_trait]
impl Forge for Fake {
    async fn find_pull_request(
        &self,
        head: &str,
        marker: &str,
    ) -> Result<Option<FoundPullRequest>, ForgeError> {
        let state = self.0.lock().unwrap();
        let wanted = Some((Some("o/r".to_owned()), head.to_owned()));
        let ours = |entry: &Entry| entry.head == wanted && entry.body.contains(marker);
        let newest = (1..).zip(&state.entries).filter(|(_, entry)| ours(entry)).last();
        Ok(newest.map(|(number, entry)| FoundPullRequest {
            pull_request: PullRequest { url: url_of(number), number },
            body: entry.body.clone(),
        }))
    }

    async fn open_pull_request(
        &self,
        draft: &PullRequestDraft,
    ) -> Result<Option<PullRequest>, ForgeError> {
        let mut state = self.0.lock().unwrap();
        if state.has_open(&draft.head) {
            return Ok(None);
        }
        if !state.branches.contains(&draft.head) {
            return Err(asked().misread(&std::io::Error::other("no such branch")));
        }
        let number = state.add(Entry {
            title: draft.title.clone(),
            body: draft.body.clone(),
            open: true,
            head: Some((Some("o/r".to_owned()), draft.head.clone())),
        });
        Ok(Some(PullRequest { url: url_of(number), number }))
    }

    async fn read_issue(&self, issue: &IssueRef) -> Result<FoundIssue, ForgeError> {
        let state = self.0.lock().unwrap();
        let here = issue.owner == "o" && issue.repo == "r";
        let found = state.entry(issue.number).filter(|entry| here && entry.head.is_none());
        found
            .map(|entry| FoundIssue { title: entry.title.clone(), body: entry.body.clone() })
            .ok_or_else(|| asked().not_an_issue(&issue.to_string()))
    }

    async fn write_right(&self) -> Result<WriteRight, ForgeError> {
        Ok(WriteRight::Granted)
    }
}

#[async_trait]
impl Forge for Reader {
    async fn find_pull_request(
        &self,
        head: &str,
        marker: &str,
    ) -> Result<Option<FoundPullRequest>, ForgeError> {
        self.0.find_pull_request(head, marker).await
    }

    async fn open_pull_request(
        &self,
        _: &PullRequestDraft,
    ) -> Result<Option<PullRequest>, ForgeError> {
        Err(asked().misread(&std::io::Error::other("may only read")))
    }

    async fn read_issue(&self, issue: &IssueRef) -> Result<FoundIssue, ForgeError> {
        self.0.read_issue(issue).await
    }

    async fn write_right(&self) -> Result<WriteRight, ForgeError> {
        Ok(WriteRight::Denied)
    }
}

fn asked() -> Asked<'static> {
    Asked { host: "fake", operation: "a call", right: "a right", issue: None }
}

#[tokio::test]
async fn the_fake_behaves_as_a_forge() {
    let fake = Fake::default();
    conformance::holds(&fake, &Reader(fake.clone()), &fake).await;
}
