//! Named limits that more than one process relies on, each with its reason.

use std::time::Duration;

/// Longest prompt: far above any real task text, far below etcd's 1.5 MiB object limit.
pub const PROMPT_BYTES_MAX: usize = 64 * 1024;

/// Longest text kept in a status field (plan, test output): `AgentRun` plus `CodingTask` stay below
/// 100 KiB, so a relist of thousands stays cheap.
pub const OUTPUT_BYTES_MAX: usize = 16 * 1024;

/// Longest human message in a status or condition (Kubernetes caps condition messages at 32768).
pub const MESSAGE_BYTES_MAX: usize = 2 * 1024;

/// Largest payload of one stream chunk: well under gRPC's default receive limit of 4 MiB, small
/// enough that a report never waits long behind one on a slow link.
pub const CHUNK_BYTES_MAX: usize = 256 * 1024;

/// Receive and send limit of every gRPC message on both ends.
pub const GRPC_MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// One agent event line as JSON; longer tool results are cut with a mark.
pub const EVENT_BYTES_MAX: usize = 64 * 1024;

/// Time from assignment to an open gate (image pull included) before a run counts as `Unstarted`.
pub const START_DEADLINE: Duration = Duration::from_mins(5);

/// Time between the order to stop and SIGKILL.
pub const GRACE: Duration = Duration::from_secs(10);

/// Slack added to `activeDeadlineSeconds`, the last resort behind the node's own timers.
pub const DEADLINE_MARGIN: Duration = Duration::from_secs(30);

/// Controller Lease: how long a silent leader keeps its term.
pub const LEASE_DURATION: Duration = Duration::from_secs(5);

/// Silence after which a node's session counts as lost.
pub const NODE_LEASE: Duration = Duration::from_secs(15);

/// Interval of heartbeats and write permits on the session: a third of the Lease.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(1500);

/// How long a supervisor shows its token again (its own lifetime is 10 minutes).
pub const TOKEN_RENEWAL: Duration = Duration::from_mins(5);

/// Infrastructure retries of a task before it fails.
pub const INFRASTRUCTURE_RETRIES: u32 = 3;

/// How long a task waits for an unavailable provider before it fails.
pub const PROVIDER_BUDGET: Duration = Duration::from_hours(2);

/// How long a client in the sandbox retries its gateway before it gives up.
pub const GATEWAY_RETRY: Duration = Duration::from_mins(1);

/// Kubernetes' limit for label values and for names used as such.
pub const LABEL_BYTES_MAX: usize = 63;
