//! One file per scenario; each test makes its own tasks and can run beside the others.

mod agent_images;
mod confinement;
mod credentials;
mod deletion;
mod egress;
mod exit_records;
mod follow;
mod issues;
mod many_tasks;
mod preflight;
mod prepared;
mod quarantine;
mod release;
mod retries;
mod rotation;
mod sample;
mod secret_rotation;
pub(crate) mod start_faults;
mod timeout;
