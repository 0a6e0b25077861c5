//! Which real server stands behind a host that users write: `github.com` may be an Enterprise
//! install or the forge of a test cluster.

use serde::{Deserialize, Serialize};

use super::args::host_of;

/// Longest clone URL: longer ones are no repository but an attack on whoever logs them.
const URL_BYTES_MAX: usize = 2048;

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

/// Why a clone URL cannot be used. No variant shows the URL: it may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Another scheme (ssh, file, ext) or the short ssh form.
    #[error("the repository URL is not http or https; write it as https://host/owner/name.git")]
    Scheme,
    /// User information in the URL, where it would end in argument lists and logs.
    #[error(
        "the repository URL contains a user name or password; remove it and name a Secret in gitCredentialsRef"
    )]
    UserInfo,
    /// A host or path that is not plain.
    #[error(
        "the repository URL has no plain host and path of letters, digits and . _ ~ + -; write it as https://host/owner/name.git"
    )]
    Path,
}

/// The real place of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Host as the user wrote it, in lower case, with its port if one was written.
    pub host: String,
    /// Base URL of the real server, without a trailing slash.
    pub base_url: String,
    /// Path within it, without slashes at its ends and without `.git`.
    pub path: String,
    /// API of the forge; none when the map says nothing about the host.
    pub forge: Option<ForgeKind>,
}

impl Remote {
    /// The URL that git is given. Contains no credential.
    pub fn clone_url(&self) -> String {
        format!("{}/{}.git", self.base_url, self.path)
    }

    /// Owner and name, as forges address repositories; none for deeper or shorter paths.
    pub fn owner_and_name(&self) -> Option<(&str, &str)> {
        self.path.split_once('/').filter(|(_, name)| !name.contains('/'))
    }

    /// Base URL of GitHub's REST API at this server, without a trailing slash. It is plain http only
    /// where the chart's `upstreams` says so: a host without an entry has an API only if it is
    /// github.com, which is always asked over https.
    pub fn github_api(&self) -> String {
        let host = host_of(&self.base_url).unwrap_or_default();
        match host.as_str() {
            "github.com" | "www.github.com" => "https://api.github.com".to_owned(),
            // Enterprise Cloud with data residency.
            tenant if tenant.ends_with(".ghe.com") => format!("https://api.{tenant}"),
            _ => format!("{}/api/v3", self.base_url),
        }
    }

    /// Whether a credential that belongs to `host` may go to this repository's server.
    pub fn accepts_credential_of(&self, host: &str) -> bool {
        let without_port = self.host.rsplit_once(':').map_or(self.host.as_str(), |(name, _)| name);
        host.eq_ignore_ascii_case(&self.host) || host.eq_ignore_ascii_case(without_port)
    }
}

/// The upstream map.
#[derive(Clone, Debug, Default)]
pub struct UpstreamMap(Vec<Upstream>);

impl UpstreamMap {
    /// A map of `entries`; the first entry of a host counts.
    pub fn new(entries: Vec<Upstream>) -> Self {
        Self(entries)
    }

    /// Where the repository that the user calls `url` really is. Hosts that the map does not name
    /// are used as written.
    pub fn resolve(&self, url: &str) -> Result<Remote, UrlError> {
        let (scheme, host, path) = split(url)?;
        let host = host.to_ascii_lowercase();
        let path = path.trim_end_matches('/');
        let path = path.strip_suffix(".git").unwrap_or(path).to_owned();
        if let Some(entry) = self.0.iter().find(|entry| entry.host.eq_ignore_ascii_case(&host)) {
            let base_url = entry.base_url.trim_end_matches('/').to_owned();
            return Ok(Remote { host, base_url, path, forge: Some(entry.forge) });
        }
        let forge = (host == "github.com").then_some(ForgeKind::Github);
        // GitHub redirects plain http, and git would have shown the credential by then.
        let scheme = if forge.is_some() { "https" } else { scheme };
        Ok(Remote { base_url: format!("{scheme}://{host}"), host, path, forge })
    }
}

/// Splits a clone URL into scheme, host (with port) and path, refusing whatever is not plain.
fn split(url: &str) -> Result<(&str, &str, &str), UrlError> {
    let (scheme, rest) = url.split_once("://").ok_or(UrlError::Scheme)?;
    if !matches!(scheme, "http" | "https") {
        return Err(UrlError::Scheme);
    }
    if rest.contains('@') {
        return Err(UrlError::UserInfo);
    }
    let (host, path) = rest.split_once('/').ok_or(UrlError::Path)?;
    let plain_host = url.len() <= URL_BYTES_MAX
        && !host.is_empty()
        && !host.starts_with(['-', '.', ':'])
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b));
    let plain_path = path.trim_end_matches('/').split('/').all(plain_segment);
    if plain_host && plain_path { Ok((scheme, host, path)) } else { Err(UrlError::Path) }
}

fn plain_segment(segment: &str) -> bool {
    !matches!(segment, "" | "." | ".." | ".git")
        && !segment.starts_with('-')
        && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b"._~+-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> UpstreamMap {
        UpstreamMap::new(vec![Upstream {
            host: "github.com".to_owned(),
            base_url: "http://10.77.0.254:3000/".to_owned(),
            forge: ForgeKind::Gitea,
        }])
    }

    #[test]
    fn a_mapped_host_goes_to_its_base_url_and_keeps_its_path() {
        for url in [
            "https://github.com/jcwearn/example-repo.git",
            "https://GitHub.com/jcwearn/example-repo",
            "https://github.com/jcwearn/example-repo/",
        ] {
            let remote = map().resolve(url).unwrap();
            assert_eq!(remote.clone_url(), "http://10.77.0.254:3000/jcwearn/example-repo.git");
            assert_eq!(remote.owner_and_name(), Some(("jcwearn", "example-repo")));
            assert_eq!(
                (remote.host.as_str(), remote.forge),
                ("github.com", Some(ForgeKind::Gitea))
            );
        }
    }

    #[test]
    fn an_unmapped_host_is_used_as_written() {
        let remote = map().resolve("https://git.example.com:8443/group/sub/name.git").unwrap();
        assert_eq!(remote.clone_url(), "https://git.example.com:8443/group/sub/name.git");
        assert_eq!((remote.forge, remote.owner_and_name()), (None, None));
        let github = UpstreamMap::default().resolve("https://github.com/o/r").unwrap();
        assert_eq!(github.forge, Some(ForgeKind::Github));
    }

    #[test]
    fn the_api_of_github_and_of_enterprise_servers_is_found_from_the_clone_url() {
        let api = |map: &UpstreamMap, url: &str| map.resolve(url).unwrap().github_api();
        let plain = UpstreamMap::default();
        for url in ["https://github.com/o/r.git", "http://github.com/o/r", "https://GITHUB.com/o/r"]
        {
            assert_eq!(api(&plain, url), "https://api.github.com");
        }
        let entry = |host: &str, base_url: &str| Upstream {
            host: host.to_owned(),
            base_url: base_url.to_owned(),
            forge: ForgeKind::Github,
        };
        let map = UpstreamMap::new(vec![
            entry("ghe.example.com", "https://ghe.example.com/"),
            entry("github.com", "http://10.0.0.2:8080/hub"),
            entry("acme.ghe.com", "https://acme.ghe.com"),
        ]);
        assert_eq!(api(&map, "https://ghe.example.com/o/r"), "https://ghe.example.com/api/v3");
        assert_eq!(api(&map, "https://github.com/o/r"), "http://10.0.0.2:8080/hub/api/v3");
        assert_eq!(api(&map, "https://acme.ghe.com/o/r"), "https://api.acme.ghe.com");
    }

    #[test]
    fn github_is_never_asked_over_plain_http() {
        let remote = UpstreamMap::default().resolve("http://github.com/o/r.git").unwrap();
        assert_eq!(remote.clone_url(), "https://github.com/o/r.git");
    }

    proptest::proptest! {
        #[test]
        fn owner_and_name_come_back_from_every_spelling_of_a_clone_url(
            owner in "[A-Za-z0-9][A-Za-z0-9._-]{0,20}",
            name in "[A-Za-z0-9_][A-Za-z0-9._-]{0,20}",
            host in "(github\\.com|GitHub\\.com|ghe\\.example\\.com(:8443)?)",
            ending in "(\\.git)?/?",
        ) {
            // A name that ends in .git itself would be read as the suffix.
            proptest::prop_assume!(name.strip_suffix(".git").is_none() && owner.strip_suffix(".git").is_none());
            let url = format!("https://{host}/{owner}/{name}{ending}");
            let remote = map().resolve(&url).unwrap();
            proptest::prop_assert_eq!(remote.owner_and_name(), Some((&*owner, &*name)));
        }

        #[test]
        fn a_path_of_any_other_depth_has_no_owner_and_name(
            segments in proptest::collection::vec("[A-Za-z0-9][A-Za-z0-9_-]{0,8}", 3..6),
        ) {
            let url = format!("https://github.com/{}.git", segments.join("/"));
            let deep = map().resolve(&url).unwrap();
            proptest::prop_assert_eq!(deep.owner_and_name(), None);
            let shallow = map().resolve(&format!("https://github.com/{}", segments[0])).unwrap();
            proptest::prop_assert_eq!(shallow.owner_and_name(), None);
        }

        #[test]
        fn whatever_is_written_as_url_is_resolved_or_refused(url in "(https?://)?.{0,60}") {
            if let Ok(remote) = map().resolve(&url) {
                let plain = |b: u8| b.is_ascii_alphanumeric() || b"._~+-/".contains(&b);
                proptest::prop_assert!(remote.path.bytes().all(plain), "{}", remote.path);
            }
        }
    }

    #[test]
    fn a_credential_goes_to_its_own_host_only() {
        let remote = map().resolve("https://github.com/o/r.git").unwrap();
        assert!(remote.accepts_credential_of("github.com"));
        assert!(!remote.accepts_credential_of("evil-github.com"));
        assert!(!remote.accepts_credential_of("10.77.0.254"));
        let other = map().resolve("https://git.example.com:8443/o/r.git").unwrap();
        assert!(other.accepts_credential_of("git.example.com"));
        assert!(other.accepts_credential_of("git.example.com:8443"));
        assert!(!other.accepts_credential_of("git.example.com:443"));
    }

    #[test]
    fn urls_that_could_mean_something_else_are_refused() {
        for url in [
            "git@github.com:o/r.git",
            "ssh://github.com/o/r.git",
            "file:///etc/passwd",
            "ext::sh -c id",
            "https://user:pass@github.com/o/r.git",
            "https://github.com",
            "https://github.com/",
            "https:///o/r",
            "https://-x/o/r",
            "https://github.com/o/../r",
            "https://github.com/o//r",
            "https://github.com/o/r?x=1",
            "https://github.com/o/r#x",
            "https://github.com/o/%2e%2e/r",
            "https://github.com/--upload-pack=id/r",
            "https://github.com/o/r\n",
        ] {
            assert!(map().resolve(url).is_err(), "{url}");
        }
        assert!(map().resolve(&format!("https://github.com/o/{}", "r".repeat(10_000))).is_err());
    }

    #[test]
    fn a_refused_url_with_a_password_does_not_show_it() {
        for url in [
            "https://me:s3cr3t@github.com/o/r.git",
            "ssh://me:s3cr3t@h/o/r",
            "https://me:s3/cr3t@h/o",
        ] {
            let error = map().resolve(url).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("cr3t"), "{error}");
        }
    }
}
