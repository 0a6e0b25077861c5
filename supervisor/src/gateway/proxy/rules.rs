//! Which host goes through which proxy.

use std::{fmt, net::IpAddr, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use http::{HeaderValue, Uri};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::gateway::network::Network;

/// Most exceptions: a list that long is a mistake, and each request walks it.
const EXCEPTIONS_MAX: usize = 256;

/// The configuration's `proxy`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// Proxy for plain http upstreams, as `http://host:port`; empty for none.
    pub http: String,
    /// Proxy for https upstreams and for the tunnels of agents; empty for none.
    pub https: String,
    /// What is reached directly: names (with all names below them), `name:port`, addresses and
    /// networks (`10.0.0.0/8`).
    pub no_proxy: Vec<String>,
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RuleError {
    /// An address of a proxy is not one.
    #[error(
        "{field} {value:?} is not of the form http://host:port; a password belongs into gateway.proxy.credentialsSecret"
    )]
    ParseProxy {
        /// Which field.
        field: &'static str,
        /// Its value; without a password, for such a value is not shown.
        value: String,
    },
    /// An exception is none.
    #[error("proxy.noProxy {0:?} is not a name, name:port, address or network")]
    ParseException(String),
    /// Too many exceptions.
    #[error("proxy.noProxy has more than {EXCEPTIONS_MAX} entries")]
    CountExceptions,
    /// The file with user name and password cannot be read.
    #[error("cannot read the proxy's user name and password")]
    ReadCredentials(#[source] std::io::Error),
    /// It holds something else.
    #[error("the proxy's credentials are not one line of the form user:password")]
    ParseCredentials,
}

/// A proxy. `Display` and `Debug` show its address only.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    pub(super) host: String,
    pub(super) port: u16,
    /// Value of `Proxy-Authorization`.
    pub(super) authorization: Option<HeaderValue>,
    /// `user:password@` for a URL, percent-encoded.
    user_info: Zeroizing<String>,
}

impl fmt::Display for Proxy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.host, self.port)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Proxy({self})")
    }
}

impl Proxy {
    fn parse(
        field: &'static str,
        value: &str,
        credentials: Option<&str>,
    ) -> Result<Option<Self>, RuleError> {
        if value.is_empty() {
            return Ok(None);
        }
        let shown = if value.contains('@') { "(not shown)" } else { value };
        let wrong = || RuleError::ParseProxy { field, value: shown.to_owned() };
        let uri: Uri = value.parse().map_err(|_| wrong())?;
        let (host, port) = (uri.host().unwrap_or_default(), uri.port_u16());
        let plain = uri.scheme_str() == Some("http")
            && !value.contains('@')
            && matches!(uri.path(), "" | "/")
            && uri.query().is_none()
            && !host.is_empty();
        let (true, Some(port @ 1..)) = (plain, port) else { return Err(wrong()) };
        let (authorization, user_info) = match credentials {
            Some(pair) => login(pair)?,
            None => (None, Zeroizing::default()),
        };
        Ok(Some(Self { host: host.to_owned(), port, authorization, user_info }))
    }

    /// The proxy's own address.
    pub(super) fn uri(&self) -> Uri {
        format!("http://{self}").parse().expect("host and port come from a parsed URL")
    }

    /// Its URL for a client that knows no other way than a password in it. Secret.
    pub fn secret_url(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("http://{}{self}", *self.user_info))
    }
}

fn login(pair: &str) -> Result<(Option<HeaderValue>, Zeroizing<String>), RuleError> {
    let (user, password) = pair.split_once(':').ok_or(RuleError::ParseCredentials)?;
    if user.is_empty() || pair.contains(['\r', '\n', '\0']) {
        return Err(RuleError::ParseCredentials);
    }
    let basic = Zeroizing::new(format!("Basic {}", BASE64.encode(pair)));
    let mut value = HeaderValue::from_str(&basic).map_err(|_| RuleError::ParseCredentials)?;
    value.set_sensitive(true);
    let encode = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
    Ok((Some(value), Zeroizing::new(format!("{}:{}@", encode(user), encode(password)))))
}

/// The rules. [`Default`] sends everything directly.
#[derive(Clone, Debug, Default)]
pub struct ProxyRules {
    http: Option<Proxy>,
    https: Option<Proxy>,
    exceptions: Vec<Exception>,
}

impl ProxyRules {
    /// Rules of `settings`; user name and password, if the proxy wants them, stand in the file
    /// `credentials` as `user:password`.
    pub fn new(settings: &Settings, credentials: Option<&Path>) -> Result<Self, RuleError> {
        let text = credentials.map(std::fs::read_to_string).transpose();
        let text = text.map_err(RuleError::ReadCredentials)?.map(Zeroizing::new);
        let pair = text.as_ref().map(|text| text.trim_end_matches(['\r', '\n']));
        if settings.no_proxy.len() > EXCEPTIONS_MAX {
            return Err(RuleError::CountExceptions);
        }
        Ok(Self {
            http: Proxy::parse("proxy.http", &settings.http, pair)?,
            https: Proxy::parse("proxy.https", &settings.https, pair)?,
            exceptions: settings
                .no_proxy
                .iter()
                .map(|text| Exception::parse(text))
                .collect::<Result<_, _>>()?,
        })
    }

    /// The proxy for a connection to `host`; none for a direct one. `tls` tells which of the two.
    pub fn choose(&self, tls: bool, host: &str, port: u16) -> Option<&Proxy> {
        let proxy = if tls { self.https.as_ref() } else { self.http.as_ref() }?;
        let host = host.trim_start_matches('[').trim_end_matches([']', '.']);
        let excepted = self.exceptions.iter().any(|exception| exception.covers(host, port));
        (!excepted).then_some(proxy)
    }

    /// The proxy for a URL.
    pub fn for_uri(&self, uri: &Uri) -> Option<&Proxy> {
        self.choose(is_tls(uri), uri.host()?, port(uri))
    }
}

fn is_tls(uri: &Uri) -> bool {
    uri.scheme_str() != Some("http")
}

fn port(uri: &Uri) -> u16 {
    let default = if is_tls(uri) { 443 } else { 80 };
    uri.port_u16().unwrap_or(default)
}

/// Host and port of a URL, as CONNECT wants them.
pub(super) fn authority(uri: &Uri) -> Option<String> {
    Some(format!("{}:{}", uri.host()?, port(uri)))
}

/// What is reached directly.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Exception {
    Everything,
    /// A name and all names below it; the port, if one was written.
    Name(String, Option<u16>),
    /// An address with a port.
    Address(IpAddr, Option<u16>),
    /// A network.
    Network(Network),
}

impl Exception {
    fn parse(text: &str) -> Result<Self, RuleError> {
        let wrong = || RuleError::ParseException(text.to_owned());
        let entry = text.trim();
        if entry == "*" {
            return Ok(Self::Everything);
        }
        if entry.contains('/') {
            return entry.parse().map(Self::Network).map_err(|_| wrong());
        }
        if let Ok(address) = entry.trim_matches(['[', ']']).parse() {
            return Ok(Self::Address(address, None));
        }
        let (name, port) = match entry.rsplit_once(':') {
            Some((name, port)) => (name, Some(port.parse().map_err(|_| wrong())?)),
            None => (entry, None),
        };
        if let Ok(address) = name.trim_matches(['[', ']']).parse() {
            return Ok(Self::Address(address, port));
        }
        let name = name.trim_start_matches('*').trim_matches('.').to_ascii_lowercase();
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if name.is_empty() || !name.bytes().all(plain) {
            return Err(wrong());
        }
        Ok(Self::Name(name, port))
    }

    fn covers(&self, host: &str, port: u16) -> bool {
        let at = |wanted: &Option<u16>| wanted.is_none_or(|wanted| wanted == port);
        match self {
            Self::Everything => true,
            Self::Name(name, wanted) => {
                let host = host.to_ascii_lowercase();
                let below = host.strip_suffix(name.as_str());
                at(wanted) && below.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
            Self::Address(address, wanted) => {
                at(wanted) && host.parse::<IpAddr>().is_ok_and(|host| host == *address)
            }
            Self::Network(network) => host.parse().is_ok_and(|host| network.contains(host)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(no_proxy: &[&str]) -> ProxyRules {
        let settings = Settings {
            http: "http://plain.example:3128".to_owned(),
            https: "http://tls.example:3129/".to_owned(),
            no_proxy: no_proxy.iter().map(|text| (*text).to_owned()).collect(),
        };
        ProxyRules::new(&settings, None).unwrap()
    }

    #[test]
    fn the_scheme_chooses_the_proxy() {
        let rules = rules(&[]);
        let chosen = |url: &str| rules.for_uri(&url.parse().unwrap()).map(ToString::to_string);
        assert_eq!(chosen("http://a.example/x").unwrap(), "plain.example:3128");
        assert_eq!(chosen("https://a.example/x").unwrap(), "tls.example:3129");
        let none = ProxyRules::default();
        assert!(none.for_uri(&"https://a.example".parse().unwrap()).is_none());
    }

    #[test]
    fn exceptions_are_reached_directly_and_nothing_else_is() {
        let rules = rules(&[
            ".svc",
            "corp.example",
            "only.example:8443",
            "10.0.0.0/8",
            "fd00::/8",
            "192.0.2.7",
            "*.wild.example",
        ]);
        for (host, port) in [
            ("forge.git.svc", 443),
            ("corp.example", 443),
            ("Git.Corp.Example.", 443),
            ("only.example", 8443),
            ("10.1.2.3", 3000),
            ("[fd00::1]", 443),
            ("192.0.2.7", 80),
            ("x.wild.example", 443),
        ] {
            assert!(rules.choose(true, host, port).is_none(), "{host}:{port}");
        }
        for (host, port) in [
            ("evilcorp.example", 443),
            ("corp.example.org", 443),
            ("only.example", 443),
            ("11.0.0.1", 443),
            ("10.example", 443),
            ("svc", 8080),
            ("192.0.2.70", 80),
        ] {
            let direct = host == "svc";
            assert_eq!(rules.choose(true, host, port).is_none(), direct, "{host}:{port}");
        }
        assert!(self::rules(&["*"]).choose(true, "a.example", 443).is_none());
    }

    #[test]
    fn malformed_settings_are_refused_without_showing_a_password() {
        for url in [
            "https://proxy:3128",
            "proxy:3128",
            "http://proxy",
            "http://proxy:3128/path",
            "http://me:s3cr3t@proxy:3128",
            "http://proxy:0",
            "socks5://proxy:1080",
        ] {
            let settings = Settings { https: url.to_owned(), ..Settings::default() };
            let error = ProxyRules::new(&settings, None).unwrap_err().to_string();
            assert!(error.contains("proxy.https") && !error.contains("s3cr3t"), "{error}");
        }
        for exception in ["", "a b", "10.0.0.0/33", "x/y", "name:port", "http://x"] {
            let no_proxy = vec![exception.to_owned()];
            let settings = Settings { no_proxy, ..Settings::default() };
            let error = ProxyRules::new(&settings, None).unwrap_err();
            assert!(matches!(error, RuleError::ParseException(_)), "{exception}");
        }
    }

    #[test]
    fn credentials_come_from_a_file_and_are_never_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let settings = Settings { https: "http://p.example:1".to_owned(), ..Settings::default() };
        std::fs::write(file.path(), "us er:p@ss/word:x\n").unwrap();
        let rules = ProxyRules::new(&settings, Some(file.path())).unwrap();
        let proxy = rules.choose(true, "a.example", 443).unwrap();
        assert_eq!(*proxy.secret_url(), "http://us%20er:p%40ss%2Fword%3Ax@p.example:1");
        let value = proxy.authorization.as_ref().unwrap();
        assert_eq!(value, &format!("Basic {}", BASE64.encode("us er:p@ss/word:x")));
        assert!(!format!("{rules:?} {proxy}").contains("p@ss"));
        for wrong in ["", "alone", ":x", "a:b\nc:d"] {
            std::fs::write(file.path(), wrong).unwrap();
            assert!(ProxyRules::new(&settings, Some(file.path())).is_err(), "{wrong:?}");
        }
    }
}
