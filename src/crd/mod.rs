//! The custom resources of group `agents.wearn.dev/v1alpha1`.
//!
//! Optional settings have no schema default on purpose: the controller resolves task, then chart
//! value, and records the result in `AgentRun.spec`, so a defaulted value never looks chosen.

// kube's derive emits a `pub` twin of each validated struct inside a private scope, and its columns
// repeat the same keys.
#[allow(unreachable_pub, clippy::duplicated_attributes)]
pub mod agent_run;
#[allow(unreachable_pub, clippy::duplicated_attributes)]
pub mod coding_task;
pub mod conditions;
pub mod definitions;
pub mod quantity;
mod rules;
#[allow(unreachable_pub)]
pub mod shared;

pub use agent_run::{AgentRun, AgentRunSpec, AgentRunStatus};
pub use coding_task::{CodingTask, CodingTaskSpec, CodingTaskStatus};
pub use definitions::all_crds;
pub use quantity::QuantityText;
