//! Git compresses the requests of large negotiations: unpacked here with a bound on both sides.

use std::io::{self, Read as _};

use bytes::Bytes;

/// Largest compressed body: git compresses only what fits its own buffer of 1 MiB.
pub(super) const COMPRESSED_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Largest unpacked body: 600,000 lines of a negotiation, far below what hurts the node.
const UNPACKED_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// Unpacks `body`.
pub(super) fn unpack(body: &[u8]) -> io::Result<Bytes> {
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(body).take(UNPACKED_BYTES_MAX + 1).read_to_end(&mut unpacked)?;
    if unpacked.len() as u64 > UNPACKED_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "request unpacks to too much"));
    }
    Ok(unpacked.into())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn pack(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn a_packed_body_comes_out_as_it_went_in() {
        assert_eq!(unpack(&pack(b"0032want")).unwrap(), &b"0032want"[..]);
        assert!(unpack(b"no gzip").is_err());
    }

    #[test]
    fn a_bomb_is_refused() {
        let bomb = pack(&vec![0; usize::try_from(UNPACKED_BYTES_MAX).unwrap() + 1]);
        assert!(bomb.len() < COMPRESSED_BYTES_MAX);
        assert!(unpack(&bomb).is_err());
    }

    #[test]
    fn fuzz_a_body_is_unpacked_whole_or_refused() {
        let corpus = [pack(b"0032want 0123456789\n0000"), pack(&[0; 4096]), pack(b"")];
        agent_operator_doubles::fuzz::fuzz(&corpus, |body| {
            let Ok(unpacked) = unpack(body) else { return };
            assert!(unpacked.len() as u64 <= UNPACKED_BYTES_MAX);
            assert_eq!(unpack(&pack(&unpacked)).unwrap(), unpacked);
        });
    }
}
