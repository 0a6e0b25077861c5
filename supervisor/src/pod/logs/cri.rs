//! The log format of CRI runtimes: `TIME STREAM TAG TEXT`, one record a line, where the tag `P` says
//! that the text goes on in the next record. Decoding gives the bytes as the container wrote them.

use agent_operator::domain::omitted::{MARK, MARK_BYTES_MAX, Omitted};

/// Decodes record lines as they come, in whatever pieces. Memory is bounded: of a line only the
/// header is kept, and a header longer than [`HEADER_BYTES_MAX`] is no header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Decoder {
    header: Vec<u8>,
    state: State,
    /// The text of the next record goes on with that of the last.
    continued: bool,
}

/// Longest header: a time with zone (35 bytes), stream and tags; four times that for odd runtimes.
const HEADER_BYTES_MAX: usize = 256;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Before or within the header.
    #[default]
    Header,
    /// Before the text of a line, which may be a mark.
    Start,
    /// Within what may be a mark, which is kept in place of the header.
    Mark,
    /// Within the text.
    Text {
        /// The text goes on in the next record, so its newline is the runtime's and not the container's.
        partial: bool,
    },
}

/// How far decoding came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Decoded {
    /// Bytes of the input that were taken: all of them, or all up to the end of a mark.
    pub(super) taken: usize,
    /// Of those, how many belong to whole records.
    pub(super) whole: usize,
    /// How long the output was at that point: what may be made durable.
    pub(super) output: usize,
    /// Output that agent-runner had to drop, in this place.
    pub(super) omitted: Option<Omitted>,
}

impl Decoder {
    /// Whether the input so far ended at the end of a record.
    pub(super) fn at_record_start(&self) -> bool {
        self.state == State::Header && self.header.is_empty()
    }

    /// Decodes `input`, appending the container's bytes to `out`, up to its end or that of a mark.
    pub(super) fn decode(&mut self, input: &[u8], out: &mut Vec<u8>) -> Decoded {
        let mut done = Decoded { output: out.len(), ..Decoded::default() };
        while done.taken < input.len() && done.omitted.is_none() {
            let rest = &input[done.taken..];
            let newline = rest.iter().position(|byte| *byte == b'\n');
            match self.state {
                State::Header => done.taken += self.header(rest, newline, out),
                State::Start if rest[0] == MARK => self.state = State::Mark,
                State::Start => self.state = State::Text { partial: false },
                State::Mark => {
                    let end = newline.unwrap_or(rest.len());
                    let end = end.min(MARK_BYTES_MAX + 1 - self.header.len());
                    self.header.extend_from_slice(&rest[..end]);
                    done.taken += end;
                    let whole = newline == Some(end);
                    if whole || self.header.len() > MARK_BYTES_MAX {
                        done.omitted = Omitted::parse(&self.header).filter(|_| whole);
                        done.taken += usize::from(done.omitted.is_some());
                        self.end_of_mark(done.omitted.is_some(), out);
                    }
                }
                State::Text { partial } => {
                    let end = newline.unwrap_or(rest.len());
                    out.extend_from_slice(&rest[..end]);
                    done.taken += end;
                    if newline.is_some() {
                        done.taken += 1;
                        if !partial {
                            out.push(b'\n');
                        }
                        self.continued = partial;
                        self.state = State::Header;
                    }
                }
            }
            if self.at_record_start() {
                (done.whole, done.output) = (done.taken, out.len());
            }
        }
        done
    }

    /// What looked like a mark and is none is text.
    fn end_of_mark(&mut self, is_mark: bool, out: &mut Vec<u8>) {
        if is_mark {
            self.header.clear();
            self.state = State::Header;
        } else {
            out.append(&mut self.header);
            self.state = State::Text { partial: false };
        }
    }

    /// Takes header bytes from `rest`; returns how many.
    fn header(&mut self, rest: &[u8], newline: Option<usize>, out: &mut Vec<u8>) -> usize {
        let before = self.header.len();
        let room = HEADER_BYTES_MAX - before;
        let end = newline.unwrap_or(rest.len()).min(room);
        self.header.extend_from_slice(&rest[..end]);
        if let Some((length, partial)) = parse(&self.header) {
            self.header.clear();
            let start = !partial && !self.continued;
            self.state = if start { State::Start } else { State::Text { partial } };
            // `length` counts from the header's start; it was not complete before this call.
            return length - before;
        }
        if newline == Some(end) || end == room {
            // No header: a runtime's or a disk's garbage. It is shown as it is, not lost.
            out.append(&mut self.header);
            self.state = State::Text { partial: false };
        }
        end
    }
}

/// Length of the header in `bytes` and whether its record is partial; none while incomplete.
fn parse(bytes: &[u8]) -> Option<(usize, bool)> {
    let mut spaces = bytes.iter().enumerate().filter(|(_, byte)| **byte == b' ').map(|(at, _)| at);
    let (time, stream, tags) = (spaces.next()?, spaces.next()?, spaces.next()?);
    let stream = &bytes[time + 1..stream];
    if stream != b"stdout" && stream != b"stderr" {
        return None;
    }
    let start = time + 1 + stream.len() + 1;
    // Tags are separated by colons; the first says whether the record is partial.
    let partial = bytes[start..tags].split(|byte| *byte == b':').next() == Some(b"P");
    Some((tags + 1, partial))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIME: &str = "2027-01-15T10:00:00.123456789Z";

    fn decode_in_pieces(input: &[u8], piece: usize) -> Vec<u8> {
        let mut decoder = Decoder::default();
        let mut out = Vec::new();
        for piece in input.chunks(piece) {
            let mut rest = piece;
            while !rest.is_empty() {
                let done = decoder.decode(rest, &mut out);
                if let Some(omitted) = done.omitted {
                    out.extend_from_slice(format!("[{}]", omitted.bytes).as_bytes());
                }
                rest = &rest[done.taken..];
            }
        }
        out
    }

    #[test]
    fn a_mark_of_the_runner_is_no_text_and_any_other_control_text_is() {
        let mark = Omitted { lines: 2, bytes: 77 };
        let torn = &mark.to_string()[..9];
        let long = format!("{}{}", char::from(MARK), "y".repeat(300));
        let input = format!(
            "{TIME} stdout F one\n{TIME} stdout F {mark}\n{TIME} stdout F {torn}\n\
             {TIME} stdout F {long}\n{TIME} stdout P a\n{TIME} stdout F {mark}\n{TIME} stdout F two\n"
        );
        let expected = format!("one\n[77]{torn}\n{long}\na{mark}\ntwo\n");
        for piece in [1, 2, 7, 64, 4096] {
            let got = decode_in_pieces(input.as_bytes(), piece);
            assert_eq!(String::from_utf8(got).unwrap(), expected, "in pieces of {piece}");
        }
    }

    #[test]
    fn full_and_partial_records_give_the_containers_bytes() {
        let input = format!(
            "{TIME} stdout F hello\n{TIME} stderr P a\n{TIME} stderr P b\n{TIME} stderr F c\n{TIME} stdout F \n"
        );
        assert_eq!(decode_in_pieces(input.as_bytes(), 4096), b"hello\nabc\n\n");
    }

    #[test]
    fn a_line_without_header_is_shown_as_it_is() {
        let input = format!("garbage\n{TIME} stdout F ok\n");
        assert_eq!(decode_in_pieces(input.as_bytes(), 4096), b"garbage\nok\n");
    }

    #[test]
    fn only_whole_records_count_as_durable() {
        let mut decoder = Decoder::default();
        let mut out = Vec::new();
        let first = format!("{TIME} stdout F one\n");
        let input = format!("{first}{TIME} stdout F tw");
        let done = decoder.decode(input.as_bytes(), &mut out);
        assert_eq!((done.taken, done.whole, done.output), (input.len(), first.len(), 4));
        assert!(!decoder.at_record_start());
        let done = decoder.decode(b"o\n", &mut out);
        assert_eq!((done.whole, done.output), (2, 8));
        assert_eq!(out, b"one\ntwo\n");
    }

    #[test]
    fn a_line_of_a_hundred_mebibytes_needs_no_memory_for_the_line() {
        let mut decoder = Decoder::default();
        let mut out = Vec::new();
        decoder.decode(format!("{TIME} stdout F ").as_bytes(), &mut out);
        let piece = vec![b'x'; 65536];
        for _ in 0..1600 {
            out.clear();
            decoder.decode(&piece, &mut out);
            assert_eq!(out.len(), 65536);
        }
        assert!(decoder.header.capacity() <= 2 * HEADER_BYTES_MAX);
    }

    #[test]
    fn fuzz_any_file_decodes_alike_in_pieces_and_to_no_more_than_it_holds() {
        let mark = Omitted { lines: 2, bytes: 77 };
        let corpus = [
            format!("{TIME} stdout F one\n{TIME} stdout F {mark}\n{TIME} stderr P a\n"),
            format!("{TIME} stdout P:x a\n{TIME} stdout F b\ngarbage\n{TIME} stdout F c"),
        ]
        .map(String::into_bytes);
        agent_operator_doubles::fuzz::fuzz(&corpus, |input| {
            let whole = decode_in_pieces(input, input.len().max(1));
            for piece in [1, 5, 300] {
                assert_eq!(decode_in_pieces(input, piece), whole, "in pieces of {piece}");
            }
            // A mark is shown by this test in a few bytes, and is longer itself.
            assert!(whole.len() <= input.len());
        });
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_decode_alike(
            texts in prop::collection::vec((any::<bool>(), "[^\n]{0,40}"), 0..8),
            piece in 1_usize..50,
        ) {
            let mut input = Vec::new();
            let mut expected = Vec::new();
            for (partial, text) in &texts {
                let tag = if *partial { "P" } else { "F" };
                input.extend_from_slice(format!("{TIME} stdout {tag} {text}\n").as_bytes());
                expected.extend_from_slice(text.as_bytes());
                if !partial {
                    expected.push(b'\n');
                }
            }
            prop_assert_eq!(decode_in_pieces(&input, piece), expected);
        }

        #[test]
        fn no_input_makes_it_panic(input in prop::collection::vec(any::<u8>(), 0..600), piece in 1_usize..40) {
            decode_in_pieces(&input, piece);
        }
    }
}
