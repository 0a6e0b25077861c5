//! Channels and gaps of byte streams.

use crate::{
    domain::stream::{Channel, Gap},
    proto::v1,
};

use super::ConvertError;

/// Takes the wire's number, so that a channel of a later version is named in the error.
impl TryFrom<i32> for Channel {
    type Error = ConvertError;

    fn try_from(wire: i32) -> Result<Self, Self::Error> {
        match v1::Channel::try_from(wire) {
            Ok(v1::Channel::Log) => Ok(Self::Log),
            Ok(v1::Channel::Events) => Ok(Self::Events),
            Ok(v1::Channel::Unspecified) => Err(ConvertError::missing("channel")),
            Err(_) => Err(ConvertError::unknown("channel", wire.to_string())),
        }
    }
}

impl From<Channel> for v1::Channel {
    fn from(channel: Channel) -> Self {
        match channel {
            Channel::Log => Self::Log,
            Channel::Events => Self::Events,
        }
    }
}

impl TryFrom<v1::Gap> for Gap {
    type Error = ConvertError;

    fn try_from(wire: v1::Gap) -> Result<Self, Self::Error> {
        if wire.to <= wire.from {
            let range = format!("{} is not behind {}", wire.to, wire.from);
            return Err(ConvertError::out_of_range("to", range));
        }
        Ok(Self { from: wire.from, to: wire.to, reason: wire.reason })
    }
}

impl From<&Gap> for v1::Gap {
    fn from(gap: &Gap) -> Self {
        Self { from: gap.from, to: gap.to, reason: gap.reason.clone() }
    }
}
