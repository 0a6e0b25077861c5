//! Has the node's enforcer close the network of an attempt's pod, and tries what its runner must not reach.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use agent_operator::domain::{RunKey, StartFault, ids::PodUid, text::error_chain};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};

use super::{Tools, Workers, backoff, pause, send};
use crate::{
    enforcer::contract::{Answer, CloseOrder, VERSION},
    link::contract::FromGateway,
    steps::{egress::Closing, event::Event, hindrance::Hindrance, runner::Input},
};

/// How long a task that does not require it waits for an enforcer that is being replaced.
const BEST_EFFORT_PATIENCE: Duration = Duration::from_secs(5);
/// Answers that the same order may change are taken for final after this: the kernel knows a pod that
/// has talked to the gateway.
const RETRY_PATIENCE: Duration = Duration::from_secs(5);
/// Longest wait for a count, without which the attempt goes on: it takes an nft of some milliseconds.
const COUNT_LIMIT: Duration = Duration::from_secs(1);
/// Longest wait for a target to take a connection of this process: the API server and this node's kubelet
/// answer within milliseconds, under load within a second.
const TARGET_LIMIT: Duration = Duration::from_secs(2);

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

    /// Makes the rules of a pod whose network is closed again, once: the next timer asks again. Says whether they
    /// were gone; replaces an earlier order.
    pub fn renew_egress(&mut self, run: &RunKey, uid: &PodUid, pod_ip: IpAddr, device: u32) {
        let (tools, key, pod_uid) = (Arc::clone(&self.tools), run.clone(), uid.as_str().to_owned());
        let task = self.spawn(async move {
            let iflink = Some(device);
            let order = CloseOrder { version: VERSION, pod_uid, pod_ip, iflink, gateways: vec![] };
            match renew(&tools, order).await {
                Ok(Some(missing)) => send(&tools, key, Event::EgressRenewed { missing }).await,
                Ok(None) => {}
                Err(words) => {
                    tracing::warn!(details = words, "the rules of a pod were not renewed");
                }
            }
        });
        let hands = self.hands.entry(run.clone()).or_default();
        if let Some(before) = hands.closing.replace(task) {
            before.abort();
        }
    }

    /// Whether there is somebody who closes networks, and counts.
    pub fn have_enforcer(&self) -> bool {
        self.tools.enforcer.is_some()
    }

    /// Asks what the enforcer has dropped of this pod; the answer goes to the runner with `message`, which waits for it.
    pub fn count_dropped(&self, uid: &PodUid, message: FromGateway) {
        let (tools, uid) = (Arc::clone(&self.tools), uid.as_str().to_owned());
        self.spawn(async move {
            let dropped = match &tools.enforcer {
                Some(enforcer) => timeout(COUNT_LIMIT, enforcer.dropped_of(&uid)).await.ok(),
                None => None,
            };
            let dropped = dropped.and_then(Result::ok);
            // A closed queue means that the process is ending; the gateway says it again to the next one.
            let _ = tools.inputs.send(Input::Counted { message, dropped }).await;
        });
    }

    /// Tries these addresses from this process, all at once; replaces an earlier try.
    pub fn try_targets(&mut self, run: &RunKey, targets: Vec<SocketAddr>) {
        let (tools, key) = (Arc::clone(&self.tools), run.clone());
        let task = self.spawn(async move {
            let listening = listening(targets).await;
            send(&tools, key, Event::Listening(listening)).await;
        });
        let hands = self.hands.entry(run.clone()).or_default();
        if let Some(before) = hands.trying.replace(task) {
            before.abort();
        }
    }
}

/// Those that take a connection.
async fn listening(targets: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let tries = targets.into_iter().map(|target| async move {
        let tried = timeout(TARGET_LIMIT, TcpStream::connect(target)).await;
        matches!(tried, Ok(Ok(_))).then_some(target)
    });
    futures::future::join_all(tries).await.into_iter().flatten().collect()
}

/// The order with the gateway's addresses of now; none while they are not known.
async fn addressed(tools: &Tools, order: &CloseOrder) -> Option<CloseOrder> {
    let service = tools.gateway.resolve().await?;
    let gateways = [Some(service), tools.own_gateway].into_iter().flatten().collect();
    Some(CloseOrder { gateways, ..order.clone() })
}

/// Whether the rules were gone; none where nobody can say so, and why they could not be made as an error.
async fn renew(tools: &Tools, order: CloseOrder) -> Result<Option<bool>, String> {
    let Some(enforcer) = &tools.enforcer else { return Ok(None) };
    let Some(order) = addressed(tools, &order).await else { return Ok(None) };
    match enforcer.close(&order).await {
        Ok(Answer::Closed { anew, .. }) => Ok(Some(anew)),
        Ok(Answer::NotClosed { message, .. }) => Err(message),
        Err(error) => Err(error_chain(&error)),
    }
}

async fn close(tools: &Tools, run: &RunKey, order: CloseOrder, required: bool) -> Closing {
    let Some(enforcer) = &tools.enforcer else {
        return Closing::NotClosed("this release has no enforcer (enforcer.enabled)".to_owned());
    };
    let asked = Instant::now();
    let mut pauses = backoff();
    loop {
        let Some(order) = addressed(tools, &order).await else {
            pause(&mut pauses).await;
            continue;
        };
        let (words, final_after) = match enforcer.close(&order).await {
            Ok(Answer::Closed { index, .. }) => return Closing::Closed { device: index },
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn of_the_targets_those_that_take_a_connection_listen() {
        let bind = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (open, closed) = (bind(), bind());
        let targets = [&open, &closed].map(|listener| listener.local_addr().unwrap());
        drop(closed);
        assert_eq!(listening(targets.to_vec()).await, [targets[0]]);
    }
}
