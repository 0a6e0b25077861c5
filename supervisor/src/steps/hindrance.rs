//! What keeps a pod from running, told from the words of API server, scheduler, kubelet and runtime.
//! Those words are no contract, so an unknown sentence only loses its special name, never its text.

use agent_operator::domain::{StartFault, StartTrouble};

/// Something that keeps the pod from running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hindrance {
    /// What kind.
    pub fault: StartFault,
    /// The server's words.
    pub words: String,
    /// Waiting on this node will not help: somebody has to change something, so the attempt ends
    /// now and is made again after a pause.
    pub lasting: bool,
}

impl Hindrance {
    /// With the remedy, for people.
    pub fn trouble(&self) -> StartTrouble {
        StartTrouble::new(self.fault, &self.words)
    }
}

/// Waiting reasons that are no trouble.
const ORDINARY: [&str; 2] = ["ContainerCreating", "PodInitializing"];
/// Image errors that no further pull can end.
const IMAGE_FINAL: [&str; 2] = ["InvalidImageName", "ErrImageNeverPull"];
/// Image errors that the kubelet tries again.
const IMAGE_RETRIED: [&str; 5] = [
    "ErrImagePull",
    "ImagePullBackOff",
    "ImageInspectError",
    "RegistryUnavailable",
    "SignatureValidationFailed",
];
/// Words of a registry that has answered, and said no. Everything else (429, 5xx, no route, slow)
/// may pass, so the kubelet has until the start deadline.
const REGISTRY_SAYS_NO: [&str; 8] = [
    "not found",
    "manifest unknown",
    "unauthorized",
    "401 ",
    "403 ",
    "denied",
    "no match for platform",
    "invalid reference",
];
/// Words of a runtime that found nothing to run for this machine.
const NOT_RUNNABLE: [&str; 4] = [
    "exec format error",
    "executable file not found",
    "no such file or directory",
    "no match for platform",
];

/// What the kubelet's reason and message of a waiting container mean; none: nothing is wrong.
pub fn waiting(reason: &str, message: &str) -> Option<Hindrance> {
    if reason.is_empty() || ORDINARY.contains(&reason) {
        return None;
    }
    let words = if message.is_empty() { reason.to_owned() } else { format!("{reason}: {message}") };
    let image = IMAGE_FINAL.contains(&reason) || IMAGE_RETRIED.contains(&reason);
    let says_no = REGISTRY_SAYS_NO.iter().any(|no| message.contains(no));
    let lasting = IMAGE_FINAL.contains(&reason) || (image && says_no);
    let fault = match () {
        () if image && message.contains("no match for platform") => StartFault::ImageNotRunnable,
        () if image => StartFault::ImageNotPullable,
        () => not_set_up(message),
    };
    Some(Hindrance { fault, words, lasting })
}

/// What the words of a runtime mean that could not set a container up or start it.
pub fn not_set_up(words: &str) -> StartFault {
    if NOT_RUNNABLE.iter().any(|sign| words.contains(sign)) {
        StartFault::ImageNotRunnable
    } else {
        StartFault::NotStarted
    }
}

/// What an API server's refusal of the pod means.
pub fn refusal(words: &str) -> StartFault {
    let limit_range = ["maximum ", "minimum ", "max limit to request ratio"]
        .iter()
        .any(|bound| words.contains(bound))
        && (words.contains(" usage per ") || words.contains(" ratio per "));
    match () {
        () if words.contains("exceeded quota: ") || words.contains("failed quota: ") => {
            StartFault::QuotaExceeded
        }
        () if words.contains("violates PodSecurity") => StartFault::PodSecurityRefused,
        () if words.contains("RuntimeClass \"") && words.contains("\" not found") => {
            StartFault::RuntimeClassMissing
        }
        () if limit_range => StartFault::LimitRangeExceeded,
        () => StartFault::PodRefused,
    }
}

/// Whether an API server's refusal is about the runner's image volume alone. An API server without
/// image volumes drops the source and then misses it; pod security of older ones does not know that
/// kind of volume and so forbids it in namespaces of the profile `restricted`.
pub fn refuses_image_volumes(words: &str) -> bool {
    let pod_security = words.contains("violates PodSecurity")
        && words.contains("restricted volume types")
        && words.contains("\"runner\"");
    pod_security || words.contains("must specify a volume type")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As kubelet 1.36 with containerd 2.4 writes them.
    #[test]
    fn image_errors_end_the_attempt_at_once_only_when_the_registry_has_said_no() {
        let missing = "failed to pull and unpack image \"r.example/x:1\": failed to resolve reference \"r.example/x:1\": r.example/x:1: not found";
        let secret = "failed to pull and unpack image \"r.example/x:1\": failed to resolve reference \"r.example/x:1\": pull access denied, repository does not exist or may require authorization: authorization failed: no basic auth credentials";
        let busy =
            "unexpected status from HEAD request to https://r.example/v2/x: 429 Too Many Requests";
        let silent = "dial tcp 192.0.2.1:443: i/o timeout";
        let image = StartFault::ImageNotPullable;
        for (reason, message, fault, lasting) in [
            ("ErrImagePull", missing, image, true),
            ("ImagePullBackOff", missing, image, true),
            ("ErrImagePull", secret, image, true),
            ("ErrImagePull", busy, image, false),
            ("ErrImagePull", silent, image, false),
            ("ImagePullBackOff", "Back-off pulling image", image, false),
            ("InvalidImageName", "couldn't parse image name", image, true),
            ("ErrImageNeverPull", "", image, true),
            (
                "ErrImagePull",
                "no match for platform in manifest: not found",
                StartFault::ImageNotRunnable,
                true,
            ),
            (
                "RunContainerError",
                "exec: \"/x\": exec format error",
                StartFault::ImageNotRunnable,
                false,
            ),
            ("CreateContainerConfigError", "secret \"x\" not found", StartFault::NotStarted, false),
        ] {
            let found = waiting(reason, message).expect("a hindrance");
            assert_eq!((found.fault, found.lasting), (fault, lasting), "{reason}: {message}");
            assert!(found.words.starts_with(reason) && found.words.ends_with(message));
        }
        assert_eq!(waiting("ContainerCreating", ""), None);
        assert_eq!(waiting("", "x"), None);
    }

    #[test]
    fn a_no_to_image_volumes_is_told_from_other_refusals() {
        for words in [
            "Pod \"x\" is invalid: spec.volumes[3]: Required value: must specify a volume type",
            "pods \"x\" is forbidden: violates PodSecurity \"restricted:latest\": restricted volume types (volume \"runner\" uses restricted volume type \"unknown\")",
        ] {
            assert!(refuses_image_volumes(words), "{words}");
        }
        for words in [
            "pods \"x\" is forbidden: violates PodSecurity \"restricted:latest\": restricted volume types (volume \"injected\" uses restricted volume type \"hostPath\")",
            "pods \"x\" is forbidden: violates PodSecurity \"restricted:latest\": host namespaces (hostIPC=true)",
        ] {
            assert!(!refuses_image_volumes(words), "{words}");
        }
    }

    #[test]
    fn refusals_are_told_apart_by_the_servers_words() {
        for (words, fault) in [
            (
                "pods \"x\" is forbidden: exceeded quota: compute, requested: pods=1, used: pods=0, limited: pods=0",
                StartFault::QuotaExceeded,
            ),
            (
                "pods \"x\" is forbidden: failed quota: compute: must specify limits.ephemeral-storage for: agent",
                StartFault::QuotaExceeded,
            ),
            (
                "pods \"x\" is forbidden: [maximum cpu usage per Container is 100m, but limit is 4, maximum memory usage per Pod is 1Gi, but limit is 8589934592]",
                StartFault::LimitRangeExceeded,
            ),
            (
                "pods \"x\" is forbidden: cpu max limit to request ratio per Container is 2, but provided ratio is 40.000000",
                StartFault::LimitRangeExceeded,
            ),
            (
                "pods \"x\" is forbidden: violates PodSecurity \"restricted:latest\": host namespaces (hostNetwork=true)",
                StartFault::PodSecurityRefused,
            ),
            (
                "pods \"x\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no agents on Sundays",
                StartFault::PodRefused,
            ),
            (
                "pods \"x\" is forbidden: pod rejected: RuntimeClass \"gvisor\" not found",
                StartFault::RuntimeClassMissing,
            ),
            (
                "Internal error occurred: failed calling webhook \"w.example\": connection refused",
                StartFault::PodRefused,
            ),
        ] {
            assert_eq!(refusal(words), fault, "{words}");
        }
    }
}
