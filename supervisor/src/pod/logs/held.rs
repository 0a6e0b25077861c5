//! The container's bytes between decoder and spool. A read may cut a secret in two, and what has been
//! spooled is not changed any more, for somebody may have read it: so bytes that may be the beginning of
//! a secret are held back until it is known. Those are a few at the end of a line that goes on, and never
//! more than the longest form of a secret; whole lines are held back by nothing.

use crate::scrub::Watchlist;

/// A place from which reading can be taken up again: the end of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Offset in the file.
    pub(super) offset: u64,
    /// Offset in the decoded stream.
    pub(super) decoded: u64,
}

/// What is held back.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Decoded bytes that are not in the spool. New ones are added by the decoder.
    pub(super) bytes: Vec<u8>,
    /// A place behind what is in the spool.
    waiting: Option<Place>,
}

impl Held {
    /// Masks what is decided. `start` is where the bytes begin in the stream, `place` where the last
    /// whole record ends, if one did. How many bytes are decided, and the last place that is before
    /// what is not: whoever begins there reads the same bytes again, and masks them alike.
    pub(super) fn settle(
        &mut self,
        secrets: &Watchlist,
        start: u64,
        place: Option<Place>,
    ) -> (usize, Option<Place>) {
        let decided = secrets.mask_decided(&mut self.bytes);
        let end = start + decided.bytes as u64;
        let in_secret = |place: &Place| {
            let within = |from: usize, to: usize| {
                start + (from as u64) < place.decoded && place.decoded < start + to as u64
            };
            decided.masked.iter().any(|masked| within(masked.start, masked.end))
        };
        let mut reached = None;
        for place in [self.waiting.take(), place].into_iter().flatten() {
            if in_secret(&place) {
                continue;
            }
            if place.decoded <= end {
                reached = Some(place);
            } else {
                self.waiting.get_or_insert(place);
            }
        }
        (decided.bytes, reached)
    }

    /// Nothing comes that could complete a secret: masks the rest as it is.
    pub(super) fn settle_all(&mut self, secrets: &Watchlist) {
        self.waiting = None;
        secrets.mask(&mut self.bytes);
    }

    /// The first `count` bytes are in the spool.
    pub(super) fn spooled(&mut self, count: usize) {
        self.bytes.drain(..count);
    }

    /// A place in a file that is left is none in the next.
    pub(super) fn leave_file(&mut self) {
        self.waiting = None;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::git_credential;

    const SECRET: &str = "s3cr3t/with+odd chars";

    fn watching() -> Watchlist {
        Watchlist::of(&[git_credential(SECRET)])
    }

    /// What is spooled of these pieces, each of which ends with a record; and every place that was
    /// reached, as offset in the stream.
    fn spooled(secrets: &Watchlist, pieces: &[&[u8]]) -> (Vec<u8>, Vec<u64>) {
        let (mut held, mut out, mut places, mut read) =
            (Held::default(), Vec::new(), Vec::new(), 0);
        for piece in pieces {
            held.bytes.extend_from_slice(piece);
            read += piece.len() as u64;
            let place = Some(Place { offset: read, decoded: read });
            let (count, reached) = held.settle(secrets, out.len() as u64, place);
            out.extend_from_slice(&held.bytes[..count]);
            held.spooled(count);
            assert!(held.bytes.len() < secrets.longest(), "{} held back", held.bytes.len());
            if let Some(place) = reached {
                assert!(place.decoded <= out.len() as u64, "what is not spooled is read again");
                places.push(place.decoded);
            }
        }
        held.settle_all(secrets);
        out.extend_from_slice(&held.bytes);
        (out, places)
    }

    #[test]
    fn a_secret_that_a_read_cuts_at_any_byte_is_masked_in_whatever_form() {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        let secrets = watching();
        let encoded = STANDARD.encode(SECRET);
        for form in [SECRET, &encoded, "s3cr3t%2Fwith%2Bodd%20chars"] {
            let text = format!("key={form};");
            let mut whole = text.clone().into_bytes();
            assert_eq!(secrets.mask(&mut whole), 1);
            for cut in 0..=text.len() {
                let (first, rest) = text.as_bytes().split_at(cut);
                assert_eq!(spooled(&secrets, &[first, rest]).0, whole, "cut at {cut}");
            }
            let bytes: Vec<_> = text.as_bytes().chunks(1).collect();
            assert_eq!(spooled(&secrets, &bytes).0, whole, "byte by byte");
        }
    }

    #[test]
    fn a_whole_line_is_never_held_back_and_an_open_one_by_a_few_bytes() {
        let secrets = watching();
        let mut held = Held::default();
        held.bytes.extend_from_slice(b"a line\nprogress: 10 %, s3cr3t/wit\n");
        let whole = held.bytes.len();
        assert_eq!(held.settle(&secrets, 0, None).0, whole);
        held.spooled(whole);
        held.bytes.extend_from_slice(b"s3cr3t/wit");
        assert_eq!(held.settle(&secrets, 0, None).0, 0, "it may become the secret");
        held.bytes.extend_from_slice(b"\n");
        assert_eq!(held.settle(&secrets, 0, None).0, 11, "it did not");
    }

    #[test]
    fn reading_is_never_taken_up_within_a_secret_nor_behind_what_is_spooled() {
        let secrets = watching();
        let (head, tail) = SECRET.as_bytes().split_at(9);
        let (out, places) = spooled(&secrets, &[b"before ", head, tail, b" behind\n"]);
        assert_eq!(out, format!("before {} behind\n", "*".repeat(SECRET.len())).as_bytes());
        let inside = 7 + 1..7 + SECRET.len() as u64;
        assert!(places.iter().all(|place| !inside.contains(place)), "{places:?}");
        assert_eq!(places.last(), Some(&(out.len() as u64)));
    }

    proptest! {
        #[test]
        fn pieces_are_masked_as_the_whole_is_and_reading_may_begin_anew_at_every_place(
            parts in prop::collection::vec(
                prop_oneof![
                    3 => prop::collection::vec(any::<u8>(), 0..20),
                    2 => Just(SECRET.as_bytes().to_vec()),
                    1 => (1..SECRET.len()).prop_map(|n| SECRET.as_bytes()[..n].to_vec()),
                    1 => Just(b"\n".to_vec()),
                ],
                0..12,
            ),
            piece in 1_usize..40,
        ) {
            let secrets = watching();
            let text = parts.concat();
            let mut whole = text.clone();
            secrets.mask(&mut whole);
            let pieces: Vec<_> = text.chunks(piece).collect();
            let (out, places) = spooled(&secrets, &pieces);
            prop_assert_eq!(&out, &whole);
            for place in places {
                let place = usize::try_from(place).unwrap();
                let rest: Vec<_> = text[place..].chunks(piece).collect();
                let again = spooled(&secrets, &rest).0;
                prop_assert_eq!(&again[..], &whole[place..], "from {}", place);
            }
        }
    }
}
