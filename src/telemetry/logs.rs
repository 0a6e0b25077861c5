//! Log lines on standard error. Each says which task and run it concerns, as fields of its own: they
//! come from the spans that the line was written in, so that no line has to repeat them.

use std::{fmt, io};

use serde::ser::{SerializeMap as _, Serializer as _};
use serde_json::{Map, Value};
use tracing::{
    Event, Span, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter,
    fmt::{
        FmtContext, FormatEvent, FormatFields, FormattedFields,
        format::{JsonFields, Writer},
        time::{FormatTime, SystemTime},
    },
    registry::{LookupSpan, Scope},
    util::SubscriberInitExt as _,
};

use super::ids::trace_of;
use crate::domain::{Assignment, RunRef, TaskUid};

/// Form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line, for log collectors.
    #[default]
    Json,
    /// For people at a terminal.
    Text,
}

/// Logging could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is malformed.
    #[error("read the log filter {filter:?}")]
    ReadFilter {
        /// The filter.
        filter: String,
        /// What is wrong with it.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// Something else logs already.
    #[error("start logging: {0}")]
    Start(String),
}

/// Starts logging; `filter` has the form of `RUST_LOG` (`info`, `info,kube=debug`).
pub fn start(format: LogFormat, filter: &str) -> Result<(), LogError> {
    let started = match format {
        LogFormat::Json => json_to(filter, io::stderr)?.try_init(),
        LogFormat::Text => tracing_subscriber::fmt()
            .with_env_filter(read(filter)?)
            .with_writer(io::stderr)
            .finish()
            .try_init(),
    };
    started.map_err(|error| LogError::Start(error.to_string()))
}

/// JSON lines to what `writer` opens.
pub fn json_to<W: io::Write + 'static>(
    filter: &str,
    writer: impl Fn() -> W + Send + Sync + 'static,
) -> Result<impl Subscriber + Send + Sync, LogError> {
    Ok(tracing_subscriber::fmt()
        .with_env_filter(read(filter)?)
        .with_writer(writer)
        .fmt_fields(JsonFields::new())
        .event_format(FlatJson)
        .finish())
}

/// The filter; the audit passes whatever it says.
fn read(filter: &str) -> Result<EnvFilter, LogError> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|source| LogError::ReadFilter { filter: filter.to_owned(), source })?;
    let always = format!("{}=info", super::audit::TARGET);
    let always =
        always.parse().map_err(|source| LogError::ReadFilter { filter: always.clone(), source })?;
    Ok(filter.add_directive(always))
}

/// Context of everything that is done for a task. It is an error's span so that a filter that shows
/// errors only shows their context too.
pub fn task(namespace: &str, name: &str, uid: &TaskUid) -> Span {
    tracing::error_span!("task", namespace, task = name, trace_id = %trace_of(uid))
}

/// Context of everything that is done for a run of the task `task`.
pub fn run(run: &RunRef, step: &str, task: &str, uid: &TaskUid) -> Span {
    let namespace = run.namespace.as_str();
    tracing::error_span!("run", namespace, task, run = run.name, step, trace_id = %trace_of(uid))
}

/// Context of everything that a node does for an assignment.
pub fn attempt(assignment: &Assignment) -> Span {
    let task = &assignment.task;
    run(&assignment.run, assignment.step.as_str(), &task.name, &task.uid)
}

/// One JSON object a line: time, level and message first, then what the event and its spans say, side
/// by side. Of two fields with one name the inner one stands; the forms that the library has would
/// write both.
struct FlatJson;

impl<S, N> FormatEvent<S, N> for FlatJson
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        for span in context.event_scope().into_iter().flat_map(Scope::from_root) {
            let extensions = span.extensions();
            let text = extensions.get::<FormattedFields<N>>();
            // Spans without fields have no text; each text is an object of our own making.
            let known = text.and_then(|text| serde_json::from_str::<Map<_, _>>(text).ok());
            fields.0.extend(known.unwrap_or_default());
        }
        event.record(&mut fields);
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let line = line(&time, event, fields.0).map_err(|_| fmt::Error)?;
        writeln!(writer, "{line}")
    }
}

fn line(
    time: &str,
    event: &Event<'_>,
    mut fields: Map<String, Value>,
) -> Result<String, serde_json::Error> {
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::new(&mut bytes);
    let mut object = serializer.serialize_map(None)?;
    object.serialize_entry("timestamp", time)?;
    object.serialize_entry("level", event.metadata().level().as_str())?;
    if let Some(message) = fields.remove("message") {
        object.serialize_entry("message", &message)?;
    }
    object.serialize_entry("target", event.metadata().target())?;
    for (name, value) in fields {
        // What we write ourselves is not for a field to replace.
        if !matches!(name.as_str(), "timestamp" | "level" | "target") {
            object.serialize_entry(&name, &value)?;
        }
    }
    object.end()?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Fields of spans and of an event by name.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn set(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests;
