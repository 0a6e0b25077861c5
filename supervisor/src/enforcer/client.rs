//! The supervisor's end: one connection an order.

use std::{io, path::PathBuf, time::Duration};

use async_trait::async_trait;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    time::timeout,
};

use super::contract::{
    Answer, CloseOrder, CountQuestion, Counted, Counts, DropCount, DropQuestion, LINE_BYTES_MAX,
    VERSION,
};

/// Longest wait for an answer: the enforcer's own limit of a tool, and some slack.
const LIMIT: Duration = Duration::from_secs(15);

/// The enforcer gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens, or the connection broke.
    #[error("the node's enforcer does not answer")]
    Socket(#[from] io::Error),
    /// It took too long.
    #[error("the node's enforcer did not answer within {LIMIT:?}")]
    Slow,
    /// Whoever stands in its place counts nothing.
    #[error("the node's enforcer counts nothing")]
    CountsNothing,
    /// The answer is none of the contract's.
    #[error("the enforcer's answer cannot be read")]
    Answer(#[from] serde_json::Error),
}

/// Whoever closes the network of pods on this node.
#[async_trait]
pub trait Enforcer: Send + Sync {
    /// Gives the order, and waits for the answer to it.
    async fn close(&self, order: &CloseOrder) -> Result<Answer, ClientError>;

    /// What it has counted.
    async fn counts(&self) -> Result<Counts, ClientError> {
        Err(ClientError::CountsNothing)
    }

    /// Packets of a pod that it has dropped since the pod's rules were made.
    async fn dropped_of(&self, _pod_uid: &str) -> Result<u64, ClientError> {
        Err(ClientError::CountsNothing)
    }
}

/// The enforcer behind a Unix socket.
#[derive(Clone, Debug)]
pub struct SocketEnforcer(PathBuf);

impl SocketEnforcer {
    /// The one that listens on `socket`.
    pub fn new(socket: PathBuf) -> Self {
        Self(socket)
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        words: &(impl Serialize + Sync),
    ) -> Result<T, ClientError> {
        let mut line = serde_json::to_vec(words)?;
        line.push(b'\n');
        let conversation = async {
            let (reader, mut writer) = UnixStream::connect(&self.0).await?.into_split();
            writer.write_all(&line).await?;
            let mut answer = Vec::new();
            let mut reader = BufReader::new(reader.take(LINE_BYTES_MAX));
            reader.read_until(b'\n', &mut answer).await?;
            Ok::<_, io::Error>(answer)
        };
        let answer = timeout(LIMIT, conversation).await.map_err(|_| ClientError::Slow)??;
        Ok(serde_json::from_slice(&answer)?)
    }
}

#[async_trait]
impl Enforcer for SocketEnforcer {
    async fn close(&self, order: &CloseOrder) -> Result<Answer, ClientError> {
        self.ask(order).await
    }

    async fn counts(&self) -> Result<Counts, ClientError> {
        // An enforcer of before it counted says that this is no order, which is no count.
        let question = CountQuestion { version: VERSION, count: true };
        self.ask::<Counted>(&question).await.map(|counted| counted.counts)
    }

    async fn dropped_of(&self, pod_uid: &str) -> Result<u64, ClientError> {
        let question = DropQuestion { version: VERSION, dropped_of: pod_uid.to_owned() };
        self.ask::<DropCount>(&question).await.map(|count| count.dropped)
    }
}
