//! One attempt from its assignment to its recorded end.
//!
//! - [`moment`]: points in time that survive a restart.
//! - [`record`]: what the journal keeps, and the pure fold that rebuilds an attempt from it.
//! - [`hindrance`]: what keeps a pod from running, told from the servers' words (pure).
//! - [`egress`]: whether a step's network is closed, and what follows for its gate (pure).
//! - [`event`]: what can happen to an attempt, and what the machine wants done.
//! - [`verdict`]: how an attempt ended (pure).
//! - [`machine`]: the state machine (pure).
//! - [`stranger`]: what becomes of an attempt that the ledger has lost (pure).
//! - [`deadline`]: timers on the boot-time clock.
//! - [`guard`]: deadlines that hold when runner, runtime and disk hang.
//! - [`runner`]: the one place that owns ledger and machines.
//! - [`workers`]: carries effects out on pods, streams and cgroups.

pub mod deadline;
pub mod egress;
pub mod event;
pub mod guard;
pub mod hindrance;
pub mod machine;
pub mod moment;
pub mod record;
pub mod runner;
pub mod stranger;
pub mod verdict;
pub mod workers;
