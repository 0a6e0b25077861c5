//! Carries the node's streams to the controller over one Stream RPC. For each stream the controller
//! first says from where it wants it; then data, gaps and the end follow, a bounded piece ahead of its
//! acknowledgements. Nothing is deleted here: retention alone decides how long bytes stay.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};

use agent_operator::{
    domain::{Attempt, RunKey, limits::CHUNK_BYTES_MAX, stream::Channel},
    proto::v1,
};
use tokio::sync::mpsc;

use super::{AttemptStreams, Streams, spool::Piece};

/// Bytes that may be on the way unacknowledged, for each stream: enough for a slow link, little
/// enough that one flood cannot fill the connection's buffers.
const WINDOW_BYTES: u64 = 1024 * 1024;

/// What is worth a chunk while an earlier one is not acknowledged. With fewer bytes a live stream waits for the
/// acknowledgement and then sends all that has come meanwhile (Nagle's algorithm, RFC 896): a controller with much to do
/// gets longer chunks, not more of them, and nothing queues before it.
const CHUNK_BYTES_WORTH: u64 = 32 * 1024;

/// How far a stream is.
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own about the stream")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Progress {
    /// Opened on this connection.
    opened: bool,
    /// The controller has said where to go on.
    answered: bool,
    /// Everything before this was sent.
    sent: u64,
    /// The controller has everything before this.
    acknowledged: u64,
    /// The end was sent.
    ended: bool,
    /// The controller has the end.
    complete: bool,
}

impl Progress {
    fn acknowledge(&mut self, ack: &v1::Ack) {
        if ack.again {
            // The controller lost what it had, the end perhaps as well.
            *self = Self { opened: self.opened, ..Self::default() };
        }
        if !self.answered {
            self.answered = true;
            self.sent = ack.offset;
        }
        self.acknowledged = self.acknowledged.max(ack.offset);
        self.complete |= ack.complete;
    }
}

/// A stream's name on the connection.
type StreamKey = (RunKey, Channel);

/// One of the node's streams, and how far it is on this connection.
struct Known {
    streams: Arc<AttemptStreams>,
    progress: Progress,
}

/// All streams on one connection. A node keeps the streams of a day and few of them are live, so what the controller has
/// whole is not looked at again for each chunk.
pub struct Upload {
    streams: Arc<Streams>,
    /// State of the registry that `known` stands for; none before the first look.
    version: Option<u64>,
    known: BTreeMap<StreamKey, Known>,
    /// Those of `known` that the controller does not have whole.
    open: BTreeSet<StreamKey>,
    /// Where the last round stopped, so that every stream has its turn.
    cursor: Option<StreamKey>,
}

impl Upload {
    /// A fresh connection: every stream is opened again, so that a controller that lost its store
    /// gets everything that is still here.
    pub fn new(streams: Arc<Streams>) -> Self {
        let (known, open) = Default::default();
        Self { streams, version: None, known, open, cursor: None }
    }

    /// Takes an acknowledgement.
    pub fn acknowledge(&mut self, ack: &v1::Ack) {
        let Ok(channel) = Channel::try_from(ack.channel) else { return };
        let Some(run) = ack.run.as_ref() else { return };
        let first = (RunKey { uid: run.uid.as_str().into(), attempt: Attempt(0) }, Channel::ALL[0]);
        let of_run =
            self.known.range_mut(first..).take_while(|(key, _)| key.0.uid.as_str() == run.uid);
        for (key, Known { progress, .. }) in of_run.filter(|(key, _)| key.1 == channel) {
            progress.acknowledge(ack);
            if progress.complete {
                self.open.remove(key);
            } else {
                self.open.insert(key.clone());
            }
        }
    }

    /// The next chunk to send; none when there is nothing to do until something changes.
    pub fn next_chunk(&mut self) -> Option<v1::Chunk> {
        self.refresh();
        // Round robin: begin behind the stream that was served last.
        let behind = self.cursor.clone().map_or(Bound::Unbounded, Bound::Excluded);
        let later = self.open.range((behind, Bound::Unbounded));
        let earlier = self.cursor.clone().map(|cursor| self.open.range(..=cursor));
        for key in later.chain(earlier.into_iter().flatten()) {
            let Some(Known { streams, progress }) = self.known.get_mut(key) else { continue };
            if let Some(chunk) = piece(streams, key.1, progress) {
                self.cursor = Some(key.clone());
                return Some(chunk);
            }
        }
        None
    }

    /// Takes over what has come to be and what was dropped since the last look.
    fn refresh(&mut self) {
        let Some((version, all)) = self.streams.all_since(self.version) else { return };
        self.version = Some(version);
        let mut before = std::mem::take(&mut self.known);
        for streams in all {
            for channel in Channel::ALL {
                let key = (streams.key(), channel);
                // Dropped and made again meanwhile is another stream.
                let same =
                    before.remove(&key).filter(|known| Arc::ptr_eq(&known.streams, &streams));
                let progress = same.map(|known| known.progress).unwrap_or_default();
                self.known.insert(key, Known { streams: Arc::clone(&streams), progress });
            }
        }
        let open = self.known.iter().filter(|(_, known)| !known.progress.complete);
        self.open = open.map(|(key, _)| key.clone()).collect();
    }
}

fn piece(streams: &AttemptStreams, channel: Channel, progress: &mut Progress) -> Option<v1::Chunk> {
    use v1::chunk::Payload;

    let spool = streams.spool(channel);
    if !progress.opened {
        progress.opened = true;
        let base = spool.extent().base;
        return Some(chunk(streams, channel, base, Payload::Open(v1::StreamOpen {})));
    }
    let window = progress.sent.saturating_sub(progress.acknowledged) < WINDOW_BYTES;
    if !progress.answered || progress.complete || progress.ended || !window {
        return None;
    }
    let offset = progress.sent;
    let (unanswered, extent) = (offset > progress.acknowledged, spool.extent());
    if unanswered && !extent.complete && extent.end.saturating_sub(offset) < CHUNK_BYTES_WORTH {
        return None;
    }
    match spool.read(offset, CHUNK_BYTES_MAX) {
        Ok(Piece::Data(bytes)) => {
            progress.sent += bytes.len() as u64;
            Some(chunk(streams, channel, offset, Payload::Data(bytes.into())))
        }
        Ok(Piece::Gap { to, reason }) => {
            progress.sent = to;
            let reason = reason.as_str().to_owned();
            let gap = v1::Gap { from: offset, to, reason };
            Some(chunk(streams, channel, offset, Payload::Gap(gap)))
        }
        Ok(Piece::End) => {
            progress.ended = true;
            Some(chunk(streams, channel, offset, Payload::End(v1::StreamEnd {})))
        }
        Ok(Piece::Pending) => None,
        Err(error) => {
            tracing::warn!(run = streams.run.name, %channel, %error, "could not read a stream");
            None
        }
    }
}

fn chunk(
    streams: &AttemptStreams,
    channel: Channel,
    offset: u64,
    payload: v1::chunk::Payload,
) -> v1::Chunk {
    v1::Chunk {
        run: Some((&streams.run).into()),
        attempt: streams.attempt.0,
        channel: v1::Channel::from(channel).into(),
        offset,
        payload: Some(payload),
    }
}

/// Sends what there is, in turns, until `acks` ends. The caller owns the connection.
pub async fn pump(
    streams: Arc<Streams>,
    chunks: mpsc::Sender<v1::Chunk>,
    mut acks: impl futures::Stream<Item = Result<v1::Ack, tonic::Status>> + Unpin,
) -> Result<(), tonic::Status> {
    use futures::StreamExt as _;

    let changed = Arc::clone(&streams.changed);
    let mut upload = Upload::new(streams);
    loop {
        let next = upload.next_chunk();
        let idle = next.is_none();
        let sending = async {
            match next {
                Some(chunk) => chunks.send(chunk).await.is_ok(),
                None => std::future::pending().await,
            }
        };
        // A chunk that is due is sent before anything else is looked at: it counts as sent already.
        tokio::pin!(sending);
        loop {
            tokio::select! {
                sent = &mut sending => {
                    if !sent {
                        return Ok(());
                    }
                    break;
                }
                ack = acks.next() => match ack {
                    Some(ack) => {
                        upload.acknowledge(&ack?);
                        if idle { break; }
                    }
                    None => return Ok(()),
                },
                () = changed.notified(), if idle => break,
            }
        }
    }
}

#[cfg(test)]
mod tests;
