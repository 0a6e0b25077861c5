//! How a run ended, and which retry budget that uses (`reliability`: one reason, one budget).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Phase of a run. `Succeeded` and `Failed` are terminal and never change.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub enum RunPhase {
    /// Created; its pod does not run yet.
    #[default]
    Pending,
    /// The start gate has opened.
    Running,
    /// Ended well.
    Succeeded,
    /// Ended, with a [`Reason`].
    Failed,
    /// Its node is silent or its pod cannot be killed: not terminal, slot not reused.
    Unknown,
}

impl RunPhase {
    /// All phases.
    pub const ALL: [Self; 5] =
        [Self::Pending, Self::Running, Self::Succeeded, Self::Failed, Self::Unknown];

    /// The phase as written in status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Unknown => "Unknown",
        }
    }

    /// Whether the phase is final.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

impl fmt::Display for RunPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for RunPhase {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|phase| phase.as_str() == text)
            .ok_or_else(|| UnknownName { what: "run phase", name: text.to_owned() })
    }
}

/// A name from a bounded set that this version does not know.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("unknown {what} {name:?}")]
pub struct UnknownName {
    /// Which set was meant.
    pub what: &'static str,
    /// What was found.
    pub name: String,
}

/// The retry budget that an outcome is charged to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Budget {
    /// `spec.maxRetries`: the agent's or the code's own failure.
    Application,
    /// The controller's count for lost nodes, evictions and the like.
    Infrastructure,
    /// Model or forge not available; long backoff, limited by time.
    Provider,
    /// Placed again elsewhere; no attempt is used.
    Replace,
    /// Nothing is retried; the task ends or waits for a person.
    None,
}

/// Declares [`Reason`] with its name and budget in one table.
macro_rules! reasons {
    ($($(#[$meta:meta])* $name:ident => $budget:ident),+ $(,)?) => {
        /// Why a run ended. The names are part of the API (`AgentRun.status.reason`).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Reason {
            $($(#[$meta])* $name,)+
        }

        impl Reason {
            /// All reasons.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The reason as written in status.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)+ }
            }

            /// The budget that a failure with this reason uses.
            pub fn budget(self) -> Budget {
                match self { $(Self::$name => Budget::$budget,)+ }
            }
        }
    };
}

reasons! {
    /// The step ended well.
    Completed => None,
    /// The agent exited with a code other than 0.
    AgentFailed => Application,
    /// The test command exited with a code other than 0.
    VerifyFailed => Application,
    /// No test command was given or found.
    Unverifiable => None,
    /// The agent ended well but changed nothing.
    NoChanges => Application,
    /// Commit or push was refused (hook, policy, conflict).
    PushRefused => Application,
    /// The step's deadline passed.
    TimedOut => Application,
    /// The container ran out of memory.
    OOMKilled => Application,
    /// Evicted, preempted, drained, node shut down, node fenced, the rules of its closed network taken away.
    Disrupted => Infrastructure,
    /// No exit code is known; never a guess.
    ExitCodeUnknown => Infrastructure,
    /// The pod never ran: not scheduled, refused, image not pulled, gateway down before start.
    Unstarted => Replace,
    /// The task cannot work as it is: unusable credentials, missing branch, image without git.
    InvalidTask => None,
    /// Model or forge answered 5xx, quota or rate limit, or refused the credential.
    ProviderUnavailable => Provider,
    /// The task's token or money budget is used up.
    BudgetExceeded => None,
    /// A person or the controller cancelled the run.
    Cancelled => None,
    /// The run or its pod was deleted from outside.
    Deleted => None,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Reason {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .iter()
            .copied()
            .find(|reason| reason.as_str() == text)
            .ok_or_else(|| UnknownName { what: "reason", name: text.to_owned() })
    }
}
