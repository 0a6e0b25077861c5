//! The controller's own certificates: a CA and a server certificate that it makes, publishes and
//! rotates by itself, so that no cert-manager and no manual step is needed.
//!
//! Rights in the release namespace, all by name: Secret `<service>-tls` get, create, patch;
//! ConfigMap `<ca config map>` get, create, patch (RBAC cannot name an object on create).
//!
//! The Secret is the truth: whoever creates it first wins (409: read it), and a renewal is written
//! with the resourceVersion that was read, so two replicas never serve from two CAs.
//!
//! A new CA stands beside the old one in the bundle, mostly for weeks before it signs anything: readers
//! keep a bundle until a connection fails, people keep theirs for longer.

mod material;

use std::{
    collections::BTreeMap,
    sync::{Arc, RwLock},
    time::Duration,
};

use agent_operator::domain::names::MANAGED_BY;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use rustls::{
    ServerConfig,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::material::Material;
use crate::clock;

/// How often the certificate is looked at, here and for a renewal by another replica.
const LOOK_AGAIN: Duration = Duration::from_mins(10);
/// Limit of each API call.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Field manager of the ConfigMap.
const MANAGER: &str = "agent-operator-controller";

/// Key of the bundle, in Secret and ConfigMap.
const CA_CERT: &str = "ca.crt";

/// Why certificates could not be made or kept.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The API server refused a call.
    #[error("{verb} {object}")]
    Call {
        /// What was tried.
        verb: &'static str,
        /// On what.
        object: String,
        /// Its answer.
        #[source]
        source: kube::Error,
    },
    /// The API server did not answer in time.
    #[error("{verb} {object}: no answer within {CALL_TIMEOUT:?}")]
    Timeout {
        /// What was tried.
        verb: &'static str,
        /// On what.
        object: String,
    },
    /// A certificate could not be made.
    #[error("make certificate")]
    Make(#[from] rcgen::Error),
    /// What stands in the Secret cannot be used.
    #[error("use secret {object}: {problem}; delete it to have a new one made")]
    Unusable {
        /// The Secret.
        object: String,
        /// What is wrong.
        problem: String,
    },
}

/// What certificates are made for.
#[derive(Clone, Debug)]
pub struct TlsSettings {
    /// Namespace of the release.
    pub namespace: String,
    /// Service of the gRPC port; the Secret is named after it.
    pub service: String,
    /// ConfigMap with the CA bundle for supervisors and people.
    pub ca_config_map: String,
    /// Further names or addresses that clients use.
    pub extra_sans: Vec<String>,
}

impl TlsSettings {
    fn secret_name(&self) -> String {
        format!("{}-tls", self.service)
    }

    fn names(&self) -> Vec<String> {
        let (service, namespace) = (&self.service, &self.namespace);
        let mut names = vec![
            service.clone(),
            format!("{service}.{namespace}"),
            format!("{service}.{namespace}.svc"),
            format!("{service}.{namespace}.svc.cluster.local"),
            "localhost".to_owned(),
            "127.0.0.1".to_owned(),
        ];
        names.extend(self.extra_sans.iter().cloned());
        names
    }
}

/// Hands out the present certificate to each handshake. Connections that are open keep the one that
/// they began with, also beyond its end: it was good when the peer was identified.
#[derive(Debug)]
pub(crate) struct Current(RwLock<Arc<CertifiedKey>>);

impl Current {
    pub(crate) fn new(key: CertifiedKey) -> Arc<Self> {
        Arc::new(Self(RwLock::new(Arc::new(key))))
    }

    /// From here on handshakes get this one.
    pub(crate) fn replace(&self, key: CertifiedKey) {
        *self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(key);
    }

    /// The rustls configuration of a gRPC listener that follows [`Self::replace`].
    pub(crate) fn server_config(self: &Arc<Self>) -> Arc<ServerConfig> {
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone())
    }
}

/// The server's certificates, and the task that keeps them fresh.
pub struct Tls {
    settings: TlsSettings,
    secrets: Api<Secret>,
    config_maps: Api<ConfigMap>,
    current: Arc<Current>,
    material: Material,
    ca: watch::Sender<String>,
}

impl Tls {
    /// Reads the certificates, or makes and publishes them.
    pub async fn start(client: Client, settings: TlsSettings) -> Result<Self, TlsError> {
        let secrets = Api::namespaced(client.clone(), &settings.namespace);
        let config_maps = Api::namespaced(client, &settings.namespace);
        let material = load(&secrets, &settings).await?;
        publish(&config_maps, &settings, &material.bundle).await?;
        let current = Current::new(usable(&settings, &material)?);
        let ca = watch::Sender::new(material.bundle.clone());
        Ok(Self { settings, secrets, config_maps, current, material, ca })
    }

    /// The bundle (PEM) by which replicas know one another; follows renewals.
    pub fn ca(&self) -> watch::Receiver<String> {
        self.ca.subscribe()
    }

    /// The rustls configuration of the gRPC listener; follows renewals.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.current.server_config()
    }

    /// Renews in time and follows another replica's renewal, until `shutdown`.
    pub async fn keep_fresh(mut self, shutdown: CancellationToken) {
        while shutdown.run_until_cancelled(tokio::time::sleep(LOOK_AGAIN)).await.is_some() {
            if let Err(error) = self.refresh().await {
                // The certificate in use has weeks left; the next look tries again.
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "certificates not renewed"
                );
            }
        }
    }

    async fn refresh(&mut self) -> Result<(), TlsError> {
        let material = load(&self.secrets, &self.settings).await?;
        if material == self.material {
            return Ok(());
        }
        publish(&self.config_maps, &self.settings, &material.bundle).await?;
        self.current.replace(usable(&self.settings, &material)?);
        self.ca.send_replace(material.bundle.clone());
        self.material = material;
        tracing::info!("serving a renewed certificate");
        Ok(())
    }
}

fn unusable(settings: &TlsSettings, problem: String) -> TlsError {
    TlsError::Unusable { object: settings.secret_name(), problem }
}

fn usable(settings: &TlsSettings, material: &Material) -> Result<CertifiedKey, TlsError> {
    material.certified_key().map_err(|problem| unusable(settings, problem))
}

/// What the Secret holds, made or renewed first where needed.
async fn load(api: &Api<Secret>, settings: &TlsSettings) -> Result<Material, TlsError> {
    let name = settings.secret_name();
    let found = call("get secret", &name, api.get_opt(&name)).await?;
    let Some(secret) = found else {
        let made = Material::make(settings, clock::timestamp())?;
        let secret = made.secret(settings, None);
        return match api.create(&PostParams::default(), &secret).await {
            Ok(_) => Ok(made),
            Err(error) if is_conflict(&error) => reread(api, settings).await,
            Err(source) => Err(TlsError::Call { verb: "create secret", object: name, source }),
        };
    };
    let material = Material::read(&secret)
        .ok_or_else(|| unusable(settings, "a key is missing or is not text".to_owned()))?;
    let Some(renewed) = material.renewed(settings, clock::timestamp())? else {
        return Ok(material);
    };
    let object = renewed.secret(settings, secret.metadata.resource_version.clone());
    let (params, patch) = (PatchParams::default(), Patch::Merge(&object));
    match api.patch(&name, &params, &patch).await {
        Ok(_) => Ok(renewed),
        Err(error) if is_conflict(&error) => reread(api, settings).await,
        Err(source) => Err(TlsError::Call { verb: "patch secret", object: name, source }),
    }
}

fn labels() -> BTreeMap<String, String> {
    BTreeMap::from([("app.kubernetes.io/managed-by".to_owned(), MANAGED_BY.to_owned())])
}

fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

async fn reread(api: &Api<Secret>, settings: &TlsSettings) -> Result<Material, TlsError> {
    let name = settings.secret_name();
    let secret = call("get secret", &name, api.get(&name)).await?;
    Material::read(&secret)
        .ok_or_else(|| unusable(settings, "a key is missing or is not text".to_owned()))
}

/// Publishes the bundle for supervisors (which read it by `get`) and for people.
async fn publish(
    api: &Api<ConfigMap>,
    settings: &TlsSettings,
    bundle: &str,
) -> Result<(), TlsError> {
    let name = settings.ca_config_map.as_str();
    let found = call("get config map", name, api.get_opt(name)).await?;
    let published = found.as_ref().and_then(|map| map.data.as_ref()?.get(CA_CERT));
    if published.is_some_and(|text| text == bundle) {
        return Ok(());
    }
    let map = ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(labels()),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(CA_CERT.to_owned(), bundle.to_owned())])),
        ..ConfigMap::default()
    };
    let params = PatchParams::apply(MANAGER).force();
    let patch = Patch::Apply(&map);
    call("apply config map", name, api.patch(name, &params, &patch)).await?;
    Ok(())
}

async fn call<T>(
    verb: &'static str,
    object: &str,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, TlsError> {
    match tokio::time::timeout(CALL_TIMEOUT, request).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(TlsError::Call { verb, object: object.to_owned(), source }),
        Err(_) => Err(TlsError::Timeout { verb, object: object.to_owned() }),
    }
}
