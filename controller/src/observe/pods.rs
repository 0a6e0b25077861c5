//! Pods that keep our finalizer, for the one case in which the controller takes it off.

use agent_operator::domain::{NodeName, names};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt as _, api::ListParams};

use super::{ObserveError, Observer, views};
use crate::decide::{HeldPod, NodeFacts, RunFate};

/// Pods with our finalizer on nodes without session, and all nodes.
#[derive(Debug, Default)]
pub struct HeldPods {
    /// The pods.
    pub pods: Vec<HeldPod>,
    /// The nodes; those that are gone were confirmed by a live read.
    pub nodes: Vec<NodeFacts>,
}

impl Observer {
    /// Whether pods on `node` may have nobody who releases them: fenced or gone, and not connected.
    pub fn may_be_fenced(&self, node: &str) -> bool {
        let connected = self.nodes.snapshot().iter().any(|view| view.name.as_str() == node);
        let stored = self.world.node(node);
        !connected && stored.is_none_or(|node| views::node(&node).fenced.is_some())
    }

    /// Reads what a decision about finalizers is made from.
    pub async fn held_pods(&self, now: Timestamp) -> Result<HeldPods, ObserveError> {
        let mut held = HeldPods::default();
        for namespace in &self.settings.task_namespaces {
            let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
            // From the API server's cache: the write is guarded by the version.
            let label = format!("{}={}", names::LABEL_MANAGED_BY, names::MANAGED_BY);
            let ours = ListParams::default().labels(&label).match_any();
            let listed = tokio::time::timeout(super::CALL_TIMEOUT, api.list(&ours))
                .await
                .map_err(|_| ObserveError::Wait(format!("any pod of namespace {namespace}")))?
                .map_err(|e| ObserveError::ListPods(namespace.clone(), Box::new(e)))?;
            for pod in listed {
                if let Some(node) = held_on(&pod).filter(|node| self.may_be_fenced(node.as_str())) {
                    let run = self.fate(namespace, &pod).await?;
                    held.pods.extend(held_pod(namespace, pod, node, run));
                }
            }
        }
        held.nodes = self.facts_with(held.pods.iter().map(|pod| pod.node.clone()), now);
        for node in &mut held.nodes {
            if held.pods.iter().any(|pod| pod.node == node.name) {
                self.confirm_absent(node).await?;
            }
        }
        Ok(held)
    }

    async fn fate(&self, namespace: &str, pod: &Pod) -> Result<RunFate, ObserveError> {
        let owner = pod.owner_references().iter().find(|owner| owner.controller == Some(true));
        let Some(owner) = owner else { return Ok(RunFate::Absent) };
        let run = match self.world.run_by_uid(&owner.uid.as_str().into()) {
            Some(run) => Some(run),
            // A cache that does not have it proves nothing.
            None => self.live_run(namespace, &owner.name).await?.map(std::sync::Arc::new),
        };
        Ok(match run.filter(|run| run.uid().as_deref() == Some(owner.uid.as_str())) {
            Some(run) if !run.has_ended() => RunFate::Live,
            Some(_) => RunFate::Ended,
            None => RunFate::Absent,
        })
    }
}

/// The node of a pod that has our finalizer: where it runs, or where it is pinned to.
fn held_on(pod: &Pod) -> Option<NodeName> {
    if !pod.finalizers().iter().any(|name| name == names::POD_FINALIZER) {
        return None;
    }
    let spec = pod.spec.as_ref()?;
    let pinned = || {
        let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
        let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
        let term = required.node_selector_terms.first()?;
        term.match_fields.as_ref()?.first()?.values.as_ref()?.first().cloned()
    };
    spec.node_name.clone().filter(|name| !name.is_empty()).or_else(pinned).map(NodeName::from)
}

fn held_pod(namespace: &str, pod: Pod, node: NodeName, run: RunFate) -> Option<HeldPod> {
    Some(HeldPod {
        namespace: namespace.to_owned(),
        name: pod.metadata.name?,
        uid: pod.metadata.uid?,
        resource_version: pod.metadata.resource_version?,
        finalizers: pod.metadata.finalizers.unwrap_or_default(),
        node,
        run,
    })
}
