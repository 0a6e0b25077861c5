//! The agent pod: made from a template, watched, read, and let go.
//!
//! - [`build`]: assignment > pod (pure).
//! - [`digest`]: pod status > what decides (pure).
//! - [`client`]: the few calls on pods, behind a trait.
//! - [`watch`]: the node's pods as they change.
//! - [`logs`]: the container's log files, read as they are written.
//! - [`cgroup`]: whether anything of a container still runs.

pub mod adoption;
pub mod build;
pub mod cgroup;
pub mod client;
pub mod digest;
pub mod logs;
pub mod watch;
