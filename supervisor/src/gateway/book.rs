//! What is counted and told about the work for attempts.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use agent_operator::{
    domain::Usage,
    telemetry::{Told, Tracer},
};
use http::StatusCode;
use jiff::Timestamp;

use super::{
    grants::Attempt,
    metrics::{CallResult, Metrics, Operation},
};
use crate::clock;

/// Metrics and traces. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Book {
    metrics: Arc<Metrics>,
    tracer: Tracer,
}

/// When something began, by both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Began {
    wall: Timestamp,
    at: Instant,
}

impl Began {
    /// Now.
    pub(super) fn now() -> Self {
        Self { wall: clock::now().wall, at: clock::instant() }
    }

    /// How long ago that was.
    pub(super) fn took(self) -> Duration {
        self.at.elapsed()
    }

    /// Start and end. The end is measured, for the wall clock may be set meanwhile.
    fn times(self) -> (Timestamp, Timestamp) {
        (self.wall, self.wall.checked_add(self.took()).unwrap_or(self.wall))
    }

    /// A number that no other call of the attempt has.
    fn number(self) -> u64 {
        u64::try_from(self.wall.as_nanosecond()).unwrap_or_default()
    }
}

/// A model call that has ended.
#[derive(Debug)]
pub(super) struct ModelCall<'a> {
    /// Whose.
    pub(super) attempt: &'a Attempt,
    /// When it began.
    pub(super) began: Began,
    /// Model that was asked for, as the agent wrote it.
    pub(super) model: &'a str,
    /// The entry of the price table that it has.
    pub(super) priced: Option<&'a str>,
    /// How it ended.
    pub(super) result: CallResult,
    /// The provider's status, if there was an answer.
    pub(super) status: Option<StatusCode>,
    /// What it used.
    pub(super) usage: Usage,
}

impl Book {
    /// Counts in `metrics`, tells `tracer`.
    pub(super) fn new(metrics: Arc<Metrics>, tracer: Tracer) -> Self {
        Self { metrics, tracer }
    }

    /// The metrics.
    pub(super) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// A model call has ended.
    pub(super) fn model_called(&self, call: &ModelCall<'_>) {
        let ModelCall { attempt, began, model, priced, result, status, usage } = call;
        self.metrics.model_called(*priced, *result, began.took(), usage);
        let failed = match result {
            CallResult::Answered | CallResult::Ended => None,
            failed => Some(failed.as_str()),
        };
        let at = attempt.assignment();
        let number = ("model call", began.number());
        let told = Told::call(&at.task.uid, &at.run.uid, number, began.times())
            .with("agent_operator.run", at.run.name.clone())
            .with("gen_ai.operation.name", "chat")
            .with("gen_ai.request.model", (*model).to_owned())
            .with_some("http.response.status_code", status.map(|code| i64::from(code.as_u16())))
            .with_usage(usage)
            .failed(failed);
        self.tracer.tell(told);
    }

    /// Work at the forge has ended.
    pub(super) fn at_forge(
        &self,
        attempt: &Attempt,
        operation: Operation,
        began: Began,
        good: bool,
    ) {
        self.metrics.at_forge(operation, good, began.took());
        let at = attempt.assignment();
        let number = (operation.as_str(), began.number());
        let told = Told::call(&at.task.uid, &at.run.uid, number, began.times())
            .with("agent_operator.run", at.run.name.clone())
            .failed((!good).then_some("failed"));
        self.tracer.tell(told);
    }
}
