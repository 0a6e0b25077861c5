//! Bulk bytes of one node: chunks in, acknowledgements out.

mod failed;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use agent_operator::{
    convert::{self, ConvertError},
    domain::{
        NodeName, RunRef, limits,
        stream::{Channel, Gap},
        text::error_chain,
    },
    proto::v1,
};
use futures::StreamExt as _;
use tokio::{sync::mpsc, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use v1::chunk::Payload;

use self::failed::Failed;
use super::status::{from_convert, from_store};
use crate::{
    catalog::Catalog,
    clock,
    fleet::sessions::Sessions,
    lease::Leadership,
    metrics::Metrics,
    streams::{Position, StoreError, StreamKey, StreamStore},
};

/// Streams that one node may have open: two for each attempt that it keeps, which is a day's worth.
/// Some 10 MiB at most.
const STREAMS_MAX: usize = 65_536;

/// Pause between two looks for runs that were not known at the opening, and for streams to ask for again.
/// There may be many such runs (a node keeps streams of deleted ones for a day), so not every change of
/// the catalogue is worth a look.
const LOOK_PERIOD: Duration = Duration::from_millis(200);

/// Chunks that are taken and written at once when so many have arrived: one way to a blocking thread for all of them, and
/// no more than 4 MiB of them in memory.
const CHUNKS_AT_ONCE: usize = 16;

/// What the uploads of a node need of the process.
#[derive(Clone)]
pub(super) struct Context {
    /// Whether this replica is the one that followers read from.
    pub(super) leadership: Leadership,
    /// Nodes that stay with this replica although its term ran out.
    pub(super) sessions: Sessions,
    pub(super) store: Arc<StreamStore>,
    pub(super) catalog: Catalog,
    pub(super) metrics: Metrics,
    pub(super) stop: CancellationToken,
}

/// Acknowledgements to the node.
pub(super) type Acks = mpsc::Sender<Result<v1::Ack, Status>>;

/// A chunk, checked.
struct Piece {
    run: RunRef,
    key: StreamKey,
    offset: u64,
    payload: Payload,
}

/// Takes chunks until the node hangs up or breaks the rules.
pub(super) async fn serve(
    context: Context,
    node: NodeName,
    inbound: Streaming<v1::Chunk>,
    acks: Acks,
) {
    let mut upload = Upload {
        context,
        node,
        opened: HashMap::new(),
        waiting: HashMap::new(),
        unsent: HashMap::new(),
        failed: Failed::default(),
    };
    if let Err(status) = upload.run(inbound, &acks).await {
        tracing::info!(node = %upload.node, code = ?status.code(), details = status.message(), "uploads ended");
        // Fails only when the peer has gone.
        let _ = acks.send(Err(status)).await;
    }
}

struct Upload {
    context: Context,
    node: NodeName,
    /// Streams of this call that have been opened.
    opened: HashMap<StreamKey, RunRef>,
    /// Openings whose run this process has not seen yet: its watch may be behind the node.
    waiting: HashMap<StreamKey, Piece>,
    /// Latest acknowledgement of each stream that has not gone out; a later one replaces an earlier
    /// one, so a peer that is slow to read costs no memory and never stops us from reading.
    unsent: HashMap<StreamKey, v1::Ack>,
    /// Streams that could not be stored; the others go on.
    failed: Failed,
}

impl Upload {
    async fn run(&mut self, inbound: Streaming<v1::Chunk>, acks: &Acks) -> Result<(), Status> {
        if !self.is_leaders() {
            return Err(not_leading());
        }
        let leadership = self.context.leadership.clone();
        let stopping = self.context.stop.clone();
        let mut changes = self.context.catalog.changes();
        let demand = self.context.store.demand().clone();
        let _connected = demand.connect(&self.node);
        let mut wishes = demand.changes();
        let mut inbound = inbound.ready_chunks(CHUNKS_AT_ONCE);
        let mut looks = tokio::time::interval(LOOK_PERIOD);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stopping.cancelled() => return Err(Status::unavailable("shutting down")),
                // Followers read from the leader alone: what came here would be missing there.
                _ = leadership.superseded() => return Err(not_leading()),
                room = acks.reserve(), if !self.unsent.is_empty() => {
                    let Ok(room) = room else { return Ok(()) };
                    let next = self.unsent.keys().next().cloned();
                    if let Some(ack) = next.and_then(|key| self.unsent.remove(&key)) {
                        room.send(Ok(ack));
                    }
                }
                _ = looks.tick(), if !self.waiting.is_empty() || !self.failed.is_empty() => {
                    self.ask_again(&self.failed.due(clock::instant()));
                    if changes.has_changed().unwrap_or(false) {
                        changes.borrow_and_update();
                        self.retry_waiting().await?;
                    }
                }
                // Its sender lives as long as the store.
                _ = wishes.changed() => self.send_again(),
                arrived = inbound.next() => match arrived {
                    Some(arrived) => self.take(arrived).await?,
                    None => return self.flush(acks).await,
                }
            }
        }
    }

    /// Whether followers read what is stored here. A node whose session outlasted our term has nobody
    /// else to send to: the API server may be away.
    fn is_leaders(&self) -> bool {
        self.context.leadership.term(clock::instant()).is_some()
            || self.context.sessions.has(&self.node)
    }

    /// Sends what is still to be acknowledged after the node has closed its side.
    async fn flush(&mut self, acks: &Acks) -> Result<(), Status> {
        for (_, ack) in self.unsent.drain() {
            if acks.send(Ok(ack)).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    async fn take(&mut self, arrived: Vec<Result<v1::Chunk, Status>>) -> Result<(), Status> {
        let pieces = arrived.into_iter().map(|chunk| check(chunk?).map_err(|e| from_convert(&e)));
        self.admit_all(pieces).await
    }

    /// Writes pieces in their order; what stands before a breach of the rules is kept.
    async fn admit_all(
        &mut self,
        mut pieces: impl Iterator<Item = Result<Piece, Status>>,
    ) -> Result<(), Status> {
        let mut due = Vec::new();
        let admitted = pieces.try_for_each(|piece| {
            due.extend(self.admit(piece?)?);
            Ok(())
        });
        self.store(due).await?;
        admitted
    }

    /// What is to be written of a piece; none when nothing is, or not yet.
    fn admit(&mut self, piece: Piece) -> Result<Option<Piece>, Status> {
        if matches!(piece.payload, Payload::Open(_)) {
            return self.open(piece);
        }
        if self.waiting.contains_key(&piece.key) {
            return Err(Status::failed_precondition("data before the opening was acknowledged"));
        }
        if !self.opened.contains_key(&piece.key) {
            return Err(Status::failed_precondition("data of a stream that was not opened"));
        }
        Ok((!self.failed.drops(&piece.key, piece.offset)).then_some(piece))
    }

    /// Opens a stream if the run is this node's.
    fn open(&mut self, piece: Piece) -> Result<Option<Piece>, Status> {
        if self.opened.len() + self.waiting.len() >= STREAMS_MAX {
            return Err(Status::resource_exhausted("too many open streams on one connection"));
        }
        let Some(run) = self.context.catalog.run(&piece.key.run) else {
            self.waiting.insert(piece.key.clone(), piece);
            return Ok(None);
        };
        if run.node != self.node {
            return Err(Status::permission_denied(format!(
                "run {} is of node {}, not of {}",
                run.name, run.node, self.node
            )));
        }
        self.opened.insert(piece.key.clone(), piece.run.clone());
        self.failed.opened(&piece.key);
        let store = &self.context.store;
        let wanted = !store.demand().take(|uid| *uid == piece.key.run).is_empty();
        if !wanted
            && run.is_terminal()
            && store.position(&piece.key).is_none()
            && store.is_crowded()
        {
            // Retention took it out, and would take it out again.
            self.acknowledge(piece.key, &piece.run, Position { offset: 0, complete: true });
            return Ok(None);
        }
        Ok(Some(piece))
    }

    /// Asks the node once more for streams that a follower misses.
    fn send_again(&mut self) {
        let wanted =
            self.context.store.demand().take(|uid| self.opened.keys().any(|key| key.run == *uid));
        let keys = self.opened.keys().filter(|key| wanted.contains(&key.run));
        self.ask_again(&keys.cloned().collect::<Vec<_>>());
    }

    /// Asks the node to go on with streams from where they stand here, whatever it has sent.
    fn ask_again(&mut self, keys: &[StreamKey]) {
        for key in keys {
            let position = self.context.store.position(key).unwrap_or_default();
            if let Some(run) = self.opened.get(key).filter(|_| !position.complete) {
                self.failed.asked(key, position.offset);
                let ack = ack(key, run, position);
                self.unsent.insert(key.clone(), v1::Ack { again: true, ..ack });
            }
        }
    }

    async fn retry_waiting(&mut self) -> Result<(), Status> {
        let catalog = &self.context.catalog;
        let known = self.waiting.extract_if(|key, _| catalog.run(&key.run).is_some());
        let pieces: Vec<_> = known.map(|(_, piece)| piece).collect();
        self.admit_all(pieces.into_iter().map(Ok)).await
    }

    /// Writes pieces, up to the first that breaks the rules, and notes their acknowledgements.
    async fn store(&mut self, due: Vec<Piece>) -> Result<(), Status> {
        if due.is_empty() {
            return Ok(());
        }
        let store = Arc::clone(&self.context.store);
        let written = tokio::task::spawn_blocking(move || write_all(&store, due)).await;
        for (piece, result) in written.map_err(|_| Status::internal("the stream store failed"))? {
            match result {
                Ok(position) => {
                    self.count(&piece);
                    self.acknowledge(piece.key, &piece.run, position);
                }
                Err(error) if error.is_the_streams() => self.set_aside(piece, &error),
                Err(error) => return Err(from_store(&error)),
            }
        }
        Ok(())
    }

    /// Leaves a stream that cannot be stored to a later try. The node keeps what is not acknowledged.
    fn set_aside(&mut self, piece: Piece, error: &StoreError) {
        let Piece { key, run, .. } = piece;
        tracing::warn!(
            node = %self.node,
            run_uid = %key.run,
            run = run.name,
            channel = %key.channel,
            error = %error_chain(error),
            "a stream cannot be stored; it is asked for again"
        );
        self.context.metrics.stream_failed(key.channel);
        self.failed.insert(key, clock::instant());
    }

    fn count(&self, piece: &Piece) {
        let (metrics, channel) = (&self.context.metrics, piece.key.channel);
        match &piece.payload {
            Payload::Data(data) => metrics.stream_bytes(channel, data.len() as u64),
            Payload::Gap(gap) => {
                metrics.stream_gap(channel, &gap.reason, gap.to.saturating_sub(gap.from));
            }
            Payload::Open(_) | Payload::End(_) => {}
        }
    }

    fn acknowledge(&mut self, key: StreamKey, run: &RunRef, position: Position) {
        let again = self.unsent.get(&key).is_some_and(|ack| ack.again);
        let ack = ack(&key, run, position);
        self.unsent.insert(key, v1::Ack { again, ..ack });
    }
}

fn not_leading() -> Status {
    Status::unavailable("this replica does not lead")
}

fn ack(key: &StreamKey, run: &RunRef, position: Position) -> v1::Ack {
    v1::Ack {
        run: Some(run.into()),
        channel: v1::Channel::from(key.channel).into(),
        offset: position.offset,
        complete: position.complete,
        again: false,
    }
}

/// A piece and where its stream stands after it, or why it was not written.
type Written = (Piece, Result<Position, StoreError>);

/// Writes until a piece breaks the rules. Of a stream that cannot be stored the first piece alone is
/// tried: the others would not connect.
fn write_all(store: &StreamStore, due: Vec<Piece>) -> Vec<Written> {
    let mut failed = HashSet::new();
    let mut written = Vec::with_capacity(due.len());
    for piece in due {
        if failed.contains(&piece.key) {
            continue;
        }
        let result = write(store, &piece);
        let error = result.as_ref().err();
        let broken = error.is_some_and(|error| !error.is_the_streams());
        if error.is_some() {
            failed.insert(piece.key.clone());
        }
        written.push((piece, result));
        if broken {
            break;
        }
    }
    written
}

fn write(store: &StreamStore, piece: &Piece) -> Result<Position, StoreError> {
    let Piece { key, offset, payload, .. } = piece;
    let now = clock::instant();
    match payload {
        Payload::Open(_) => store.begin(key, *offset, now),
        Payload::Data(data) => store.append(key, *offset, data, now),
        Payload::Gap(gap) => {
            store.gap(key, &Gap { from: gap.from, to: gap.to, reason: gap.reason.clone() }, now)
        }
        Payload::End(_) => store.end(key, *offset, now),
    }
}

fn check(wire: v1::Chunk) -> Result<Piece, ConvertError> {
    let run: RunRef = convert::required("run", wire.run)?;
    let channel = Channel::try_from(wire.channel)?;
    convert::attempt("attempt", wire.attempt)?;
    let payload = wire.payload.ok_or_else(|| ConvertError::missing("payload"))?;
    match &payload {
        Payload::Data(data) if data.len() > limits::CHUNK_BYTES_MAX => {
            return Err(ConvertError::out_of_range("data", format!("{} bytes", data.len())));
        }
        Payload::Gap(gap) => drop(Gap::try_from(gap.clone()).map_err(|e| e.within("gap"))?),
        _ => {}
    }
    let key = StreamKey { run: run.uid.clone(), channel };
    Ok(Piece { run, key, offset: wire.offset, payload })
}
