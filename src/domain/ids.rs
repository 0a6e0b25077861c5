//! A newtype for every identifier, so that swapped arguments do not compile.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Declares a string newtype with the conversions every identifier needs.
macro_rules! string_id {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Wraps `value` as it is; callers at the edges have checked it.
            pub fn new(value: impl Into<String>) -> Self {
                Self(value.into())
            }

            /// The identifier as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(value: &str) -> Self {
                Self(value.to_owned())
            }
        }

        impl From<String> for $name {
            fn from(value: String) -> Self {
                Self(value)
            }
        }
    };
}

string_id! {
    /// `metadata.uid` of an `AgentRun`: names one attempt at one step for ever.
    RunUid
}
string_id! {
    /// `metadata.uid` of a `CodingTask`.
    TaskUid
}
string_id! {
    /// `metadata.name` of a Kubernetes node.
    NodeName
}
string_id! {
    /// Identity of one process start of a supervisor; new at each start.
    InstanceId
}
string_id! {
    /// `/proc/sys/kernel/random/boot_id`: boot-time clock readings compare only within one.
    BootId
}
string_id! {
    /// `metadata.uid` of the agent pod.
    PodUid
}

/// Serial number of a run within (task, step), from 1; never restarts.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Attempt(pub u32);

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number of a controller's term; higher at every start and hand-over. Fences stale leaders.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What every command, report and grant is keyed by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunKey {
    /// The run.
    pub uid: RunUid,
    /// Its attempt number; redundant with the uid, checked all the same.
    pub attempt: Attempt,
}

impl fmt::Display for RunKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.uid, self.attempt)
    }
}

/// A run as an object of the API server.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunRef {
    /// Namespace of the `AgentRun` (and of its task and pod).
    pub namespace: String,
    /// Name of the `AgentRun`.
    pub name: String,
    /// Its uid.
    pub uid: RunUid,
}

/// A task as an object of the API server.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskRef {
    /// Name of the `CodingTask`; it lives in the run's namespace.
    pub name: String,
    /// Its uid.
    pub uid: TaskUid,
}
