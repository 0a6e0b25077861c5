//! The controller's replicas: how many there are, and which one leads.

use std::{process::Stdio, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Pod};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams},
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use super::{
    cluster::{Cluster, SYSTEM},
    eventually,
    release::must,
};

/// The controller's label.
pub(crate) const CONTROLLER: &str = "app.kubernetes.io/component=controller";
const DEPLOYMENT: &str = "deployment/agent-operator-controller";
const LEASE: &str = "agent-operator-controller";
/// A pod that starts or ends on a busy machine.
const LIMIT: Duration = Duration::from_mins(3);

/// Who leads, by the Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lead {
    /// The pod.
    pub(crate) pod: String,
    /// The term.
    pub(crate) epoch: i32,
}

fn leases(cluster: &Cluster) -> Api<Lease> {
    Api::namespaced(cluster.client.clone(), SYSTEM)
}

/// Who leads; a sentence while nobody does.
pub(crate) async fn lead(cluster: &Cluster) -> Result<Lead, String> {
    let lease = leases(cluster).get(LEASE).await.map_err(|error| error.to_string())?;
    let spec = lease.spec.unwrap_or_default();
    let holder = spec.holder_identity.ok_or("nobody holds the Lease")?;
    // The identity is the pod's name and some characters that are new at each start.
    let (pod, _) = holder.rsplit_once('_').ok_or("another form of identity")?;
    Ok(Lead { pod: pod.to_owned(), epoch: spec.lease_transitions.unwrap_or(0) })
}

/// When the holder renewed last, by its own wall clock; a sentence while there is no Lease.
pub(crate) async fn renewed(cluster: &Cluster) -> Result<Timestamp, String> {
    let lease = leases(cluster).get(LEASE).await.map_err(|error| error.to_string())?;
    let time = lease.spec.unwrap_or_default().renew_time.ok_or("never renewed")?;
    Ok(time.0)
}

/// Waits for a term above `epoch`.
pub(crate) async fn next_lead(cluster: &Cluster, epoch: i32) -> Lead {
    eventually("another term has begun", LIMIT, || async {
        let lead = lead(cluster).await?;
        if lead.epoch > epoch { Ok(lead) } else { Err(format!("{lead:?}")) }
    })
    .await
}

/// Deletes the Lease.
pub(crate) async fn delete_lease(cluster: &Cluster) {
    leases(cluster).delete(LEASE, &DeleteParams::default()).await.expect("the Lease goes");
}

/// The controller's pods.
pub(crate) async fn pods(cluster: &Cluster) -> Vec<Pod> {
    let by_label = ListParams::default().labels(CONTROLLER);
    cluster.pods(SYSTEM).list(&by_label).await.expect("list of pods").items
}

/// Names of the replicas, once there are `count`, all of them ready and none on its way out.
pub(crate) async fn replicas(cluster: &Cluster, count: usize) -> Vec<String> {
    eventually(&format!("{count} replicas are ready"), LIMIT, || async {
        let pods = pods(cluster).await;
        let ready = |pod: &Pod| {
            let conditions = pod.status.as_ref().and_then(|status| status.conditions.clone());
            conditions.unwrap_or_default().iter().any(|c| c.type_ == "Ready" && c.status == "True")
        };
        let good = pods.iter().all(|pod| ready(pod) && pod.metadata.deletion_timestamp.is_none());
        let names: Vec<_> = pods.iter().map(ResourceExt::name_any).collect();
        if good && names.len() == count { Ok(names) } else { Err(format!("{names:?}, {good}")) }
    })
    .await
}

/// Changes how many replicas there are, and waits until it is so and one of them leads.
pub(crate) async fn scale(cluster: &Cluster, count: usize) {
    let replicas_now = format!("--replicas={count}");
    must("kubectl", &["-n", SYSTEM, "scale", DEPLOYMENT, &replicas_now]).await;
    let names = replicas(cluster, count).await;
    eventually("one of them leads", LIMIT, || async {
        let lead = lead(cluster).await?;
        if names.contains(&lead.pod) { Ok(()) } else { Err(format!("{lead:?} of {names:?}")) }
    })
    .await;
}

/// Runs `test` with two replicas, and goes back to one however it ends.
pub(crate) async fn with_two<F>(test: F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let cluster = Cluster::connect().await;
    scale(&cluster, 2).await;
    let ended = tokio::spawn(test).await;
    scale(&cluster, 1).await;
    ended.expect("the test itself");
}

/// A way to the gRPC port of one replica, whichever the Service would choose.
pub(crate) struct Way {
    /// `localhost:PORT`.
    pub(crate) address: String,
    _forward: Child,
}

/// Opens a way to `pod` by `kubectl port-forward`.
pub(crate) async fn way_to(pod: &str) -> Way {
    let mut forward = Command::new("kubectl")
        .args(["-n", SYSTEM, "port-forward", &format!("pod/{pod}"), ":8443"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("kubectl runs");
    let mut lines = BufReader::new(forward.stdout.take().expect("a pipe")).lines();
    let line = tokio::time::timeout(LIMIT, lines.next_line()).await.expect("a way in time");
    let line = line.expect("its output").expect("its port");
    // Forwarding from 127.0.0.1:40123 -> 8443
    let port = line.split_whitespace().find_map(|word| word.strip_prefix("127.0.0.1:"));
    let port = port.unwrap_or_else(|| panic!("{line}"));
    // Its later lines are read by nobody, and must not end it.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Way { address: format!("localhost:{port}"), _forward: forward }
}
