//! The node's gateway: the only thing that a sandbox can reach, and the only holder of credentials.

pub mod git;
pub mod permit;
pub mod upstream;
