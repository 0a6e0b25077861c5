//! The contract between supervisor and enforcer: one connection carries one order and its answer, each
//! a line of JSON. Orders are idempotent, so a lost answer is asked for again.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// Version of this contract; an order of another one is refused.
pub const VERSION: u32 = 1;
/// Longest line: an order has a handful of addresses.
pub const LINE_BYTES_MAX: u64 = 16 * 1024;
/// Most gateways of one order: Service and pod, in two families.
pub const GATEWAYS_MAX: usize = 4;

/// Closes a pod's network but for its gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CloseOrder {
    /// [`VERSION`] of the sender.
    pub version: u32,
    /// The pod's uid.
    pub pod_uid: String,
    /// The address that redeemed the pod's token.
    pub pod_ip: IpAddr,
    /// Interface index of the pod's peer on the host, by the runner: must agree with what the kernel
    /// says about `pod_ip`.
    pub iflink: Option<u32>,
    /// Where the gateway is reached: its Service's address, and its pod's where the network
    /// translates before the veth.
    pub gateways: Vec<SocketAddr>,
}

/// The answer to a [`CloseOrder`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "answer")]
pub enum Answer {
    /// The rules are in place.
    Closed {
        /// The device that they hang on.
        device: String,
    },
    /// There are none.
    NotClosed {
        /// Why, for people.
        message: String,
        /// Whether the same order may succeed later.
        retryable: bool,
    },
}
