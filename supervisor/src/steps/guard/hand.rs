//! The hand of the guarded deadlines: a thread with a small runtime of its own, so that it works
//! while all workers of the process's runtime are blocked.

use std::{path::PathBuf, sync::Arc, time::Duration};

use agent_operator::{attempt::StopOrder, domain::RunKey};
use futures::{SinkExt as _, StreamExt as _};
use tokio::{net::UnixStream, sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::{Act, Guarded, Hand};
use crate::{
    link::{
        contract::{FromGateway, ToGateway},
        frame::framed,
    },
    pod::client::PodApi,
};

/// Most acts that wait for their turn: two for each attempt of a full node.
const WAITING_MAX: usize = 4096;
/// Pause between two tries; an order to stop is also repeated at this pace, for its receipt is not
/// confirmed. Below the second that a deadline may be overrun by.
const PACE: Duration = Duration::from_millis(500);
/// Longest time for one order at the gateway's socket.
const ORDER_LIMIT: Duration = Duration::from_secs(2);

/// The hand could not be made.
#[derive(Debug, thiserror::Error)]
pub enum HandError {
    /// No thread.
    #[error("could not start the thread that enforces deadlines")]
    Start(#[source] std::io::Error),
    /// No runtime.
    #[error("could not start the runtime that enforces deadlines")]
    Runtime(#[source] std::io::Error),
}

struct Order {
    run: RunKey,
    act: Act,
    guarded: Guarded,
    over: CancellationToken,
    /// Context of the log lines about it.
    within: tracing::Span,
}

/// Sends orders to stop through the gateway's socket, and deletes pods.
pub struct OwnThread {
    orders: mpsc::Sender<Order>,
}

impl OwnThread {
    /// Starts the thread. `pods` is called on it, for an API client belongs to the runtime that it
    /// was made on; the thread ends with the last owner of this.
    pub fn start<P>(socket: PathBuf, pods: P) -> Result<Self, HandError>
    where
        P: FnOnce() -> Option<Arc<dyn PodApi>> + Send + 'static,
    {
        let (orders, queue) = mpsc::channel(WAITING_MAX);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(HandError::Runtime)?;
        std::thread::Builder::new()
            .name("enforcement".to_owned())
            .spawn(move || runtime.block_on(async { carry_out(queue, socket, pods()).await }))
            .map_err(HandError::Start)?;
        Ok(Self { orders })
    }
}

impl Hand for OwnThread {
    fn begin(&self, run: &RunKey, act: Act, guarded: &Guarded, over: CancellationToken) {
        tracing::info!(?act, "a guarded deadline has passed");
        let (run, guarded, within) = (run.clone(), guarded.clone(), tracing::Span::current());
        let order = Order { run, act, guarded, over, within };
        if self.orders.try_send(order).is_err() {
            tracing::error!("too many deadlines at once; the runner is left with this one");
        }
    }
}

async fn carry_out(
    mut queue: mpsc::Receiver<Order>,
    socket: PathBuf,
    pods: Option<Arc<dyn PodApi>>,
) {
    let mut tasks = JoinSet::new();
    while let Some(order) = queue.recv().await {
        while tasks.try_join_next().is_some() {}
        let (socket, pods, over) = (socket.clone(), pods.clone(), order.over.clone());
        let within = order.within.clone();
        let carried_out = async move {
            let work = async {
                match (order.act, pods) {
                    (Act::Stop, _) => stop(&socket, &order.run, &order.guarded.order).await,
                    (Act::Delete, Some(pods)) => delete(pods.as_ref(), &order.guarded).await,
                    (Act::Delete, None) => {}
                }
            };
            over.run_until_cancelled(work).await;
        };
        tasks.spawn(carried_out.instrument(within));
    }
}

/// Gives the order again and again until its grace is over: the gateway may be restarting.
async fn stop(socket: &PathBuf, run: &RunKey, order: &StopOrder) {
    let repeat = async {
        loop {
            let once = tokio::time::timeout(ORDER_LIMIT, order_once(socket, run, order)).await;
            if !matches!(once, Ok(Some(()))) {
                tracing::warn!("the gateway took no order to stop yet");
            }
            tokio::time::sleep(PACE).await;
        }
    };
    let grace = Duration::from_millis(order.grace_millis);
    let _ = tokio::time::timeout(grace, repeat).await;
}

/// One connection with one order; over when the gateway closes it.
async fn order_once(socket: &PathBuf, run: &RunKey, order: &StopOrder) -> Option<()> {
    let stream = UnixStream::connect(socket).await.ok()?;
    let mut frames = framed::<FromGateway>(stream);
    let message = ToGateway::Stop { run: run.clone(), order: order.clone() };
    frames.send(message).await.ok()?;
    while frames.next().await.is_some_and(|frame| frame.is_ok()) {}
    Some(())
}

async fn delete(pods: &dyn PodApi, guarded: &Guarded) {
    while let Err(error) = pods.delete(&guarded.namespace, &guarded.pod, &guarded.uid).await {
        tracing::warn!(pod = guarded.pod, %error, "could not delete a pod past its deadline yet");
        tokio::time::sleep(PACE).await;
    }
}
