//! The layer around every service of the port.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response, header::AUTHORIZATION};
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::{Authority, rule};
use crate::metrics::Metrics;

/// Wraps services so that no request passes without its rule.
#[derive(Clone)]
pub struct AuthLayer {
    authority: Arc<Authority>,
    metrics: Metrics,
}

impl AuthLayer {
    /// A layer that asks `authority` and counts refusals.
    pub fn new(authority: Arc<Authority>, metrics: Metrics) -> Self {
        Self { authority, metrics }
    }
}

impl<S> Layer<S> for AuthLayer {
    type Service = AuthService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        AuthService { layer: self.clone(), inner }
    }
}

/// See [`AuthLayer`].
#[derive(Clone)]
pub struct AuthService<S> {
    layer: AuthLayer,
    inner: S,
}

impl<S, B, R> Service<Request<B>> for AuthService<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
    R: Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        // The clone may not be ready; the one that was polled is.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        let layer = self.layer.clone();
        Box::pin(async move {
            match layer.admit(request.uri().path(), request.headers()).await {
                Ok(caller) => {
                    if let Some(caller) = caller {
                        request.extensions_mut().insert(caller);
                    }
                    inner.call(request).await
                }
                Err(status) => Ok(status.into_http()),
            }
        })
    }
}

impl AuthLayer {
    async fn admit(
        &self,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Option<super::Caller>, Status> {
        let Some(rule) = rule(path) else {
            return Err(Status::unimplemented("this port has no such method"));
        };
        if rule == super::Rule::Public {
            return Ok(None);
        }
        let result = match bearer(headers) {
            Some(token) => self.authority.authenticate(rule, token).await,
            None => Err(Status::unauthenticated(
                "no bearer token; make one with: kubectl create token NAME --audience agent-operator",
            )),
        };
        if let Err(status) = &result {
            self.metrics.auth_refused(code_name(status.code()));
        }
        result
    }
}

/// The token of an `authorization: Bearer` header.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Label of a refusal; a bounded set.
pub(crate) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Unauthenticated => "unauthenticated",
        Code::PermissionDenied => "permission_denied",
        Code::Unavailable => "unavailable",
        _ => "other",
    }
}
