//! Condition types and reasons: what programs read. The phase is a summary for people.

/// The task is valid and its namespace is enabled.
pub const ACCEPTED: &str = "Accepted";
/// Everything that can be checked before the first model call holds.
pub const PREFLIGHTED: &str = "Preflighted";
/// The present step has a node.
pub const SCHEDULED: &str = "Scheduled";
/// `spec.suspend` holds the task.
pub const SUSPENDED: &str = "Suspended";
/// The task has ended, well or not.
pub const FINISHED: &str = "Finished";
/// The task has ended well.
pub const SUCCEEDED: &str = "Succeeded";
/// The run's pod runs (on an `AgentRun`). False while something keeps it from starting, with a
/// `StartFault` as reason; left out where nothing did.
pub const STARTED: &str = "Started";
/// The kubelet's record of an exit differs from the runner's report (on an `AgentRun`).
pub const EXIT_MISMATCH: &str = "ExitMismatch";

/// Reasons of [`ACCEPTED`] being false.
pub mod accepted {
    /// The namespace is not among the chart's `taskNamespaces`.
    pub const NAMESPACE_NOT_ENABLED: &str = "NamespaceNotEnabled";
    /// A Secret or its key is missing.
    pub const SECRET_MISSING: &str = "SecretMissing";
    /// A Secret may not be sent to the host that the task names.
    pub const HOST_NOT_ALLOWED: &str = "HostNotAllowed";
    /// A field is wrong in a way that the schema cannot see.
    pub const INVALID: &str = "Invalid";
    /// Reason when true.
    pub const ACCEPTED: &str = "Accepted";
}

/// Reasons of [`SCHEDULED`] being false.
pub mod scheduled {
    /// No connected node fits.
    pub const NO_CAPACITY: &str = "NoCapacity";
    /// No supervisor is connected.
    pub const NO_NODES: &str = "NoNodes";
    /// The run's node is silent and not fenced.
    pub const NODE_UNKNOWN: &str = "NodeUnknown";
    /// Reason when true.
    pub const ASSIGNED: &str = "Assigned";
}
