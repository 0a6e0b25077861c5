use std::{
    fmt::Write as _,
    fs::{self, File, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
};

use agent_operator::domain::{Attempt, RunRef, RunUid, ids::PodUid};

use super::*;
use crate::streams::{Retention, Streams, spool::Piece};

mod copied;
mod pace;
mod rotation;

/// Whoever knows has said that all was copied.
const RECORDED: LogEnd = LogEnd { printed: None, recorded: true };
const TIME: &str = "2027-01-15T10:00:00";

/// A container's folder and the spool that its log goes to.
struct Rig {
    dir: tempfile::TempDir,
    streams: Arc<AttemptStreams>,
    /// Records so far: each has a time of its own.
    records: u32,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let streams = Self::streams(dir.path(), Retention::default());
        let rig = Self { dir, streams, records: 0 };
        fs::create_dir_all(rig.path()).unwrap();
        rig
    }

    fn streams(dir: &Path, retention: Retention) -> Arc<AttemptStreams> {
        let run = RunRef { namespace: "n".into(), name: "r".into(), uid: RunUid::from("uid") };
        Streams::open(&dir.join("streams"), retention).unwrap().attempt(&run, Attempt(1)).unwrap()
    }

    fn folder(&self) -> Folder {
        Folder::new(&self.dir.path().join("pods"), "n", "pod", &PodUid::from("pod-uid"))
    }

    fn path(&self) -> PathBuf {
        self.folder().path()
    }

    fn write(&mut self, name: &str, text: &str) {
        let path = self.path().join(name);
        let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        for line in text.lines() {
            self.records += 1;
            writeln!(file, "{TIME}.{:09}Z stdout F {line}", self.records).unwrap();
        }
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path().join(from), self.path().join(to)).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.path().join(name)).unwrap();
    }

    fn compress(&self, name: &str) {
        compress(&self.path(), name);
    }

    /// As after the death of the process: the spool is opened again.
    fn reopen(&mut self) {
        self.streams = Self::streams(self.dir.path(), Retention::default());
    }

    fn start(&self, end: watch::Receiver<Option<LogEnd>>) -> tokio::task::JoinHandle<()> {
        let waker = Arc::new(Waker::new());
        let (folder, streams) = (self.folder(), Arc::clone(&self.streams));
        tokio::spawn(async move { tail(folder, streams, waker, end).await.unwrap() })
    }

    /// Reads to the end of what is there.
    async fn drain(&self) {
        let (_told, end) = watch::channel(Some(RECORDED));
        self.start(end).await.unwrap();
    }

    /// Reads what is there and dies.
    fn read_and_die(&self, expected: &str) {
        let mut reader = Reader::resume(self.folder(), Arc::clone(&self.streams)).unwrap();
        while reader.burst(clock::instant()).unwrap() == Burst::More {}
        assert_eq!(self.dump(), expected);
    }

    async fn expect(&self, text: &str) {
        let wait = async {
            while self.streams.log.extent().end < text.len() as u64 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_mins(1), wait).await.expect("log in time");
        assert_eq!(self.dump(), text);
    }

    /// The stream, gaps as `[bytes reason]`.
    fn dump(&self) -> String {
        let (mut text, mut offset) = (String::new(), 0);
        loop {
            match self.streams.log.read(offset, 1 << 20).unwrap() {
                Piece::Data(bytes) => {
                    text.push_str(&String::from_utf8_lossy(&bytes));
                    offset += bytes.len() as u64;
                }
                Piece::Gap { to, reason } => {
                    write!(text, "[{} {}]", to - offset, reason.as_str()).unwrap();
                    offset = to;
                }
                Piece::Pending | Piece::End => return text,
            }
        }
    }
}

/// What the kubelet does with older files: packed under another name, renamed, the file removed.
fn compress(folder: &Path, name: &str) {
    let packed = File::create(folder.join(format!("{name}.tmp"))).unwrap();
    let mut packed = flate2::write::GzEncoder::new(packed, flate2::Compression::fast());
    std::io::copy(&mut File::open(folder.join(name)).unwrap(), &mut packed).unwrap();
    packed.finish().unwrap();
    fs::rename(folder.join(format!("{name}.tmp")), folder.join(format!("{name}.gz"))).unwrap();
    fs::remove_file(folder.join(name)).unwrap();
}

#[test]
fn a_reader_rests_when_its_bursts_take_long_and_never_for_long() {
    let rests: Vec<_> = [0, 249, 250, 1000, 1_000_000]
        .map(|micros| rest(Duration::from_micros(micros)).map(|rest| rest.as_micros()))
        .into();
    assert_eq!(rests, [None, None, Some(1000), Some(4000), Some(5000)]);
}

#[tokio::test]
async fn lines_arrive_while_they_are_written_and_rotation_loses_and_doubles_none() {
    let mut rig = Rig::new();
    rig.write("0.log", "one\n");
    let (told, end) = watch::channel(None);
    let task = rig.start(end);
    rig.expect("one\n").await;
    rig.write("0.log", "two\n");
    rig.rename("0.log", "0.log.20270115-100000");
    rig.write("0.log", "three\n");
    rig.expect("one\ntwo\nthree\n").await;
    rig.rename("0.log", "0.log.20270115-100001");
    rig.remove("0.log.20270115-100000");
    rig.write("0.log", "four\n");
    told.send_replace(Some(RECORDED));
    task.await.unwrap();
    rig.expect("one\ntwo\nthree\nfour\n").await;
    let extent = rig.streams.log.extent();
    assert!(extent.complete && extent.gaps == 0, "{extent:?}");
}

#[tokio::test]
async fn what_the_runtime_still_writes_to_the_old_file_comes_before_the_new_one() {
    let mut rig = Rig::new();
    rig.write("0.log", "one\n");
    let mut reader = Reader::resume(rig.folder(), Arc::clone(&rig.streams)).unwrap();
    let start = clock::instant();
    assert_eq!(reader.burst(start).unwrap(), Burst::Idle);
    rig.rename("0.log", "0.log.20270115-100000");
    rig.write("0.log", "three\n");
    assert_eq!(reader.burst(start).unwrap(), Burst::Settling);
    rig.write("0.log.20270115-100000", "two\n");
    assert_eq!(reader.burst(start + QUIET / 2).unwrap(), Burst::Settling);
    assert_eq!(reader.burst(start + QUIET * 2).unwrap(), Burst::Idle);
    assert_eq!(rig.dump(), "one\ntwo\nthree\n");
}

#[tokio::test]
async fn what_the_runtime_writes_to_a_file_that_was_left_is_a_gap_of_its_size() {
    let mut rig = Rig::new();
    rig.write("0.log", "one\n");
    let mut reader = Reader::resume(rig.folder(), Arc::clone(&rig.streams)).unwrap();
    let start = clock::instant();
    let mut look = |after| reader.burst(start + after).unwrap();
    assert_eq!(look(Duration::ZERO), Burst::Idle);
    rig.rename("0.log", "0.log.20270115-100000");
    rig.write("0.log", "three\n");
    assert_eq!(look(Duration::ZERO), Burst::Settling);
    assert_eq!(look(QUIET), Burst::Idle);
    rig.write("0.log.20270115-100000", "two\n");
    assert_eq!(look(QUIET * 2), Burst::Idle);
    rig.write("0.log", "four\n");
    assert_eq!(look(QUIET * 2), Burst::Idle);
    assert_eq!(rig.dump(), "one\nthree\n[4 WrittenLate]four\n");
}

#[tokio::test]
async fn a_reader_that_died_before_a_file_had_a_byte_finds_it_compressed_and_doubles_none() {
    let mut rig = Rig::new();
    rig.write("0.log", "one\n");
    let mut reader = Reader::resume(rig.folder(), Arc::clone(&rig.streams)).unwrap();
    let start = clock::instant();
    assert_eq!(reader.burst(start).unwrap(), Burst::Idle);
    rig.rename("0.log", "0.log.20270115-100000");
    File::create(rig.path().join("0.log")).unwrap();
    assert_eq!(reader.burst(start).unwrap(), Burst::Settling);
    assert_eq!(reader.burst(start + QUIET).unwrap(), Burst::Idle);
    drop(reader);
    rig.write("0.log", "two\n");
    rig.rename("0.log", "0.log.20270115-100001");
    rig.write("0.log", "three\n");
    rig.compress("0.log.20270115-100000");
    rig.compress("0.log.20270115-100001");
    rig.reopen();
    rig.drain().await;
    rig.expect("one\ntwo\nthree\n").await;
    assert_eq!(rig.streams.log.extent().gaps, 0);
}

#[tokio::test]
async fn a_restarted_reader_goes_on_without_hole_or_double() {
    let mut rig = Rig::new();
    rig.write("0.log", "one\n");
    rig.read_and_die("one\n");
    // As if the process had died between spooling bytes and keeping the position.
    rig.streams.log.append(b"half a rec").unwrap();
    rig.write("0.log", "two\n");
    rig.reopen();
    rig.drain().await;
    rig.expect("one\ntwo\n").await;
}

#[tokio::test]
async fn a_restarted_reader_finds_its_place_in_a_file_that_was_compressed_meanwhile() {
    let mut rig = Rig::new();
    rig.write("0.log", "one\n");
    rig.read_and_die("one\n");
    rig.write("0.log", "two\n");
    rig.rename("0.log", "0.log.20270115-100000");
    rig.write("0.log", "three\n");
    rig.rename("0.log", "0.log.20270115-100001");
    rig.write("0.log", "four\n");
    rig.compress("0.log.20270115-100000");
    rig.compress("0.log.20270115-100001");
    rig.reopen();
    rig.drain().await;
    rig.expect("one\ntwo\nthree\nfour\n").await;
    assert_eq!(rig.streams.log.extent().gaps, 0);
}

#[tokio::test]
async fn what_was_rotated_away_unread_is_a_gap_of_what_was_seen_of_it() {
    let mut rig = Rig::new();
    rig.write("0.log", "one\n");
    rig.read_and_die("one\n");
    // Kept open, so that its inode cannot be given to the next file.
    let old = File::open(rig.path().join("0.log")).unwrap();
    rig.remove("0.log");
    rig.write("0.log", "two\n");
    rig.reopen();
    rig.drain().await;
    drop(old);
    assert_eq!(rig.dump(), "one\n[1 RotatedUnseen]two\n");
    assert_eq!(rig.streams.log.extent().gaps, 1);
}

#[tokio::test]
async fn another_file_under_the_known_inode_is_not_taken_for_the_known_one() {
    let mut rig = Rig::new();
    rig.write("0.log", "one\n");
    rig.read_and_die("one\n");
    // The same inode, other records, and longer than before.
    OpenOptions::new().write(true).truncate(true).open(rig.path().join("0.log")).unwrap();
    rig.write("0.log", "two\nthree\n");
    rig.reopen();
    rig.drain().await;
    assert_eq!(rig.dump(), "one\n[1 Truncated]two\nthree\n");
}

#[tokio::test]
async fn a_file_cut_while_it_is_read_is_read_again_from_its_start_with_a_gap() {
    let mut rig = Rig::new();
    rig.write("0.log", "one\n");
    let mut reader = Reader::resume(rig.folder(), Arc::clone(&rig.streams)).unwrap();
    reader.burst(clock::instant()).unwrap();
    OpenOptions::new().write(true).truncate(true).open(rig.path().join("0.log")).unwrap();
    rig.write("0.log", "two\nthree\n");
    reader.burst(clock::instant()).unwrap();
    assert_eq!(rig.dump(), "one\n[1 Truncated]two\nthree\n");
}

#[tokio::test]
async fn a_damaged_compressed_file_is_a_gap_and_the_next_is_read() {
    let mut rig = Rig::new();
    rig.write("0.log", "three\n");
    fs::write(rig.path().join("0.log.20270115-100000.gz"), b"not gzip at all").unwrap();
    rig.drain().await;
    assert_eq!(rig.dump(), "[1 Damaged]three\n");
}

#[tokio::test]
async fn a_log_that_is_a_link_is_not_read() {
    let rig = Rig::new();
    let secret = rig.dir.path().join("secret");
    fs::write(&secret, format!("{TIME}Z stdout F secret\n")).unwrap();
    std::os::unix::fs::symlink(&secret, rig.path().join("0.log")).unwrap();
    fs::hard_link(&secret, rig.path().join("1.log")).unwrap();
    rig.drain().await;
    assert_eq!(rig.dump(), "");
}

#[tokio::test]
async fn a_full_spool_becomes_gaps_of_exact_size_and_never_blocks_the_reader() {
    let mut rig = Rig::new();
    // One stream may have a quarter: 16 KiB, with no older segment to drop.
    let retention = Retention { bytes: 64 * 1024, ..Retention::default() };
    rig.streams = Rig::streams(rig.dir.path(), retention);
    let line = "x".repeat(1023) + "\n";
    for _ in 0..64 {
        rig.write("0.log", &line.repeat(2));
        let mut reader = Reader::resume(rig.folder(), Arc::clone(&rig.streams)).unwrap();
        reader.burst(clock::instant()).unwrap();
    }
    let (stored, end) = (rig.streams.log.stored(), rig.streams.log.extent().end);
    assert_eq!(end, 128 * 1024, "offsets count every byte");
    assert_eq!(rig.dump(), line.repeat(16) + &format!("[{} SpoolFull]", end - stored));
}

#[tokio::test]
async fn what_the_runner_had_to_drop_is_a_gap_of_its_size_also_after_a_restart() {
    let mut rig = Rig::new();
    let mark = agent_operator::domain::omitted::Omitted { lines: 3, bytes: 333 };
    rig.write("0.log", &format!("one\n{mark}\ntwo\n"));
    rig.read_and_die("one\n[333 OutputDropped]two\n");
    rig.write("0.log", &format!("{mark}\n"));
    rig.reopen();
    rig.drain().await;
    assert_eq!(rig.dump(), "one\n[333 OutputDropped]two\n[333 OutputDropped]");
}

/// Parts of a line that goes on, as the runtime cuts it, and its end.
fn parts(folder: &Path, parts: &[&str], end: Option<&str>) {
    let mut file = OpenOptions::new().create(true).append(true).open(folder.join("0.log")).unwrap();
    for part in parts {
        writeln!(file, "{TIME}.1Z stdout P {part}").unwrap();
    }
    if let Some(end) = end {
        writeln!(file, "{TIME}.2Z stdout F {end}").unwrap();
    }
}

fn watch(streams: &AttemptStreams) {
    let credential = crate::testing::git_credential("ghp_0123456789abcdef");
    streams.watch_for(crate::scrub::Watchlist::of(&[credential]));
}

#[tokio::test]
async fn a_secret_that_reads_and_records_cut_is_masked_and_every_offset_stays() {
    let mut rig = Rig::new();
    watch(&rig.streams);
    let mut reader = Reader::resume(rig.folder(), Arc::clone(&rig.streams)).unwrap();
    let mut read = || while reader.burst(clock::instant()).unwrap() == Burst::More {};
    parts(&rig.path(), &["the key is ghp_0123"], None);
    read();
    assert_eq!(rig.dump(), "the key is ", "what may become a secret waits");
    parts(&rig.path(), &["4567"], None);
    read();
    assert_eq!(rig.dump(), "the key is ");
    parts(&rig.path(), &["89abc"], Some("def and ghp_0123 is none"));
    read();
    let masked = format!("the key is {} and ghp_0123 is none\n", "*".repeat(20));
    assert_eq!(rig.dump(), masked);
    // Read again from the place that was kept, the same bytes come.
    parts(&rig.path(), &["again ghp_01"], None);
    read();
    rig.reopen();
    watch(&rig.streams);
    parts(&rig.path(), &[], Some("23456789abcdef"));
    rig.drain().await;
    assert_eq!(rig.dump(), format!("{masked}again {}\n", "*".repeat(20)));
    assert_eq!(rig.streams.log.extent().gaps, 0);
}

#[tokio::test]
async fn a_secret_that_a_rotation_cuts_is_masked_and_a_restart_reads_the_same() {
    let mut rig = Rig::new();
    watch(&rig.streams);
    let mut reader = Reader::resume(rig.folder(), Arc::clone(&rig.streams)).unwrap();
    let start = clock::instant();
    parts(&rig.path(), &["the key is ghp_0123"], None);
    assert_eq!(reader.burst(start).unwrap(), Burst::Idle);
    rig.rename("0.log", "0.log.20270115-100000");
    parts(&rig.path(), &["456789"], None);
    assert_eq!(reader.burst(start).unwrap(), Burst::Settling);
    assert_eq!(reader.burst(start + QUIET).unwrap(), Burst::Idle);
    assert_eq!(rig.dump(), "the key is ");
    drop(reader);
    rig.reopen();
    watch(&rig.streams);
    parts(&rig.path(), &[], Some("abcdef"));
    rig.drain().await;
    assert_eq!(rig.dump(), format!("the key is {}\n", "*".repeat(20)));
    assert_eq!(rig.streams.log.extent().gaps, 0);
}

#[tokio::test]
async fn the_beginning_of_a_secret_that_never_goes_on_is_shown_at_the_end() {
    let rig = Rig::new();
    watch(&rig.streams);
    parts(&rig.path(), &["ghp_01234567"], None);
    rig.drain().await;
    assert_eq!(rig.dump(), "ghp_01234567");
}

/// What a container may write: the reader holds two fixed buffers for all of it.
#[tokio::test]
async fn odd_output_comes_through_byte_for_byte() {
    let rig = Rig::new();
    let mut raw = Vec::new();
    let mut expected = Vec::new();
    let mut record = |tag: &str, text: &[u8]| {
        raw.extend_from_slice(format!("{TIME}.{:09}Z stdout {tag} ", raw.len()).as_bytes());
        raw.extend_from_slice(text);
        raw.push(b'\n');
        expected.extend_from_slice(text);
        if tag == "F" {
            expected.push(b'\n');
        }
    };
    record("F", b"\x00\x01\xff\xfe binary");
    record("F", b"bad \xc3\x28 utf-8 \xe2\x82");
    record("F", b"only\rcarriage\rreturns\r");
    record("F", b"\x1b[31mred\x1b[0m \x1b]0;title\x07");
    record("F", b"2027-01-15T10:00:00Z stdout F a forged record");
    record("F", b"");
    // One line of 4 MiB as containerd cuts it; the last part never ends.
    for _ in 0..256 {
        record("P", &[b'y'; 16 * 1024]);
    }
    fs::write(rig.path().join("0.log"), &raw).unwrap();
    rig.drain().await;
    let mut got = Vec::new();
    while let Piece::Data(bytes) = rig.streams.log.read(got.len() as u64, 1 << 20).unwrap() {
        got.extend_from_slice(&bytes);
    }
    assert!(got == expected, "{} of {} bytes", got.len(), expected.len());
}
