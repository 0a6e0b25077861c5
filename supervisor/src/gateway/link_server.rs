//! The gateway's end of the link: listens on a Unix socket for its one supervisor.
//!
//! The newest link wins: a supervisor that restarts must not wait for its predecessor's connection
//! to time out. A connection with a single order to stop replaces nothing. The peer's uid is checked;
//! the gateway obeys nobody else.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use agent_operator::{domain::RunKey, telemetry::logs};
use futures::{SinkExt as _, StreamExt as _, stream::SplitSink};
use tokio::{
    net::{UnixListener, UnixStream},
    time::{Instant, MissedTickBehavior, timeout},
};
use tokio_util::{codec::Framed, sync::CancellationToken};

use super::{
    core::{self, Shared},
    preflight,
};
use crate::{
    clock,
    link::{
        contract::{FromGateway, LINK_VERSION, ToGateway},
        frame::{self, FrameError, JsonLines},
    },
};

/// Time for the peer's Hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Time to write one frame; a supervisor that does not read is disconnected.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How often changed counters are sent.
const COUNTERS_INTERVAL: Duration = Duration::from_millis(500);
/// How often missing credentials are asked for again.
const CREDENTIALS_INTERVAL: Duration = Duration::from_secs(5);
/// The socket's mode: the peer's uid is what is checked, and the directory is shared by the two
/// containers alone, which may run as different users.
const SOCKET_MODE: u32 = 0o666;

type Frames = Framed<UnixStream, JsonLines<ToGateway>>;
type Writer = SplitSink<Frames, FromGateway>;

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// A stale socket cannot be removed, or the path not bound.
    #[error("cannot listen on {path}")]
    Bind {
        /// The socket's path.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("the peer's uid {0} is not allowed")]
    PeerUid(u32),
    #[error("the peer's uid is not known")]
    PeerUnknown(#[source] std::io::Error),
    #[error("the peer did not open with Hello")]
    NoHello,
    #[error("the peer speaks version {0} of the link, this gateway version {LINK_VERSION}")]
    Version(u32),
    #[error("the link failed")]
    Frame(#[from] FrameError),
    #[error("the peer does not read")]
    Stuck,
}

/// Binds the socket; a stale one of a killed predecessor is replaced.
pub fn listen(path: &Path) -> Result<UnixListener, ListenError> {
    let bind = || {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))?;
        Ok(listener)
    };
    bind().map_err(|source| ListenError::Bind { path: path.to_owned(), source })
}

/// Serves connections until the shutdown. `instance` names this start of the gateway.
pub async fn serve(gateway: Shared, listener: UnixListener, uids: Vec<u32>, instance: String) {
    let current = Arc::new(Mutex::new(CancellationToken::new()));
    loop {
        let accepted = tokio::select! {
            () = gateway.shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted.map_err(LinkError::PeerUnknown) {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(error = %error, "accept on the link failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if let Err(error) = check_peer(&stream, &uids) {
            tracing::warn!(%error, "connection to the link refused");
            continue;
        }
        let (shared, current) = (Arc::clone(&gateway), Arc::clone(&current));
        let instance = instance.clone();
        gateway.tasks.spawn(async move {
            let opened = open(&shared, stream, instance);
            match shared.shutdown.run_until_cancelled(opened).await {
                Some(Ok(Opened::Link(frames))) => {
                    let token = shared.shutdown.child_token();
                    replace(&current, token.clone());
                    serve_link(&shared, *frames, &token).await;
                }
                Some(Ok(Opened::Order)) | None => {}
                Some(Err(error)) => tracing::warn!(%error, "no link came about"),
            }
        });
    }
}

/// Ends the link before in favour of the one with `token`.
fn replace(current: &Mutex<CancellationToken>, token: CancellationToken) {
    let mut current = current.lock().unwrap_or_else(PoisonError::into_inner);
    std::mem::replace(&mut *current, token).cancel();
}

async fn serve_link(gateway: &Shared, frames: Frames, token: &CancellationToken) {
    tokio::select! {
        () = token.cancelled() => tracing::info!("link ended: replaced or shut down"),
        ended = connection(gateway, frames) => match ended {
            Ok(()) => tracing::info!("link closed by the supervisor"),
            Err(error) => tracing::warn!(%error, "link ended"),
        },
    }
}

fn check_peer(stream: &UnixStream, uids: &[u32]) -> Result<(), LinkError> {
    let uid = stream.peer_cred().map_err(LinkError::PeerUnknown)?.uid();
    if uids.contains(&uid) { Ok(()) } else { Err(LinkError::PeerUid(uid)) }
}

/// What a connection turned out to be.
enum Opened {
    /// The supervisor's link.
    Link(Box<Frames>),
    /// A single order, carried out.
    Order,
}

async fn open(gateway: &Shared, stream: UnixStream, instance: String) -> Result<Opened, LinkError> {
    let mut frames = frame::framed::<ToGateway>(stream);
    let live = gateway.grants.live().iter().map(|attempt| attempt.key().clone()).collect();
    let hello = FromGateway::Hello { version: LINK_VERSION, instance, live };
    timeout(WRITE_TIMEOUT, frames.send(hello)).await.map_err(|_| LinkError::Stuck)??;
    match timeout(HELLO_TIMEOUT, frames.next()).await {
        Ok(Some(Ok(ToGateway::Hello { version: LINK_VERSION }))) => {
            Ok(Opened::Link(Box::new(frames)))
        }
        Ok(Some(Ok(order @ ToGateway::Stop { .. }))) => {
            receive(gateway, order);
            Ok(Opened::Order)
        }
        Ok(Some(Ok(ToGateway::Hello { version }))) => Err(LinkError::Version(version)),
        Ok(Some(Err(error))) => Err(error.into()),
        Ok(Some(Ok(_)) | None) | Err(_) => Err(LinkError::NoHello),
    }
}

async fn connection(gateway: &Shared, frames: Frames) -> Result<(), LinkError> {
    let (mut writer, mut reader) = frames.split();
    tracing::info!("supervisor connected");
    gateway.grants.begin_sync();
    for attempt in gateway.grants.live() {
        attempt.report_counters_again();
    }
    let read = async {
        while let Some(message) = reader.next().await {
            receive(gateway, message?);
        }
        Ok(())
    };
    tokio::select! {
        ended = read => ended,
        ended = send_all(gateway, &mut writer) => ended,
    }
}

/// Sends what waits, in order, and then whatever comes.
async fn send_all(gateway: &Shared, writer: &mut Writer) -> Result<(), LinkError> {
    let mut next = 0;
    let mut ticks = tokio::time::interval(COUNTERS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        while let Some((id, message)) = gateway.outbox.first_from(next) {
            write(writer, message).await?;
            next = id + 1;
        }
        while let Some(report) = gateway.preflights.next_report() {
            write(writer, FromGateway::Preflighted(Box::new(report))).await?;
        }
        tokio::select! {
            () = gateway.outbox.news() => {}
            () = gateway.preflights.news() => {}
            _ = ticks.tick() => send_state(gateway, writer).await?,
        }
    }
}

async fn send_state(gateway: &Shared, writer: &mut Writer) -> Result<(), LinkError> {
    let synced = gateway.grants.is_synced();
    for attempt in gateway.grants.asked_about() {
        let survivor = Box::new(attempt.survivor(Instant::now()));
        write(writer, FromGateway::Survivor(survivor)).await?;
    }
    for attempt in gateway.grants.live() {
        let run = attempt.key().clone();
        if let Some((usage, refusals)) = attempt.changed_counters() {
            write(writer, FromGateway::Counters { run: run.clone(), usage, refusals }).await?;
        }
        if synced && attempt.credentials_due(Instant::now(), CREDENTIALS_INTERVAL) {
            write(writer, FromGateway::NeedCredentials { run }).await?;
        }
    }
    Ok(())
}

async fn write(writer: &mut Writer, message: FromGateway) -> Result<(), LinkError> {
    timeout(WRITE_TIMEOUT, writer.send(message)).await.map_err(|_| LinkError::Stuck)??;
    Ok(())
}

/// Carries out one message. Everything is idempotent, so a repetition changes nothing.
fn receive(gateway: &Shared, message: ToGateway) {
    match message {
        ToGateway::Hello { .. } => tracing::warn!("a second Hello is ignored"),
        ToGateway::Register(grant) => {
            let _within = logs::attempt(&grant.assignment).entered();
            if gateway.grants.register(*grant, Instant::now()).is_none() {
                tracing::error!("attempt not registered: too many attempts");
            }
        }
        ToGateway::Describe { run } => gateway.grants.keep(&run),
        ToGateway::Synced => synced(gateway),
        ToGateway::Credentials { run, credentials } => {
            if let Some(attempt) = gateway.grants.get(&run) {
                attempt.set_credentials(credentials);
                attempt.preparation.forget_failure();
                if attempt.is_waiting() {
                    core::prepare(gateway, &attempt);
                }
            }
        }
        ToGateway::Probe { run, order } => {
            if let Some(attempt) = gateway.grants.get(&run) {
                attempt.probe(order);
            }
        }
        ToGateway::OpenGate { run, pod_ip, remaining_millis } => {
            let attempt = gateway.grants.get(&run);
            let _within = attempt.as_ref().map(|attempt| attempt.context().enter());
            let opened = gateway.grants.open_gate(&run, pod_ip, remaining_millis, Instant::now());
            match opened {
                Ok(()) => tracing::info!("gate open"),
                Err(error) => tracing::error!(%error, "gate stays closed"),
            }
        }
        ToGateway::Preflight { order, credentials } => {
            preflight::start(gateway, *order, credentials);
        }
        ToGateway::Permit { epoch, valid_millis } => {
            let valid = Duration::from_millis(valid_millis);
            if let Err(error) = gateway.permit.renew(epoch, valid, clock::boot()) {
                tracing::warn!(%error, "permission ignored");
            }
        }
        ToGateway::Budget { run, budget } => {
            if let Some(attempt) = gateway.grants.get(&run) {
                attempt.set_budget(budget);
            }
        }
        ToGateway::Stop { run, order } => {
            if let Some(attempt) = gateway.grants.get(&run) {
                let _within = attempt.context().enter();
                tracing::info!(reason = %order.reason, "stop ordered");
                attempt.stop(order);
                gateway.grants.kill_agent_token(&attempt);
            }
        }
        ToGateway::Revoke { run } => revoke(gateway, &run),
        ToGateway::Ack { id } => gateway.outbox.ack(id),
    }
}

fn revoke(gateway: &Shared, run: &RunKey) {
    let attempt = gateway.grants.revoke(run);
    let _within = attempt.as_ref().map(|attempt| attempt.context().enter());
    if attempt.is_some() {
        tracing::info!("attempt revoked");
    }
    // Also for an unknown attempt: its quarantine may be left from before a restart.
    core::clean_up(gateway, run);
}

/// Drops what the supervisor did not name, on disk too.
fn synced(gateway: &Shared) {
    for attempt in gateway.grants.synced() {
        let _within = attempt.context().enter();
        tracing::info!("attempt dropped: the supervisor does not know it");
        core::clean_up(gateway, attempt.key());
    }
    let live = gateway.grants.live();
    for attempt in &live {
        // Nothing is under way for an attempt of before a restart: ask at once.
        attempt.ask_credentials_again();
    }
    let live: Vec<RunKey> = live.iter().map(|attempt| attempt.key().clone()).collect();
    tracing::info!(attempts = live.len(), "synced");
    core::retain(gateway, live);
}
