//! Which real server stands behind a host that users write: `github.com` may be an Enterprise
//! install or the forge of a test cluster.

use serde::{Deserialize, Serialize};

/// Kind of forge API behind a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForgeKind {
    /// github.com or GitHub Enterprise Server.
    Github,
    /// Gitea or Forgejo.
    Gitea,
}

/// One entry of the upstream map (chart value `upstreams`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Upstream {
    /// Host as users write it in clone URLs.
    pub host: String,
    /// Base URL of the real server, without a trailing slash.
    #[serde(rename = "baseURL")]
    pub base_url: String,
    /// Its API.
    pub forge: ForgeKind,
}
