//! Translation between wire and domain, one file per message family.
//!
//! Into the domain it is strict: what is missing, unknown or out of range is a [`ConvertError`] that
//! names the field by its path, never a default, so that version skew shows at once. Optional fields
//! whose wire form is the empty value (an empty list, an empty class name) become `None`.
//!
//! Envelopes (`Hello`, `Cancel`, `Chunk`, ...) have no domain type of their own: the gRPC edges match
//! on them and use the helpers of this module for their parts.

mod assignment;
mod credential;
mod event;
mod ids;
mod preflight;
mod report;
mod stream;
#[cfg(test)]
mod tests;
mod time;

pub use self::{
    ids::{attempt, epoch, run_keys},
    time::{duration, timestamp, whole_seconds, wire_duration, wire_timestamp},
};

use std::str::FromStr;

/// A wire message that does not say what the domain needs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct ConvertError {
    /// Path of the field in proto names, for example `pod.image` or `refusals[2].kind`.
    pub field: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A required field is not set, or empty.
    #[error("is missing")]
    Missing,
    /// A name that this version does not know.
    #[error("has the unknown value {0:?}")]
    Unknown(String),
    /// A number, time or duration outside of what the domain can hold.
    #[error("is out of range: {0}")]
    OutOfRange(String),
    /// A list of another length than this version can handle.
    #[error("must have exactly {expected} entry, has {found}")]
    Count {
        /// How many there must be.
        expected: usize,
        /// How many there are.
        found: usize,
    },
}

impl ConvertError {
    /// `field` is missing.
    pub fn missing(field: impl Into<String>) -> Self {
        Self { field: field.into(), problem: Problem::Missing }
    }

    /// `field` has a value that is not known.
    pub fn unknown(field: impl Into<String>, value: impl Into<String>) -> Self {
        Self { field: field.into(), problem: Problem::Unknown(value.into()) }
    }

    /// `field` is out of range.
    pub fn out_of_range(field: impl Into<String>, value: impl Into<String>) -> Self {
        Self { field: field.into(), problem: Problem::OutOfRange(value.into()) }
    }

    /// The same error seen from the message around it.
    #[must_use]
    pub fn within(self, parent: &str) -> Self {
        Self { field: format!("{parent}.{}", self.field), problem: self.problem }
    }
}

/// Converts the message in `value`, which must be set.
pub fn required<W, D>(field: &str, value: Option<W>) -> Result<D, ConvertError>
where
    D: TryFrom<W, Error = ConvertError>,
{
    let wire = value.ok_or_else(|| ConvertError::missing(field))?;
    D::try_from(wire).map_err(|error| error.within(field))
}

/// Converts the message in `value` if it is set.
pub fn optional<W, D>(field: &str, value: Option<W>) -> Result<Option<D>, ConvertError>
where
    D: TryFrom<W, Error = ConvertError>,
{
    value.map(|wire| D::try_from(wire).map_err(|error| error.within(field))).transpose()
}

/// Converts every message of a list; the error's path has the index.
pub fn list<W, D>(field: &str, values: Vec<W>) -> Result<Vec<D>, ConvertError>
where
    D: TryFrom<W, Error = ConvertError>,
{
    let convert =
        |(at, wire)| D::try_from(wire).map_err(|error| error.within(&format!("{field}[{at}]")));
    values.into_iter().enumerate().map(convert).collect()
}

/// A text that must not be empty.
pub fn text(field: &str, value: String) -> Result<String, ConvertError> {
    if value.is_empty() { Err(ConvertError::missing(field)) } else { Ok(value) }
}

/// Parses a name of a bounded set (step, phase, reason).
pub fn name<T: FromStr>(field: &str, value: &str) -> Result<T, ConvertError> {
    if value.is_empty() {
        return Err(ConvertError::missing(field));
    }
    value.parse().map_err(|_| ConvertError::unknown(field, value))
}
