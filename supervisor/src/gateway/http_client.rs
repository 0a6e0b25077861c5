//! The client for configured upstreams: HTTP/1, TLS with the system's roots and an optional bundle,
//! by way of the configured proxy. It follows no redirect and takes nothing from the environment.
//! This is the one place where it is built; model, forge and whatever comes share it by clones.

use std::{path::Path, sync::Arc, time::Duration};

use agent_operator::domain::text;
use axum::body::Body;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};

use super::proxy::{Dialer, ProxyRules};

/// Time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How much of an error with its causes is shown.
const DETAIL_BYTES_MAX: usize = 300;
/// How long an idle connection is kept: below the usual 60 s of load balancers.
const POOL_IDLE: Duration = Duration::from_secs(50);

/// An HTTP client of the gateway.
pub type HttpClient = Client<HttpsConnector<Dialer>, Body>;

/// Why the client cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The bundle cannot be read.
    #[error("cannot read the certificate bundle {0}")]
    ReadBundle(std::path::PathBuf, #[source] rustls_pki_types::pem::Error),
    /// A certificate of it is not one.
    #[error("cannot use a certificate of the bundle")]
    AddCertificate(#[source] rustls::Error),
    /// The crypto provider lacks what is needed.
    #[error("cannot configure TLS")]
    ConfigureTls(#[source] rustls::Error),
}

/// A client that trusts the system's roots and those in `bundle`, and goes by the `proxies`. Missing
/// system roots are no error: a gateway whose upstreams are plain http or private needs none.
pub fn build(bundle: Option<&Path>, proxies: Arc<ProxyRules>) -> Result<HttpClient, BuildError> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::debug!(%error, "a system certificate could not be read");
    }
    roots.add_parsable_certificates(system.certs);
    if let Some(path) = bundle {
        let read_error = |error| BuildError::ReadBundle(path.to_owned(), error);
        for certificate in CertificateDer::pem_file_iter(path).map_err(read_error)? {
            roots.add(certificate.map_err(read_error)?).map_err(BuildError::AddCertificate)?;
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(BuildError::ConfigureTls)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_connect_timeout(Some(CONNECT_TIMEOUT));
    http.set_nodelay(true);
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(config)
        .https_or_http()
        .enable_http1()
        .wrap_connector(Dialer::new(http, proxies));
    Ok(Client::builder(TokioExecutor::new()).pool_idle_timeout(POOL_IDLE).build(connector))
}

/// An error with its causes in one line; the client's own text says only `client error`.
pub fn describe(error: &dyn std::error::Error) -> String {
    text::truncate(&text::error_chain(error), DETAIL_BYTES_MAX).to_owned()
}
