//! What was asked of the provider: the request's body on its way out, and what a call is taken to have
//! used of which the provider gave no figures.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use agent_operator::domain::Usage;
use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

use super::meter::BYTES_PER_TOKEN;

/// Bytes that are handed to the connection at once. It takes some hundred KiB before it waits for the
/// provider, so a body counts as sent when less than that is missing.
const PIECE_BYTES: usize = 64 * 1024;
/// Largest context of a model: what is longer is refused by the provider and costs nothing. Images are
/// long and cost little, so that an estimate by bytes needs it.
const INPUT_TOKENS_MAX: u64 = 1_000_000;
/// What a model writes in a second: the provider's write between 40 and 120 tokens.
const OUTPUT_TOKENS_PER_SECOND: u64 = 80;

/// What was asked, for when nobody says what it used.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    body_bytes: u64,
    max_tokens: Option<u64>,
    sent: Arc<AtomicBool>,
}

impl Asked {
    /// A request's body as it goes out, and what will be known of it. `max_tokens` is the most that the
    /// request lets the model write.
    pub(super) fn new(body: Bytes, max_tokens: Option<u64>) -> (Body, Self) {
        let body_bytes = u64::try_from(body.len()).unwrap_or(u64::MAX);
        let sent = Arc::new(AtomicBool::new(false));
        let outgoing = Outgoing { rest: body, sent: Arc::clone(&sent) };
        (Body::new(outgoing), Self { body_bytes, max_tokens, sent })
    }

    /// What the call is taken to have used in the time that it `took`. Nothing, when the provider never
    /// had the whole request: it cannot have begun then.
    pub(super) fn estimate(&self, took: Duration) -> Usage {
        if !self.sent.load(Ordering::Acquire) {
            return Usage::default();
        }
        estimate(self.body_bytes, self.max_tokens, took)
    }
}

/// The request is read as text, and the model has written all the time, up to what it may. That is more
/// than most such calls cost, for a step must not gain by a call that ends without an answer; and far
/// less than `max_tokens`, which clients set to what a model can write at all.
fn estimate(body_bytes: u64, max_tokens: Option<u64>, took: Duration) -> Usage {
    let written = took.as_secs().saturating_mul(OUTPUT_TOKENS_PER_SECOND);
    Usage {
        input_tokens: body_bytes.div_ceil(BYTES_PER_TOKEN).min(INPUT_TOKENS_MAX),
        output_tokens: max_tokens.map_or(written, |most| written.min(most)),
        ..Usage::default()
    }
}

/// A body that tells when the connection has taken its last piece.
struct Outgoing {
    rest: Bytes,
    sent: Arc<AtomicBool>,
}

impl hyper::body::Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let piece = PIECE_BYTES.min(self.rest.len());
        let piece = self.rest.split_to(piece);
        if self.rest.is_empty() {
            self.sent.store(true, Ordering::Release);
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(u64::try_from(self.rest.len()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn only_a_request_that_was_sent_whole_has_used_something() {
        let bytes = Bytes::from(vec![b'x'; 2 * PIECE_BYTES + 1]);
        let (mut body, asked) = Asked::new(bytes.clone(), None);
        let mut sent = Vec::new();
        while let Some(frame) = body.frame().await {
            sent.extend_from_slice(&frame.unwrap().into_data().unwrap());
            let used = asked.estimate(Duration::ZERO).input_tokens;
            assert_eq!(used > 0, sent.len() == bytes.len(), "{used} after {} bytes", sent.len());
        }
        assert_eq!(sent, bytes);
        assert_eq!(asked.estimate(Duration::ZERO).input_tokens, 32 * 1024 + 1);
    }

    #[test]
    fn an_estimate_grows_with_bytes_and_time_up_to_what_the_request_allows() {
        let tokens = |bytes, most, seconds| {
            let usage = estimate(bytes, most, Duration::from_secs(seconds));
            assert_eq!((usage.turns, usage.cost_micro_usd), (0, 0));
            (usage.input_tokens, usage.output_tokens)
        };
        assert_eq!(tokens(401, Some(32_000), 0), (101, 0));
        assert_eq!(tokens(401, Some(32_000), 600), (101, 32_000));
        assert_eq!(tokens(401, None, 600), (101, 48_000));
        assert_eq!(tokens(u64::MAX, None, u64::MAX), (INPUT_TOKENS_MAX, u64::MAX));
    }
}
