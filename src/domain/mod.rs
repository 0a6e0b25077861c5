//! Domain types: no kube, tonic or tokio in here.

pub mod assignment;
pub mod commit_text;
pub mod detect;
pub mod duration;
pub mod event;
pub mod ids;
pub mod limits;
pub mod names;
pub mod omitted;
pub mod outcome;
pub mod preflight;
pub mod report;
pub mod secret;
pub mod start_fault;
pub mod step;
pub mod stream;
pub mod text;
pub mod usage;

pub use assignment::Assignment;
pub use duration::GoDuration;
pub use ids::{Attempt, Epoch, NodeName, RunKey, RunRef, RunUid, TaskRef, TaskUid};
pub use outcome::{Budget, Reason, RunPhase};
pub use preflight::{PreflightKey, PreflightOrder, PreflightReport};
pub use secret::{Credential, Secret};
pub use start_fault::{StartFault, StartTrouble};
pub use step::StepName;
pub use usage::Usage;
