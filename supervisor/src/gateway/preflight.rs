//! Preflights: asks the upstreams of a task what stands in its way, before anything of it runs.
//!
//! | task | takes | gives |
//! |---|---|---|
//! | one a preflight | the order and its credentials | a report for the link |
//!
//! Nothing is kept: credentials are dropped with the answer, and a lost answer is asked for again.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use agent_operator::{
    domain::{
        Attempt, Credential, PreflightKey, PreflightOrder, PreflightReport, RunKey, RunUid,
        preflight::{Finding, Problem},
        secret::purpose,
    },
    telemetry::logs,
};
use tokio::sync::{Notify, Semaphore};
use tracing::Instrument as _;

use super::{
    core::Shared,
    forge::{ForgeError, WriteRight},
    git::{Checked, RepositoryGrant},
    llm::key::KeyCheck,
};

/// Preflights at once: each is a few git processes, and live attempts come first.
const AT_ONCE: usize = 4;
/// Preflights that wait or run; each holds two credentials in memory. Beyond it the answer is "later".
const UNDER_WAY_MAX: usize = 256;
/// Reports that wait for the link; beyond it the oldest are lost, and asked for again.
const REPORTS_MAX: usize = 256;

/// What is under way, and what is to be said.
#[derive(Debug)]
pub struct Preflights {
    inner: Mutex<Inner>,
    turns: Semaphore,
    news: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    under_way: HashSet<PreflightKey>,
    reports: VecDeque<PreflightReport>,
}

impl Default for Preflights {
    fn default() -> Self {
        Self { inner: Mutex::default(), turns: Semaphore::new(AT_ONCE), news: Notify::new() }
    }
}

impl Preflights {
    /// Waits until there may be a report.
    pub(super) async fn news(&self) {
        self.news.notified().await;
    }

    /// The oldest report that was not taken.
    pub(super) fn next_report(&self) -> Option<PreflightReport> {
        self.inner().reports.pop_front()
    }

    /// Whether the order is new and there is room for it.
    fn begin(&self, key: &PreflightKey) -> Begin {
        let mut inner = self.inner();
        if inner.under_way.contains(key) {
            return Begin::Known;
        }
        if inner.under_way.len() >= UNDER_WAY_MAX {
            return Begin::Full;
        }
        inner.under_way.insert(key.clone());
        Begin::New
    }

    fn end(&self, report: PreflightReport) {
        let mut inner = self.inner();
        inner.under_way.remove(&report.key);
        if inner.reports.len() >= REPORTS_MAX {
            inner.reports.pop_front();
        }
        inner.reports.push_back(report);
        drop(inner);
        self.news.notify_one();
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere leaves at worst an order that counts as under way; the next has another key.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Begin {
    New,
    Known,
    Full,
}

/// Starts a preflight, unless the same order is under way already.
pub(super) fn start(gateway: &Shared, order: PreflightOrder, credentials: Vec<Credential>) {
    match gateway.preflights.begin(&order.key) {
        Begin::Known => return,
        Begin::Full => {
            let message = "the gateway has too many preflights under way".to_owned();
            let findings = vec![Finding { problem: Problem::NodeTrouble, message }];
            let report = PreflightReport { key: order.key, findings, notes: Vec::new() };
            return gateway.preflights.end(report);
        }
        Begin::New => {}
    }
    let shared = Shared::clone(gateway);
    let context = logs::task(&order.namespace, &order.task.name, &order.task.uid);
    let work = async move {
        let check = async {
            // Never closed, so a failure cannot happen; without a turn the check only runs sooner.
            let _turn = shared.preflights.turns.acquire().await;
            check(&shared, &order, &credentials).await
        };
        tokio::select! {
            () = shared.shutdown.cancelled() => {}
            Checked { findings, notes } = check => {
                let problems: Vec<_> = findings.iter().map(|found| found.problem.as_str()).collect();
                tracing::info!(?problems, "preflight");
                shared.preflights.end(PreflightReport { key: order.key.clone(), findings, notes });
            }
        }
    };
    gateway.tasks.spawn(work.instrument(context));
}

async fn check(gateway: &Shared, order: &PreflightOrder, credentials: &[Credential]) -> Checked {
    let of = |wanted: &str| credentials.iter().find(|credential| credential.purpose == wanted);
    let repository = async {
        match of(purpose::GIT) {
            Some(credential) => repository(gateway, order, credential).await,
            None => lacking("git credential"),
        }
    };
    let model = async {
        match of(purpose::MODEL) {
            _ if !order.needs_model => Checked::default(),
            Some(credential) => key(gateway.model.check_key(credential).await),
            None => lacking("model key"),
        }
    };
    let (mut checked, model) = tokio::join!(repository, model);
    checked.findings.extend(model.findings);
    checked.notes.extend(model.notes);
    checked
}

/// What git says about the repository, and what the forge says of it.
async fn repository(gateway: &Shared, order: &PreflightOrder, credential: &Credential) -> Checked {
    let grant = grant(order);
    let mut checked = gateway.git.preflight(&grant, credential, order.needs_test_command).await;
    // Where git got no answer, or a no, the forge's API would only repeat it.
    let reached = |finding: &Finding| finding.problem == Problem::TestCommandMissing;
    if checked.findings.iter().all(reached) {
        let url = &order.repository.url;
        let said = write_right(gateway.forges.write_right(url, credential).await, url);
        checked.findings.splice(0..0, said.findings);
        checked.notes.extend(said.notes);
    }
    checked
}

/// What the forge's word about the right to write means for a task in the repository `url`.
fn write_right(said: Result<WriteRight, ForgeError>, url: &str) -> Checked {
    let found = |problem, message| Checked {
        findings: vec![Finding { problem, message }],
        ..Checked::default()
    };
    let error = match said {
        Ok(WriteRight::Granted) => {
            let notes = vec!["the forge grants the right to write".to_owned()];
            return Checked { notes, ..Checked::default() };
        }
        Ok(WriteRight::Denied) => {
            let message = format!(
                "the git credential may not write to {url}: \
                 the forge says that it has no push permission"
            );
            return found(Problem::PushNotAllowed, message);
        }
        // An address whose forge nobody has named is known to git alone.
        Ok(WriteRight::Unsaid) | Err(ForgeError::ForgeUnknown { .. }) => return Checked::default(),
        Err(error) => error,
    };
    let problem = match &error {
        ForgeError::ReachForge { .. } => Problem::ProviderUnavailable,
        ForgeError::Authenticate { .. }
        | ForgeError::Authorize { .. }
        | ForgeError::PresentCredential
        | ForgeError::UseCredential(_) => Problem::GitCredentialsRejected,
        ForgeError::FindRepository { .. } => Problem::RepositoryMissing,
        ForgeError::FollowRedirect { .. } => Problem::RepositoryMoved,
        ForgeError::ResolveUrl(_) | ForgeError::AddressRepository { .. } => {
            Problem::RepositoryInvalid
        }
        _ => Problem::NodeTrouble,
    };
    found(problem, error.to_string())
}

/// The rights of the first step that pushes. Nothing is kept under its key, for a preflight has no
/// quarantine.
fn grant(order: &PreflightOrder) -> RepositoryGrant {
    RepositoryGrant {
        run: RunKey { uid: RunUid::from(order.task.uid.as_str()), attempt: Attempt(0) },
        namespace: order.namespace.clone(),
        task: order.task.clone(),
        repository: order.repository.clone(),
        may_push: true,
    }
}

fn lacking(what: &str) -> Checked {
    let message = format!("the order came without the {what}");
    Checked {
        findings: vec![Finding { problem: Problem::NodeTrouble, message }],
        notes: Vec::new(),
    }
}

fn key(check: KeyCheck) -> Checked {
    let found = |problem, message| vec![Finding { problem, message }];
    let (findings, note) = match check {
        KeyCheck::Accepted => (Vec::new(), Some("the model key is accepted".to_owned())),
        KeyCheck::Unknown(said) => {
            (Vec::new(), Some(format!("whether the model key is accepted is not known ({said})")))
        }
        KeyCheck::Rejected(said) => (found(Problem::ModelKeyRejected, said), None),
        KeyCheck::Unavailable(said) => (found(Problem::ProviderUnavailable, said), None),
    };
    Checked { findings, notes: note.into_iter().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "https://forge.test/o/r.git";

    fn problem_of(said: Result<WriteRight, ForgeError>) -> Option<Problem> {
        let checked = write_right(said, URL);
        checked.findings.first().map(|finding| finding.problem)
    }

    #[test]
    fn a_reader_is_found_by_the_forges_word() {
        let denied = write_right(Ok(WriteRight::Denied), URL);
        assert_eq!(denied.findings[0].problem, Problem::PushNotAllowed);
        let message = &denied.findings[0].message;
        assert!(message.contains("may not write to") && message.contains(URL), "{message}");
        assert_eq!(problem_of(Ok(WriteRight::Granted)), None);
        assert_eq!(problem_of(Ok(WriteRight::Unsaid)), None);
    }

    #[test]
    fn what_would_keep_a_pull_request_from_being_opened_is_found_before_any_work() {
        let (host, operation) = (String::new(), "looking at the repository");
        let unknown = ForgeError::ForgeUnknown { host: host.clone() };
        assert_eq!(problem_of(Err(unknown)), None, "no forge is named: git alone was asked");
        let away = ForgeError::ReachForge {
            host: host.clone(),
            operation,
            detail: String::new(),
            wait: None,
        };
        assert_eq!(problem_of(Err(away)), Some(Problem::ProviderUnavailable));
        let scope = ForgeError::Authorize {
            host: host.clone(),
            operation,
            detail: String::new(),
            missing: "the scope write:repository".to_owned(),
        };
        assert_eq!(problem_of(Err(scope)), Some(Problem::GitCredentialsRejected));
        let (detail, missing) = (String::new(), String::new());
        let expired = ForgeError::Authenticate { host: host.clone(), operation, detail };
        assert_eq!(problem_of(Err(expired)), Some(Problem::GitCredentialsRejected));
        let hidden = ForgeError::FindRepository { host: host.clone(), operation, missing };
        assert_eq!(problem_of(Err(hidden)), Some(Problem::RepositoryMissing));
        let moved = ForgeError::FollowRedirect { host, operation };
        assert_eq!(problem_of(Err(moved)), Some(Problem::RepositoryMoved));
    }
}
