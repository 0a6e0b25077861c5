//! Has the node's enforcer close the network of an attempt's pod.

use std::{net::IpAddr, sync::Arc, time::Duration};

use agent_operator::domain::{RunKey, StartFault, ids::PodUid, text::error_chain};
use tokio::time::Instant;

use super::{Tools, Workers, backoff, pause, send};
use crate::{
    enforcer::contract::{Answer, CloseOrder, VERSION},
    steps::{egress::Closing, event::Event, hindrance::Hindrance},
};

/// How long a task that does not require it waits for an enforcer that is being replaced.
const BEST_EFFORT_PATIENCE: Duration = Duration::from_secs(5);
/// Answers that the same order may change are taken for final after this: the kernel knows a pod that
/// has talked to the gateway.
const RETRY_PATIENCE: Duration = Duration::from_secs(5);

impl Workers {
    /// Closes the pod's network; replaces an earlier order.
    pub fn close_egress(
        &mut self,
        run: &RunKey,
        uid: &PodUid,
        pod_ip: IpAddr,
        iflink: Option<u32>,
        required: bool,
    ) {
        let (tools, key, pod_uid) = (Arc::clone(&self.tools), run.clone(), uid.as_str().to_owned());
        let task = self.spawn(async move {
            let order = CloseOrder { version: VERSION, pod_uid, pod_ip, iflink, gateways: vec![] };
            let closing = close(&tools, &key, order, required).await;
            send(&tools, key, Event::EgressAnswered(closing)).await;
        });
        let hands = self.hands.entry(run.clone()).or_default();
        if let Some(before) = hands.closing.replace(task) {
            before.abort();
        }
    }
}

async fn close(tools: &Tools, run: &RunKey, order: CloseOrder, required: bool) -> Closing {
    let Some(enforcer) = &tools.enforcer else {
        return Closing::NotClosed("this release has no enforcer (enforcer.enabled)".to_owned());
    };
    let asked = Instant::now();
    let mut pauses = backoff();
    loop {
        let Some(service) = tools.gateway.resolve().await else {
            pause(&mut pauses).await;
            continue;
        };
        let gateways = [Some(service), tools.own_gateway].into_iter().flatten().collect();
        let order = CloseOrder { gateways, ..order.clone() };
        let (words, final_after) = match enforcer.close(&order).await {
            Ok(Answer::Closed { .. }) => return Closing::Closed,
            Ok(Answer::NotClosed { message, retryable: false }) => {
                return Closing::NotClosed(message);
            }
            Ok(Answer::NotClosed { message, .. }) => (message, RETRY_PATIENCE),
            // Its pod is being replaced, or does not start: the gate waits, and the status says so.
            Err(error) if required => (error_chain(&error), Duration::MAX),
            Err(error) => (error_chain(&error), BEST_EFFORT_PATIENCE),
        };
        if asked.elapsed() >= final_after {
            return Closing::NotClosed(words);
        }
        tracing::warn!(details = words, "egress is not closed yet");
        let delay = Hindrance { fault: StartFault::EgressOpen, words, lasting: false };
        send(tools, run.clone(), Event::EgressDelayed(delay)).await;
        pause(&mut pauses).await;
    }
}
