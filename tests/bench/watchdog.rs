//! Ends a bench that hangs, by name: whoever waits for the table is told which one it was and what its threads did.

use std::{
    fs,
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread,
};

use crate::measure::Scale;

/// Watches until it is dropped.
pub struct Watchdog {
    _over: Sender<()>,
}

impl Watchdog {
    /// Ends the process with 1 when the bench is not over within the limit of its scale. What it has started is left to
    /// whoever has started the process.
    pub fn start(name: &'static str, scale: Scale) -> Self {
        let (over, heard) = mpsc::channel();
        let limit = scale.limit();
        thread::spawn(move || {
            if heard.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                eprintln!("{name} is not over after {limit:?}; its threads:\n{}", threads());
                std::process::exit(1);
            }
        });
        Self { _over: over }
    }
}

/// Name, state and hundredths of a second of each thread, as the kernel tells them.
fn threads() -> String {
    let all = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let stats = all.filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok());
    stats.filter_map(|stat| line(&stat)).collect::<Vec<_>>().join("\n")
}

/// Fields are counted after the name, which may have spaces: `proc_pid_stat(5)`.
fn line(stat: &str) -> Option<String> {
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    let fields: Vec<_> = rest.split_whitespace().collect();
    Some(format!("{name}: {}, {} + {}", fields.first()?, fields.get(11)?, fields.get(12)?))
}
