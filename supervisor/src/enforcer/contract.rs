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

/// Asks what has been counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CountQuestion {
    /// [`VERSION`] of the sender.
    pub version: u32,
    /// Nothing but true makes sense; it tells the question from an order.
    pub count: bool,
}

/// Asks how much of what a pod has sent was dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DropQuestion {
    /// [`VERSION`] of the sender.
    pub version: u32,
    /// The pod's uid.
    pub dropped_of: String,
}

/// The answer to a [`DropQuestion`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DropCount {
    /// Packets since the pod's rules were made.
    pub dropped: u64,
}

/// What an enforcer has counted since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Counts {
    /// Pods whose rules are in place now.
    pub pods: u64,
    /// Orders that were carried out.
    pub closed: u64,
    /// Orders that could not be carried out at that moment.
    pub delayed: u64,
    /// Orders that cannot be.
    pub refused: u64,
    /// When the last order was carried out, in seconds since 1970; 0 before the first.
    pub last_closed_seconds: i64,
    /// Packets of pods that were dropped.
    pub dropped_from: u64,
    /// Packets to pods that were dropped.
    pub dropped_to: u64,
    /// Looks for rules of gone devices that failed.
    pub failed_sweeps: u64,
    /// Connections of others than the supervisor.
    pub foreign: u64,
}

/// The answer to a [`CountQuestion`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counted {
    /// What was counted.
    pub counts: Counts,
}

/// The answer to a [`CloseOrder`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "answer")]
pub enum Answer {
    /// The rules are in place.
    Closed {
        /// The device that they hang on.
        device: String,
        /// Its index; none from an enforcer of before it told.
        #[serde(default)]
        index: Option<u32>,
        /// Whether the pod had none before: where they were in place once, somebody took them away.
        #[serde(default)]
        anew: bool,
    },
    /// There are none.
    NotClosed {
        /// Why, for people.
        message: String,
        /// Whether the same order may succeed later.
        retryable: bool,
    },
}
