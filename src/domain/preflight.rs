//! Preflight: what can be found out about a task before its first pod and its first model call.
//!
//! A node's gateway asks the task's upstreams with the task's own credentials. Nothing of it is kept
//! on the node, so an order may be repeated at any time and a lost answer is simply asked for again.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{Epoch, TaskRef, TaskUid, assignment::Repository, outcome::UnknownName};

/// Names one order. A report that names another one is late news and dropped.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PreflightKey {
    /// The task.
    pub task: TaskUid,
    /// Generation of the spec that was looked at.
    pub generation: i64,
    /// Term of the controller that asks.
    pub epoch: Epoch,
    /// Number within the term.
    pub serial: u64,
}

/// What is to be found out. Carries no credential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PreflightOrder {
    /// Names the order.
    pub key: PreflightKey,
    /// The task's namespace; mirrors are not shared between namespaces.
    pub namespace: String,
    /// The task.
    pub task: TaskRef,
    /// The repository as the first step will have it.
    pub repository: Repository,
    /// Whether a test command has to be found in the repository.
    pub needs_test_command: bool,
    /// Whether the model's key has to be accepted.
    pub needs_model: bool,
}

/// What was found out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PreflightReport {
    /// The order that it answers.
    pub key: PreflightKey,
    /// What stands in the way, most fundamental first; empty: nothing.
    pub findings: Vec<Finding>,
    /// What was seen besides, for people.
    pub notes: Vec<String>,
}

/// One thing that stands in the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What kind of thing.
    pub problem: Problem,
    /// What was asked and what the upstream answered, in its own words; never holds a credential.
    pub message: String,
}

/// Declares [`Problem`] with the remedy of each in one table.
macro_rules! problems {
    ($($(#[doc = $meaning:literal])+ $name:ident => $remedy:literal),+ $(,)?) => {
        /// Why a task cannot start. The names are reasons of the condition `Preflighted`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Problem {
            $($(#[doc = $meaning])+ $name,)+
        }

        impl Problem {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The reason as written in the condition.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)+ }
            }

            /// What it means, as a sentence.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($meaning),+).trim_ascii(),)+ }
            }

            /// What puts it right.
            pub const fn remedy(self) -> &'static str {
                match self { $(Self::$name => $remedy,)+ }
            }
        }
    };
}

problems! {
    /// The clone URL or a branch name cannot be used at all.
    RepositoryInvalid => "create the task anew with a plain http(s) clone URL and branch names that git accepts",
    /// 404: no such repository, or none that the credential may see.
    RepositoryMissing => "create the repository, or give the token of gitCredentialsRef access to it",
    /// The repository answers with a redirect, which would take the credential elsewhere.
    RepositoryMoved => "create the task anew with the repository's present URL",
    /// 401, or 403 for reading.
    GitCredentialsRejected => "put a valid token that may read and write the repository into the Secret of gitCredentialsRef",
    /// The base branch does not exist.
    BaseBranchMissing => "create the branch, or create the task anew with an existing repository.branch",
    /// Work branch and own name with suffix both belong to somebody else, or another branch leaves no room for them.
    WorkBranchTaken => "delete or rename a branch that the message names, or create the task anew with another repository.workBranch",
    /// Reading is allowed, writing is not.
    PushNotAllowed => "give the token of gitCredentialsRef the right to write to the repository",
    /// The model API does not accept the key.
    ModelKeyRejected => "put a valid key into the Secret of anthropicApiKeyRef",
    /// Nothing says how to test the repository.
    TestCommandMissing => "add tests to the base branch, or create the task anew with spec.test.command or spec.test.onUnverifiable: Proceed",
    /// Model or forge is down, slow, or limits the rate.
    ProviderUnavailable => "nothing need be done if it passes; otherwise look at the named server and at the network of the node",
    /// The node could not find out.
    NodeTrouble => "nothing need be done if it passes; otherwise look at the logs of the node's supervisor pod",
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Problem {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .iter()
            .copied()
            .find(|problem| problem.as_str() == text)
            .ok_or_else(|| UnknownName { what: "preflight problem", name: text.to_owned() })
    }
}
