//! Which attempt is calling: the one place that says so, used by every route.
//!
//! A caller is a token **and** the source address that the token is bound to; either alone gets
//! nothing. Each route names the kind of token it wants, so the agent's token never reports and the
//! runner's never leaves for a model.

use std::{net::IpAddr, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, header};
use zeroize::Zeroizing;

use super::grants::Lookup;
use super::grants::{Attempt, Grants, RefusalKind, TokenHash, TokenKind, tokens};

/// How a route expects the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `Authorization: Bearer`.
    Bearer,
    /// `Authorization: Bearer` or `x-api-key`, as model clients send it.
    BearerOrApiKey,
    /// `Authorization: Basic`, the token as password, as git sends it.
    Basic,
    /// `Proxy-Authorization: Basic`, the token as password.
    ProxyBasic,
}

/// A caller that has been identified.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Its attempt.
    pub attempt: Arc<Attempt>,
    /// Its address.
    pub address: IpAddr,
}

/// Why a caller is refused. The messages do not say which half of the identity was wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// No token, or more than one.
    #[error("present exactly one token")]
    Missing,
    /// The supervisor has not registered everything yet.
    #[error("the gateway is starting; try again")]
    NotSynced,
    /// The token is not known here, or not from this address.
    #[error("the token is not valid here")]
    Invalid,
    /// A valid token of another kind.
    #[error("the token does not give access to this route")]
    WrongKind,
}

/// Says which attempt calls. Every refusal is counted once, for the attempt whose pod has the
/// address, or else for the token's owner.
pub fn identify(
    grants: &Grants,
    headers: &HeaderMap,
    scheme: Scheme,
    wanted: TokenKind,
    address: IpAddr,
    target: &str,
) -> Result<Caller, IdentityError> {
    let address = address.to_canonical();
    let refuse = |error: IdentityError, owner: Option<&Arc<Attempt>>| {
        let culprit = grants.at_address(address);
        if let Some(attempt) = culprit.as_ref().or(owner) {
            attempt.refuse(RefusalKind::Auth, target);
        }
        error
    };
    let Some(token) = presented(headers, scheme) else {
        return Err(refuse(IdentityError::Missing, None));
    };
    let (attempt, kind) = match grants.lookup(&TokenHash::of(&token)) {
        Lookup::Found(attempt, kind) => (attempt, kind),
        Lookup::NotSynced => return Err(IdentityError::NotSynced),
        Lookup::Unknown => return Err(refuse(IdentityError::Invalid, None)),
    };
    // The one-time token is not bound yet; the redemption binds it.
    if kind != TokenKind::OneTime && attempt.address() != Some(address) {
        return Err(refuse(IdentityError::Invalid, Some(&attempt)));
    }
    if kind != wanted {
        return Err(refuse(IdentityError::WrongKind, Some(&attempt)));
    }
    Ok(Caller { attempt, address })
}

/// The token as presented; none when there is none, more than one, or one that is not well-formed.
fn presented(headers: &HeaderMap, scheme: Scheme) -> Option<Zeroizing<String>> {
    let token = match scheme {
        Scheme::Bearer => bearer(headers)?,
        Scheme::BearerOrApiKey if headers.contains_key(header::AUTHORIZATION) => bearer(headers)?,
        Scheme::BearerOrApiKey => {
            let key = HeaderName::from_static("x-api-key");
            Zeroizing::new(single(headers, &key)?.to_owned())
        }
        Scheme::Basic => basic_password(single(headers, &header::AUTHORIZATION)?)?,
        Scheme::ProxyBasic => basic_password(single(headers, &header::PROXY_AUTHORIZATION)?)?,
    };
    (!token.is_empty() && token.len() <= tokens::TOKEN_BYTES_MAX).then_some(token)
}

fn bearer(headers: &HeaderMap) -> Option<Zeroizing<String>> {
    let value = single(headers, &header::AUTHORIZATION)?;
    let token = strip_scheme(value, "bearer")?;
    Some(Zeroizing::new(token.to_owned()))
}

fn basic_password(value: &str) -> Option<Zeroizing<String>> {
    let encoded = strip_scheme(value, "basic")?;
    let decoded = Zeroizing::new(STANDARD.decode(encoded).ok()?);
    let text = std::str::from_utf8(&decoded).ok()?;
    text.split_once(':').map(|(_, password)| Zeroizing::new(password.to_owned()))
}

/// The only value of a header; a repeated header is ambiguous.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    values.next().is_none().then(|| first.to_str().ok()).flatten()
}

fn strip_scheme<'a>(value: &'a str, scheme: &str) -> Option<&'a str> {
    let (found, rest) = value.split_once(' ')?;
    found.eq_ignore_ascii_case(scheme).then(|| rest.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn tokens_are_read_in_the_form_that_each_client_sends() {
        let bearer = headers(&[("authorization", "bearer abc")]);
        assert_eq!(presented(&bearer, Scheme::Bearer).unwrap().as_str(), "abc");
        assert_eq!(presented(&bearer, Scheme::BearerOrApiKey).unwrap().as_str(), "abc");
        let key = headers(&[("x-api-key", "abc")]);
        assert_eq!(presented(&key, Scheme::BearerOrApiKey).unwrap().as_str(), "abc");
        assert!(presented(&key, Scheme::Bearer).is_none());
        let basic = headers(&[("authorization", "Basic eDphYmM=")]);
        assert_eq!(presented(&basic, Scheme::Basic).unwrap().as_str(), "abc");
        let proxy = headers(&[("proxy-authorization", "Basic eDphYmM=")]);
        assert_eq!(presented(&proxy, Scheme::ProxyBasic).unwrap().as_str(), "abc");
        assert!(presented(&proxy, Scheme::Basic).is_none());
    }

    #[test]
    fn a_repeated_or_oversized_token_counts_as_none() {
        let twice = headers(&[("authorization", "Bearer a"), ("authorization", "Bearer b")]);
        assert!(presented(&twice, Scheme::Bearer).is_none());
        let long = format!("Bearer {}", "x".repeat(tokens::TOKEN_BYTES_MAX + 1));
        assert!(presented(&headers(&[("authorization", &long)]), Scheme::Bearer).is_none());
        assert!(presented(&headers(&[("authorization", "Bearer ")]), Scheme::Bearer).is_none());
    }
}
