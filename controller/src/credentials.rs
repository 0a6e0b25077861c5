//! The credentials of one attempt: read from their Secrets when a step is handed out, by name, and
//! kept in memory only as long as it takes to send them. For a step that follows another the reading
//! begins once that one has ended, beside the write of its outcome.
//!
//! A Secret goes only where its owner allows it: to the chart's hosts, or to those in the Secret's
//! own annotation. The task, which somebody else may have written, decides nothing about that, nor about
//! plain http, over which everybody on the way reads the token.

mod ahead;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use agent_operator::{
    crd::{CodingTaskSpec, conditions::accepted, shared::SecretKeyRef},
    domain::{
        Credential, NodeName, Secret, StepName, TaskUid, names::ANNOTATION_ALLOWED_HOSTS,
        secret::purpose,
    },
    telemetry::audit::{self, Act, Subject},
};
use k8s_openapi::api::core::v1 as core;
use kube::{Api, Client};

use self::ahead::Ahead;
use crate::settings::Settings;

/// Longest wait for one Secret.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest value that is taken for a key or token: far above any, far below a message's limit.
const VALUE_BYTES_MAX: usize = 8 * 1024;

/// Id of the model's credential.
pub const MODEL_ID: &str = "model/anthropic";
/// Id of the main repository's credential.
pub const GIT_ID: &str = "git/main";

/// Why an attempt cannot have its credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The task has to wait; becomes the condition `Accepted`.
    #[error("{message}")]
    Refuse {
        /// Reason of the condition.
        reason: &'static str,
        /// What is wrong and how to put it right.
        message: String,
    },
    /// The API server did not answer; tried again.
    #[error("read Secret {name}")]
    Read {
        /// Name of the Secret.
        name: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
    /// The API server did not answer in time; tried again.
    #[error("wait for Secret {0}")]
    Wait(String),
}

/// Records that the Secrets of `credentials`, which are for `spec`, were read and went to `node`.
pub fn record_read(
    of: Subject<'_>,
    node: &NodeName,
    spec: &CodingTaskSpec,
    credentials: &[Credential],
) {
    for Credential { id, host, .. } in credentials {
        let SecretKeyRef { name, key } = match id.as_str() {
            MODEL_ID => &spec.anthropic_api_key_ref,
            _ => &spec.git_credentials_ref,
        };
        audit::record(of, &Act::SecretRead { secret: name, key, host, node: node.as_str() });
    }
}

/// Reads Secrets by name.
#[derive(Clone)]
pub struct Credentials {
    client: Client,
    settings: Arc<Settings>,
    ahead: Ahead,
}

impl Credentials {
    /// Reads with `client`, allows by `settings`.
    pub fn new(client: Client, settings: Arc<Settings>) -> Self {
        Self { client, settings, ahead: Ahead::default() }
    }

    /// Begins to read what `step` of `task` will need in a moment.
    pub fn read_ahead(
        &self,
        task: &TaskUid,
        namespace: &str,
        spec: &CodingTaskSpec,
        step: StepName,
    ) {
        // What is wrong with the task is said by whoever reads in earnest.
        let Ok(wanted) = wanted(spec, step, &self.settings.llm_host) else { return };
        let names: BTreeSet<&str> = wanted.iter().map(|want| want.source.name.as_str()).collect();
        for name in names {
            let (client, namespace) = (self.client.clone(), namespace.to_owned());
            let of = name.to_owned();
            self.ahead.begin(task, name, async move { get(client, &namespace, &of).await });
        }
    }

    /// All credentials for one attempt at `step` of `task` in `namespace`.
    pub async fn read(
        &self,
        task: &TaskUid,
        namespace: &str,
        spec: &CodingTaskSpec,
        step: StepName,
    ) -> Result<Vec<Credential>, CredentialError> {
        let wanted = wanted(spec, step, &self.settings.llm_host)?;
        let mut secrets: BTreeMap<&str, core::Secret> = BTreeMap::new();
        let mut credentials = Vec::with_capacity(wanted.len());
        for want in &wanted {
            let name = want.source.name.as_str();
            if !secrets.contains_key(name) {
                let secret = match self.ahead.take(task, name).await {
                    Some(secret) => secret,
                    None => get(self.client.clone(), namespace, name).await?,
                };
                secrets.insert(name, secret);
            }
            credentials.push(grant(want, &secrets[name], &self.settings)?);
        }
        Ok(credentials)
    }
}

async fn get(client: Client, namespace: &str, name: &str) -> Result<core::Secret, CredentialError> {
    let api: Api<core::Secret> = Api::namespaced(client, namespace);
    let answer = tokio::time::timeout(CALL_TIMEOUT, api.get_opt(name))
        .await
        .map_err(|_| CredentialError::Wait(name.to_owned()))?;
    match answer {
        Ok(Some(secret)) => Ok(secret),
        Ok(None) => Err(CredentialError::Refuse {
            reason: accepted::SECRET_MISSING,
            message: format!("Secret {name} does not exist in namespace {namespace}; create it"),
        }),
        Err(source) => {
            Err(CredentialError::Read { name: name.to_owned(), source: Box::new(source) })
        }
    }
}

/// A credential that a step needs, before its Secret is read.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted<'a> {
    id: &'static str,
    purpose: &'static str,
    scheme: &'static str,
    host: String,
    /// The task's URL is http. Whether it is asked so is the chart's matter for hosts of `upstreams`, and github.com
    /// is always asked over https.
    plain: bool,
    source: &'a SecretKeyRef,
}

/// The test step runs no model and gets no key; every step clones, so every step gets the token.
fn wanted<'a>(
    spec: &'a CodingTaskSpec,
    step: StepName,
    llm_host: &str,
) -> Result<Vec<Wanted<'a>>, CredentialError> {
    let url = &spec.repository.url;
    let host = url_host(url).ok_or_else(|| CredentialError::Refuse {
        reason: accepted::INVALID,
        message: format!("spec.repository.url {url:?} has no host"),
    })?;
    let mut wanted = vec![Wanted {
        id: GIT_ID,
        purpose: purpose::GIT,
        scheme: "basic",
        plain: url.starts_with("http://") && host != "github.com",
        host,
        source: &spec.git_credentials_ref,
    }];
    if step.may_call_model() {
        wanted.push(Wanted {
            id: MODEL_ID,
            purpose: purpose::MODEL,
            scheme: "api-key",
            host: llm_host.to_owned(),
            plain: false,
            source: &spec.anthropic_api_key_ref,
        });
    }
    Ok(wanted)
}

/// Host, with its port where one is written, of an http or https URL.
pub fn url_host(url: &str) -> Option<String> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"))?;
    let authority = rest.split('/').next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    (!host.is_empty()).then(|| host.to_ascii_lowercase())
}

fn grant(
    want: &Wanted<'_>,
    secret: &core::Secret,
    settings: &Settings,
) -> Result<Credential, CredentialError> {
    let SecretKeyRef { name, key } = want.source;
    let refuse =
        |reason: &'static str, message: String| CredentialError::Refuse { reason, message };
    if want.plain && !settings.has_upstream(&want.host) {
        // Spelt out by the owner it allows host and scheme at once.
        let in_clear = format!("http://{}", want.host);
        if !annotation_allows(secret, &in_clear) {
            return Err(refuse(
                accepted::HOST_NOT_ALLOWED,
                format!(
                    "spec.repository.url is plain http, and Secret {name} may not be sent to {host} in the clear; write https://{host}/..., have {host} named in the chart's upstreams, or let the Secret's owner allow it with the annotation {ANNOTATION_ALLOWED_HOSTS}: {in_clear}",
                    host = want.host
                ),
            ));
        }
    } else if !settings.allows_secret_host(&want.host) && !annotation_allows(secret, &want.host) {
        return Err(refuse(
            accepted::HOST_NOT_ALLOWED,
            format!(
                "Secret {name} may not be sent to {host}; its owner allows it with the annotation {ANNOTATION_ALLOWED_HOSTS}: {host}",
                host = want.host
            ),
        ));
    }
    let value = secret.data.as_ref().and_then(|data| data.get(key)).ok_or_else(|| {
        refuse(accepted::SECRET_MISSING, format!("Secret {name} has no key {key}; add it"))
    })?;
    // A trailing newline comes with most ways to write a Secret from a file and is never meant.
    let text = std::str::from_utf8(&value.0).map(str::trim).unwrap_or_default();
    let printable = text.bytes().all(|byte| byte.is_ascii_graphic());
    if text.is_empty() || text.len() > VALUE_BYTES_MAX || !printable {
        return Err(refuse(
            accepted::SECRET_MISSING,
            format!("key {key} of Secret {name} is empty or not a token in printable ASCII"),
        ));
    }
    Ok(Credential {
        id: want.id.to_owned(),
        purpose: want.purpose.to_owned(),
        host: want.host.clone(),
        scheme: want.scheme.to_owned(),
        value: Secret::new(text),
    })
}

fn annotation_allows(secret: &core::Secret, host: &str) -> bool {
    secret
        .metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get(ANNOTATION_ALLOWED_HOSTS))
        .is_some_and(|hosts| {
            hosts.split(',').any(|allowed| allowed.trim().eq_ignore_ascii_case(host))
        })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    fn secret(value: &str) -> core::Secret {
        core::Secret {
            data: Some([("key".to_owned(), ByteString(value.into()))].into()),
            ..core::Secret::default()
        }
    }

    fn grant_of(secret: &core::Secret, host: &str) -> Result<Credential, CredentialError> {
        grant_over(secret, host, false, &Settings::default())
    }

    fn grant_over(
        secret: &core::Secret,
        host: &str,
        plain: bool,
        settings: &Settings,
    ) -> Result<Credential, CredentialError> {
        let source = SecretKeyRef { name: "s".to_owned(), key: "key".to_owned() };
        let want = Wanted {
            id: GIT_ID,
            purpose: purpose::GIT,
            scheme: "basic",
            host: host.to_owned(),
            plain,
            source: &source,
        };
        grant(&want, secret, settings)
    }

    fn annotated(hosts: &str) -> core::Secret {
        let mut secret = secret("t");
        secret.metadata.annotations =
            Some([(ANNOTATION_ALLOWED_HOSTS.to_owned(), hosts.to_owned())].into());
        secret
    }

    fn reason(result: Result<Credential, CredentialError>) -> &'static str {
        match result {
            Err(CredentialError::Refuse { reason, .. }) => reason,
            other => panic!("not refused: {other:?}"),
        }
    }

    #[test]
    fn the_host_of_a_url_is_taken_with_its_port_and_without_a_user() {
        for (url, host) in [
            ("https://github.com/a/b.git", Some("github.com")),
            ("http://Forge.Test:3000/a/b", Some("forge.test:3000")),
            ("https://user@github.com/a", Some("github.com")),
            ("ssh://git@github.com/a/b", None),
            ("https:///a", None),
        ] {
            assert_eq!(url_host(url).as_deref(), host, "{url}");
        }
    }

    #[test]
    fn a_secret_goes_to_listed_and_to_annotated_hosts_only() {
        assert!(grant_of(&secret("t"), "github.com").is_ok());
        assert_eq!(reason(grant_of(&secret("t"), "evil.test")), "HostNotAllowed");
        let annotated = annotated("a.test, evil.test");
        assert!(grant_of(&annotated, "evil.test").is_ok());
        assert_eq!(reason(grant_of(&annotated, "sub.evil.test")), "HostNotAllowed");
    }

    #[test]
    fn a_secret_goes_over_plain_http_only_where_its_owner_or_the_chart_spells_that_out() {
        let settings = Settings {
            allowed_secret_hosts: vec!["listed.test".to_owned()],
            upstream_hosts: vec!["forge.test:3000".to_owned()],
            ..Settings::default()
        };
        let over = |secret: &core::Secret, host: &str, plain: bool| {
            grant_over(secret, host, plain, &settings)
        };
        assert_eq!(reason(over(&secret("t"), "listed.test", true)), "HostNotAllowed");
        assert!(over(&secret("t"), "listed.test", false).is_ok());
        assert_eq!(reason(over(&annotated("a.test"), "a.test", true)), "HostNotAllowed");
        let spelt = annotated("b.test, http://a.test");
        assert!(over(&spelt, "a.test", true).is_ok());
        assert_eq!(reason(over(&spelt, "b.test", true)), "HostNotAllowed");
        assert_eq!(reason(over(&spelt, "a.test:81", true)), "HostNotAllowed");
        assert_eq!(reason(over(&spelt, "a.test", false)), "HostNotAllowed", "the other port's");
        // Its address and scheme are what the chart says, whatever the task's URL does.
        assert!(over(&secret("t"), "Forge.test:3000", true).is_ok());
        let Err(CredentialError::Refuse { message, .. }) = over(&secret("t"), "a.test", true)
        else {
            panic!("not refused");
        };
        for word in ["spec.repository.url", "upstreams", "allowed-hosts: http://a.test"] {
            assert!(message.contains(word), "{word} is missing: {message}");
        }
    }

    #[test]
    fn only_the_repositorys_own_url_can_be_plain_and_never_github_coms() {
        let plain = |url: &str| {
            let spec: CodingTaskSpec = serde_json::from_value(serde_json::json!({
                "source": {"type": "chat", "chat": {"sessionId": "s", "userId": "u"}},
                "repository": {"url": url, "branch": "main"},
                "prompt": "Add a file.",
                "anthropicApiKeyRef": {"name": "s", "key": "model"},
                "gitCredentialsRef": {"name": "s", "key": "git"},
            }))
            .unwrap();
            let wanted = wanted(&spec, StepName::Implement, "model.test").unwrap();
            wanted.iter().map(|want| want.plain).collect::<Vec<_>>()
        };
        assert_eq!(plain("http://forge.test/a/b"), [true, false]);
        assert_eq!(plain("https://forge.test/a/b"), [false, false]);
        assert_eq!(plain("http://GitHub.com/a/b"), [false, false], "the gateway asks it by https");
        assert_eq!(plain("http://github.com:80/a/b"), [true, false]);
    }

    #[test]
    fn a_value_that_cannot_be_a_token_is_refused_and_a_final_newline_is_dropped() {
        assert_eq!(grant_of(&secret("abc\n"), "github.com").unwrap().value.expose(), "abc");
        for value in ["", "\n", "a b", "a\r\nX-Header: b", "\u{e4}"] {
            assert_eq!(
                reason(grant_of(&secret(value), "github.com")),
                "SecretMissing",
                "{value:?}"
            );
        }
        let error = grant_of(&core::Secret::default(), "github.com");
        assert_eq!(reason(error), "SecretMissing");
    }
}
