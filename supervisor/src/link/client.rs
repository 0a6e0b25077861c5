//! The supervisor's end of the link: connects to the gateway's socket, says Hello, and then carries
//! messages between it and the runner until either side is gone. Keeps nothing itself.

use std::{path::PathBuf, time::Duration};

use futures::{SinkExt as _, StreamExt as _};
use tokio::{net::UnixStream, sync::mpsc};
use tokio_util::sync::CancellationToken;

use super::{
    contract::{FromGateway, LINK_VERSION, ToGateway},
    frame::{FrameError, framed},
};
use crate::steps::runner::Input;

/// Pause between two attempts to connect: the gateway is on the same node and starts within
/// moments, and attempts wait for it.
const RECONNECT: Duration = Duration::from_millis(250);
/// Longest queue towards the gateway: a full register of all slots fits many times over.
const OUTGOING_MAX: usize = 1024;
/// Limit of the greeting.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// The link could not be opened or kept.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Nobody listens on the socket.
    #[error("could not connect to the gateway's socket")]
    Connect(#[source] std::io::Error),
    /// A frame could not be read or written.
    #[error("the link failed")]
    Frame(#[from] FrameError),
    /// The gateway did not greet, or not in time.
    #[error("the gateway did not greet")]
    Greet,
    /// The gateway speaks another version of the contract.
    #[error("the gateway speaks link version {0}, this supervisor {LINK_VERSION}")]
    Version(u32),
    /// The gateway closed the connection.
    #[error("the gateway closed the link")]
    Closed,
}

/// Keeps a link to the gateway at `socket` until `shutdown`.
pub async fn run(socket: PathBuf, inputs: mpsc::Sender<Input>, shutdown: CancellationToken) {
    let mut reported = false;
    loop {
        let once = connect_once(&socket, &inputs);
        let error = tokio::select! {
            () = shutdown.cancelled() => return,
            Err(error) = once => error,
        };
        if inputs.send(Input::LinkDown).await.is_err() {
            return;
        }
        // One line per outage: a gateway that restarts is ordinary.
        let refused = matches!(error, LinkError::Connect(_));
        if !refused || !reported {
            tracing::warn!(error = %agent_operator::domain::text::error_chain(&error), "no link to the gateway");
        }
        reported = refused;
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(RECONNECT) => {}
        }
    }
}

/// One connection, from Hello to its end.
async fn connect_once(
    socket: &PathBuf,
    inputs: &mpsc::Sender<Input>,
) -> Result<std::convert::Infallible, LinkError> {
    let stream = UnixStream::connect(socket).await.map_err(LinkError::Connect)?;
    let (mut sink, mut source) = framed::<FromGateway>(stream).split();
    sink.send(ToGateway::Hello { version: LINK_VERSION }).await?;
    let greeting = tokio::time::timeout(HELLO_TIMEOUT, source.next()).await;
    match greeting.map_err(|_| LinkError::Greet)? {
        Some(Ok(FromGateway::Hello { version: LINK_VERSION, instance, live })) => {
            tracing::info!(instance, attempts = live.len(), "linked to the gateway");
            inputs.send(Input::GatewayKnows(live)).await.map_err(|_| LinkError::Closed)?;
        }
        Some(Ok(FromGateway::Hello { version, .. })) => return Err(LinkError::Version(version)),
        Some(Err(error)) => return Err(error.into()),
        _ => return Err(LinkError::Greet),
    }
    let (outgoing, mut queue) = mpsc::channel(OUTGOING_MAX);
    inputs.send(Input::LinkUp(outgoing)).await.map_err(|_| LinkError::Closed)?;
    let write = async {
        // A dropped sender means that the runner gave this link up (full queue): start over.
        while let Some(message) = queue.recv().await {
            sink.send(message).await?;
        }
        Err::<std::convert::Infallible, _>(LinkError::Closed)
    };
    let read = async {
        while let Some(message) = source.next().await {
            inputs.send(Input::Gateway(message?)).await.map_err(|_| LinkError::Closed)?;
        }
        Err::<std::convert::Infallible, _>(LinkError::Closed)
    };
    // Reading and writing go on side by side: neither may wait for the other's peer.
    tokio::select! { end = write => end, end = read => end }
}

#[cfg(test)]
mod tests {
    use agent_operator::domain::{Attempt, RunKey, RunUid};
    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn a_restarted_gateway_is_found_again_and_told_everything_anew() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("gateway.sock");
        let (inputs, mut received) = mpsc::channel(16);
        let shutdown = CancellationToken::new();
        let client = tokio::spawn(run(socket.clone(), inputs, shutdown.clone()));
        for instance in ["one", "two"] {
            let _ = std::fs::remove_file(&socket);
            let listener = UnixListener::bind(&socket).unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            let mut gateway = framed::<ToGateway>(stream);
            let hello = gateway.next().await.unwrap().unwrap();
            assert!(matches!(hello, ToGateway::Hello { version: LINK_VERSION }));
            let (version, instance) = (LINK_VERSION, instance.to_owned());
            let hello = FromGateway::Hello { version, instance, live: vec![] };
            gateway.send(hello).await.unwrap();
            let link = loop {
                match received.recv().await.unwrap() {
                    Input::LinkUp(link) => break link,
                    Input::LinkDown | Input::GatewayKnows(_) => {}
                    other => panic!("{other:?}"),
                }
            };
            link.send(ToGateway::Synced).await.unwrap();
            assert!(matches!(gateway.next().await.unwrap().unwrap(), ToGateway::Synced));
            let run = RunKey { uid: RunUid::from("u"), attempt: Attempt(1) };
            gateway.send(FromGateway::NeedCredentials { run }).await.unwrap();
            let got = received.recv().await.unwrap();
            assert!(matches!(got, Input::Gateway(FromGateway::NeedCredentials { .. })));
        }
        shutdown.cancel();
        client.await.unwrap();
    }
}
