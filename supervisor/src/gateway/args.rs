//! Arguments and configuration of the gateway; everything is checked here, once, at the start.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use agent_operator::attempt::GitIdentity;
use serde::{Deserialize, Deserializer};

use super::{
    egress::policy::HostPort,
    git::{self, GitLimits},
    llm::prices::Price,
    network::Network,
    proxy,
    upstream::Upstream,
};

/// Arguments of `supervisor gateway`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Address that sandboxes reach.
    #[arg(long, env = "GATEWAY_LISTEN", default_value = "[::]:8080")]
    pub listen: SocketAddr,
    /// Address of /metrics, apart from what sandboxes reach; left out: none.
    #[arg(long, env = "GATEWAY_METRICS_LISTEN")]
    pub metrics_listen: Option<SocketAddr>,
    /// Unix socket that the supervisor connects to.
    #[arg(long, env = "GATEWAY_SOCKET")]
    pub socket: PathBuf,
    /// Uid that may connect to the socket besides 0 and the gateway's own.
    #[arg(long, env = "GATEWAY_ALLOWED_PEER_UID", value_delimiter = ',')]
    pub allowed_peer_uid: Vec<u32>,
    /// Directory for mirrors and quarantine.
    #[arg(long, env = "GATEWAY_GIT_DIR")]
    pub git_dir: PathBuf,
    /// Configuration file (YAML or JSON), see [`Config`].
    #[arg(long, env = "GATEWAY_CONFIG")]
    pub config: PathBuf,
    /// PEM file with certificate authorities to trust besides the system's.
    #[arg(long, env = "GATEWAY_CA_BUNDLE")]
    pub ca_bundle: Option<PathBuf>,
    /// File with the proxy's user name and password, as user:password.
    #[arg(long, env = "GATEWAY_PROXY_CREDENTIALS")]
    pub proxy_credentials: Option<PathBuf>,
    /// Addresses of this pod and its node, public ones too: no tunnel leads there.
    #[arg(long, env = "GATEWAY_OWN_ADDRESSES", value_delimiter = ',')]
    pub own_address: Vec<String>,
    /// Address of the API server as Kubernetes tells every container; no tunnel leads there.
    #[arg(long, env = "KUBERNETES_SERVICE_HOST")]
    pub api_server: Option<String>,
    /// Lets CONNECT reach private, loopback and cluster addresses. For test rigs without a network.
    #[arg(long, env = "GATEWAY_EGRESS_ALLOW_PRIVATE")]
    pub egress_allow_private: bool,
}

impl Args {
    /// What belongs to this cluster, as far as a container is told.
    pub fn own_addresses(&self) -> Vec<Network> {
        // The kubelet fills these in; a node without an address of one family leaves a hole.
        let texts = self.own_address.iter().chain(&self.api_server);
        texts.filter_map(|text| text.trim().parse::<IpAddr>().ok()).map(Network::from).collect()
    }
}

/// The configuration file, written by the chart.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// The model API.
    pub llm: Llm,
    /// Which real server stands behind a host that users write.
    #[serde(default)]
    pub upstreams: Vec<Upstream>,
    /// The CONNECT proxy.
    #[serde(default)]
    pub egress: Egress,
    /// The proxy between the gateway and the internet.
    #[serde(default)]
    pub proxy: proxy::Settings,
    /// Prices by model name; a name also covers its dated versions (`name-20250101`).
    #[serde(default)]
    pub prices: BTreeMap<String, Price>,
    /// What attempts may bring upstream.
    #[serde(default)]
    pub git: Git,
    /// Author and committer of the runner's commits.
    #[serde(default = "default_identity")]
    pub git_identity: GitIdentity,
    /// Limits of one attempt and of the whole gateway.
    #[serde(default)]
    pub limits: Limits,
}

/// The model API behind `/llm`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Llm {
    /// Base URL, http or https; a path prefix is kept.
    #[serde(rename = "baseURL", default = "default_llm_base_url")]
    pub base_url: String,
    /// Host that a model credential must be meant for.
    #[serde(default = "default_llm_host")]
    pub host: String,
    /// Tools that run at the provider and may be used all the same, by prefix of their type. They
    /// reach the internet past the gateway, so none is allowed by default.
    #[serde(default)]
    pub server_tools: Vec<String>,
    /// Models that may be called, by name; a name also covers its dated versions. Empty: all.
    #[serde(default)]
    pub models: Vec<String>,
}

/// Settings of the CONNECT proxy.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Egress {
    /// Hosts (`name` or `name:port`, default port 443) that every attempt may reach.
    pub allowed_hosts: Vec<String>,
    /// Networks that no tunnel leads to, besides those that are not public.
    #[serde(deserialize_with = "networks")]
    pub denied_networks: Vec<Network>,
}

fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Network>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let parse = |text: &String| text.parse().map_err(serde::de::Error::custom);
    texts.iter().map(parse).collect()
}

/// What attempts may bring upstream; each default has its reason in `git`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Git {
    /// Files and folders that only people change.
    pub protected_paths: Vec<String>,
    /// Most files that a step may change.
    pub files: u64,
    /// Most new objects of a step.
    pub objects: u64,
    /// Largest pack of one push, and most bytes that a step may bring.
    pub push_bytes: u64,
}

impl Default for Git {
    fn default() -> Self {
        let limits = GitLimits::default();
        Self {
            protected_paths: git::PROTECTED_BY_DEFAULT.map(str::to_owned).to_vec(),
            files: limits.files_max,
            objects: limits.objects_max,
            push_bytes: limits.push_bytes_max,
        }
    }
}

impl Git {
    /// The limits as the git service takes them.
    pub fn limits(&self) -> GitLimits {
        GitLimits::with_push(self.push_bytes, self.objects, self.files)
    }
}

/// Limits; each default has its reason in `limits`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// Connections of the whole gateway.
    pub connections: usize,
    /// Connections from one address.
    pub connections_per_pod: usize,
    /// Requests a second of one attempt, averaged.
    pub requests_per_second: u32,
    /// Concurrent model calls of one attempt.
    pub model_calls: usize,
    /// Largest body of a model call in bytes.
    pub model_body_bytes: usize,
    /// Bytes of all bodies of model calls of one attempt that are held at once.
    pub model_buffer_bytes: usize,
    /// Concurrent tunnels of one attempt.
    pub tunnels: usize,
    /// Bytes that one attempt may send out through tunnels.
    pub tunnel_upload_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        use super::limits;
        Self {
            connections: limits::CONNECTIONS_MAX,
            connections_per_pod: limits::CONNECTIONS_PER_POD_MAX,
            requests_per_second: limits::REQUESTS_PER_SECOND,
            model_calls: limits::MODEL_CALLS_MAX,
            model_body_bytes: limits::MODEL_BODY_BYTES_MAX,
            model_buffer_bytes: limits::MODEL_BUFFER_BYTES_MAX,
            tunnels: limits::TUNNELS_MAX,
            tunnel_upload_bytes: limits::TUNNEL_UPLOAD_BYTES_MAX,
        }
    }
}

fn default_llm_base_url() -> String {
    "https://api.anthropic.com".to_owned()
}

fn default_llm_host() -> String {
    "api.anthropic.com".to_owned()
}

fn default_identity() -> GitIdentity {
    GitIdentity {
        name: "agent-operator".to_owned(),
        email: "agent-operator@users.noreply.github.com".to_owned(),
    }
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not valid.
    #[error("cannot parse the configuration: {0}")]
    Parse(String),
    /// `llm.baseURL` or an upstream's `baseURL` is not an http(s) URL with a host.
    #[error("{field} {value:?} is not an http or https URL with a host")]
    BaseUrl {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: String,
    },
    /// An allowed host is malformed.
    #[error("egress.allowedHosts: {0}")]
    AllowedHost(String),
    /// A protected path is malformed.
    #[error(transparent)]
    Protected(#[from] git::ProtectedError),
    /// The proxy settings are malformed.
    #[error(transparent)]
    Proxy(#[from] proxy::RuleError),
}

impl Config {
    /// Reads and checks the file.
    pub fn read(path: &std::path::Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text)
    }

    /// Parses and checks a YAML or JSON text.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut config: Self =
            serde_saphyr::from_str(text).map_err(|error| ConfigError::Parse(error.to_string()))?;
        trim_slash(&mut config.llm.base_url);
        check_base_url("llm.baseURL", &config.llm.base_url)?;
        for upstream in &mut config.upstreams {
            trim_slash(&mut upstream.base_url);
            check_base_url("upstreams[].baseURL", &upstream.base_url)?;
        }
        for host in &config.egress.allowed_hosts {
            HostPort::parse_allowed(host)
                .map_err(|error| ConfigError::AllowedHost(error.to_string()))?;
        }
        git::ProtectedPaths::new(&config.git.protected_paths)?;
        proxy::ProxyRules::new(&config.proxy, None)?;
        Ok(config)
    }

    /// Hosts where credentials go, as users write them and as they are mapped. A tunnel to one of
    /// them could carry the agent's own key unseen.
    pub fn credential_hosts(&self) -> Vec<String> {
        let mut hosts = vec![self.llm.host.to_ascii_lowercase()];
        hosts.extend(host_of(&self.llm.base_url));
        for upstream in &self.upstreams {
            hosts.push(upstream.host.to_ascii_lowercase());
            hosts.extend(host_of(&upstream.base_url));
        }
        hosts
    }
}

/// The lower-case host of a URL.
pub(super) fn host_of(url: &str) -> Option<String> {
    let uri: http::Uri = url.parse().ok()?;
    uri.host().map(str::to_ascii_lowercase)
}

fn trim_slash(url: &mut String) {
    while url.ends_with('/') {
        url.pop();
    }
}

fn check_base_url(field: &'static str, value: &str) -> Result<(), ConfigError> {
    let good = value.parse::<http::Uri>().ok().is_some_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some_and(|host| !host.is_empty())
            && uri.query().is_none()
    });
    good.then_some(()).ok_or_else(|| ConfigError::BaseUrl { field, value: value.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_configuration_is_read_as_yaml_and_as_json() {
        let yaml = "llm: {baseURL: 'http://10.0.0.1:9000/', host: api.anthropic.com}\n\
                    upstreams: [{host: github.com, baseURL: 'http://10.0.0.2:3000', forge: gitea}]\n\
                    egress: {allowedHosts: [packages.example]}\n\
                    prices: {claude-x: {inputMicroUSDPerMTok: 3000000}}\n";
        let config = Config::parse(yaml).unwrap();
        assert_eq!(config.llm.base_url, "http://10.0.0.1:9000");
        let hosts = config.credential_hosts();
        for host in ["api.anthropic.com", "10.0.0.1", "github.com", "10.0.0.2"] {
            assert!(hosts.iter().any(|known| known == host), "{host}");
        }
        assert!(Config::parse(r#"{"llm": {}}"#).is_ok());
    }

    #[test]
    fn the_built_in_protected_paths_are_those_of_the_chart() {
        let values = include_str!("../../../deploy/helm/agent-operator/values.yaml");
        let values: serde_json::Value = serde_saphyr::from_str(values).unwrap();
        let chart = &values["gateway"]["git"]["protectedPaths"];
        assert_eq!(chart, &serde_json::json!(Git::default().protected_paths));
    }

    #[test]
    fn own_addresses_are_taken_from_what_kubernetes_fills_in() {
        use clap::Parser as _;

        #[derive(clap::Parser)]
        struct Program {
            #[command(flatten)]
            args: Args,
        }
        let line = "x --socket s --git-dir g --config c --api-server 10.96.0.1 \
                    --own-address 203.0.113.7,2001:db8::7,";
        let own = Program::parse_from(line.split_whitespace()).args.own_addresses();
        assert_eq!(own.len(), 3);
        for address in ["203.0.113.7", "2001:db8::7", "10.96.0.1", "::ffff:203.0.113.7"] {
            let address = address.parse().unwrap();
            assert!(own.iter().any(|network| network.contains(address)), "{address}");
        }
    }

    #[test]
    fn unknown_fields_and_bad_urls_are_refused() {
        assert!(matches!(Config::parse("llm: {baseUrl: x}"), Err(ConfigError::Parse(_))));
        assert!(matches!(
            Config::parse("llm: {baseURL: 'ftp://x'}"),
            Err(ConfigError::BaseUrl { field: "llm.baseURL", .. })
        ));
        assert!(matches!(
            Config::parse("llm: {}\negress: {deniedNetworks: ['1.2.3.4/99']}"),
            Err(ConfigError::Parse(_))
        ));
        assert!(matches!(
            Config::parse("llm: {}\ngit: {protectedPaths: ['../x']}"),
            Err(ConfigError::Protected(_))
        ));
        assert!(matches!(
            Config::parse("llm: {}\negress: {allowedHosts: ['1.2.3.4']}"),
            Err(ConfigError::AllowedHost(_))
        ));
    }
}
