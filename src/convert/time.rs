//! Times and durations.

use std::time::Duration;

use jiff::Timestamp;

use super::ConvertError;

/// A point in time that must be set.
pub fn timestamp(
    field: &str,
    value: Option<prost_types::Timestamp>,
) -> Result<Timestamp, ConvertError> {
    let wire = value.ok_or_else(|| ConvertError::missing(field))?;
    Timestamp::new(wire.seconds, wire.nanos)
        .map_err(|_| ConvertError::out_of_range(field, format!("{}s", wire.seconds)))
}

/// The wire form of a point in time; protobuf wants nanoseconds from 0 on, also before 1970.
pub fn wire_timestamp(time: Timestamp) -> prost_types::Timestamp {
    let (seconds, nanos) = (time.as_second(), time.subsec_nanosecond());
    if nanos < 0 {
        return prost_types::Timestamp { seconds: seconds - 1, nanos: nanos + 1_000_000_000 };
    }
    prost_types::Timestamp { seconds, nanos }
}

/// A duration that must be set and not negative.
pub fn duration(
    field: &str,
    value: Option<prost_types::Duration>,
) -> Result<Duration, ConvertError> {
    let wire = value.ok_or_else(|| ConvertError::missing(field))?;
    let out_of_range = || ConvertError::out_of_range(field, format!("{}s", wire.seconds));
    let seconds = u64::try_from(wire.seconds).map_err(|_| out_of_range())?;
    let nanos = u32::try_from(wire.nanos).map_err(|_| out_of_range())?;
    if nanos >= 1_000_000_000 {
        return Err(out_of_range());
    }
    Ok(Duration::new(seconds, nanos))
}

/// A duration of whole seconds that must be set.
pub fn whole_seconds(
    field: &str,
    value: Option<prost_types::Duration>,
) -> Result<u64, ConvertError> {
    let duration = duration(field, value)?;
    if duration.subsec_nanos() != 0 {
        return Err(ConvertError::out_of_range(field, format!("{duration:?} has fractions")));
    }
    Ok(duration.as_secs())
}

/// The wire form of a duration, cut to what the wire can hold.
pub fn wire_duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}
