//! Go-style durations (`30m`, `1h30m`), the form Kubernetes users write.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

/// CRD pattern for a Go-style duration: whole numbers with the units h, m, s, each at most once and
/// in this order. A subset that Go's `time.ParseDuration` and jiff read alike.
pub const DURATION_PATTERN: &str = r"^([0-9]{1,4}h)?([0-9]{1,6}m)?([0-9]{1,8}s)?$";

/// A positive duration that was written Go-style.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GoDuration(Duration);

/// Why a text is not a [`GoDuration`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DurationError {
    /// Another form than the pattern's.
    #[error("{0:?} is not a duration; write for example 90s, 30m or 1h30m")]
    Malformed(String),
    /// Zero would mean 'never starts'.
    #[error("a duration must be longer than zero")]
    Zero,
}

impl GoDuration {
    /// Wraps a duration, cut to whole seconds.
    pub fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// The duration.
    pub fn get(self) -> Duration {
        self.0
    }
}

impl FromStr for GoDuration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || DurationError::Malformed(text.to_owned());
        let mut rest = text;
        let mut seconds: u64 = 0;
        for (unit, factor) in [('h', 3600), ('m', 60), ('s', 1)] {
            if let Some((number, after)) = rest.split_once(unit) {
                let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
                let number: u64 =
                    digits.then(|| number.parse().ok()).flatten().ok_or_else(malformed)?;
                seconds = number
                    .checked_mul(factor)
                    .and_then(|n| seconds.checked_add(n))
                    .ok_or_else(malformed)?;
                rest = after;
            }
        }
        if !rest.is_empty() || text.is_empty() {
            return Err(malformed());
        }
        if seconds == 0 {
            return Err(DurationError::Zero);
        }
        Ok(Self(Duration::from_secs(seconds)))
    }
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.0.as_secs();
        let (hours, minutes, seconds) = (total / 3600, total % 3600 / 60, total % 60);
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if minutes > 0 {
            write!(f, "{minutes}m")?;
        }
        if seconds > 0 || total == 0 {
            write!(f, "{seconds}s")?;
        }
        Ok(())
    }
}

impl Serialize for GoDuration {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations_round_trip() {
        for (text, seconds) in [("30m", 1800), ("1h30m", 5400), ("90s", 90), ("1h0m1s", 3601)] {
            assert_eq!(text.parse::<GoDuration>(), Ok(GoDuration::from_secs(seconds)), "{text}");
        }
        assert_eq!(GoDuration::from_secs(5400).to_string(), "1h30m");
    }

    #[test]
    fn other_forms_are_refused_with_an_example() {
        for text in ["", "1y", "-5m", "1.5h", "m", "5", "30m1h", "1d", "99999999999999999999h"] {
            assert!(
                matches!(text.parse::<GoDuration>(), Err(DurationError::Malformed(_))),
                "{text}"
            );
        }
        assert_eq!("0s".parse::<GoDuration>(), Err(DurationError::Zero));
    }
}
