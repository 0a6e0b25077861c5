//! The controller's own certificates: a CA and a server certificate that it makes, publishes and
//! rotates by itself, so that no cert-manager and no manual step is needed.
//!
//! Rights in the release namespace, all by name: Secret `<service>-tls` get, create, patch;
//! ConfigMap `<ca config map>` get, create, patch (RBAC cannot name an object on create).
//!
//! The Secret is the truth: whoever creates it first wins (409: read it), and a renewal is written
//! with the resourceVersion that was read, so two replicas never serve from two CAs.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, RwLock},
    time::Duration,
};

use agent_operator::domain::names::MANAGED_BY;
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock;

/// Life of the CA: its renewal reaches every reader through the ConfigMap, but old bundles kept by
/// people should not go stale often.
const CA_DAYS: i64 = 3650;
/// Life of the server certificate; a third of it is left when the next one is made.
const SERVER_DAYS: i64 = 90;
/// How often the certificate is looked at, here and for a renewal by another replica.
const LOOK_AGAIN: Duration = Duration::from_mins(10);
/// Limit of each API call.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Field manager of the ConfigMap.
const MANAGER: &str = "agent-operator-controller";

const CA_CERT: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
const SERVER_CERT: &str = "tls.crt";
const SERVER_KEY: &str = "tls.key";

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

/// PEM texts as they stand in the Secret.
#[derive(Clone, PartialEq, Eq)]
struct Material {
    ca_cert: String,
    ca_key: String,
    server_cert: String,
    server_key: String,
}

impl Material {
    fn make(settings: &TlsSettings) -> Result<Self, TlsError> {
        let key = KeyPair::generate()?;
        let ca = CertifiedIssuer::self_signed(ca_params(), &key)?;
        let (server_cert, server_key) = server(settings, &ca)?;
        Ok(Self { ca_cert: ca.pem(), ca_key: key.serialize_pem(), server_cert, server_key })
    }

    fn renew(&self, settings: &TlsSettings) -> Result<Self, TlsError> {
        let key = KeyPair::from_pem(&self.ca_key)?;
        let issuer = Issuer::from_ca_cert_pem(&self.ca_cert, key)?;
        let (server_cert, server_key) = server(settings, &issuer)?;
        Ok(Self { server_cert, server_key, ..self.clone() })
    }

    fn read(secret: &Secret) -> Option<Self> {
        let data = secret.data.as_ref()?;
        let text = |key: &str| String::from_utf8(data.get(key)?.0.clone()).ok();
        Some(Self {
            ca_cert: text(CA_CERT)?,
            ca_key: text(CA_KEY)?,
            server_cert: text(SERVER_CERT)?,
            server_key: text(SERVER_KEY)?,
        })
    }

    fn secret(&self, settings: &TlsSettings, version: Option<String>) -> Secret {
        let bytes = |text: &String| ByteString(text.clone().into_bytes());
        Secret {
            metadata: ObjectMeta {
                name: Some(settings.secret_name()),
                namespace: Some(settings.namespace.clone()),
                resource_version: version,
                labels: Some(labels()),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([
                (CA_CERT.to_owned(), bytes(&self.ca_cert)),
                (CA_KEY.to_owned(), bytes(&self.ca_key)),
                (SERVER_CERT.to_owned(), bytes(&self.server_cert)),
                (SERVER_KEY.to_owned(), bytes(&self.server_key)),
            ])),
            ..Secret::default()
        }
    }

    /// Whether the certificate speaks for all names and has a third of its life left.
    fn serves(&self, settings: &TlsSettings) -> Result<bool, String> {
        let der = CertificateDer::from_pem_slice(self.server_cert.as_bytes())
            .map_err(|error| format!("{SERVER_CERT}: {error}"))?;
        let (_, certificate) = x509_parser::parse_x509_certificate(&der)
            .map_err(|error| format!("{SERVER_CERT}: {error}"))?;
        let left = certificate.validity().not_after.timestamp() - clock::timestamp().as_second();
        let fresh = left > SERVER_DAYS * 24 * 3600 / 3;
        let names = certificate
            .subject_alternative_name()
            .ok()
            .flatten()
            .map(|names| names.value.general_names.iter().map(san_text).collect::<Vec<_>>())
            .unwrap_or_default();
        Ok(fresh && settings.names().iter().all(|name| names.contains(name)))
    }

    fn certified_key(&self) -> Result<CertifiedKey, String> {
        let chain = CertificateDer::pem_slice_iter(self.server_cert.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| format!("{SERVER_CERT}: {error}"))?;
        let key = PrivateKeyDer::from_pem_slice(self.server_key.as_bytes())
            .map_err(|error| format!("{SERVER_KEY}: {error}"))?;
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)
            .map_err(|error| format!("{SERVER_KEY}: {error}"))?;
        Ok(CertifiedKey::new(chain, key))
    }
}

fn labels() -> BTreeMap<String, String> {
    BTreeMap::from([("app.kubernetes.io/managed-by".to_owned(), MANAGED_BY.to_owned())])
}

fn san_text(name: &x509_parser::extensions::GeneralName<'_>) -> String {
    use x509_parser::extensions::GeneralName;
    match name {
        GeneralName::DNSName(name) => (*name).to_owned(),
        GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
            Ok(v4) => IpAddr::from(v4).to_string(),
            Err(_) => <[u8; 16]>::try_from(*bytes)
                .map_or_else(|_| String::new(), |v6| IpAddr::from(v6).to_string()),
        },
        _ => String::new(),
    }
}

fn validity(params: &mut CertificateParams, days: i64) {
    // An hour of slack: the clocks of nodes differ.
    let now = clock::timestamp().as_second();
    let at = |seconds| {
        time::OffsetDateTime::from_unix_timestamp(seconds)
            .unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
    };
    params.not_before = at(now - 3600);
    params.not_after = at(now + days * 24 * 3600);
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, "agent-operator CA");
    params.distinguished_name = name;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity(&mut params, CA_DAYS);
    params
}

fn server<S: rcgen::SigningKey>(
    settings: &TlsSettings,
    issuer: &Issuer<'_, S>,
) -> Result<(String, String), TlsError> {
    let mut params = CertificateParams::default();
    for name in settings.names() {
        params.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(name.try_into()?),
        });
    }
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, settings.service.clone());
    params.distinguished_name = subject;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    validity(&mut params, SERVER_DAYS);
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, issuer)?;
    Ok((certificate.pem(), key.serialize_pem()))
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
        publish(&config_maps, &settings, &material.ca_cert).await?;
        let current = Current::new(usable(&settings, &material)?);
        let ca = watch::Sender::new(material.ca_cert.clone());
        Ok(Self { settings, secrets, config_maps, current, material, ca })
    }

    /// The CA (PEM) by which replicas know one another; follows renewals.
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
        publish(&self.config_maps, &self.settings, &material.ca_cert).await?;
        self.current.replace(usable(&self.settings, &material)?);
        self.ca.send_replace(material.ca_cert.clone());
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
        let made = Material::make(settings)?;
        let secret = made.secret(settings, None);
        return match api.create(&PostParams::default(), &secret).await {
            Ok(_) => Ok(made),
            Err(error) if is_conflict(&error) => reread(api, settings).await,
            Err(source) => Err(TlsError::Call { verb: "create secret", object: name, source }),
        };
    };
    let material = Material::read(&secret)
        .ok_or_else(|| unusable(settings, "a key is missing or is not text".to_owned()))?;
    if material.serves(settings).map_err(|problem| unusable(settings, problem))? {
        return Ok(material);
    }
    let renewed = material.renew(settings)?;
    let object = renewed.secret(settings, secret.metadata.resource_version.clone());
    let (params, patch) = (PatchParams::default(), Patch::Merge(&object));
    match api.patch(&name, &params, &patch).await {
        Ok(_) => Ok(renewed),
        Err(error) if is_conflict(&error) => reread(api, settings).await,
        Err(source) => Err(TlsError::Call { verb: "patch secret", object: name, source }),
    }
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

/// Publishes the CA for supervisors (which read it by `get`) and for people.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(extra: &str) -> TlsSettings {
        TlsSettings {
            namespace: "ns".to_owned(),
            service: "svc".to_owned(),
            ca_config_map: "svc-ca".to_owned(),
            extra_sans: vec![extra.to_owned()],
        }
    }

    #[test]
    fn a_made_certificate_serves_its_names_and_is_renewed_for_new_ones() {
        let old = settings("10.77.0.1");
        let made = Material::make(&old).unwrap();
        assert_eq!(made.serves(&old), Ok(true));
        let wider = settings("agents.example.com");
        assert_eq!(made.serves(&wider), Ok(false));
        let renewed = made.renew(&wider).unwrap();
        assert_eq!(renewed.serves(&wider), Ok(true));
        assert_eq!(renewed.ca_cert, made.ca_cert, "clients keep their bundle");
        renewed.certified_key().unwrap();
    }

    #[test]
    fn material_survives_its_secret() {
        let settings = settings("localhost2");
        let made = Material::make(&settings).unwrap();
        assert!(Material::read(&made.secret(&settings, None)).is_some_and(|read| read == made));
        assert!(Material::read(&Secret::default()).is_none());
    }
}
