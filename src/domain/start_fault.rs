//! Why a run has not started, as a word that programs can read, and what puts it right.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::outcome::UnknownName;

/// Declares [`StartFault`] with its name and remedy in one table.
macro_rules! faults {
    ($($(#[$meta:meta])* $name:ident => $remedy:literal),+ $(,)?) => {
        /// What kept a pod from running. The names are reasons of conditions, so part of the API.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum StartFault {
            $($(#[$meta])* $name,)+
        }

        impl StartFault {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The word as written in conditions.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)+ }
            }

            /// What a person can do about it.
            pub fn remedy(self) -> &'static str {
                match self { $(Self::$name => $remedy,)+ }
            }
        }
    };
}

faults! {
    /// The registry or the node gives no image: missing, not authorised, name malformed.
    ImageNotPullable => "check the image's name and tag (spec.agentImage), and for a private registry spec.imagePullSecrets",
    /// The image is there, but not for this node, or without what a step needs of it.
    ImageNotRunnable => "use an image for the node's architecture that has git, and glibc for Claude Code (spec.agentImage can be changed), or choose nodes by spec.nodeSelector",
    /// No node has room for the pod, or none that it may use.
    NoCapacity => "free or add capacity, or change the chart's agent.requests, spec.nodeSelector or spec.tolerations",
    /// A `ResourceQuota` of the namespace is used up.
    QuotaExceeded => "raise the namespace's ResourceQuota, let other tasks end, or lower spec.resources",
    /// A `LimitRange` of the namespace does not allow the pod's resources.
    LimitRangeExceeded => "change spec.resources or the namespace's LimitRange",
    /// Pod security admission refuses the pod.
    PodSecurityRefused => "agent pods fit the profile `restricted`: see what changes them on their way (a mutating policy or webhook) or exempt the namespace",
    /// The cluster has no `RuntimeClass` of the name that is asked for.
    RuntimeClassMissing => "make the RuntimeClass, and install its runtime on the nodes, or change spec.sandbox.runtimeClassName (the chart's agent.sandbox.runtimeClassName); no pod runs without the one that is asked for",
    /// The node sets no limit of processes, and one is demanded.
    PidsUnlimited => "set podPidsLimit in the configuration of the nodes' kubelets, or spec.sandbox.requirePidsLimit (the chart's agent.sandbox.requirePidsLimit) to false",
    /// Another admission policy or webhook refuses the pod, or a webhook does not answer.
    PodRefused => "change the policy or webhook that refuses agent pods, or mend the webhook",
    /// The kubelet refused the pod after it was placed.
    NodeRefused => "another node is tried; see the node's allocatable resources and labels if none takes it",
    /// The API server does not answer or cannot make the pod.
    ApiServerUnavailable => "see the API server's load and health",
    /// The container could not be set up, or its gate did not open in time.
    NotStarted => "see the pod's events and the supervisor's log on its node",
    /// The pod's network is open, or nothing proves that it is closed, and the task requires it closed.
    EgressOpen => "set the chart's enforcer.enabled, or use a network plugin that enforces NetworkPolicy; spec.sandbox.egressPolicy: BestEffort runs the step on an open network",
}

impl fmt::Display for StartFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for StartFault {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .iter()
            .copied()
            .find(|fault| fault.as_str() == text)
            .ok_or_else(|| UnknownName { what: "start fault", name: text.to_owned() })
    }
}

/// A fault with the words of whoever found it (kubelet, scheduler, API server).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StartTrouble {
    /// What kind.
    pub fault: StartFault,
    /// Their words, and what puts it right.
    pub message: String,
}

impl StartTrouble {
    /// `words` of the server, joined with the remedy.
    pub fn new(fault: StartFault, words: &str) -> Self {
        Self { fault, message: format!("{words}; {}", fault.remedy()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_has_a_name_that_reads_back_and_a_remedy() {
        for fault in StartFault::ALL {
            assert_eq!(fault.as_str().parse(), Ok(*fault));
            assert!(!fault.remedy().is_empty());
        }
        assert!("Nonsense".parse::<StartFault>().is_err());
    }
}
