//! Where a follower stands: opaque to clients, valid across runs and channels.

use std::{fmt, str::FromStr};

use agent_operator::domain::RunUid;

/// First part of every cursor; another form gets another number.
const VERSION: &str = "1";

/// Longest cursor that is read: a uid, two offsets, two phases.
const CURSOR_BYTES_MAX: usize = 512;

/// A position behind an event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    /// The run; none before the first.
    pub(super) run: Option<RunUid>,
    /// Offset in its log.
    pub(super) log: u64,
    /// Offset in its events.
    pub(super) events: u64,
    /// Its phase as last told.
    pub(super) run_phase: String,
    /// The task's phase as last told.
    pub(super) task_phase: String,
}

/// The text is not a cursor of ours.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("cursor is not one that this service made")]
pub(super) struct BadCursor;

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let run = self.run.as_ref().map_or("", RunUid::as_str);
        write!(
            f,
            "{VERSION}.{run}.{}.{}.{}.{}",
            self.log, self.events, self.run_phase, self.task_phase
        )
    }
}

impl FromStr for Cursor {
    type Err = BadCursor;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > CURSOR_BYTES_MAX {
            return Err(BadCursor);
        }
        let parts: Vec<&str> = text.split('.').collect();
        let [VERSION, run, log, events, run_phase, task_phase] = parts[..] else {
            return Err(BadCursor);
        };
        let number = |text: &str| text.parse().map_err(|_| BadCursor);
        Ok(Self {
            run: (!run.is_empty()).then(|| run.into()),
            log: number(log)?,
            events: number(events)?,
            run_phase: run_phase.to_owned(),
            task_phase: task_phase.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_round_trip() {
        let full = Cursor {
            run: Some("0a-1".into()),
            log: 5,
            events: u64::MAX,
            run_phase: "Running".into(),
            task_phase: "Planning".into(),
        };
        for cursor in [Cursor::default(), full] {
            assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["x", "2..0.0..", "1..0.0.", "1..-1.0..", "1..0.0...x", &"1.".repeat(600)] {
            assert_eq!(text.parse::<Cursor>(), Err(BadCursor), "{text}");
        }
    }
}
