//! Reads the server name out of the first TLS `ClientHello`, bounded and without trusting a length.
//!
//! Only the name is wanted: the tunnel's bytes are passed on unchanged afterwards, and TLS itself
//! protects them. What does not parse is not passed on.

/// Longest `ClientHello` that is read: post-quantum key shares make about 2 KiB.
pub const HELLO_BYTES_MAX: usize = 16 * 1024;

const RECORD_HANDSHAKE: u8 = 22;
const HANDSHAKE_CLIENT_HELLO: u8 = 1;
const EXTENSION_SERVER_NAME: u16 = 0;
/// Encrypted Client Hello: the true name would be hidden from the check.
const EXTENSION_ECH: u16 = 0xfe0d;
const NAME_TYPE_HOST: u8 = 0;
const RECORD_HEADER_BYTES: usize = 5;

/// Why the first bytes are not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// Not a TLS handshake.
    #[error("the tunnel does not start with a TLS ClientHello")]
    NotTls,
    /// Longer than [`HELLO_BYTES_MAX`].
    #[error("the ClientHello exceeds {HELLO_BYTES_MAX} bytes")]
    TooLong,
    /// Lengths that do not fit.
    #[error("the ClientHello is malformed")]
    Malformed,
    /// No server name, or more than one.
    #[error("the ClientHello does not carry exactly one server name")]
    NoName,
    /// Encrypted Client Hello.
    #[error("the ClientHello hides its server name")]
    Hidden,
}

/// The server name in `bytes`; none when more bytes are needed.
pub fn server_name(bytes: &[u8]) -> Result<Option<String>, HelloError> {
    match handshake(bytes)? {
        Some(hello) => name_of(&hello).map(Some),
        None if bytes.len() >= HELLO_BYTES_MAX => Err(HelloError::TooLong),
        None => Ok(None),
    }
}

/// Joins the body of the first handshake message, which may be spread over several records.
fn handshake(bytes: &[u8]) -> Result<Option<Vec<u8>>, HelloError> {
    let mut body = Vec::new();
    let mut rest = bytes;
    loop {
        if rest.first().is_some_and(|kind| *kind != RECORD_HANDSHAKE)
            || rest.get(1).is_some_and(|major| *major != 3)
        {
            return Err(HelloError::NotTls);
        }
        let Some((header, after)) = rest.split_at_checked(RECORD_HEADER_BYTES) else {
            return Ok(None);
        };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if length == 0 {
            return Err(HelloError::Malformed);
        }
        let available = after.len().min(length);
        body.extend_from_slice(&after[..available]);
        if body.first().is_some_and(|kind| *kind != HANDSHAKE_CLIENT_HELLO) {
            return Err(HelloError::NotTls);
        }
        if let [_, a, b, c, message @ ..] = body.as_slice() {
            let wanted = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            if wanted > HELLO_BYTES_MAX {
                return Err(HelloError::TooLong);
            }
            if message.len() >= wanted {
                return Ok(Some(message[..wanted].to_vec()));
            }
        }
        if available < length {
            return Ok(None);
        }
        rest = &after[length..];
    }
}

fn name_of(hello: &[u8]) -> Result<String, HelloError> {
    let mut hello = Reader(hello);
    hello.take(2 + 32)?; // version and random
    hello.short_vector()?; // session id
    hello.vector()?; // cipher suites
    hello.short_vector()?; // compression methods
    let mut extensions = Reader(hello.vector()?);
    let mut name = None;
    while !extensions.0.is_empty() {
        let kind = extensions.number()?;
        let content = extensions.vector()?;
        match kind {
            EXTENSION_ECH => return Err(HelloError::Hidden),
            EXTENSION_SERVER_NAME if name.is_some() => return Err(HelloError::Malformed),
            EXTENSION_SERVER_NAME => name = Some(host_name(content)?),
            _ => {}
        }
    }
    name.ok_or(HelloError::NoName)
}

fn host_name(extension: &[u8]) -> Result<String, HelloError> {
    let mut list = Reader(Reader(extension).vector()?);
    let kind = list.take(1)?[0];
    let name = list.vector()?;
    if kind != NAME_TYPE_HOST || !list.0.is_empty() {
        return Err(HelloError::NoName);
    }
    let name = std::str::from_utf8(name).map_err(|_| HelloError::Malformed)?;
    Ok(name.to_ascii_lowercase())
}

/// Reads lengths and bytes from the front; never past the end.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], HelloError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(HelloError::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u16, HelloError> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// Bytes behind a length of two bytes.
    fn vector(&mut self) -> Result<&'a [u8], HelloError> {
        let length = self.number()?;
        self.take(usize::from(length))
    }

    /// Bytes behind a length of one byte.
    fn short_vector(&mut self) -> Result<&'a [u8], HelloError> {
        let length = self.take(1)?[0];
        self.take(usize::from(length))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    /// A real `ClientHello` as rustls writes it.
    pub(crate) fn client_hello(name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let name = rustls_pki_types::ServerName::try_from(name.to_owned()).unwrap();
        let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        connection.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same handshake in records of `size` bytes.
    fn split_records(hello: &[u8], size: usize) -> Vec<u8> {
        hello[RECORD_HEADER_BYTES..]
            .chunks(size)
            .flat_map(|chunk| {
                let length = u16::try_from(chunk.len()).unwrap().to_be_bytes();
                [&[22, 3, 1][..], &length, chunk].concat()
            })
            .collect()
    }

    #[test]
    fn the_name_is_found_in_a_real_hello_whole_and_in_pieces() {
        let hello = client_hello("Packages.example");
        let name = Some("packages.example".to_owned());
        assert_eq!(server_name(&hello), Ok(name.clone()));
        for cut in 0..hello.len() {
            assert_eq!(server_name(&hello[..cut]), Ok(None), "{cut}");
        }
        assert_eq!(server_name(&split_records(&hello, 7)), Ok(name));
    }

    #[test]
    fn other_protocols_are_refused_at_the_first_byte() {
        assert_eq!(server_name(b"GET / HTTP/1.1\r\n"), Err(HelloError::NotTls));
        assert_eq!(server_name(b"SSH-2.0-x"), Err(HelloError::NotTls));
        assert_eq!(server_name(&[22, 3, 1, 0, 4, 2, 0, 0, 0]), Err(HelloError::NotTls));
    }

    #[test]
    fn a_hello_that_never_ends_is_refused_at_the_limit() {
        let mut hello = vec![22, 3, 1, 0xff, 0xff, 1, 0, 0x3f, 0xff];
        hello.resize(HELLO_BYTES_MAX, 0);
        assert_eq!(server_name(&hello), Err(HelloError::TooLong));
        assert_eq!(server_name(&[22, 3, 1, 0xff, 0xff, 1, 1, 0, 0]), Err(HelloError::TooLong));
    }

    proptest! {
        #[test]
        fn no_input_makes_the_parser_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
            cut in 0_usize..500,
        ) {
            let _ = server_name(&bytes);
            let mut hello = client_hello("a.example");
            for (at, byte) in bytes.iter().enumerate() {
                if let Some(target) = hello.get_mut(cut + at) {
                    *target ^= byte;
                }
            }
            let _ = server_name(&hello);
        }
    }
}
