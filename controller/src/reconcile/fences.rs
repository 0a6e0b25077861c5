//! Pods on fenced nodes lose our finalizer by the controller: observe, decide, apply. Nothing is read
//! while no node is fenced or gone, except once when a term begins.

use std::time::Duration;

use agent_operator::{crd::AgentRun, domain::text::error_chain};
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::task::{Context, ReconcileError};
use crate::{clock, decide, observe::Change};

/// Wait after a failed look.
const RETRY: Duration = Duration::from_secs(10);
/// Changes come in bursts; one look serves all of them.
const SETTLE: Duration = Duration::from_millis(250);

/// Looks at the start of a term and at each change that may concern a fenced node. Ends only when
/// nothing can change any more.
pub(super) async fn release(context: &Context) {
    let mut changes = context.observer.world.subscribe();
    loop {
        let again = match look(context).await {
            Ok(again) => again,
            Err(error) => {
                let error = error_chain(&error);
                tracing::warn!(error, "could not look after the pods of fenced nodes");
                Some(RETRY)
            }
        };
        let wait = async {
            match again {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = wait => {}
            alive = concerned(context, &mut changes) => if !alive { return },
        }
        tokio::time::sleep(SETTLE).await;
    }
}

async fn look(context: &Context) -> Result<Option<Duration>, ReconcileError> {
    let now = clock::timestamp();
    let held = context.observer.held_pods(now).await?;
    let node_lease = context.observer.settings.node_lease.get();
    let plan = decide::releases(&held.pods, &held.nodes, node_lease, now);
    let mut again = plan.look_again_after;
    for pod in &plan.pods {
        if context.applier.release_pod(pod).await? {
            tracing::info!(
                namespace = pod.namespace,
                pod = pod.name,
                "released a pod of a fenced node"
            );
        } else {
            again = Some(SETTLE);
        }
    }
    Ok(again)
}

/// Waits for a change that may have left a pod with nobody to release it. False: there will be none.
async fn concerned(context: &Context, changes: &mut Receiver<Change>) -> bool {
    loop {
        let node = match changes.recv().await {
            Ok(Change::Node(node) | Change::Session(node)) => node,
            Ok(Change::RunGone(run)) => run.spec.node_name.clone(),
            Ok(Change::Run(run)) if ended(&run) => run.spec.node_name.clone(),
            Ok(_) => continue,
            Err(RecvError::Lagged(_)) => return true,
            Err(RecvError::Closed) => return false,
        };
        if context.observer.may_be_fenced(&node) {
            return true;
        }
    }
}

fn ended(run: &AgentRun) -> bool {
    let phase = run.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}
