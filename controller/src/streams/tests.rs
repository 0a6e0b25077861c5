use std::{fs, io::Write as _, path::Path, time::Duration};

use agent_operator::domain::stream::{Channel, Gap};
use proptest::prelude::*;
use tokio::time::Instant;

use super::*;
use crate::clock;

fn key(run: &str) -> StreamKey {
    StreamKey { run: run.into(), channel: Channel::Log }
}

fn now() -> Instant {
    clock::instant()
}

fn open(root: &Path) -> StreamStore {
    StreamStore::open(root, Limits::default()).unwrap()
}

fn at(offset: u64) -> Position {
    Position { offset, complete: false }
}

fn gap(from: u64, to: u64) -> Gap {
    Gap { from, to, reason: "Rotated".into() }
}

/// The whole stream, with lost bytes as dots.
fn dump(store: &StreamStore, key: &StreamKey) -> String {
    let (mut text, mut offset) = (String::new(), 0);
    loop {
        match store.read(key, offset, 3).unwrap() {
            Piece::Data(data) => {
                text.push_str(std::str::from_utf8(&data).unwrap());
                offset += data.len() as u64;
            }
            Piece::Gap(gap) => {
                assert_eq!(gap.from, offset);
                text.extend((gap.from..gap.to).map(|_| '.'));
                offset = gap.to;
            }
            Piece::Waiting | Piece::Absent => return text,
            Piece::End => return text + "$",
        }
    }
}

#[test]
fn a_stream_reads_as_it_was_written_gaps_included() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let key = key("r1");
    assert_eq!(store.begin(&key, 0, now()).unwrap(), at(0));
    store.append(&key, 0, b"hello", now()).unwrap();
    store.gap(&key, &gap(5, 9), now()).unwrap();
    store.append(&key, 9, b"world", now()).unwrap();
    let end = store.end(&key, 14, now()).unwrap();
    assert_eq!(end, Position { offset: 14, complete: true });
    assert_eq!(dump(&store, &key), "hello....world$");
}

#[test]
fn repeated_chunks_gaps_and_ends_change_nothing() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let key = key("r1");
    for _ in 0..2 {
        store.append(&key, 0, b"abcd", now()).unwrap();
        store.append(&key, 2, b"cdef", now()).unwrap();
        store.gap(&key, &gap(6, 8), now()).unwrap();
        store.end(&key, 8, now()).unwrap();
    }
    assert_eq!(dump(&store, &key), "abcdef..$");
}

#[test]
fn a_chunk_that_does_not_connect_is_refused_with_the_offset_to_go_on_from() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    store.append(&key("r1"), 0, b"ab", now()).unwrap();
    let error = store.append(&key("r1"), 3, b"x", now()).unwrap_err();
    assert!(matches!(error, StoreError::OutOfOrder { expected: 2, got: 3 }), "{error}");
    assert!(store.end(&key("r1"), 3, now()).is_err());
    assert_eq!(dump(&store, &key("r1")), "ab");
}

#[test]
fn what_the_node_no_longer_has_is_a_gap() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    store.append(&key("r1"), 0, b"ab", now()).unwrap();
    assert_eq!(store.begin(&key("r1"), 5, now()).unwrap(), at(5));
    store.append(&key("r1"), 5, b"f", now()).unwrap();
    assert_eq!(dump(&store, &key("r1")), "ab...f");
}

#[test]
fn a_reopened_store_goes_on_where_it_stopped() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    store.append(&key("r1"), 0, b"ab", now()).unwrap();
    store.gap(&key("r1"), &gap(2, 4), now()).unwrap();
    store.append(&key("r2"), 0, b"done", now()).unwrap();
    store.end(&key("r2"), 4, now()).unwrap();
    drop(store);
    let store = open(root.path());
    assert_eq!(store.begin(&key("r1"), 0, now()).unwrap(), at(4));
    store.append(&key("r1"), 4, b"cd", now()).unwrap();
    assert_eq!(dump(&store, &key("r1")), "ab..cd");
    assert_eq!(dump(&store, &key("r2")), "done$");
    assert_eq!(store.bytes(), 8);
}

#[test]
fn a_truncated_tail_takes_later_gaps_and_the_end_with_it() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    store.append(&key("r1"), 0, b"abcd", now()).unwrap();
    store.gap(&key("r1"), &gap(4, 6), now()).unwrap();
    store.append(&key("r1"), 6, b"gh", now()).unwrap();
    store.end(&key("r1"), 8, now()).unwrap();
    drop(store);
    let data = root.path().join("r1/log.data");
    fs::OpenOptions::new().write(true).open(&data).unwrap().set_len(8 + 3).unwrap();
    let store = open(root.path());
    assert_eq!(store.position(&key("r1")), Some(at(3)));
    store.append(&key("r1"), 3, b"d", now()).unwrap();
    drop(store);
    assert_eq!(dump(&open(root.path()), &key("r1")), "abcd");
}

#[test]
fn a_torn_index_line_is_cut_off() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    store.append(&key("r1"), 0, b"ab", now()).unwrap();
    store.gap(&key("r1"), &gap(2, 4), now()).unwrap();
    drop(store);
    let index = root.path().join("r1/log.index");
    fs::OpenOptions::new().append(true).open(&index).unwrap().write_all(b"{\"end\":{\"of").unwrap();
    let store = open(root.path());
    assert_eq!(store.position(&key("r1")), Some(at(4)));
    store.end(&key("r1"), 4, now()).unwrap();
    drop(store);
    assert_eq!(dump(&open(root.path()), &key("r1")), "ab..$");
}

#[test]
fn the_oldest_finished_run_makes_room_and_a_live_one_stays() {
    let root = tempfile::tempdir().unwrap();
    let limits = Limits { total_bytes: 10, stream_bytes: 10 };
    let store = StreamStore::open(root.path(), limits).unwrap();
    store.append(&key("live"), 0, b"1234", now()).unwrap();
    for run in ["old", "new"] {
        store.append(&key(run), 0, b"abc", now()).unwrap();
        store.end(&key(run), 3, now()).unwrap();
    }
    store.append(&key("live"), 4, b"567", now()).unwrap();
    assert_eq!(store.position(&key("old")), None);
    assert!(!root.path().join("old").exists());
    assert_eq!(dump(&store, &key("new")), "abc$");
    assert_eq!(dump(&store, &key("live")), "1234567");
}

#[test]
fn without_room_bytes_become_a_gap_and_the_stream_goes_on() {
    let root = tempfile::tempdir().unwrap();
    let limits = Limits { total_bytes: 100, stream_bytes: 4 };
    let store = StreamStore::open(root.path(), limits).unwrap();
    store.append(&key("r1"), 0, b"abc", now()).unwrap();
    store.append(&key("r1"), 3, b"def", now()).unwrap();
    store.append(&key("r1"), 6, b"ghi", now()).unwrap();
    store.end(&key("r1"), 9, now()).unwrap();
    assert_eq!(dump(&store, &key("r1")), "abc......$");
    assert_eq!(
        store.read(&key("r1"), 3, 9).unwrap(),
        Piece::Gap(Gap { from: 3, to: 9, reason: "StoreFull".into() })
    );
}

#[tokio::test(start_paused = true)]
async fn a_sweep_drops_idle_runs_that_nobody_wants_or_follows() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    for run in ["wanted", "followed", "forgotten"] {
        store.append(&key(run), 0, b"x", now()).unwrap();
    }
    let follower = store.subscribe(&"followed".into()).unwrap();
    let idle = Duration::from_mins(1);
    let wanted = |uid: &RunUid| uid.as_str() == "wanted";
    store.sweep(&wanted, idle, now());
    assert!(store.position(&key("forgotten")).is_some());
    tokio::time::advance(idle).await;
    store.sweep(&wanted, idle, now());
    assert!(store.position(&key("forgotten")).is_none());
    assert!(store.position(&key("wanted")).is_some());
    assert!(store.position(&key("followed")).is_some());
    drop(follower);
}

#[tokio::test]
async fn a_follower_is_woken_by_the_first_byte() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let mut changes = store.subscribe(&"r1".into()).unwrap();
    assert_eq!(store.read(&key("r1"), 0, 9).unwrap(), Piece::Absent);
    store.append(&key("r1"), 0, b"x", now()).unwrap();
    changes.changed().await.unwrap();
    assert_eq!(store.read(&key("r1"), 0, 9).unwrap(), Piece::Data("x".into()));
}

#[test]
fn a_uid_that_would_leave_the_folder_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    for uid in ["../x", "", "a/b", ".", "a\0"] {
        assert!(matches!(store.append(&key(uid), 0, b"x", now()), Err(StoreError::BadUid(_))));
    }
}

proptest! {
    /// However a node cuts and repeats its stream, with reopenings in between, the store ends up
    /// with the same bytes.
    #[test]
    fn any_cutting_of_a_stream_gives_the_same_stream(
        cuts in proptest::collection::vec((0_usize..40, 0_usize..12, any::<bool>()), 0..30)
    ) {
        const TEXT: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyzABCD";
        let root = tempfile::tempdir().unwrap();
        let mut store = open(root.path());
        for (start, length, reopen) in cuts {
            let stop = (start + length).min(TEXT.len());
            let _ = store.append(&key("r1"), start as u64, &TEXT[start..stop], now());
            if reopen {
                drop(store);
                store = open(root.path());
            }
        }
        let from = store.begin(&key("r1"), 0, now()).unwrap().offset;
        let rest = usize::try_from(from).unwrap();
        store.append(&key("r1"), from, &TEXT[rest..], now()).unwrap();
        let text = dump(&store, &key("r1"));
        prop_assert_eq!(text.as_bytes(), TEXT);
    }
}

#[test]
fn a_node_that_remembers_less_than_it_sent_can_still_end_its_stream() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    store.append(&key("r1"), 0, b"abcd", now()).unwrap();
    let end = store.end(&key("r1"), 2, now()).unwrap();
    assert_eq!(end, Position { offset: 4, complete: true });
}

#[test]
fn a_store_is_crowded_above_three_quarters() {
    let root = tempfile::tempdir().unwrap();
    let limits = Limits { total_bytes: 8, stream_bytes: 8 };
    let store = StreamStore::open(root.path(), limits).unwrap();
    store.append(&key("r1"), 0, b"123456", now()).unwrap();
    assert!(!store.is_crowded());
    store.append(&key("r1"), 6, b"7", now()).unwrap();
    assert!(store.is_crowded());
}

#[test]
fn a_long_stream_is_packed_and_reads_as_it_was_also_after_reopening() {
    let root = tempfile::tempdir().unwrap();
    let mut store = open(root.path());
    let mut written = Vec::new();
    for line in 0..60_000 {
        written.extend_from_slice(format!("{line:08} a line of an ordinary log\n").as_bytes());
    }
    let middle = written.len() as u64 / 2;
    for (at, piece) in written.chunks(50_000).enumerate() {
        store.append(&key("r1"), (at * 50_000) as u64, piece, now()).unwrap();
        if at % 10 == 9 {
            drop(store);
            store = open(root.path());
        }
    }
    for from in [0, 1, 131_071, 131_072, middle] {
        let mut read = Vec::new();
        while let Piece::Data(data) =
            store.read(&key("r1"), from + read.len() as u64, 70_000).unwrap()
        {
            read.extend_from_slice(&data);
        }
        assert!(read == written[usize::try_from(from).unwrap()..], "from {from}");
    }
    println!("{} bytes of log in {} bytes on disk", written.len(), store.bytes());
    assert!(store.bytes() < written.len() as u64 / 4);
}

/// Cut anywhere, a stream is a shorter one: never bytes at a wrong place.
#[test]
fn files_cut_by_a_crash_leave_a_beginning_of_the_stream() {
    let text: Vec<u8> = (0..40_000_u32).flat_map(|n| format!("{n:07}\n").into_bytes()).collect();
    for (file, keep) in
        [("log.zst", 0), ("log.zst", 5), ("log.zst", 3000), ("log.data", 0), ("log.data", 9)]
    {
        let root = tempfile::tempdir().unwrap();
        let store = open(root.path());
        for (at, piece) in text.chunks(90_000).enumerate() {
            store.append(&key("r1"), (at * 90_000) as u64, piece, now()).unwrap();
        }
        drop(store);
        let path = root.path().join("r1").join(file);
        fs::OpenOptions::new().write(true).open(path).unwrap().set_len(keep).unwrap();
        let store = open(root.path());
        let end = usize::try_from(store.position(&key("r1")).unwrap().offset).unwrap();
        let mut read = Vec::new();
        while let Piece::Data(data) = store.read(&key("r1"), read.len() as u64, 1 << 20).unwrap() {
            read.extend_from_slice(&data);
        }
        assert!(read == text[..end], "{file} cut to {keep}");
        store.append(&key("r1"), end as u64, b"more", now()).unwrap();
    }
}

#[test]
fn a_block_that_does_not_unpack_is_a_gap_of_its_size() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    store.append(&key("r1"), 0, &vec![b'x'; 200_000], now()).unwrap();
    store.append(&key("r1"), 200_000, b"behind", now()).unwrap();
    let path = root.path().join("r1/log.zst");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    let gap = Gap { from: 10, to: 200_000, reason: "CacheDamaged".into() };
    assert_eq!(store.read(&key("r1"), 10, 99).unwrap(), Piece::Gap(gap));
    assert_eq!(store.read(&key("r1"), 200_000, 99).unwrap(), Piece::Data("behind".into()));
}
