use proptest::prelude::*;

use super::*;

/// A machine with one stream, whose power can be cut.
struct Machine {
    folder: tempfile::TempDir,
    stream: StreamFile,
    /// Bytes of the index that were last seen to be on the disk for good.
    safe: u64,
}

impl Machine {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let stream = StreamFile::open(folder.path(), Channel::Log).unwrap();
        Self { folder, stream, safe: 0 }
    }

    fn index(&self) -> PathBuf {
        self.folder.path().join("log.index")
    }

    fn index_length(&self) -> u64 {
        fs::metadata(self.index()).map_or(0, |found| found.len())
    }

    fn append(&mut self, data: &[u8]) {
        self.stream.append(data).unwrap();
        if !self.stream.unsynced {
            self.safe = self.index_length();
        }
    }

    fn skip(&mut self, bytes: u64) {
        let from = self.stream.position().offset;
        self.stream.skip(from + bytes, "Rotated").unwrap();
    }

    /// The power goes, and of the lines that were not synced this share is lost.
    fn cut_power(&mut self, lost: f64) {
        let length = self.index_length();
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            clippy::cast_possible_truncation,
            reason = "a few bytes"
        )]
        let lost = ((length - self.safe) as f64 * lost).ceil() as u64;
        if length > 0 {
            let index = OpenOptions::new().write(true).open(self.index()).unwrap();
            index.set_len(length - lost).unwrap();
        }
        self.stream = StreamFile::open(self.folder.path(), Channel::Log).unwrap();
    }

    /// The whole stream, with lost bytes as dots.
    fn text(&self) -> String {
        let mut text = String::new();
        loop {
            match self.stream.read(text.len() as u64, 1000).unwrap() {
                Piece::Data(data) => text.push_str(std::str::from_utf8(&data).unwrap()),
                Piece::Gap(gap) => text.extend((gap.from..gap.to).map(|_| '.')),
                _ => return text,
            }
        }
    }
}

#[test]
fn data_behind_a_gap_is_taken_only_when_a_loss_of_power_leaves_the_gap() {
    let mut machine = Machine::new();
    machine.append(b"abc");
    machine.skip(6);
    machine.append(b"jkl");
    machine.cut_power(1.0);
    assert_eq!(machine.text(), "abc......jkl");
    assert_eq!(machine.stream.position().offset, 12);
}

#[test]
fn a_gap_that_a_loss_of_power_took_is_told_again_and_nothing_is_doubled() {
    for lost in [0.1, 0.5, 1.0] {
        let mut machine = Machine::new();
        machine.append(b"abc");
        machine.skip(6);
        machine.cut_power(lost);
        assert_eq!(machine.stream.position().offset, 3, "the node goes on in front of the gap");
        machine.skip(6);
        machine.append(b"jkl");
        machine.cut_power(lost);
        assert_eq!(machine.text(), "abc......jkl", "{lost}");
    }
}

#[test]
fn gaps_that_an_earlier_process_did_not_sync_are_synced_before_there_is_data_behind_them() {
    let mut machine = Machine::new();
    machine.skip(3);
    // A killed process loses nothing, and the next one does not know what was synced.
    machine.stream = StreamFile::open(machine.folder.path(), Channel::Log).unwrap();
    machine.append(b"def");
    machine.cut_power(1.0);
    assert_eq!(machine.text(), "...def");
}

#[test]
fn gaps_without_data_between_them_cost_no_sync() {
    let mut machine = Machine::new();
    machine.append(b"abc");
    for _ in 0..100 {
        machine.skip(1);
        assert!(machine.stream.unsynced);
    }
    machine.append(b"d");
    assert!(!machine.stream.unsynced);
}

#[test]
fn an_index_of_an_older_version_is_read_as_it_is() {
    let machine = Machine::new();
    fs::write(machine.folder.path().join("log.data"), b"\0\0\0\0\0\0\0\0abcjkl").unwrap();
    let lines = [r#"{"gap":{"from":3,"to":9,"reason":"Rotated"}}"#, r#"{"end":{"offset":12}}"#, ""];
    fs::write(machine.index(), lines.join("\n")).unwrap();
    let stream = StreamFile::open(machine.folder.path(), Channel::Log).unwrap();
    assert_eq!(stream.position(), Position { offset: 12, complete: true });
    assert_eq!(Machine { stream, ..machine }.text(), "abc......jkl");
}

proptest! {
    /// A node that goes on from the position after each loss of power, with bytes that say their place.
    #[test]
    fn whatever_a_loss_of_power_leaves_of_the_index_every_byte_stands_at_its_place(
        steps in prop::collection::vec((0_u8..4, 1_usize..20, 0.0..=1.0_f64), 1..40)
    ) {
        let letter = |offset: u64| char::from(b'a' + u8::try_from(offset % 26).unwrap());
        let mut machine = Machine::new();
        for (step, length, share) in steps {
            match step {
                0 => machine.skip(length as u64),
                1 => machine.cut_power(share),
                _ => {
                    let from = machine.stream.position().offset;
                    let data: String = (from..from + length as u64).map(letter).collect();
                    machine.append(data.as_bytes());
                }
            }
        }
        let text = machine.text();
        prop_assert_eq!(text.len() as u64, machine.stream.position().offset);
        for (offset, found) in (0..).zip(text.chars()) {
            prop_assert!(found == '.' || found == letter(offset), "{} at {} of {}", found, offset, text);
        }
    }
}
