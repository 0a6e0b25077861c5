//! What a follower is told, event by event. The cursor moves with each one.

use agent_operator::{
    convert::wire_timestamp,
    domain::{
        RunUid,
        event::EventRecord,
        stream::{Channel, Gap},
        text,
    },
    proto::v1,
};
use jiff::Timestamp;
use v1::step_event::Event;

use super::{Follower, Line, Stop, Target};
use crate::catalog::RunView;

/// Reason of a gap for bytes that were there once and are nowhere now.
const NOT_RETAINED: &str = "NotRetained";

/// Type of an event record that is not one; its text is shown as it came.
const MALFORMED: &str = "malformed";

/// Length up to which a malformed record is shown.
const MALFORMED_BYTES_MAX: usize = 1024;

impl Follower {
    /// The task's phase, if it has one that was not told yet. Ends come with [`Self::tell_end`].
    pub(super) async fn tell_task_phase(&mut self) -> Result<(), Stop> {
        let Some(task) = self.task().filter(|task| !task.finished) else { return Ok(()) };
        if self.cursor.task_phase == task.phase {
            return Ok(());
        }
        self.cursor.task_phase.clone_from(&task.phase);
        let change = phase("task", &task.phase, "", &task.message);
        self.tell(None, None, Event::Phase(change)).await
    }

    /// The run's phase, if it was not told yet.
    pub(super) async fn tell_run_phase(&mut self, run: &RunView) -> Result<(), Stop> {
        if self.cursor.run_phase == run.phase {
            return Ok(());
        }
        self.cursor.run_phase.clone_from(&run.phase);
        let at = if run.is_terminal() { run.completed_at } else { run.started_at };
        let change = phase("run", &run.phase, &run.reason, &run.message);
        self.tell(Some(run), at, Event::Phase(change)).await
    }

    /// Nothing more will come.
    pub(super) async fn tell_end(&mut self) -> Result<(), Stop> {
        let (phase_now, message, at) = match &self.target {
            Target::Task(_) => self.task().map_or_else(
                || ("Deleted".to_owned(), "the task is gone".to_owned(), None),
                |task| (task.phase.clone(), task.message.clone(), task.completed_at),
            ),
            Target::Run(run) => self.catalog.run(&run.uid).map_or_else(
                || ("Deleted".to_owned(), "the run is gone".to_owned(), None),
                |run| (run.phase.clone(), run.message.clone(), run.completed_at),
            ),
        };
        if matches!(self.target, Target::Task(_)) && self.cursor.task_phase != phase_now {
            self.cursor.task_phase.clone_from(&phase_now);
            let change = phase("task", &phase_now, "", &message);
            self.tell(None, at, Event::Phase(change)).await?;
        }
        let end = v1::FollowEnd { phase: phase_now, message };
        self.tell(None, at, Event::End(end)).await
    }

    /// One line of a channel.
    pub(super) async fn tell_line(
        &mut self,
        run: Option<&RunView>,
        channel: Channel,
        line: Line,
    ) -> Result<(), Stop> {
        match channel {
            Channel::Log => {
                self.cursor.log = line.next;
                let log = v1::LogLine { text: line.text, partial: line.partial };
                self.tell(run, None, Event::Log(log)).await
            }
            Channel::Events => {
                self.cursor.events = line.next;
                let (time, event) = agent_event(&line.text);
                self.tell(run, time, Event::Agent(event)).await
            }
        }
    }

    /// A hole in a channel.
    pub(super) async fn tell_gap(
        &mut self,
        uid: &RunUid,
        channel: Channel,
        gap: Gap,
    ) -> Result<(), Stop> {
        match channel {
            Channel::Log => self.cursor.log = gap.to,
            Channel::Events => self.cursor.events = gap.to,
        }
        let run = self.catalog.run(uid);
        let gap = v1::StreamGap {
            channel: channel.as_str().to_owned(),
            from: gap.from,
            to: gap.to,
            reason: gap.reason,
        };
        self.tell(run.as_deref(), None, Event::Gap(gap)).await
    }

    /// The part of a log that its run wrote and that is not to be had any more.
    pub(super) async fn tell_missing_log(&mut self, run: &RunView, to: u64) -> Result<(), Stop> {
        let gap = Gap { from: self.cursor.log, to, reason: NOT_RETAINED.to_owned() };
        self.tell_gap(&run.uid, Channel::Log, gap).await
    }

    async fn tell(
        &mut self,
        run: Option<&RunView>,
        time: Option<Timestamp>,
        event: Event,
    ) -> Result<(), Stop> {
        let task = match (&self.target, run) {
            (_, Some(run)) => run.task.clone(),
            (Target::Task(task), None) => task.name.clone(),
            (Target::Run(run), None) => run.task.clone(),
        };
        let event = v1::StepEvent {
            cursor: self.cursor.to_string(),
            time: time.map(wire_timestamp),
            task,
            run: run.map(|run| run.name.clone()).unwrap_or_default(),
            step: run.map(|run| run.step.clone()).unwrap_or_default(),
            attempt: run.map(|run| run.attempt).unwrap_or_default(),
            event: Some(event),
        };
        // Waits here for as long as the follower is slow.
        self.out.send(event).await
    }
}

fn phase(object: &str, phase: &str, reason: &str, message: &str) -> v1::PhaseChange {
    v1::PhaseChange {
        object: object.to_owned(),
        phase: phase.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}

/// An event record, or what stands in its place: shown as it is rather than hidden, under its own
/// type where a newer runner has one that this version does not know.
fn agent_event(line: &str) -> (Option<Timestamp>, v1::AgentEvent) {
    if let Ok(record) = serde_json::from_str::<EventRecord>(line) {
        return (Some(record.time), (&record.event).into());
    }
    let other = serde_json::from_str::<serde_json::Value>(line).ok();
    let kind = other.as_ref().and_then(|value| value.get("type")?.as_str());
    let event = v1::AgentEvent {
        r#type: kind.unwrap_or(MALFORMED).to_owned(),
        text: text::truncate(line, MALFORMED_BYTES_MAX).to_owned(),
        ..v1::AgentEvent::default()
    };
    (None, event)
}
