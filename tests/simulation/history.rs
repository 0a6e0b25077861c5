//! Everything that matters of a run of the simulation, in the order in which it happened.

use std::{
    fmt::Write as _,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

/// One attempt: run uid and number.
pub type Attempt = (String, u32);

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// A sandbox began to run.
    PodStarted { task: String, step: String, run: Attempt, pod: String, node: String },
    /// Nothing of it runs any more. The code is the runtime's; none after a loss of power.
    PodEnded { pod: String, run: Attempt, code: Option<i32> },
    /// The runner has reported this code to the gateway.
    Reported { run: Attempt, code: i32 },
    /// The record of a run stands in the API server. The code is that of the record.
    RunRecorded { run: String, phase: String, reason: String, code: Option<i32> },
    /// The phase of a task stands there.
    TaskRecorded { task: String, phase: String },
    /// A task is gone.
    TaskGone { task: String },
    /// A retry was recorded: application, infrastructure.
    Retries { task: String, application: i64, infrastructure: i64 },
    /// Something was written, by whom and to what. Leases and events are left out.
    Written { by: String, verb: String, object: String },
    /// A commit was published upstream.
    Published { task: String, run: Attempt },
    /// A pull request was opened.
    PullRequest { task: String, number: i64 },
    /// A fault was injected.
    Fault(String),
    /// From here on there are no faults.
    Calm,
    /// From here on nothing may be written.
    Converged,
}

/// An entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Event {
    /// Milliseconds since the beginning.
    pub at: u64,
    /// What happened.
    pub what: What,
}

/// The whole of it.
#[derive(Clone, Debug, Default)]
pub struct History(pub Vec<Event>);

impl History {
    /// A number that differs where histories do.
    pub fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.0.hash(&mut hasher);
        hasher.finish()
    }

    /// One line for each entry.
    pub fn text(&self) -> String {
        self.0.iter().fold(String::new(), |mut text, event| {
            let _ = writeln!(text, "{:>9.3} {:?}", f64_seconds(event.at), event.what);
            text
        })
    }
}

fn f64_seconds(millis: u64) -> f64 {
    std::time::Duration::from_millis(millis).as_secs_f64()
}
