//! Secret values: never printed, wiped on drop.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// A secret value. `Debug` shows its length only; it is serialised for the wire and the gateway's
/// socket alone, never into a journal (no journalled type contains one).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes over `value`.
    pub fn new(value: impl Into<String>) -> Self {
        Self(Zeroizing::new(value.into()))
    }

    /// The value; every call site is a place where the secret leaves its wrapper.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} bytes)", self.0.len())
    }
}

/// What a credential is for. Wire strings, so that later purposes need no new message.
pub mod purpose {
    /// Authenticates model calls.
    pub const MODEL: &str = "model";
    /// Authenticates git and forge calls for one repository.
    pub const GIT: &str = "git";
}

/// One credential of one attempt. Travels controller > supervisor > gateway in memory only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Credential {
    /// Unique within the attempt, for example `git/main`.
    pub id: String,
    /// See [`purpose`].
    pub purpose: String,
    /// The only host (as the user wrote it, before the upstream map) it may be sent to.
    pub host: String,
    /// How it is presented: `api-key`, `bearer` or `basic`.
    pub scheme: String,
    /// The value.
    pub value: Secret,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_does_not_show_the_value() {
        let secret = Secret::new("s3cr3t");
        assert_eq!(format!("{secret:?}"), "Secret(6 bytes)");
    }
}
