//! Generated gRPC bindings of `proto/agentoperator/v1`, their descriptor set and the wire version.
//!
//! These types stop at `convert` and the gRPC edges of controller and supervisor.

/// Messages and services of package `agentoperator.v1`.
#[allow(missing_docs, unreachable_pub, clippy::pedantic, clippy::all)]
pub mod v1 {
    tonic::include_proto!("agentoperator.v1");
}

/// The compiled descriptor set: for server reflection, and for the test that walks every RPC.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Wire version: another major is refused in Hello.
pub const PROTOCOL_MAJOR: u32 = 1;
/// Wire version: minors may differ by one. 1: preflights; 2: attempts that are held at their gate.
pub const PROTOCOL_MINOR: u32 = 2;
/// Nodes below this minor cannot be asked for a preflight.
pub const PREFLIGHT_MINOR: u32 = 1;
/// Nodes below this minor would begin what they are told to hold.
pub const HOLD_MINOR: u32 = 2;
