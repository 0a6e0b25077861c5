//! What the gateway counts, on a port of its own that sandboxes have no use for. Label values are
//! words of the code, or model names of the chart's price table: no request can grow the registry.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use agent_operator::{
    domain::Usage,
    telemetry::metrics::{self as shared, CONTENT_TYPE, dollars, gauge},
};
use axum::{Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use tokio::net::TcpListener;

use super::{core::Shared, grants::RefusalKind, server::Route};

/// Stands for a model that is not in the price table.
const OTHER: &str = "other";
/// Route of a request that has none.
const NO_ROUTE: &str = "none";
/// Classes of answers; an upgraded CONNECT is a 2xx.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// How a model call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallResult {
    /// With a whole answer.
    Answered,
    /// With an error of the provider.
    Refused,
    /// The answer broke off, or cannot be counted.
    Broken,
    /// The provider could not be reached, or did not answer.
    Unreachable,
    /// The step ended before.
    Ended,
}

impl CallResult {
    const ALL: [Self; 5] =
        [Self::Answered, Self::Refused, Self::Broken, Self::Unreachable, Self::Ended];

    /// The word in metrics and traces.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Refused => "refused",
            Self::Broken => "broken",
            Self::Unreachable => "unreachable",
            Self::Ended => "ended",
        }
    }
}

/// Work at the forge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// The repository is fetched, the issue read.
    Prepare,
    /// A commit is moved upstream.
    Publish,
    /// A pull request is found or opened.
    PullRequest,
}

impl Operation {
    const ALL: [Self; 3] = [Self::Prepare, Self::Publish, Self::PullRequest];

    /// The word in metrics and traces.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Publish => "publish",
            Self::PullRequest => "pull request",
        }
    }
}

macro_rules! labels {
    ($($name:ident { $($field:ident: $type:ty),+ })+) => {
        $(
            #[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
            struct $name { $($field: $type),+ }
        )+
    };
}

labels! {
    ByRoute { route: &'static str, class: &'static str }
    ByKind { kind: &'static str }
    ByCall { model: Arc<str>, result: &'static str }
    ByModel { model: Arc<str> }
    ByToken { model: Arc<str>, kind: &'static str }
    ByOperation { operation: &'static str, result: &'static str }
    ByDirection { direction: &'static str }
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// All metrics, with their registry.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Models of the price table, and the word for all others.
    models: Vec<Arc<str>>,
    attempts: Gauge,
    requests: Family<ByRoute, Counter>,
    refusals: Family<ByKind, Counter>,
    model_calls: Family<ByCall, Counter>,
    model_call_seconds: Histograms<ByModel>,
    tokens: Family<ByToken, Counter>,
    cost: Family<ByModel, Counter<f64, AtomicU64>>,
    forge_seconds: Histograms<ByOperation>,
    tunnels: Gauge,
    tunnel_bytes: Family<ByDirection, Counter>,
}

impl Metrics {
    /// All metrics at zero; `models` are those of the price table.
    pub fn new<'a>(models: impl IntoIterator<Item = &'a str>) -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            models: models.into_iter().chain([OTHER]).map(Arc::from).collect(),
            attempts: Gauge::default(),
            requests: Family::default(),
            refusals: Family::default(),
            model_calls: Family::default(),
            model_call_seconds: Family::new_with_constructor(shared::calls),
            tokens: Family::default(),
            cost: Family::default(),
            forge_seconds: Family::new_with_constructor(shared::calls),
            tunnels: Gauge::default(),
            tunnel_bytes: Family::default(),
        };
        let mut registry = Registry::with_prefix("agent_operator_gateway");
        metrics.register(&mut registry);
        metrics.touch();
        metrics.registry = registry;
        metrics
    }

    fn register(&self, to: &mut Registry) {
        to.register("attempts", "Attempts that the gateway serves", self.attempts.clone());
        let help = "Answered requests of sandboxes by route and class of the answer";
        to.register("requests", help, self.requests.clone());
        let help = "Requests of sandboxes that were refused, by kind";
        to.register("refusals", help, self.refusals.clone());
        let help = "Model calls by model (of the price table) and how they ended";
        to.register("model_calls", help, self.model_calls.clone());
        let help = "Seconds from a model call to the last byte of its answer, by model";
        to.register("model_call_seconds", help, self.model_call_seconds.clone());
        let help = "Tokens by model and kind, as the provider counted them or else by estimate";
        to.register("tokens", help, self.tokens.clone());
        let help = "US dollars by model, by the price table";
        to.register("cost_usd", help, self.cost.clone());
        let help = "Seconds of work at the forge by operation and result";
        to.register("forge_seconds", help, self.forge_seconds.clone());
        to.register("tunnels", "Open tunnels to allowed hosts", self.tunnels.clone());
        let help = "Bytes through tunnels by direction, as seen from the sandbox";
        to.register("tunnel_bytes", help, self.tunnel_bytes.clone());
    }

    /// Makes every series that can be.
    fn touch(&self) {
        for route in Route::ALL.map(Route::as_str).into_iter().chain([NO_ROUTE]) {
            // The others are rare; a class that never was is not asked for.
            for class in ["2xx", "4xx", "5xx"] {
                drop(self.requests.get_or_create(&ByRoute { route, class }));
            }
        }
        for kind in RefusalKind::ALL.map(RefusalKind::as_str) {
            drop(self.refusals.get_or_create(&ByKind { kind }));
        }
        for model in &self.models {
            for result in CallResult::ALL.map(CallResult::as_str) {
                let model = Arc::clone(model);
                drop(self.model_calls.get_or_create(&ByCall { model, result }));
            }
            for (kind, _) in shared::tokens(&Usage::default()) {
                drop(self.tokens.get_or_create(&ByToken { model: Arc::clone(model), kind }));
            }
            let label = ByModel { model: Arc::clone(model) };
            drop(self.model_call_seconds.get_or_create(&label));
            drop(self.cost.get_or_create(&label));
        }
        for operation in Operation::ALL.map(Operation::as_str) {
            for result in ["ok", "failed"] {
                drop(self.forge_seconds.get_or_create(&ByOperation { operation, result }));
            }
        }
        for direction in ["out", "in"] {
            drop(self.tunnel_bytes.get_or_create(&ByDirection { direction }));
        }
    }

    fn model(&self, priced: Option<&str>) -> Arc<str> {
        let known = |model: &&Arc<str>| priced.is_some_and(|priced| priced == &***model);
        let other = || Arc::from(OTHER);
        self.models.iter().find(known).map_or_else(other, Arc::clone)
    }

    /// A request was answered.
    pub(super) fn answered(&self, route: Option<Route>, status: StatusCode) {
        let route = route.map_or(NO_ROUTE, Route::as_str);
        let class = usize::from(status.as_u16() / 100).saturating_sub(1);
        let class = CLASSES.get(class).copied().unwrap_or(OTHER);
        self.requests.get_or_create(&ByRoute { route, class }).inc();
    }

    /// A request was refused.
    pub(super) fn refused(&self, kind: RefusalKind) {
        self.refusals.get_or_create(&ByKind { kind: kind.as_str() }).inc();
    }

    /// A model call has ended; `priced` is the entry of the price table that its model has.
    pub(super) fn model_called(
        &self,
        priced: Option<&str>,
        result: CallResult,
        took: Duration,
        usage: &Usage,
    ) {
        let model = self.model(priced);
        let label = ByCall { model: Arc::clone(&model), result: result.as_str() };
        self.model_calls.get_or_create(&label).inc();
        let label = ByModel { model: Arc::clone(&model) };
        self.model_call_seconds.get_or_create(&label).observe(took.as_secs_f64());
        self.cost.get_or_create(&label).inc_by(dollars(usage.cost_micro_usd));
        for (kind, count) in shared::tokens(usage) {
            let label = ByToken { model: Arc::clone(&model), kind };
            self.tokens.get_or_create(&label).inc_by(count);
        }
    }

    /// Work at the forge has ended.
    pub(super) fn at_forge(&self, operation: Operation, good: bool, took: Duration) {
        let result = if good { "ok" } else { "failed" };
        let label = ByOperation { operation: operation.as_str(), result };
        self.forge_seconds.get_or_create(&label).observe(took.as_secs_f64());
    }

    /// A tunnel has opened (1) or closed (-1).
    pub(super) fn tunnels(&self, change: i64) {
        self.tunnels.inc_by(change);
    }

    /// Bytes went through a tunnel.
    pub(super) fn tunnelled(&self, direction: &'static str, bytes: u64) {
        self.tunnel_bytes.get_or_create(&ByDirection { direction }).inc_by(bytes);
    }

    /// The text form.
    pub fn encode(&self, attempts: usize) -> Result<String, std::fmt::Error> {
        self.attempts.set(gauge(attempts));
        shared::text(&self.registry)
    }
}

/// Serves `/metrics` until the shutdown.
pub(super) async fn serve(gateway: Shared, listener: TcpListener) -> std::io::Result<()> {
    let shutdown = gateway.shutdown.clone();
    let routes = Router::new().route("/metrics", get(page)).with_state(gateway);
    axum::serve(listener, routes).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

async fn page(State(gateway): State<Shared>) -> impl IntoResponse {
    match gateway.book.metrics().encode(gateway.grants.live().len()) {
        Ok(text) => (StatusCode::OK, [("content-type", CONTENT_TYPE)], text),
        Err(error) => {
            let plain = [("content-type", "text/plain")];
            (StatusCode::INTERNAL_SERVER_ERROR, plain, error.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_shows_what_was_counted() {
        let metrics = Metrics::new(["claude-x"]);
        let usage = Usage { input_tokens: 3, cost_micro_usd: 500_000, ..Usage::default() };
        let took = Duration::from_secs(1);
        metrics.model_called(Some("claude-x"), CallResult::Answered, took, &usage);
        metrics.refused(RefusalKind::Egress);
        metrics.answered(Some(Route::Git), StatusCode::OK);
        metrics.answered(None, StatusCode::NOT_FOUND);
        metrics.at_forge(Operation::Publish, false, took);
        let text = metrics.encode(2).unwrap();
        for line in [
            "agent_operator_gateway_attempts 2",
            "agent_operator_gateway_requests_total{route=\"git\",class=\"2xx\"} 1",
            "agent_operator_gateway_requests_total{route=\"none\",class=\"4xx\"} 1",
            "agent_operator_gateway_refusals_total{kind=\"egress\"} 1",
            "agent_operator_gateway_model_calls_total{model=\"claude-x\",result=\"answered\"} 1",
            "agent_operator_gateway_tokens_total{model=\"claude-x\",kind=\"input\"} 3",
            "agent_operator_gateway_cost_usd_total{model=\"claude-x\"} 0.5",
            "agent_operator_gateway_forge_seconds_count{operation=\"publish\",result=\"failed\"} 1",
        ] {
            assert!(text.lines().any(|known| known == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn models_that_are_not_in_the_price_table_are_one_series() {
        let metrics = Metrics::new(["claude-x"]);
        let before = metrics.encode(0).unwrap().lines().count();
        for model in [None, Some("claude-y"), Some("\"} 1\nx")] {
            metrics.model_called(model, CallResult::Ended, Duration::ZERO, &Usage::default());
        }
        let text = metrics.encode(0).unwrap();
        assert_eq!(text.lines().count(), before);
        assert!(text.contains("model_calls_total{model=\"other\",result=\"ended\"} 3"), "{text}");
    }
}
