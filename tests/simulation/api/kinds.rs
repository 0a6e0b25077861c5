//! The resources that are served.

/// A resource.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Version.
    pub version: &'static str,
    /// As in paths.
    pub plural: &'static str,
    /// As in objects.
    pub kind: &'static str,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// Whether it has the subresource `status`.
    pub status: bool,
    /// Whether a definition made it: such objects have a generation that the server counts.
    pub custom: bool,
}

impl Kind {
    /// `group/version`, or the version alone in the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `plural.group`, as messages of the server name it.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_owned()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }
}

const fn core(plural: &'static str, kind: &'static str, namespaced: bool, status: bool) -> Kind {
    Kind { group: "", version: "v1", plural, kind, namespaced, status, custom: false }
}

const fn ours(plural: &'static str, kind: &'static str) -> Kind {
    Kind {
        group: "agents.wearn.dev",
        version: "v1alpha1",
        plural,
        kind,
        namespaced: true,
        status: true,
        custom: true,
    }
}

/// All of them.
pub static KINDS: &[Kind] = &[
    core("namespaces", "Namespace", false, true),
    core("nodes", "Node", false, true),
    core("pods", "Pod", true, true),
    core("serviceaccounts", "ServiceAccount", true, false),
    core("secrets", "Secret", true, false),
    core("configmaps", "ConfigMap", true, false),
    Kind {
        group: "coordination.k8s.io",
        version: "v1",
        plural: "leases",
        kind: "Lease",
        namespaced: true,
        status: false,
        custom: false,
    },
    Kind {
        group: "events.k8s.io",
        version: "v1",
        plural: "events",
        kind: "Event",
        namespaced: true,
        status: false,
        custom: false,
    },
    ours("codingtasks", "CodingTask"),
    ours("agentruns", "AgentRun"),
];

/// The resource with this plural.
///
/// # Panics
/// If it is not served.
#[allow(clippy::panic, reason = "a double for tests")]
pub fn kind(plural: &str) -> &'static Kind {
    let found = KINDS.iter().find(|kind| kind.plural == plural);
    found.unwrap_or_else(|| panic!("{plural} are not served"))
}
