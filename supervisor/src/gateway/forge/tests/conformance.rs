//! What every [`Forge`] does: held by GitHub's client at a scripted server, by Gitea's at a real one,
//! and by the fake that the scripted server is made of.

use agent_operator::domain::assignment::IssueRef;

use super::*;

/// What the suite prepares at the forge, past the client under test.
pub(super) trait Stage {
    /// Makes a branch with a commit that `main` does not have.
    fn branch(&self, name: &str);
    /// Opens an issue.
    fn issue(&self, title: &str, body: &str) -> IssueRef;
    /// Closes a pull request.
    fn close(&self, number: i64);
}

/// Every behaviour, one after the other. `reader` is the same repository for somebody who may read it.
pub(super) async fn holds(forge: &dyn Forge, reader: &dyn Forge, stage: &dyn Stage) {
    pull_requests(forge, stage).await;
    issues(forge, stage).await;
    assert_eq!(forge.write_right().await.unwrap(), WriteRight::Granted);
    assert_eq!(reader.write_right().await.unwrap(), WriteRight::Denied);
}

fn draft(head: &str, body: &str) -> PullRequestDraft {
    PullRequestDraft {
        head: head.to_owned(),
        base: "main".to_owned(),
        title: "A title with \"quotes\" & ünicode".to_owned(),
        body: body.to_owned(),
    }
}

async fn pull_requests(forge: &dyn Forge, stage: &dyn Stage) {
    let mark = marker(&"conformance-1".into());
    assert_eq!(forge.find_pull_request("ai/one", &mark).await.unwrap(), None);
    for branch in ["ai/one", "ai/one-more"] {
        stage.branch(branch);
    }
    let text = format!("A body\n\n{mark}");
    let opened = forge.open_pull_request(&draft("ai/one", &text)).await.unwrap().unwrap();
    assert!(opened.number > 0 && opened.url.starts_with("http"), "{opened:?}");
    let found = forge.find_pull_request("ai/one", &mark).await.unwrap().unwrap();
    assert_eq!(found.pull_request, opened);
    assert!(found.body.contains("A body"), "{}", found.body);

    let other = marker(&"conformance-2".into());
    assert_eq!(forge.find_pull_request("ai/one", &other).await.unwrap(), None, "another task's");
    assert_eq!(forge.find_pull_request("ai/one-more", &mark).await.unwrap(), None);
    let second = forge.open_pull_request(&draft("ai/one", &text)).await.unwrap();
    assert_eq!(second, None, "one open pull request a branch");

    stage.close(opened.number);
    let closed = forge.find_pull_request("ai/one", &mark).await.unwrap().unwrap();
    assert_eq!(closed.pull_request, opened, "found whatever its state");
    let error = forge.open_pull_request(&draft("ai/none", &text)).await.unwrap_err();
    // GitHub calls a missing branch invalid, Gitea does not find it.
    let expected = match error {
        ForgeError::FindRepository { .. } => Reason::ProviderUnavailable,
        _ => Reason::InvalidTask,
    };
    assert_eq!((error.reason(), error.retryable()), (Some(expected), false), "{error}");
}

async fn issues(forge: &dyn Forge, stage: &dyn Stage) {
    let issue = stage.issue("It fails", "Steps:\n\n1. `run` <it> ünd see");
    let read = forge.read_issue(&issue).await.unwrap();
    assert_eq!(read.title, "It fails");
    assert_eq!(read.body, "Steps:\n\n1. `run` <it> ünd see");
    let empty = stage.issue("Without words", "");
    assert_eq!(forge.read_issue(&empty).await.unwrap().body, "");

    let nowhere = IssueRef { repo: "no-such-repository".to_owned(), ..issue.clone() };
    for missing in [IssueRef { number: 9_999_999, ..issue.clone() }, nowhere] {
        let error = forge.read_issue(&missing).await.unwrap_err();
        assert!(matches!(error, ForgeError::FindIssue { .. }), "{error}");
        assert_eq!((error.reason(), error.retryable()), (Some(Reason::InvalidTask), false));
        assert!(error.to_string().contains(&missing.to_string()), "{error}");
    }
    let mark = marker(&"conformance-3".into());
    stage.branch("ai/three");
    let opened = forge.open_pull_request(&draft("ai/three", &mark)).await.unwrap().unwrap();
    let pull_request = IssueRef { number: opened.number, ..issue };
    let error = forge.read_issue(&pull_request).await.unwrap_err();
    assert!(matches!(error, ForgeError::FindIssue { .. }), "{error}");
}
