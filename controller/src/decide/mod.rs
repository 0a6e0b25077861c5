//! The controller's decisions: pure functions of what was observed and of the time.
//!
//! The same observation gives the same [`Plan`]; there is no clock, randomness, I/O or Kubernetes
//! client in here. A task's state is not stored anywhere: it is replayed from its runs, so that a
//! controller that was killed at any line comes to the same conclusion as one that was not.

pub mod deadline;
pub mod invariants;
mod message;
pub mod observed;
pub mod placement;
pub mod preflight;
pub mod prepare;
pub mod progress;
pub mod release;
pub mod resolve;
pub mod retry;
pub mod run;
pub mod status;
pub mod task;

pub use observed::{
    Amounts, CredentialState, Delivery, NodeFacts, Observed, PreflightAnswer, PreflightAsked,
    PreflightView, RunView, Taint, TaskView, Used,
};
pub use release::{HeldPod, RunFate, releases};
pub use task::decide;
