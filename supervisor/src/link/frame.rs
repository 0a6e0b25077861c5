//! Framing of the socket between supervisor and gateway: one JSON object a line, bounded in length.
//!
//! Both sides wrap their `UnixStream` by [`framed`] and then use it as a sink and a stream. A line
//! that is too long or does not parse ends the connection: the two processes share a contract, so
//! skipping a frame could only hide a fault.

use std::marker::PhantomData;

use bytes::{BufMut, BytesMut};
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;
use tokio_util::codec::{AnyDelimiterCodec, AnyDelimiterCodecError, Decoder, Encoder, Framed};

use super::contract::FRAME_BYTES_MAX;

/// A frame could not be read or written; the connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The socket failed.
    #[error("the link's socket failed")]
    Socket(#[from] std::io::Error),
    /// The peer sent a line beyond [`FRAME_BYTES_MAX`].
    #[error("a frame exceeds {FRAME_BYTES_MAX} bytes")]
    TooLong,
    /// The peer sent something that is not a message of the contract.
    #[error("a frame is not a message of the link's contract")]
    Parse(#[source] serde_json::Error),
    /// A message of ours did not serialise.
    #[error("a message could not be serialised")]
    Serialise(#[source] serde_json::Error),
}

impl From<AnyDelimiterCodecError> for FrameError {
    fn from(error: AnyDelimiterCodecError) -> Self {
        match error {
            AnyDelimiterCodecError::MaxChunkLengthExceeded => Self::TooLong,
            AnyDelimiterCodecError::Io(error) => Self::Socket(error),
        }
    }
}

/// Codec of newline-delimited JSON: decodes `In`, encodes anything serialisable.
#[derive(Debug)]
pub struct JsonLines<In> {
    lines: AnyDelimiterCodec,
    incoming: PhantomData<fn() -> In>,
}

impl<In> JsonLines<In> {
    /// A codec with the contract's limit.
    pub fn new() -> Self {
        let lines =
            AnyDelimiterCodec::new_with_max_length(b"\n".to_vec(), b"\n".to_vec(), FRAME_BYTES_MAX);
        Self { lines, incoming: PhantomData }
    }
}

impl<In> Default for JsonLines<In> {
    fn default() -> Self {
        Self::new()
    }
}

impl<In: DeserializeOwned> Decoder for JsonLines<In> {
    type Item = In;
    type Error = FrameError;

    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<In>, FrameError> {
        match self.lines.decode(src)? {
            Some(line) => serde_json::from_slice(&line).map(Some).map_err(FrameError::Parse),
            None => Ok(None),
        }
    }

    /// A connection that ends in mid-line was cut: the rest is dropped, never parsed.
    fn decode_eof(&mut self, src: &mut BytesMut) -> Result<Option<In>, FrameError> {
        let whole = self.decode(src)?;
        if whole.is_none() {
            src.clear();
        }
        Ok(whole)
    }
}

impl<In, Out: Serialize> Encoder<Out> for JsonLines<In> {
    type Error = FrameError;

    fn encode(&mut self, message: Out, dst: &mut BytesMut) -> Result<(), FrameError> {
        let start = dst.len();
        serde_json::to_writer((&mut *dst).writer(), &message).map_err(FrameError::Serialise)?;
        if dst.len() - start > FRAME_BYTES_MAX {
            dst.truncate(start);
            return Err(FrameError::TooLong);
        }
        dst.put_u8(b'\n');
        Ok(())
    }
}

/// Wraps one side's end of the link; `In` is what the peer sends.
pub fn framed<In: DeserializeOwned>(stream: UnixStream) -> Framed<UnixStream, JsonLines<In>> {
    Framed::new(stream, JsonLines::new())
}

#[cfg(test)]
mod tests {
    use agent_operator::domain::{Attempt, Epoch, RunKey, RunUid, Usage};
    use futures::{SinkExt as _, StreamExt as _};

    use super::*;
    use crate::link::contract::{DurableEvent, FromGateway, Redemption, ToGateway};

    fn key() -> RunKey {
        RunKey { uid: RunUid::from("u"), attempt: Attempt(1) }
    }

    #[tokio::test]
    async fn messages_of_both_directions_pass_a_real_socket() {
        let (left, right) = UnixStream::pair().unwrap();
        let mut supervisor = framed::<FromGateway>(left);
        let mut gateway = framed::<ToGateway>(right);

        supervisor.send(ToGateway::Permit { epoch: Epoch(3), valid_millis: 5000 }).await.unwrap();
        let got = gateway.next().await.unwrap().unwrap();
        assert!(matches!(got, ToGateway::Permit { epoch: Epoch(3), valid_millis: 5000 }));

        let redemption = Redemption {
            nonce_hash: "n".into(),
            pod_ip: "10.244.0.7".parse().unwrap(),
            runner_hash: "r".into(),
            agent_hash: "a".into(),
        };
        let event = DurableEvent::Redeemed(redemption);
        gateway
            .send(FromGateway::Durable { id: 7, run: key(), event: event.clone() })
            .await
            .unwrap();
        gateway
            .send(FromGateway::Counters { run: key(), usage: Usage::default(), refusals: vec![] })
            .await
            .unwrap();
        match supervisor.next().await.unwrap().unwrap() {
            FromGateway::Durable { id, run, event: got } => {
                assert_eq!((id, run, got), (7, key(), event));
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(supervisor.next().await.unwrap().unwrap(), FromGateway::Counters { .. }));
    }

    #[test]
    fn a_line_beyond_the_limit_is_refused_with_bounded_memory() {
        let mut codec = JsonLines::<ToGateway>::new();
        let mut bytes = BytesMut::from(vec![b' '; FRAME_BYTES_MAX + 1].as_slice());
        assert!(matches!(codec.decode(&mut bytes), Err(FrameError::TooLong)));
    }

    #[test]
    fn a_cut_line_at_the_end_is_dropped() {
        let mut codec = JsonLines::<ToGateway>::new();
        let mut bytes = BytesMut::from(&b"{\"kind\":\"synced\"}\n{\"kind\":\"syn"[..]);
        assert!(matches!(codec.decode_eof(&mut bytes), Ok(Some(ToGateway::Synced))));
        assert!(matches!(codec.decode_eof(&mut bytes), Ok(None)));
    }
}
