//! The supervisor's session with the controller: dials out, says Hello with everything that the ledger
//! holds, and then carries orders in and reports out. It decides nothing: orders go to the runner,
//! which goes on alone while there is no session.
//!
//! - [`dial`]: TLS connections, with the CA from the release's `ConfigMap`.
//! - [`seek`]: another leader, when the present one seems to be none any more.
//! - [`wire`]: messages <> inputs and outgoing.

pub mod dial;
mod seek;
pub mod wire;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use agent_operator::{
    domain::{
        Epoch, NodeName,
        ids::{BootId, InstanceId},
        limits::{GRPC_MESSAGE_BYTES_MAX, HEARTBEAT_INTERVAL, TOKEN_RENEWAL},
        text::error_chain,
    },
    proto::v1::{
        self, controller_message, supervisor_message,
        supervisor_service_client::SupervisorServiceClient,
    },
};
use backon::{BackoffBuilder as _, ExponentialBuilder};
use futures::TryStreamExt as _;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, transport::Channel};

use self::dial::{Dial, DialError};
use crate::{
    metrics::Metrics,
    steps::runner::{Input, Outgoing, Snapshot},
    streams::{Streams, upload},
};

/// First pause before dialling again: a controller whose process starts anew answers after 0.3 s, and is found soon after.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Longest pause: a controller that is back is found within 5 s.
const BACKOFF_MAX: Duration = Duration::from_secs(4);
/// A session that lasted this long was a good one: the next failure starts from the shortest pause. As long as the
/// longest pause, so that a controller whose sessions keep ending is dialled no more often than one that is away.
const GOOD_SESSION: Duration = BACKOFF_MAX;
/// Limit of the greeting.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest queue from the runner; beyond it the session counts as congested and starts over.
const OUTGOING_MAX: usize = 1024;
/// Messages between this task and the connection.
const WIRE_MAX: usize = 16;
/// Chunks between the uploader and its connection: reports go over another, but memory is bounded.
const CHUNKS_MAX: usize = 4;

/// Who this supervisor is and where it dials.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `host:port` of the controller.
    pub address: String,
    /// File with the projected token; read again for each use.
    pub token_file: PathBuf,
    /// This node.
    pub node: NodeName,
    /// Its boot.
    pub boot_id: BootId,
    /// This process.
    pub instance: InstanceId,
    /// Most live attempts.
    pub slots: u32,
}

/// A session could not be opened or kept.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The controller could not be dialled.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The token is not readable.
    #[error("could not read the token {path}")]
    ReadToken {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The token has characters that no header can carry.
    #[error("the token is not a header value")]
    FormToken,
    /// The controller ended the call.
    #[error("the controller ended the session")]
    Ended(#[from] tonic::Status),
    /// The controller closed the stream without a word.
    #[error("the controller closed the session")]
    Closed,
    /// No answer to Hello in time, or another message first.
    #[error("the controller did not answer the Hello")]
    Greet,
    /// The controller does not want this session.
    #[error("the controller rejected the session: {reason}: {message}")]
    Rejected {
        /// `NotLeader`, `VersionUnsupported`, `Unauthorized`, `Duplicate`.
        reason: String,
        /// Its words.
        message: String,
        /// Where the leader is, if it said so.
        leader: Option<String>,
    },
    /// The controller is of a term before one that this node has obeyed.
    #[error("the controller's epoch {found} is below {known}")]
    Stale {
        /// Its epoch.
        found: Epoch,
        /// This node's.
        known: Epoch,
    },
    /// The runner has dropped the session, or is gone.
    #[error("the runner ended the session")]
    Dropped,
}

/// The session's parts that do not change.
pub struct Session {
    /// Who and where.
    pub settings: Settings,
    /// How to connect.
    pub dial: Arc<dyn Dial>,
    /// Where orders go.
    pub inputs: mpsc::Sender<Input>,
    /// What is uploaded beside the session.
    pub streams: Arc<Streams>,
    /// For the heartbeat's count.
    pub metrics: Arc<Metrics>,
}

fn backoff() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(BACKOFF_MIN)
        .with_max_delay(BACKOFF_MAX)
        .with_jitter()
        .without_max_times()
        .build()
}

/// Keeps a session until `shutdown`.
pub async fn run(session: Session, shutdown: CancellationToken) {
    let mut pauses = backoff();
    // Where the leader is, as another replica said; it is believed once.
    let mut leader: Option<String> = None;
    let mut opened: Option<Opened> = None;
    loop {
        let pointed = leader.take();
        let address = pointed.clone().unwrap_or_else(|| session.settings.address.clone());
        let began = crate::clock::instant();
        let ended = tokio::select! {
            () = shutdown.cancelled() => return,
            ended = session.once(&address, opened.take()) => ended,
        };
        if session.inputs.send(Input::SessionDown).await.is_err() {
            return;
        }
        let error = match ended {
            Ok(better) => {
                tracing::info!(
                    "another controller leads; its session takes the place of the old one"
                );
                opened = Some(better);
                continue;
            }
            Err(error) => error,
        };
        tracing::warn!(address, error = %error_chain(&error), "no session with the controller");
        if let SessionError::Rejected { leader: Some(other), .. } = error {
            leader = Some(other);
            // At once, but not from one replica to the next for ever.
            if pointed.is_none() {
                continue;
            }
        }
        if began.elapsed() > GOOD_SESSION {
            pauses = backoff();
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(pauses.next().unwrap_or(BACKOFF_MAX)) => {}
        }
    }
}

fn client(channel: Channel) -> SupervisorServiceClient<Channel> {
    SupervisorServiceClient::new(channel)
        .max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(GRPC_MESSAGE_BYTES_MAX)
}

/// A session that the controller has accepted.
struct Opened {
    /// What was dialled.
    address: String,
    /// Where the replica that has this session is reached; behind the dialled address may be others.
    replica: Option<String>,
    epoch: Epoch,
    pace: Duration,
    wire: mpsc::Sender<v1::SupervisorMessage>,
    inbound: tonic::Streaming<v1::ControllerMessage>,
}

impl Session {
    /// One session from dialling (unless it was `opened` before) to its end: an error, or a session
    /// with a controller that leads while this one does not any more.
    async fn once(&self, address: &str, opened: Option<Opened>) -> Result<Opened, SessionError> {
        let opened = match opened {
            Some(opened) => opened,
            None => self.open(address).await?,
        };
        let Opened { address, replica, epoch, pace, wire, mut inbound } = opened;
        tracing::info!(address, %epoch, "session with the controller");
        let (outgoing, reports) = mpsc::channel(OUTGOING_MAX);
        self.input(Input::SessionUp { epoch, outgoing }).await?;
        let permitted = Mutex::new(tokio::time::Instant::now());
        // The upload lives and dies with the session, but on a connection of its own.
        tokio::select! {
            end = self.read(&mut inbound, &wire, &permitted) => end.map(|never| match never {}),
            end = self.write(reports, &wire, pace) => end.map(|never| match never {}),
            never = self.upload(replica.as_ref(), &address) => match never {},
            better = self.seek(&permitted) => Ok(better),
        }
    }

    /// Dials, and says Hello until it is answered.
    async fn open(&self, address: &str) -> Result<Opened, SessionError> {
        let snapshot = self.snapshot().await?;
        let highest_epoch = snapshot.highest_epoch;
        let channel = self.dial.dial(address).await?;
        let (wire, queue) = mpsc::channel(WIRE_MAX);
        let hello = supervisor_message::Message::Hello(wire::hello(&self.settings, snapshot));
        send(&wire, hello).await?;
        let request = self.authorized(ReceiverStream::new(queue)).await?;
        let mut client = client(channel);
        let call = tokio::time::timeout(HELLO_TIMEOUT, client.session(request)).await;
        let mut inbound = call.map_err(|_| SessionError::Greet)??.into_inner();
        let first = tokio::time::timeout(HELLO_TIMEOUT, inbound.message()).await;
        let first = first.map_err(|_| SessionError::Greet)??.and_then(|message| message.message);
        let accepted = accepted(first)?;
        let epoch = Epoch(accepted.epoch);
        if epoch < highest_epoch {
            return Err(SessionError::Stale { found: epoch, known: highest_epoch });
        }
        let pace = accepted
            .heartbeat_interval
            .and_then(|pace| Duration::try_from(pace).ok())
            .filter(|pace| !pace.is_zero())
            .unwrap_or(HEARTBEAT_INTERVAL);
        let replica = Some(accepted.address).filter(|address| !address.is_empty());
        Ok(Opened { address: address.to_owned(), replica, epoch, pace, wire, inbound })
    }

    async fn snapshot(&self) -> Result<Snapshot, SessionError> {
        let (answer, snapshot) = oneshot::channel();
        self.input(Input::Snapshot(answer)).await?;
        snapshot.await.map_err(|_| SessionError::Dropped)
    }

    async fn input(&self, input: Input) -> Result<(), SessionError> {
        self.inputs.send(input).await.map_err(|_| SessionError::Dropped)
    }

    async fn token(&self) -> Result<String, SessionError> {
        let path = &self.settings.token_file;
        let token = tokio::fs::read_to_string(path)
            .await
            .map_err(|source| SessionError::ReadToken { path: path.clone(), source })?;
        Ok(token.trim().to_owned())
    }

    async fn authorized<T>(&self, message: T) -> Result<Request<T>, SessionError> {
        let token = self.token().await?;
        let mut request = Request::new(message);
        let mut value: tonic::metadata::MetadataValue<_> =
            format!("Bearer {token}").parse().map_err(|_| SessionError::FormToken)?;
        value.set_sensitive(true);
        request.metadata_mut().insert("authorization", value);
        Ok(request)
    }

    /// Orders in. Notes in `permitted` when the controller last showed that it leads.
    async fn read(
        &self,
        inbound: &mut tonic::Streaming<v1::ControllerMessage>,
        wire: &mpsc::Sender<v1::SupervisorMessage>,
        permitted: &Mutex<tokio::time::Instant>,
    ) -> Result<std::convert::Infallible, SessionError> {
        while let Some(message) = inbound.message().await? {
            let order = match message.message {
                Some(controller_message::Message::Rejected(why)) => return Err(rejected(why)),
                Some(order) => order,
                None => continue,
            };
            if matches!(order, controller_message::Message::WritePermit(_)) {
                seek::note(permitted);
            }
            match wire::order(order) {
                Ok(input) => self.input(input).await?,
                Err(wire::Unusable { error, answer }) => {
                    tracing::error!(%error, "the controller sent something unusable");
                    if let Some(answer) = answer {
                        send(wire, *answer).await?;
                    }
                }
            }
        }
        Err(SessionError::Closed)
    }

    /// Reports, heartbeats and the renewed token out.
    async fn write(
        &self,
        mut reports: mpsc::Receiver<Outgoing>,
        wire: &mpsc::Sender<v1::SupervisorMessage>,
        pace: Duration,
    ) -> Result<std::convert::Infallible, SessionError> {
        let mut heartbeat = tokio::time::interval(pace);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut renewal = tokio::time::interval(TOKEN_RENEWAL);
        renewal.reset();
        loop {
            let message = tokio::select! {
                report = reports.recv() => match report {
                    Some(report) => wire::outgoing(&report),
                    None => return Err(SessionError::Dropped),
                },
                _ = heartbeat.tick() => {
                    let running = self.metrics.live_attempts.get();
                    let running = u32::try_from(running).unwrap_or(0);
                    supervisor_message::Message::Heartbeat(v1::Heartbeat { running })
                }
                _ = renewal.tick() => {
                    let token = self.token().await?;
                    supervisor_message::Message::TokenRenewal(v1::TokenRenewal { token })
                }
            };
            send(wire, message).await?;
        }
    }

    /// Streams out to the replica that has the session, dialling again whenever their connection fails.
    /// Where that replica cannot be reached by its own address, the one that was dialled may lead to it:
    /// no other replica takes them.
    async fn upload(&self, replica: Option<&String>, dialled: &str) -> std::convert::Infallible {
        let mut pauses = backoff();
        let mut addresses = replica.map(String::as_str).into_iter().chain([dialled]).cycle();
        loop {
            let address = addresses.next().unwrap_or(dialled);
            if let Err(error) = self.upload_once(address).await {
                let error = error_chain(&error);
                tracing::warn!(address, error, "the stream upload ended; trying again");
            }
            tokio::time::sleep(pauses.next().unwrap_or(BACKOFF_MAX)).await;
        }
    }

    async fn upload_once(&self, address: &str) -> Result<(), SessionError> {
        let channel = self.dial.dial(address).await?;
        let (chunks, queue) = mpsc::channel(CHUNKS_MAX);
        let request = self.authorized(ReceiverStream::new(queue)).await?;
        let mut client = client(channel);
        // The answer may wait for the first chunk, so chunks must not wait for the answer.
        let acks = async move { client.stream(request).await.map(tonic::Response::into_inner) };
        let acks = Box::pin(futures::stream::once(acks).try_flatten());
        upload::pump(Arc::clone(&self.streams), chunks, acks).await?;
        Err(SessionError::Closed)
    }
}

async fn send(
    wire: &mpsc::Sender<v1::SupervisorMessage>,
    message: supervisor_message::Message,
) -> Result<(), SessionError> {
    let message = v1::SupervisorMessage { message: Some(message) };
    wire.send(message).await.map_err(|_| SessionError::Closed)
}

fn accepted(first: Option<controller_message::Message>) -> Result<v1::Accepted, SessionError> {
    match first {
        Some(controller_message::Message::Accepted(accepted)) => Ok(accepted),
        Some(controller_message::Message::Rejected(why)) => Err(rejected(why)),
        _ => Err(SessionError::Greet),
    }
}

fn rejected(why: v1::Rejected) -> SessionError {
    SessionError::Rejected {
        reason: why.reason,
        message: why.message,
        leader: (!why.leader_address.is_empty()).then_some(why.leader_address),
    }
}

#[cfg(test)]
mod tests;
