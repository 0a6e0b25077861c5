//! The controller's deciding side on a real API server, with scripted nodes instead of supervisors.

use std::{io, sync::Mutex, time::Duration};

use agent_operator::crd::CodingTask;
use serde::de::DeserializeOwned;
use serde_json::Value;

#[path = "support/controller.rs"]
mod controller;
#[path = "support/fleet.rs"]
mod fleet;
#[path = "support/ground.rs"]
mod ground;

pub use controller::Controller;
pub use fleet::{Fleet, Script, all_well, hang_at, outcome};
pub use ground::{Ground, ground};

/// How long something may take that happens in the background.
const LIMIT: Duration = Duration::from_secs(30);

/// What has been logged; the audit always is.
static LOGGED: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// Keeps what is logged, and shows it with a test that fails.
struct Log;

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOGGED.lock().unwrap().extend_from_slice(bytes);
        eprint!("{}", String::from_utf8_lossy(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Audit records of one act for the runs of a task.
pub fn audited(task: &CodingTask, act: &str) -> Vec<Value> {
    let logged = String::from_utf8(LOGGED.lock().unwrap().clone()).unwrap();
    let lines = logged.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let uid = task.metadata.uid.as_deref().unwrap();
    lines
        .filter(|line| line["target"] == "audit" && line["act"] == act && line["task_uid"] == uid)
        .collect()
}

pub fn from_json<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// Repeats `attempt` until it gives something, within a limit.
pub async fn eventually<T>(what: &str, mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let repeat = async {
        loop {
            if let Some(result) = attempt().await {
                return result;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LIMIT, repeat).await.unwrap_or_else(|_| panic!("not in {LIMIT:?}: {what}"))
}
