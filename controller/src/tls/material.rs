//! The certificates as they stand in the Secret, and what takes their place when. Time is an argument.

use std::{collections::BTreeMap, net::IpAddr};

use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::api::ObjectMeta;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use x509_parser::extensions::GeneralName;

use super::{CA_CERT, TlsError, TlsSettings, labels, unusable};

const DAY_SECONDS: i64 = 24 * 3600;
/// Life of the CA: its renewal reaches every reader through the ConfigMap, but old bundles kept by
/// people should not go stale often.
const CA_SECONDS: i64 = 3650 * DAY_SECONDS;
/// Life of the server certificate.
const SERVER_SECONDS: i64 = 90 * DAY_SECONDS;
/// What is left of a server certificate when the next one is made.
const SERVER_LEFT_SECONDS: i64 = SERVER_SECONDS / 3;
/// What is left of a CA when the next one is made: what it signs must not outlive it.
const CA_LEFT_SECONDS: i64 = SERVER_SECONDS;

const CA_KEY: &str = "ca.key";
const SERVER_CERT: &str = "tls.crt";
const SERVER_KEY: &str = "tls.key";
/// Last line of a certificate in a bundle.
const PEM_END: &str = "-----END CERTIFICATE-----";

/// PEM texts as they stand in the Secret.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Material {
    /// What readers trust: the CA that signs, and behind it those before it that have not ended.
    pub(super) bundle: String,
    ca_key: String,
    server_cert: String,
    server_key: String,
}

/// What is read of a certificate.
struct Facts {
    /// Seconds since 1970.
    end: i64,
    names: Vec<String>,
}

impl Material {
    pub(super) fn make(settings: &TlsSettings, now: Timestamp) -> Result<Self, TlsError> {
        let (bundle, ca_key) = authority(now)?;
        let (server_cert, server_key) = Default::default();
        Self { bundle, ca_key, server_cert, server_key }.signed(settings, now)
    }

    /// The same with a new server certificate by the CA.
    fn signed(self, settings: &TlsSettings, now: Timestamp) -> Result<Self, TlsError> {
        let key = KeyPair::from_pem(&self.ca_key)?;
        // The first of the bundle.
        let issuer = Issuer::from_ca_cert_pem(&self.bundle, key)?;
        let (server_cert, server_key) = server(settings, &issuer, now)?;
        Ok(Self { server_cert, server_key, ..self })
    }

    /// What takes its place at `now`; none while it speaks for all names and has time left. A new CA
    /// signs the next server certificate: until then readers have time to take over the bundle.
    pub(super) fn renewed(
        &self,
        settings: &TlsSettings,
        now: Timestamp,
    ) -> Result<Option<Self>, TlsError> {
        let unusable = |problem| unusable(settings, problem);
        let left = |facts: &Facts| facts.end - now.as_second();
        let authorities = self.authorities().map_err(unusable)?;
        let server = facts(SERVER_CERT, &self.server_cert).map_err(unusable)?;
        let mut next = self.clone();
        let mut server_left = left(&server);
        if let Some((_, signs)) = authorities.first()
            && left(signs) < CA_LEFT_SECONDS
        {
            // One of an older version may outlive its CA.
            if server.end > signs.end {
                server_left = 0;
            }
            let old = authorities.iter().filter(|(_, facts)| left(facts) > 0);
            let (new, key) = authority(now)?;
            (next.bundle, next.ca_key) = (joined(&new, old.map(|(pem, _)| *pem)), key);
        } else if authorities.iter().any(|(_, facts)| left(facts) <= 0) {
            let live = authorities.iter().filter(|(_, facts)| left(facts) > 0);
            next.bundle = joined("", live.map(|(pem, _)| *pem));
        }
        let named = settings.names().iter().all(|name| server.names.contains(name));
        if server_left <= SERVER_LEFT_SECONDS || !named {
            next = next.signed(settings, now)?;
        }
        Ok((next != *self).then_some(next))
    }

    /// The certificates of the bundle; there is at least one.
    fn authorities(&self) -> Result<Vec<(&str, Facts)>, String> {
        let pems = self.bundle.split_inclusive(PEM_END).map(str::trim);
        let read = |pem| facts(CA_CERT, pem).map(|facts| (pem, facts));
        let found: Vec<_> =
            pems.filter(|pem| !pem.is_empty()).map(read).collect::<Result<_, _>>()?;
        if found.is_empty() { Err(format!("{CA_CERT}: no certificate")) } else { Ok(found) }
    }

    pub(super) fn read(secret: &Secret) -> Option<Self> {
        let data = secret.data.as_ref()?;
        let text = |key: &str| String::from_utf8(data.get(key)?.0.clone()).ok();
        Some(Self {
            bundle: text(CA_CERT)?,
            ca_key: text(CA_KEY)?,
            server_cert: text(SERVER_CERT)?,
            server_key: text(SERVER_KEY)?,
        })
    }

    pub(super) fn secret(&self, settings: &TlsSettings, version: Option<String>) -> Secret {
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
                (CA_CERT.to_owned(), bytes(&self.bundle)),
                (CA_KEY.to_owned(), bytes(&self.ca_key)),
                (SERVER_CERT.to_owned(), bytes(&self.server_cert)),
                (SERVER_KEY.to_owned(), bytes(&self.server_key)),
            ])),
            ..Secret::default()
        }
    }

    pub(super) fn certified_key(&self) -> Result<CertifiedKey, String> {
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

/// Reads the first certificate of `pem`; `what` names it in a complaint.
fn facts(what: &str, pem: &str) -> Result<Facts, String> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| format!("{what}: {error}"))?;
    let (_, certificate) =
        x509_parser::parse_x509_certificate(&der).map_err(|error| format!("{what}: {error}"))?;
    let names = certificate
        .subject_alternative_name()
        .ok()
        .flatten()
        .map(|names| names.value.general_names.iter().map(san_text).collect())
        .unwrap_or_default();
    Ok(Facts { end: certificate.validity().not_after.timestamp(), names })
}

/// A bundle of `first` and what follows.
fn joined<'a>(first: &str, others: impl Iterator<Item = &'a str>) -> String {
    let mut bundle = first.to_owned();
    for pem in others {
        bundle.push_str(pem);
        bundle.push('\n');
    }
    bundle
}

fn san_text(name: &GeneralName<'_>) -> String {
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

fn validity(params: &mut CertificateParams, now: Timestamp, seconds: i64) {
    // An hour of slack: the clocks of nodes differ.
    let at = |second| {
        time::OffsetDateTime::from_unix_timestamp(second)
            .unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
    };
    params.not_before = at(now.as_second() - 3600);
    params.not_after = at(now.as_second() + seconds);
}

/// A CA and its key.
fn authority(now: Timestamp) -> Result<(String, String), TlsError> {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, "agent-operator CA");
    params.distinguished_name = name;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity(&mut params, now, CA_SECONDS);
    let key = KeyPair::generate()?;
    let ca = CertifiedIssuer::self_signed(params, &key)?;
    Ok((ca.pem(), key.serialize_pem()))
}

/// A server certificate and its key.
fn server<S: rcgen::SigningKey>(
    settings: &TlsSettings,
    issuer: &Issuer<'_, S>,
    now: Timestamp,
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
    validity(&mut params, now, SERVER_SECONDS);
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, issuer)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

#[cfg(test)]
mod tests;
