//! The log format of CRI runtimes: `TIME STREAM TAG TEXT`, one record a line, where the tag `P` says
//! that the text goes on in the next record. Decoding gives the bytes as the container wrote them.

/// Decodes record lines as they come, in whatever pieces. Memory is bounded: of a line only the
/// header is kept, and a header longer than [`HEADER_BYTES_MAX`] is no header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Decoder {
    header: Vec<u8>,
    state: State,
}

/// Longest header: a time with zone (35 bytes), stream and tags; four times that for odd runtimes.
const HEADER_BYTES_MAX: usize = 256;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Before or within the header.
    #[default]
    Header,
    /// Within the text.
    Text {
        /// The text goes on in the next record, so its newline is the runtime's and not the container's.
        partial: bool,
    },
}

impl Decoder {
    /// Whether the input so far ended at the end of a record.
    pub(super) fn at_record_start(&self) -> bool {
        self.state == State::Header && self.header.is_empty()
    }

    /// Decodes `input`, appending the container's bytes to `out`. Returns how many bytes of `input`
    /// belong to whole records, and how long `out` was at that point: what may be made durable.
    pub(super) fn decode(&mut self, input: &[u8], out: &mut Vec<u8>) -> (usize, usize) {
        let mut whole = (0, out.len());
        let mut at = 0;
        while at < input.len() {
            let rest = &input[at..];
            let newline = rest.iter().position(|byte| *byte == b'\n');
            match self.state {
                State::Text { partial } => {
                    let end = newline.unwrap_or(rest.len());
                    out.extend_from_slice(&rest[..end]);
                    at += end;
                    if newline.is_some() {
                        at += 1;
                        if !partial {
                            out.push(b'\n');
                        }
                        self.state = State::Header;
                        whole = (at, out.len());
                    }
                }
                State::Header => {
                    at += self.header(rest, newline, out);
                    if self.at_record_start() {
                        whole = (at, out.len());
                    }
                }
            }
        }
        whole
    }

    /// Takes header bytes from `rest`; returns how many.
    fn header(&mut self, rest: &[u8], newline: Option<usize>, out: &mut Vec<u8>) -> usize {
        let before = self.header.len();
        let room = HEADER_BYTES_MAX - before;
        let end = newline.unwrap_or(rest.len()).min(room);
        self.header.extend_from_slice(&rest[..end]);
        if let Some((length, partial)) = parse(&self.header) {
            self.header.clear();
            self.state = State::Text { partial };
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
            decoder.decode(piece, &mut out);
        }
        out
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
        assert_eq!(decoder.decode(input.as_bytes(), &mut out), (first.len(), 4));
        assert!(!decoder.at_record_start());
        assert_eq!(decoder.decode(b"o\n", &mut out), (2, 8));
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
