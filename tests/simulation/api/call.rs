//! A request as it was meant.

use std::collections::BTreeMap;

use http::{Method, Uri};

use super::kinds::{KINDS, Kind};

/// What a request wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// One object.
    Get,
    /// Many objects.
    List,
    /// Changes from a version on.
    Watch,
    /// A new object.
    Create,
    /// A change of an object.
    Patch,
    /// The end of an object.
    Delete,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Call {
    /// Who asks, by the name of its connection.
    pub client: String,
    /// What it wants.
    pub verb: Verb,
    /// Of what.
    pub kind: &'static Kind,
    /// Where; none is everywhere, or a resource of the cluster.
    pub namespace: Option<String>,
    /// Which; none for lists, watches and creations.
    pub name: Option<String>,
    /// `status`, if it is about that.
    pub subresource: Option<String>,
    /// Parameters.
    pub query: BTreeMap<String, String>,
}

impl Call {
    /// Reads method and address; none when no such resource is served that way.
    pub fn read(client: &str, method: &Method, uri: &Uri) -> Option<Self> {
        let mut parts = uri.path().trim_matches('/').split('/');
        let (group, version) = match parts.next()? {
            "api" => ("", parts.next()?),
            "apis" => (parts.next()?, parts.next()?),
            _ => return None,
        };
        let rest: Vec<_> = parts.collect();
        // Namespaces are a resource themselves.
        let (namespace, rest) = match rest.as_slice() {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() && rest[0] != "status" => {
                (Some((*namespace).to_owned()), rest)
            }
            rest => (None, rest),
        };
        let (plural, rest) = rest.split_first()?;
        let kind = KINDS.iter().find(|kind| {
            kind.group == group && kind.version == version && kind.plural == *plural
        })?;
        let name = rest.first().map(|name| (*name).to_owned());
        let subresource = rest.get(1).map(|sub| (*sub).to_owned());
        let query = query(uri.query().unwrap_or_default());
        let watches = query.get("watch").is_some_and(|value| value == "true" || value == "1");
        let verb = match (method, name.is_some()) {
            (&Method::GET, false) if watches => Verb::Watch,
            (&Method::GET, false) => Verb::List,
            (&Method::GET, true) => Verb::Get,
            (&Method::POST, false) => Verb::Create,
            (&Method::PATCH, true) => Verb::Patch,
            (&Method::DELETE, true) => Verb::Delete,
            _ => return None,
        };
        Some(Self { client: client.to_owned(), verb, kind, namespace, name, subresource, query })
    }

    /// Whether it changes anything.
    pub fn is_write(&self) -> bool {
        matches!(self.verb, Verb::Create | Verb::Patch | Verb::Delete)
    }

    pub(super) fn number(&self, parameter: &str) -> Option<u64> {
        self.query.get(parameter)?.parse().ok()
    }

    pub(super) fn is_about_status(&self) -> bool {
        self.subresource.as_deref() == Some("status")
    }
}

fn query(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (decoded(name), decoded(value))).collect()
}

fn decoded(text: &str) -> String {
    let text = text.replace('+', " ");
    percent_encoding::percent_decode_str(&text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(method: &Method, uri: &str) -> Option<Call> {
        Call::read("test", method, &uri.parse().unwrap())
    }

    #[test]
    fn addresses_are_read_as_they_are_meant() {
        let path = "/apis/agents.wearn.dev/v1alpha1/namespaces/a/agentruns/r/status?force=true";
        let call = read(&Method::PATCH, path).unwrap();
        assert_eq!((call.verb, call.kind.kind), (Verb::Patch, "AgentRun"));
        assert_eq!((call.namespace.as_deref(), call.name.as_deref()), (Some("a"), Some("r")));
        assert!(call.is_about_status() && call.is_write() && call.query["force"] == "true");

        let call = read(&Method::GET, "/api/v1/namespaces/a").unwrap();
        assert_eq!((call.verb, call.kind.kind), (Verb::Get, "Namespace"));
        let call = read(&Method::GET, "/api/v1/pods?watch=true&labelSelector=a%2Fb%3Dc").unwrap();
        assert_eq!((call.verb, call.query["labelSelector"].as_str()), (Verb::Watch, "a/b=c"));
        assert!(read(&Method::GET, "/api/v1/teapots").is_none());
    }
}
