//! Traces: task, step, model call. A span is told when it is over, from the times that were recorded
//! anyway, so that no process has to hold one open across a restart; what a process that dies has not
//! sent is lost, and nothing waits for a collector.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use opentelemetry::{
    InstrumentationScope, KeyValue,
    trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState},
};
use opentelemetry_otlp::{
    ExporterBuildError, SpanExporter, WithExportConfig as _, WithTonicConfig as _,
};
use opentelemetry_sdk::{
    Resource,
    trace::{
        BatchConfigBuilder, BatchSpanProcessor, Sampler, SamplingDecision, ShouldSample as _,
        SpanData, SpanEvents, SpanLinks, SpanProcessor,
    },
};

pub use opentelemetry::Value;
use tonic::transport::ClientTlsConfig;

use super::{args::TelemetryArgs, ids};
use crate::domain::{
    RunUid, TaskUid, Usage,
    text::{printable, truncate},
};

/// Spans that wait for the collector; beyond it they are dropped.
const QUEUE_MAX: usize = 4096;
/// Longest time that a span waits for others to go with.
const EXPORT_PACE: Duration = Duration::from_secs(2);
/// Limit of one export.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the end of the process waits for the last one: a collector that is away must not delay it.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest text of an attribute: some come from a sandbox.
const TEXT_BYTES_MAX: usize = 256;

/// Traces cannot be sent as asked.
#[derive(Debug, thiserror::Error)]
#[error("make an exporter of traces for {endpoint}")]
pub struct TraceError {
    /// Where to.
    endpoint: String,
    /// What is wrong with it.
    #[source]
    source: ExporterBuildError,
}

/// What a span stands for.
#[derive(Clone, Copy, Debug)]
enum Place<'a> {
    Task,
    Run(&'a RunUid),
    Part(&'a RunUid, &'static str),
    Nth(&'a RunUid, &'static str, u64),
}

/// Something that is over.
#[derive(Debug)]
pub struct Told<'a> {
    task: &'a TaskUid,
    place: Place<'a>,
    name: String,
    kind: SpanKind,
    start: Timestamp,
    end: Timestamp,
    failure: Option<String>,
    attributes: Vec<KeyValue>,
}

impl<'a> Told<'a> {
    fn new(
        task: &'a TaskUid,
        place: Place<'a>,
        name: impl Into<String>,
        (start, end): (Timestamp, Timestamp),
    ) -> Self {
        Self {
            task,
            place,
            name: name.into(),
            kind: SpanKind::Internal,
            start,
            // Clocks of two nodes: a span never ends before it begins.
            end: end.max(start),
            failure: None,
            attributes: Vec::new(),
        }
    }

    /// A whole task: the root of its trace.
    pub fn task(task: &'a TaskUid, times: (Timestamp, Timestamp)) -> Self {
        Self::new(task, Place::Task, "task", times)
    }

    /// A run of the task.
    pub fn run(
        task: &'a TaskUid,
        run: &'a RunUid,
        step: &str,
        times: (Timestamp, Timestamp),
    ) -> Self {
        Self::new(task, Place::Run(run), format!("step {step}"), times)
    }

    /// A part of a run that is there once.
    pub fn part(
        task: &'a TaskUid,
        run: &'a RunUid,
        part: &'static str,
        times: (Timestamp, Timestamp),
    ) -> Self {
        Self::new(task, Place::Part(run, part), part, times)
    }

    /// A call to another service for a run; `number` tells it from others of the same name.
    pub fn call(
        task: &'a TaskUid,
        run: &'a RunUid,
        (name, number): (&'static str, u64),
        times: (Timestamp, Timestamp),
    ) -> Self {
        let told = Self::new(task, Place::Nth(run, name, number), name, times);
        Self { kind: SpanKind::Client, ..told }
    }

    /// Adds a fact. Texts are cleaned and cut: names only, never what an agent or a user wrote.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        let value = match value.into() {
            Value::String(text) => {
                Value::from(truncate(&printable(text.as_str()), TEXT_BYTES_MAX).to_owned())
            }
            other => other,
        };
        self.attributes.push(KeyValue::new(name, value));
        self
    }

    /// Adds a fact if there is one.
    #[must_use]
    pub fn with_some(self, name: &'static str, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// Adds consumption.
    #[must_use]
    pub fn with_usage(self, usage: &Usage) -> Self {
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        self.with("gen_ai.usage.input_tokens", number(usage.input_tokens))
            .with("gen_ai.usage.output_tokens", number(usage.output_tokens))
            .with("gen_ai.usage.cache_read.input_tokens", number(usage.cache_read_tokens))
            .with("gen_ai.usage.cache_creation.input_tokens", number(usage.cache_write_tokens))
            .with("agent_operator.cost_micro_usd", number(usage.cost_micro_usd))
    }

    /// Marks it as failed; `kind` is a word from a bounded set.
    #[must_use]
    pub fn failed(mut self, kind: Option<&str>) -> Self {
        self.failure = kind.map(str::to_owned);
        self.with_some("error.type", kind.map(str::to_owned))
    }

    fn parent(&self) -> SpanId {
        match self.place {
            Place::Task => SpanId::INVALID,
            Place::Run(_) => ids::span_of_task(self.task),
            Place::Part(run, _) | Place::Nth(run, ..) => ids::span_of_run(run),
        }
    }

    fn id(&self) -> SpanId {
        match self.place {
            Place::Task => ids::span_of_task(self.task),
            Place::Run(run) => ids::span_of_run(run),
            Place::Part(run, part) => ids::span_of_part(run, part),
            Place::Nth(run, part, number) => ids::span_of_nth(run, part, number),
        }
    }

    fn into_data(self, trace: TraceId, scope: InstrumentationScope) -> SpanData {
        let context =
            SpanContext::new(trace, self.id(), TraceFlags::SAMPLED, false, TraceState::default());
        SpanData {
            span_context: context,
            parent_span_id: self.parent(),
            // Parents are told by whoever owns them: mostly another process.
            parent_span_is_remote: !matches!(self.place, Place::Task),
            span_kind: self.kind,
            name: self.name.into(),
            start_time: self.start.into(),
            end_time: self.end.into(),
            attributes: self.attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: self.failure.map_or(Status::Unset, Status::error),
            instrumentation_scope: scope,
        }
    }
}

/// Where spans are told; nowhere by default. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Tracer(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    processor: BatchSpanProcessor,
    sampler: Sampler,
    scope: InstrumentationScope,
}

impl Tracer {
    /// Tells nobody.
    pub fn off() -> Self {
        Self::default()
    }

    /// Sends to the collector of the arguments, if they name one, as `service`. Within a runtime,
    /// which has to live as long as spans are to be sent. A collector that does not answer is no
    /// error here: spans are dropped, and the log says so.
    pub fn start(args: &TelemetryArgs, service: &'static str) -> Result<Self, TraceError> {
        let Some(endpoint) = args.otlp_endpoint.url() else { return Ok(Self::off()) };
        let mut exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .with_timeout(EXPORT_TIMEOUT);
        if endpoint.starts_with("https://") {
            exporter = exporter.with_tls_config(ClientTlsConfig::new().with_native_roots());
        }
        let exporter = exporter
            .build()
            .map_err(|source| TraceError { endpoint: endpoint.to_owned(), source })?;
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE_MAX)
            .with_scheduled_delay(EXPORT_PACE)
            .build();
        let mut processor = BatchSpanProcessor::new(exporter, config);
        let resource = Resource::builder()
            .with_service_name(service)
            .with_attribute(KeyValue::new("service.namespace", "agent-operator"))
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attributes(
                args.instance.clone().map(|it| KeyValue::new("service.instance.id", it)),
            )
            .build();
        processor.set_resource(&resource);
        Ok(Self(Some(Arc::new(Inner {
            processor,
            sampler: Sampler::TraceIdRatioBased(args.trace_ratio.get()),
            scope: InstrumentationScope::builder("agent-operator").build(),
        }))))
    }

    /// Tells a span, if anybody listens and its task is one of those that are traced.
    pub fn tell(&self, told: Told<'_>) {
        let Some(inner) = &self.0 else { return };
        let trace = ids::trace_of(told.task);
        // By the trace alone, so that every process decides alike.
        let sampled = inner.sampler.should_sample(None, trace, "", &told.kind, &[], &[]);
        if sampled.decision == SamplingDecision::RecordAndSample {
            inner.processor.on_end(told.into_data(trace, inner.scope.clone()));
        }
    }

    /// Sends what waits, for some seconds at most, and ends. Spans that are told later are dropped.
    pub async fn stop(self) {
        let Some(inner) = self.0 else { return };
        let stopping = move || inner.processor.shutdown_with_timeout(STOP_TIMEOUT);
        match tokio::task::spawn_blocking(stopping).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the last spans were not sent"),
            Err(error) => tracing::warn!(%error, "the exporter of traces died"),
        }
    }
}

#[cfg(test)]
mod tests;
