//! One exchange of smart HTTP: the request flows into git, git's words flow out. A task of its own
//! carries both, so that git ends in time also when nobody takes its answer. Git starts when the request
//! has begun to come, so that one that never does costs nothing.

use std::{io, time::Duration};

use axum::body::{Body, BodyDataStream};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, stream};
use http::{Request, header};
use tokio::{
    io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    process::ChildStdout,
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    gzip,
    process::ProcessGroup,
    slots::{StreamHeap, StreamPermit},
};

/// One exchange: a clone of a large repository over the pod network, with room.
pub(super) const EXCHANGE_TIMEOUT: Duration = Duration::from_mins(30);
/// How long git waits for a sandbox that sends nothing, or takes nothing of the answer.
const IDLE_TIMEOUT: Duration = Duration::from_mins(1);
/// What a sandbox has to move on average beyond that: a fraction of what a busy one does, whose gateway
/// is on its own node. An exchange holds memory of the node, for which others wait.
const BYTES_PER_SECOND_MIN: u64 = 1024 * 1024;
/// Pieces of an answer.
const READ_BYTES: usize = 64 * 1024;
/// Pieces that wait for the sandbox.
const PIECES_MAX: usize = 4;

/// What an exchange may do and what it holds.
pub(super) struct Terms {
    /// Longest request body.
    pub(super) body_bytes_max: u64,
    /// Cancelled when the attempt ends.
    pub(super) ended: CancellationToken,
    /// One of the attempt's streams, until the sandbox has heard the end.
    pub(super) stream: StreamPermit,
    /// The heap of git, until git has ended.
    pub(super) heap: StreamHeap,
}

/// Gives what is asked to git; git's answer, piece by piece.
pub(super) fn answer(mut group: ProcessGroup, asked: Asked, terms: Terms) -> io::Result<Body> {
    let lost = || io::Error::other("its pipes are gone");
    let stdin = group.child.stdin.take().ok_or_else(lost)?;
    let stdout = group.child.stdout.take().ok_or_else(lost)?;
    let Terms { body_bytes_max, ended, stream, heap } = terms;
    let (sender, pieces) = mpsc::channel(PIECES_MAX);
    let (verdict, outcome) = oneshot::channel();
    let asking = pump(asked, stdin, body_bytes_max);
    let saying = say(stdout, (group, heap), sender);
    tokio::spawn(async move {
        let both = async { tokio::try_join!(asking, saying).map(drop) };
        let over = tokio::select! {
            () = ended.cancelled() => Err(io::Error::other("the attempt is over")),
            done = tokio::time::timeout(EXCHANGE_TIMEOUT, both) => {
                done.unwrap_or_else(|_| Err(late("the exchange took too long")))
            }
        };
        drop(stream);
        // Nobody listens any more when the sandbox has gone.
        let _ = verdict.send(over);
    });
    let pieces = stream::try_unfold((pieces, outcome), |(mut pieces, outcome)| async move {
        if let Some(piece) = pieces.recv().await {
            return Ok(Some((piece, (pieces, outcome))));
        }
        // An answer that broke off must never look whole.
        outcome.await.unwrap_or_else(|lost| Err(io::Error::other(lost)))?;
        Ok::<_, io::Error>(None)
    });
    Ok(Body::from_stream(pieces))
}

/// What git says, until it ends; `held` goes with it.
async fn say(
    mut stdout: ChildStdout,
    held: (ProcessGroup, StreamHeap),
    pieces: mpsc::Sender<Bytes>,
) -> io::Result<()> {
    let (mut group, _heap) = held;
    let mut patience = Patience::new();
    loop {
        let mut piece = BytesMut::with_capacity(READ_BYTES);
        let read = tokio::select! {
            () = pieces.closed() => return Err(gone()),
            read = stdout.read_buf(&mut piece) => read?,
        };
        if read == 0 {
            break;
        }
        patience.wait(pieces.send(piece.freeze())).await?.map_err(|_| gone())?;
        patience.earn(read);
    }
    group.child.wait().await.map(drop)
}

/// Writes the request's body to git. A body that breaks off or is too long ends git's input, and git
/// then reports an incomplete request. The rest of a body that git will not have is read all the same: a
/// client whose upload is cut off takes that for a fault of the network, and never hears git's reason.
async fn pump(
    mut asked: Asked,
    mut stdin: impl AsyncWrite + Unpin,
    body_bytes_max: u64,
) -> io::Result<()> {
    if asked.packed {
        let packed = asked.whole(gzip::COMPRESSED_BYTES_MAX).await?;
        if let Some(Ok(unpacked)) = packed.map(|packed| gzip::unpack(&packed)) {
            let _ = stdin.write_all(&unpacked).await;
        }
        return Ok(());
    }
    let mut left = body_bytes_max;
    let mut input = Some(stdin);
    while let Some(piece) = asked.next().await? {
        let Some(stdin) = &mut input else { continue };
        let rest = left.checked_sub(piece.len() as u64);
        left = rest.unwrap_or_default();
        if rest.is_none() || stdin.write_all(&piece).await.is_err() {
            input = None;
        }
    }
    Ok(())
}

/// A request as its body comes; one that breaks off has ended.
pub(super) struct Asked {
    packed: bool,
    first: Option<Bytes>,
    body: BodyDataStream,
    patience: Patience,
}

impl Asked {
    /// Waits until the body begins, or is seen to be empty.
    pub(super) async fn begin(request: Request<Body>) -> io::Result<Self> {
        let encoding = request.headers().get(header::CONTENT_ENCODING);
        let packed = encoding.is_some_and(|encoding| encoding == "gzip" || encoding == "x-gzip");
        let body = request.into_body().into_data_stream();
        let mut asked = Self { packed, first: None, body, patience: Patience::new() };
        asked.first = asked.next().await?;
        Ok(asked)
    }

    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        let Some(Ok(piece)) = self.patience.wait(self.body.next()).await? else { return Ok(None) };
        self.patience.earn(piece.len());
        Ok(Some(piece))
    }

    /// All of it; none when it is longer than `bytes_max`.
    async fn whole(&mut self, bytes_max: usize) -> io::Result<Option<BytesMut>> {
        let mut whole = BytesMut::new();
        while let Some(piece) = self.next().await? {
            if whole.len() + piece.len() > bytes_max {
                return Ok(None);
            }
            whole.extend_from_slice(&piece);
        }
        Ok(Some(whole))
    }
}

/// How much longer git waits for its sandbox: spent while it waits, earned by bytes that move.
struct Patience {
    left: Duration,
}

impl Patience {
    fn new() -> Self {
        Self { left: IDLE_TIMEOUT }
    }

    async fn wait<T>(&mut self, moved: impl Future<Output = T>) -> io::Result<T> {
        let began = Instant::now();
        let moved = tokio::time::timeout(self.left, moved)
            .await
            .map_err(|_| late("the sandbox moved too little for too long"))?;
        self.left = self.left.saturating_sub(began.elapsed());
        Ok(moved)
    }

    fn earn(&mut self, bytes: usize) {
        let micros = (bytes as u64).saturating_mul(1_000_000) / BYTES_PER_SECOND_MIN;
        self.left = self.left.saturating_add(Duration::from_micros(micros)).min(IDLE_TIMEOUT);
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "nobody takes the answer any more")
}

fn late(words: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(pieces: impl futures::Stream<Item = Bytes> + Send + 'static) -> Request<Body> {
        Request::new(Body::from_stream(pieces.map(Ok::<_, io::Error>)))
    }

    async fn pumped(request: Request<Body>) -> io::Result<()> {
        pump(Asked::begin(request).await?, tokio::io::sink(), u64::MAX).await
    }

    async fn given_up(request: Request<Body>) -> Duration {
        let began = Instant::now();
        assert_eq!(pumped(request).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_minute_without_a_byte_of_the_request_ends_the_exchange() {
        let begun = || stream::iter([Bytes::from_static(b"0032want")]).chain(stream::pending());
        assert_eq!(given_up(request(stream::pending())).await, IDLE_TIMEOUT);
        assert_eq!(given_up(request(begun())).await, IDLE_TIMEOUT);
        let mut packed = request(begun());
        packed.headers_mut().insert(header::CONTENT_ENCODING, "gzip".parse().unwrap());
        assert_eq!(given_up(packed).await, IDLE_TIMEOUT);
    }

    /// A piece of `bytes` each `seconds`, for ever.
    fn drip(bytes: usize, seconds: u64) -> impl futures::Stream<Item = Bytes> + Send {
        stream::repeat(()).then(move |()| async move {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            Bytes::from(vec![0; bytes])
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_only_drips_ends_as_soon_and_a_slow_one_goes_on() {
        let dripping = given_up(request(drip(1, 10))).await;
        assert!(dripping <= IDLE_TIMEOUT + Duration::from_secs(1), "{dripping:?}");
        let slow = drip(4 << 20, 4).take(1000);
        pumped(request(slow)).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_that_git_takes_is_not_counted_against_the_sandbox() {
        let (stdin, mut git) = tokio::io::duplex(1);
        let whole = stream::iter([Bytes::from_static(b"0032want")]);
        let busy = async {
            tokio::time::sleep(IDLE_TIMEOUT * 10).await;
            let mut all = Vec::new();
            git.read_to_end(&mut all).await.unwrap();
            all
        };
        let asked = Asked::begin(request(whole)).await.unwrap();
        let (pumped, all) = tokio::join!(pump(asked, stdin, u64::MAX), busy);
        pumped.unwrap();
        assert_eq!(all, b"0032want");
    }
}
