//! A collector of traces that speaks OTLP over gRPC, by the generated service of the protocol's own
//! project, and keeps what it gets.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{ResourceSpans, Span, status::StatusCode},
};
use tokio::{net::TcpListener, task::AbortHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// Pause between two looks at what has come.
const POLL: Duration = Duration::from_millis(20);

/// A span as it came; ids in hexadecimal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// `service.name` of the process that told it.
    pub service: String,
    /// Its trace.
    pub trace: String,
    /// Itself.
    pub id: String,
    /// Its parent; empty for a root.
    pub parent: String,
    /// Its name.
    pub name: String,
    /// Nanoseconds since 1970.
    pub start: u64,
    /// Nanoseconds since 1970.
    pub end: u64,
    /// Attributes as text.
    pub attributes: BTreeMap<String, String>,
    /// The status' description, if it is an error.
    pub error: Option<String>,
}

/// A running collector; it ends when it is dropped.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    spans: Kept,
    server: AbortHandle,
}

#[derive(Clone, Debug, Default)]
struct Kept(Arc<Mutex<Vec<Collected>>>);

impl Kept {
    fn lock(&self) -> MutexGuard<'_, Vec<Collected>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector {
    /// Listens on `address`; port 0 is chosen by the kernel.
    pub async fn start(address: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let spans = Kept::default();
        let service = TraceServiceServer::new(spans.clone());
        let server = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener));
        let server = tokio::spawn(server).abort_handle();
        Ok(Self { address, spans, server })
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Everything that has come so far.
    pub fn spans(&self) -> Vec<Collected> {
        self.spans.lock().clone()
    }

    /// Waits until the spans of `trace` are enough; none: they are not within `limit`.
    pub async fn wait_for(
        &self,
        trace: &str,
        limit: Duration,
        enough: impl Fn(&[Collected]) -> bool,
    ) -> Option<Vec<Collected>> {
        let waiting = async {
            loop {
                let mut spans = self.spans();
                spans.retain(|span| span.trace == trace);
                if enough(&spans) {
                    return spans;
                }
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::time::timeout(limit, waiting).await.ok()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.server.abort();
    }
}

#[tonic::async_trait]
impl TraceService for Kept {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let resources = request.into_inner().resource_spans;
        self.lock().extend(resources.into_iter().flat_map(of_resource));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn of_resource(resource: ResourceSpans) -> Vec<Collected> {
    let about = resource.resource.map(|resource| texts(resource.attributes)).unwrap_or_default();
    let service = about.get("service.name").cloned().unwrap_or_default();
    let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
    spans.map(|span| collected(span, &service)).collect()
}

fn collected(span: Span, service: &str) -> Collected {
    let failed = |code| code == i32::from(StatusCode::Error);
    Collected {
        service: service.to_owned(),
        trace: hexadecimal(&span.trace_id),
        id: hexadecimal(&span.span_id),
        parent: hexadecimal(&span.parent_span_id),
        name: span.name,
        start: span.start_time_unix_nano,
        end: span.end_time_unix_nano,
        attributes: texts(span.attributes),
        error: span.status.filter(|status| failed(status.code)).map(|status| status.message),
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn texts(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |value: Option<Value>| match value {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(holds)) => holds.to_string(),
        other => format!("{other:?}"),
    };
    let value = |pair: KeyValue| (pair.key, text(pair.value.and_then(|value| value.value)));
    attributes.into_iter().map(value).collect()
}
