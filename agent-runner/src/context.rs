//! What every part of a running step needs, and the environment of its children.

use std::{collections::BTreeMap, ffi::OsString, path::PathBuf, sync::Arc};

use agent_operator::{attempt::StepSpec, domain::event::AgentEvent};
use base64::Engine as _;

use crate::{
    attempt::Client,
    confine::Invocation,
    events::Events,
    output::Printer,
    process::{Ended, Errors, ProcessError, Processes, Sink},
    result::Failure,
    stop::Stop,
};

/// Search path when the image names none.
pub(crate) const DEFAULT_PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Scratch folder of the pod.
const TMP_DIR: &str = "/tmp";
/// Variables of the image or the cluster that must not reach a child: our own, the API server's
/// address, and everything that would redirect git, the model or the proxy.
const DROPPED_PREFIXES: [&str; 5] =
    ["AGENT_OPERATOR_", "KUBERNETES_", "ANTHROPIC_", "CLAUDE_", "GIT_"];
/// Port of a gateway whose address names none.
const HTTP_PORT: u16 = 80;
/// User name of git and of the proxy; the token is the password.
const TOKEN_USER: &str = "agent";

/// Folders of the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Parent of the work tree.
    pub(crate) workspace: PathBuf,
    /// HOME of the agent.
    pub(crate) home: PathBuf,
    /// The runner volume.
    pub(crate) runner: PathBuf,
}

impl Layout {
    /// Where children may write: the pod's emptyDirs.
    pub(crate) fn writable(&self) -> Vec<PathBuf> {
        vec![self.workspace.clone(), self.home.clone(), TMP_DIR.into()]
    }

    /// Files between runner and agent: outside the work tree, so they are never committed.
    pub(crate) fn files(&self) -> PathBuf {
        self.workspace.join(".agent-operator")
    }
}

/// One step in progress.
pub(crate) struct Context<'a> {
    /// What to do.
    pub(crate) spec: &'a StepSpec,
    /// Where.
    pub(crate) layout: &'a Layout,
    /// Base URL of the gateway.
    pub(crate) gateway: &'a str,
    /// The agent's token.
    pub(crate) agent_token: &'a str,
    /// Client with the runner's token.
    pub(crate) client: &'a Client,
    /// Children.
    pub(crate) processes: &'a Processes,
    /// The stop order.
    pub(crate) stop: &'a Arc<Stop>,
    /// PID 1's output.
    pub(crate) printer: &'a Printer,
    /// Typed events.
    pub(crate) events: &'a Events,
    /// The container's environment.
    pub(crate) image_environment: &'a BTreeMap<String, OsString>,
}

impl Context<'_> {
    /// Says what the runner is doing, on the log and as an event.
    pub(crate) fn status(&self, text: &str) {
        self.printer.print(&format!("[{}] {text}", self.spec.step));
        self.events.push(AgentEvent::Status { text: text.to_owned() });
    }

    /// Runs a child of the step.
    pub(crate) fn run(
        &self,
        invocation: &Invocation,
        input: &[u8],
        output: &mut dyn Sink,
        errors: Errors<'_>,
    ) -> Result<Ended, ProcessError> {
        self.processes.run(invocation, input, output, errors)
    }

    /// An error if the step has to stop.
    pub(crate) fn check_stop(&self) -> Result<(), Failure> {
        self.stop.order().map_or(Ok(()), |stopping| Err(stopping.into()))
    }

    /// `host:port` of the gateway.
    pub(crate) fn gateway_authority(&self) -> &str {
        let rest = self.gateway.split_once("://").map_or(self.gateway, |(_, rest)| rest);
        rest.split('/').next().unwrap_or(rest)
    }

    /// TCP port of the gateway.
    pub(crate) fn gateway_port(&self) -> u16 {
        let port = self.gateway_authority().rsplit_once(':').map(|(_, port)| port);
        port.and_then(|port| port.parse().ok()).unwrap_or(HTTP_PORT)
    }

    /// Environment of every child: what the image sets, without what could mislead it.
    pub(crate) fn base_environment(&self) -> BTreeMap<String, OsString> {
        let mut environment: BTreeMap<String, OsString> = self
            .image_environment
            .iter()
            .filter(|(name, _)| !is_dropped(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        environment.entry("PATH".to_owned()).or_insert_with(|| DEFAULT_PATH.into());
        environment.insert("HOME".to_owned(), self.layout.home.clone().into());
        // Nobody looks at a terminal: colours and redrawn lines only spoil the log.
        for (name, value) in [("TERM", "dumb"), ("NO_COLOR", "1"), ("USER", "agent")] {
            environment.insert(name.to_owned(), value.into());
        }
        environment.remove("FORCE_COLOR");
        environment
    }

    /// Adds the way to the allowed hosts: the gateway as a proxy, with the agent's token.
    pub(crate) fn add_proxy(&self, environment: &mut BTreeMap<String, OsString>) {
        let authority = self.gateway_authority();
        let proxy = format!("http://{TOKEN_USER}:{}@{authority}", self.agent_token);
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        let direct = format!("{host},localhost,127.0.0.1,::1");
        for (name, value) in
            [("HTTP_PROXY", &proxy), ("HTTPS_PROXY", &proxy), ("NO_PROXY", &direct)]
        {
            environment.insert(name.to_owned(), value.into());
            // Both spellings are in use; curl reads `http_proxy` in lower case only.
            environment.insert(name.to_lowercase(), value.into());
        }
    }

    /// Adds what git needs to reach the gateway, and the identity of commits. `settings` come on top.
    pub(crate) fn add_git(
        &self,
        environment: &mut BTreeMap<String, OsString>,
        settings: &[(&str, &str)],
    ) {
        let credentials = base64::engine::general_purpose::STANDARD
            .encode(format!("{TOKEN_USER}:{}", self.agent_token));
        // Bound to the gateway's URL: no other host ever gets the header.
        let header_key = format!("http.{}/.extraHeader", self.gateway.trim_end_matches('/'));
        let header = format!("Authorization: Basic {credentials}");
        let all =
            [(header_key.as_str(), header.as_str())].into_iter().chain(settings.iter().copied());
        let mut count = 0;
        for (key, value) in all {
            environment.insert(format!("GIT_CONFIG_KEY_{count}"), key.into());
            environment.insert(format!("GIT_CONFIG_VALUE_{count}"), value.into());
            count += 1;
        }
        environment.insert("GIT_CONFIG_COUNT".to_owned(), count.to_string().into());
        let identity = &self.spec.identity;
        for role in ["AUTHOR", "COMMITTER"] {
            environment.insert(format!("GIT_{role}_NAME"), identity.name.clone().into());
            environment.insert(format!("GIT_{role}_EMAIL"), identity.email.clone().into());
        }
        environment.insert("GIT_TERMINAL_PROMPT".to_owned(), "0".into());
    }
}

fn is_dropped(name: &str) -> bool {
    DROPPED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || name.to_lowercase().ends_with("_proxy")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fixture;

    #[test]
    fn children_get_the_images_environment_without_ours() {
        let mut fixture = Fixture::new();
        for name in ["JAVA_HOME", "AGENT_OPERATOR_TOKEN", "KUBERNETES_SERVICE_HOST", "https_proxy"]
        {
            fixture.image_environment.insert(name.to_owned(), "x".into());
        }
        let environment = fixture.context().base_environment();
        assert!(environment.contains_key("JAVA_HOME") && environment.contains_key("PATH"));
        for name in ["AGENT_OPERATOR_TOKEN", "KUBERNETES_SERVICE_HOST", "https_proxy"] {
            assert!(!environment.contains_key(name), "{name}");
        }
        assert_eq!(environment["HOME"], fixture.layout.home.as_os_str());
    }

    #[test]
    fn the_gateway_itself_is_reached_without_the_proxy() {
        let fixture = Fixture::new();
        let mut environment = BTreeMap::new();
        fixture.context().add_proxy(&mut environment);
        let text = |name: &str| environment[name].to_str().unwrap().to_owned();
        assert_eq!(text("HTTPS_PROXY"), "http://agent:agent-token@127.0.0.1:1");
        assert_eq!(text("https_proxy"), text("HTTPS_PROXY"));
        assert!(text("NO_PROXY").split(',').any(|host| host == "127.0.0.1"));
    }

    #[test]
    fn gits_header_is_bound_to_the_gateway() {
        let fixture = Fixture::new();
        let mut environment = BTreeMap::new();
        fixture.context().add_git(&mut environment, &[("core.hooksPath", "/dev/null")]);
        assert_eq!(environment["GIT_CONFIG_COUNT"], "2");
        assert_eq!(environment["GIT_CONFIG_KEY_0"], "http.http://127.0.0.1:1/.extraHeader");
        assert_eq!(environment["GIT_CONFIG_VALUE_1"], "/dev/null");
        assert_eq!(environment["GIT_AUTHOR_EMAIL"], "agent@example.invalid");
    }
}
