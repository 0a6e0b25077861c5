//! The four steps of a task, in the order in which they run.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// One step of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepName {
    /// The agent reads the repository and writes a plan; changes nothing.
    Plan,
    /// The agent changes the work tree; the runner commits and pushes.
    Implement,
    /// The test command runs without any model; its exit code is the verdict.
    Test,
    /// Title and body are written; the gateway opens the pull request.
    PullRequest,
}

impl StepName {
    /// All steps in running order.
    pub const ALL: [Self; 4] = [Self::Plan, Self::Implement, Self::Test, Self::PullRequest];

    /// The name used in specs, labels and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Implement => "implement",
            Self::Test => "test",
            Self::PullRequest => "pull-request",
        }
    }

    /// Short form for object names, where every character counts.
    pub fn short(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Implement => "impl",
            Self::Test => "test",
            Self::PullRequest => "pr",
        }
    }

    /// Position from 1, as shown in `status.currentStep`.
    pub fn number(self) -> i32 {
        match self {
            Self::Plan => 1,
            Self::Implement => 2,
            Self::Test => 3,
            Self::PullRequest => 4,
        }
    }

    /// The step that follows once this one has ended well; none after the last.
    pub fn next(self) -> Option<Self> {
        match self {
            Self::Plan => Some(Self::Implement),
            Self::Implement => Some(Self::Test),
            Self::Test => Some(Self::PullRequest),
            Self::PullRequest => None,
        }
    }

    /// Whether the step may push commits; the others get a read-only grant.
    pub fn may_push(self) -> bool {
        matches!(self, Self::Implement)
    }

    /// Whether the step may call the model. The test step never does.
    pub fn may_call_model(self) -> bool {
        !matches!(self, Self::Test)
    }
}

impl fmt::Display for StepName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A step name that this version does not know.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("unknown step {0:?}; known are plan, implement, test, pull-request")]
pub struct UnknownStep(pub String);

impl FromStr for StepName {
    type Err = UnknownStep;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|step| step.as_str() == text)
            .ok_or_else(|| UnknownStep(text.to_owned()))
    }
}
