//! What an ended run did and was refused, as events: so that `kubectl describe agentrun` tells it in
//! short. The records themselves are audit lines.

use agent_operator::crd::{AgentRunStatus, agent_run::RefusalStatus};

/// Most refusals that an event names; the status has all.
const NAMED_MAX: usize = 8;

/// An event about a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Act {
    /// CamelCase word.
    pub(super) reason: &'static str,
    /// Whether somebody should look.
    pub(super) warning: bool,
    /// A sentence.
    pub(super) note: String,
}

/// The events of a run of `step` that ended with `status`.
pub(super) fn acts(step: &str, status: &AgentRunStatus) -> Vec<Act> {
    let mut acts = Vec::new();
    // Only the implement step moves the branch; later ones report where it is.
    if let (Some(branch), Some(commit), "implement") =
        (&status.work_branch, &status.head_commit, step)
    {
        let note = format!("work branch {branch} was pushed to {commit}");
        acts.push(Act { reason: "Pushed", warning: false, note });
    }
    if let Some(request) = &status.pull_request {
        let note = format!("pull request {} is open", request.url);
        acts.push(Act { reason: "PullRequestOpened", warning: false, note });
    }
    if !status.refusals.is_empty() {
        acts.push(Act { reason: "Refused", warning: true, note: refused(&status.refusals) });
    }
    acts
}

fn refused(refusals: &[RefusalStatus]) -> String {
    let count: i64 = refusals.iter().map(|one| one.count).fold(0, i64::saturating_add);
    let named: Vec<_> = refusals
        .iter()
        .take(NAMED_MAX)
        .map(|one| format!("{} {} ({})", one.kind, one.target, one.count))
        .collect();
    let more = match refusals.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more in status.refusals"),
    };
    format!("the gateway refused {count} requests of the sandbox: {}{more}", named.join(", "))
}

#[cfg(test)]
mod tests {
    use agent_operator::crd::shared::PullRequestStatus;

    use super::*;

    fn refusal(target: &str) -> RefusalStatus {
        RefusalStatus { kind: "egress".to_owned(), target: target.to_owned(), count: 2 }
    }

    fn status() -> AgentRunStatus {
        AgentRunStatus {
            work_branch: Some("ai/x".to_owned()),
            head_commit: Some("c0ffee".to_owned()),
            ..AgentRunStatus::default()
        }
    }

    #[test]
    fn a_push_is_told_of_the_step_that_pushed_alone() {
        let told = acts("implement", &status());
        assert_eq!(told.len(), 1);
        assert_eq!((told[0].reason, told[0].warning), ("Pushed", false));
        assert_eq!(told[0].note, "work branch ai/x was pushed to c0ffee");
        assert_eq!(acts("test", &status()), []);
    }

    #[test]
    fn a_pull_request_and_refusals_are_told_and_long_lists_are_cut() {
        let request = PullRequestStatus { url: "https://f/o/r/pull/3".to_owned(), number: 3 };
        let refusals: Vec<_> = (0..20).map(|n| refusal(&format!("h{n}.example:443"))).collect();
        let status = AgentRunStatus { pull_request: Some(request), refusals, ..status() };
        let told = acts("pull-request", &status);
        let reasons: Vec<_> = told.iter().map(|act| act.reason).collect();
        assert_eq!(reasons, ["PullRequestOpened", "Refused"]);
        let note = &told[1].note;
        assert!(told[1].warning && note.starts_with("the gateway refused 40 requests"), "{note}");
        assert!(
            note.contains("egress h0.example:443 (2)")
                && note.ends_with("12 more in status.refusals")
        );
    }
}
