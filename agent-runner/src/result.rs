//! How a step ends: reason, message, exit code and facts.

use agent_operator::{
    attempt::StepResult,
    domain::{
        Reason, StartFault, Usage,
        limits::MESSAGE_BYTES_MAX,
        report::StepFacts,
        text::{printable, truncate},
    },
};

use crate::stop::Stopping;

/// A step that cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub(crate) struct Failure {
    /// Why.
    pub(crate) reason: Reason,
    /// One sentence for people.
    pub(crate) message: String,
    /// Exit code, where a child's decides.
    pub(crate) exit_code: Option<i32>,
    /// What kept the step from starting, where it has a word.
    pub(crate) start_fault: Option<StartFault>,
}

impl Failure {
    /// A failure with the exit code that belongs to its reason.
    pub(crate) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), exit_code: None, start_fault: None }
    }

    /// A step that cannot start: no attempt is used, and it starts once the cause is mended.
    pub(crate) fn unstarted(fault: StartFault, message: impl Into<String>) -> Self {
        Self { start_fault: Some(fault), ..Self::new(Reason::Unstarted, message) }
    }

    /// A failure with a child's exit code.
    pub(crate) fn with_exit_code(
        reason: Reason,
        message: impl Into<String>,
        exit_code: i32,
    ) -> Self {
        Self { exit_code: Some(exit_code), ..Self::new(reason, message) }
    }
}

impl From<Stopping> for Failure {
    fn from(stopping: Stopping) -> Self {
        Self::new(stopping.reason, stopping.message)
    }
}

/// What a step came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StepEnd {
    /// Why it ended.
    pub(crate) reason: Reason,
    /// One sentence for people.
    pub(crate) message: String,
    /// Exit code of the runner.
    pub(crate) exit_code: i32,
    /// What it produced.
    pub(crate) facts: StepFacts,
    /// What the agent says it used.
    pub(crate) reported_usage: Usage,
    /// What kept it from starting, where it has a word.
    pub(crate) start_fault: Option<StartFault>,
}

impl StepEnd {
    /// A step that ended well.
    pub(crate) fn completed(message: impl Into<String>, facts: StepFacts) -> Self {
        Self {
            reason: Reason::Completed,
            message: message.into(),
            exit_code: 0,
            facts,
            reported_usage: Usage::default(),
            start_fault: None,
        }
    }

    /// A stop order decides over everything but a step that had ended well already.
    pub(crate) fn stopped_by(self, order: Option<Stopping>) -> Self {
        match order {
            Some(stopping) if self.reason != Reason::Completed => Self {
                facts: self.facts,
                reported_usage: self.reported_usage,
                ..Failure::from(stopping).into()
            },
            _ => self,
        }
    }

    /// The form that is sent; everything from the sandbox is cut and cleaned here.
    pub(crate) fn into_result(self, events: u64, printed: u64) -> StepResult {
        let message = printable(&self.message);
        StepResult {
            reason: self.reason,
            message: truncate(message.trim(), MESSAGE_BYTES_MAX).to_owned(),
            exit_code: self.exit_code,
            start_fault: self.start_fault,
            facts: self.facts,
            reported_usage: self.reported_usage,
            events,
            printed: Some(printed),
        }
    }
}

impl From<Failure> for StepEnd {
    fn from(failure: Failure) -> Self {
        // A failure must never look like success from outside.
        let child = failure.exit_code.filter(|code| *code != 0);
        Self {
            exit_code: child.unwrap_or_else(|| exit_code_of(failure.reason)),
            reason: failure.reason,
            message: failure.message,
            facts: StepFacts::default(),
            reported_usage: Usage::default(),
            start_fault: failure.start_fault,
        }
    }
}

/// Exit code of the runner where no child's decides. If the report is lost, the code alone speaks:
/// so a stop differs from a failure, and both from the 137 of a killed container.
pub(crate) fn exit_code_of(reason: Reason) -> i32 {
    match reason {
        Reason::Completed => 0,
        // As `timeout` has it.
        Reason::TimedOut => 124,
        // 128 + SIGTERM.
        Reason::Cancelled | Reason::Deleted | Reason::Disrupted | Reason::BudgetExceeded => 143,
        // EX_TEMPFAIL and EX_CONFIG of sysexits.h.
        Reason::ProviderUnavailable | Reason::Unstarted => 75,
        Reason::InvalidTask | Reason::Unverifiable => 78,
        Reason::AgentFailed
        | Reason::VerifyFailed
        | Reason::NoChanges
        | Reason::PushRefused
        | Reason::OOMKilled
        | Reason::ExitCodeUnknown => 1,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_completed_exits_with_0() {
        for reason in Reason::ALL {
            assert_eq!(exit_code_of(*reason) == 0, *reason == Reason::Completed, "{reason}");
            let end = StepEnd::from(Failure::with_exit_code(*reason, "", 0));
            assert!(end.exit_code != 0 || *reason == Reason::Completed);
        }
    }

    #[test]
    fn a_stop_order_decides_unless_the_step_had_ended_well() {
        let order = Stopping {
            reason: Reason::TimedOut,
            message: "late".to_owned(),
            kill_at: Duration::ZERO,
        };
        let failed = StepEnd::from(Failure::with_exit_code(Reason::AgentFailed, "x", 143));
        let end = failed.stopped_by(Some(order.clone()));
        assert_eq!((end.reason, end.exit_code), (Reason::TimedOut, 124));
        let done = StepEnd::completed("done", StepFacts::default());
        assert_eq!(done.clone().stopped_by(Some(order)), done);
    }

    #[test]
    fn messages_are_cut_and_cleaned() {
        let end = StepEnd::from(Failure::new(Reason::AgentFailed, "\u{1b}x".repeat(5000)));
        let result = end.into_result(3, 5);
        assert!(result.message.len() <= MESSAGE_BYTES_MAX);
        assert!(!result.message.contains('\u{1b}'));
        assert_eq!((result.events, result.printed), (3, Some(5)));
    }
}
