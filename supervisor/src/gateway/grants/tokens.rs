//! Tokens: 256 random bits with a readable prefix; only their SHA-256 is ever kept.

use agent_operator::domain::names::sha256_hex;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// Prefix of the runner's token, so that a leaked one can be recognised.
const RUNNER_PREFIX: &str = "aor_";
/// Prefix of the agent's token.
const AGENT_PREFIX: &str = "aoa_";
/// Longest token that is looked up; ours have 47 characters, the pod spec's about as many.
pub const TOKEN_BYTES_MAX: usize = 256;

/// What a token is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TokenKind {
    /// The pod spec's: redeems, nothing else.
    OneTime,
    /// The runner's: step, gate, events, publish, result.
    Runner,
    /// The agent's: model, git, allowed hosts.
    Agent,
}

/// SHA-256 of a token or nonce, as 64 lower-case hex digits. Looking a hash up in a map leaks no
/// prefix of a token: who probes does not choose the hash.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenHash(String);

impl TokenHash {
    /// Hash of a token as it was presented.
    pub fn of(token: &str) -> Self {
        Self(sha256_hex(token.as_bytes()))
    }

    /// A hash that was stored as hex.
    pub fn from_hex(hex: &str) -> Self {
        Self(hex.to_ascii_lowercase())
    }

    /// The hex digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Equality in constant time.
    pub fn matches(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

/// The random source failed; nothing is minted then.
#[derive(Debug, thiserror::Error)]
#[error("the system's random source failed")]
pub struct RandomFailed(#[source] pub(crate) getrandom::Error);

/// A pair of fresh tokens.
#[derive(Debug)]
pub struct Minted {
    /// The runner's.
    pub runner: Zeroizing<String>,
    /// The agent's.
    pub agent: Zeroizing<String>,
}

impl Minted {
    /// Two tokens from the system's random source.
    pub fn new() -> Result<Self, RandomFailed> {
        Ok(Self { runner: mint(RUNNER_PREFIX)?, agent: mint(AGENT_PREFIX)? })
    }
}

fn mint(prefix: &str) -> Result<Zeroizing<String>, RandomFailed> {
    let mut bytes = Zeroizing::new([0_u8; 32]);
    getrandom::fill(bytes.as_mut_slice()).map_err(RandomFailed)?;
    Ok(Zeroizing::new(format!("{prefix}{}", URL_SAFE_NO_PAD.encode(bytes.as_slice()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minted_tokens_differ_and_carry_256_bits() {
        let (one, two) = (Minted::new().unwrap(), Minted::new().unwrap());
        assert_ne!(one.runner, two.runner);
        assert_ne!(*one.runner, *one.agent);
        assert_eq!(one.runner.len(), RUNNER_PREFIX.len() + 43);
        assert!(TokenHash::of(&one.agent).matches(&TokenHash::from_hex(
            &TokenHash::of(&one.agent).as_str().to_ascii_uppercase()
        )));
    }
}
