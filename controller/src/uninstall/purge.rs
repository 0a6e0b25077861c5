//! `controller await-purge`: the end of a removal that takes along what is kept on the nodes.

use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::Pod};
use kube::{Api, Client, ResourceExt as _, api::ListParams};

use super::{POLL, Progress, UninstallError, call, selector, shown};
use crate::args::AwaitPurgeArgs;

/// Waits until each node that the DaemonSet is for has a ready pod of it: it is ready once the node's
/// folders are gone. Fails with the names of the nodes where they are not.
pub async fn await_purge(client: Client, args: &AwaitPurgeArgs) -> Result<(), UninstallError> {
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), &args.namespace);
    let pods: Api<Pod> = Api::namespaced(client, &args.namespace);
    let mut progress = Progress::until(args.wait.get());
    loop {
        let name = &args.daemon_set;
        let set = call("look for DaemonSet", name, sets.get(name)).await?;
        let labels = set.spec.as_ref().map(|spec| selector(&spec.selector)).unwrap_or_default();
        let of_set = ListParams::default().labels(&labels);
        let found = call("list pods of", &args.namespace, pods.list(&of_set)).await?.items;
        let left = unpurged(&set, &found);
        if !progress.goes_on("removing the folders of supervisor.hostPath", &left) {
            if left.is_empty() {
                tracing::info!(nodes = found.len(), "nothing of the release is left on the nodes");
                return Ok(());
            }
            return Err(UninstallError::FoldersRemain(shown(&left)));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The nodes that still have something, as well as they can be named.
fn unpurged(set: &DaemonSet, pods: &[Pod]) -> Vec<String> {
    let status = set.status.clone().unwrap_or_default();
    if status.observed_generation.is_none() || status.observed_generation != set.metadata.generation
    {
        return vec!["(being counted)".to_owned()];
    }
    let mut left: Vec<String> = pods.iter().filter(|pod| !ready(pod)).map(node).collect();
    let desired = usize::try_from(status.desired_number_scheduled).unwrap_or_default();
    let without = desired.saturating_sub(pods.len());
    if without > 0 {
        left.push(format!("({without} without a pod)"));
    }
    left
}

fn ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The pod's node, or its name while it has none.
fn node(pod: &Pod) -> String {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    node.unwrap_or_else(|| pod.name_any())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(observed: i64, desired: i32) -> DaemonSet {
        serde_json::from_value(json!({
            "metadata": {"name": "purge", "generation": 1},
            "status": {"observedGeneration": observed, "desiredNumberScheduled": desired,
                "currentNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0},
        }))
        .unwrap()
    }

    fn pod(node: Option<&str>, ready: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "purge-x"},
            "spec": {"nodeName": node, "containers": []},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap()
    }

    #[test]
    fn all_nodes_are_done_when_each_has_a_ready_pod() {
        let pods = [pod(Some("a"), "True"), pod(Some("b"), "True")];
        assert!(unpurged(&set(1, 2), &pods).is_empty());
        assert!(unpurged(&set(1, 0), &[]).is_empty(), "no node, nothing to remove");
    }

    #[test]
    fn nodes_that_are_not_done_are_named() {
        let pods = [pod(Some("a"), "True"), pod(Some("b"), "False"), pod(None, "False")];
        assert_eq!(unpurged(&set(1, 4), &pods), ["b", "purge-x", "(1 without a pod)"]);
    }

    #[test]
    fn a_daemon_set_that_nobody_has_looked_at_is_not_done() {
        assert_eq!(unpurged(&set(0, 0), &[]), ["(being counted)"]);
        assert_eq!(unpurged(&DaemonSet::default(), &[]), ["(being counted)"]);
    }
}
