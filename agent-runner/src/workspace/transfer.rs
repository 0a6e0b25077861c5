//! Fetches and pushes: git calls that talk to the gateway, begun anew when it was away meanwhile.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use agent_operator::domain::limits::GATEWAY_RETRY;

use super::{GitOutput, Workspace};
use crate::{
    attempt::Client,
    clock,
    context::Context,
    result::Failure,
    stop::{Stop, Woken},
};

/// Pause between two tries of a fetch or push.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How often a running transfer asks whether the gateway is there.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);
/// Unanswered questions in a row that make an absence: one alone may be a busy node.
const UNANSWERED_MIN: u32 = 2;
/// Exit code of a git that the runner ended, as git's own `die` has it.
const EXIT_DIED: i32 = 128;

/// Messages of git that mean: the gateway is away for a moment.
const TRANSIENT: [&str; 10] = [
    "error: 502",
    "error: 503",
    "error: 504",
    "error: 429",
    "Failed to connect",
    "Couldn't connect",
    "Connection reset",
    "Empty reply from server",
    // Cut off in mid-transfer; a refusal says `RPC failed; HTTP` instead.
    "RPC failed; curl ",
    "early EOF",
];

impl GitOutput {
    /// Whether the gateway was away, rather than refused.
    pub(super) fn is_transient(&self) -> bool {
        TRANSIENT.iter().any(|words| self.stderr.contains(words))
    }
}

/// What ends a transfer before git does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Absence {
    /// The gateway was away and is back: what is connected to the old one waits for nobody.
    Over,
    /// The gateway has not answered for [`GATEWAY_RETRY`].
    Lasting,
}

/// Asks the gateway while a transfer runs. git itself has no limit for a connection that is being
/// made or stays silent: when the gateway's pod is replaced, it would wait for the old one's address
/// for minutes.
struct Watch<'a> {
    client: &'a Client,
    stop: &'a Stop,
    absence: OnceLock<Absence>,
    ended: AtomicBool,
}

impl<'a> Watch<'a> {
    fn new(client: &'a Client, stop: &'a Stop) -> Self {
        Self { client, stop, absence: OnceLock::new(), ended: AtomicBool::new(false) }
    }

    fn absence(&self) -> Option<Absence> {
        self.absence.get().copied()
    }

    /// Asks until the transfer has ended or is to be given up.
    fn run(&self) {
        let ended = || self.ended.load(Ordering::SeqCst);
        let mut unanswered = 0;
        let mut answered_at = clock::boot_now();
        let absence = loop {
            let next = clock::boot_now() + WATCH_INTERVAL;
            if self.stop.wait_regardless(Some(next), ended) == Woken::Done {
                return;
            }
            if !self.client.is_answered() {
                unanswered += 1;
                if clock::boot_now().saturating_sub(answered_at) >= GATEWAY_RETRY {
                    break Absence::Lasting;
                }
            } else if unanswered >= UNANSWERED_MIN {
                break Absence::Over;
            } else {
                unanswered = 0;
                answered_at = clock::boot_now();
            }
        };
        // Set once, here alone.
        let _ = self.absence.set(absence);
        self.stop.wake();
    }

    fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.stop.wake();
    }
}

impl Workspace {
    /// Runs a git call that talks to the gateway; again while that is away, for as long as its
    /// clients may wait, counted from when it was last there. The step's deadline bounds the rest.
    pub(super) fn transfer(
        &self,
        context: &Context<'_>,
        arguments: &[&str],
    ) -> Result<GitOutput, Failure> {
        let mut until = None;
        loop {
            let (output, absence) = self.watched(context, arguments)?;
            let now = clock::boot_now();
            if output.exit_code == 0 {
                return Ok(output);
            }
            let again = match absence {
                Some(Absence::Lasting) => return Ok(gone()),
                Some(Absence::Over) => {
                    until = None;
                    true
                }
                None => output.is_transient() && now < *until.get_or_insert(now + GATEWAY_RETRY),
            };
            if !again {
                return Ok(output);
            }
            if let Woken::Stopping(stopping) = context.stop.wait(Some(now + RETRY_PAUSE), || false)
            {
                return Err(stopping.into());
            }
        }
    }

    fn watched(
        &self,
        context: &Context<'_>,
        arguments: &[&str],
    ) -> Result<(GitOutput, Option<Absence>), Failure> {
        let watch = Watch::new(context.client, context.stop);
        thread::scope(|scope| {
            scope.spawn(|| watch.run());
            let given_up = || watch.absence().is_some();
            let output = self.git_unless(context, arguments, b"", &given_up);
            watch.end();
            Ok((output?, watch.absence()))
        })
    }
}

/// What a transfer says whose gateway went and did not come back.
fn gone() -> GitOutput {
    let stderr = format!("Failed to connect: no answer for {} s", GATEWAY_RETRY.as_secs());
    GitOutput { exit_code: EXIT_DIED, stdout: String::new(), stderr }
}

#[cfg(test)]
mod tests;
