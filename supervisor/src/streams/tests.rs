use agent_operator::domain::{RunUid, event::AgentEvent};
use jiff::Timestamp;

use super::{gaps::GapReason, spool::Piece, *};

fn open(dir: &Path) -> Spool {
    Spool::open(dir, Arc::new(Budget::new(1 << 30)), Arc::default()).unwrap()
}

fn run() -> RunRef {
    RunRef { namespace: "n".into(), name: "r".into(), uid: RunUid::from("uid") }
}

fn records(range: std::ops::Range<i64>) -> Vec<EventRecord> {
    let record = |n| EventRecord {
        time: Timestamp::from_second(n).unwrap(),
        event: AgentEvent::Text { text: n.to_string() },
    };
    range.map(record).collect()
}

#[test]
fn events_are_kept_once_and_their_number_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let streams = Streams::open(dir.path(), Retention::default()).unwrap();
    let attempt = streams.attempt(&run(), Attempt(1)).unwrap();
    attempt.append_events(0, &records(0..3)).unwrap();
    attempt.append_events(0, &records(0..3)).unwrap();
    attempt.append_events(2, &records(2..5)).unwrap();
    assert_eq!(attempt.next_event(), 5);
    let again = Streams::open(dir.path(), Retention::default()).unwrap();
    assert_eq!(again.all()[0].next_event(), 5);
    assert_eq!(again.all()[0].run, run());
}

#[test]
fn a_hole_reads_as_a_gap_and_offsets_stay_true() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    spool.append(b"abc").unwrap();
    spool.skip(7, GapReason::DiskFailed);
    spool.append(b"def").unwrap();
    assert_eq!(spool.read(1, 100).unwrap(), Piece::Data("bc".into()));
    assert_eq!(spool.read(3, 100).unwrap(), Piece::Gap { to: 10, reason: GapReason::DiskFailed });
    assert_eq!(spool.read(10, 2).unwrap(), Piece::Data("de".into()));
    assert_eq!(spool.read(13, 2).unwrap(), Piece::Pending);
    spool.complete().unwrap();
    assert_eq!(spool.read(13, 2).unwrap(), Piece::End);
    drop(spool);
    let again = open(dir.path());
    assert_eq!(again.extent(), spool::Extent { base: 0, end: 13, gaps: 1, complete: true });
}

#[test]
fn a_rewound_stream_goes_on_from_there() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    spool.append(b"abc").unwrap();
    spool.skip(1, GapReason::DiskFailed);
    spool.append(b"def").unwrap();
    spool.rewind(2).unwrap();
    spool.append(b"XY").unwrap();
    assert_eq!(spool.read(0, 100).unwrap(), Piece::Data("abXY".into()));
    assert_eq!(spool.extent().end, 4);
}

#[test]
fn only_old_complete_streams_of_dead_attempts_are_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let streams = Streams::open(dir.path(), Retention::default()).unwrap();
    let attempt = streams.attempt(&run(), Attempt(1)).unwrap();
    attempt.log.append(b"x").unwrap();
    let written = attempt.log.modified().unwrap();
    let much_later = written + Retention::default().age * 2;
    streams.retain(much_later, |_| false);
    assert_eq!(streams.all().len(), 1, "not complete yet");
    attempt.log.complete().unwrap();
    attempt.events.complete().unwrap();
    streams.retain(much_later, |_| true);
    assert_eq!(streams.all().len(), 1, "still live");
    streams.retain(written, |_| false);
    assert_eq!(streams.all().len(), 1, "young");
    streams.retain(much_later, |_| false);
    assert_eq!(streams.all().len(), 0);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn streams_that_cannot_be_made_leave_nothing_and_those_that_are_not_wanted_go() {
    let dir = tempfile::tempdir().unwrap();
    let streams = Streams::open(dir.path(), Retention::default()).unwrap();
    // A name that is too long for a folder is a disk that takes none, also for root.
    let unfit = RunRef { uid: RunUid::from("x".repeat(300).as_str()), ..run() };
    streams.attempt(&unfit, Attempt(1)).unwrap_err();
    streams.attempt(&run(), Attempt(1)).unwrap();
    streams.discard(&RunKey { uid: run().uid, attempt: Attempt(1) });
    assert!(streams.all().is_empty());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_hole_at_the_end_and_its_reason_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    spool.append(b"abc").unwrap();
    spool.skip(7, GapReason::RotatedUnread);
    drop(spool);
    let spool = open(dir.path());
    assert_eq!(spool.extent().end, 10);
    spool.append(b"x").unwrap();
    assert_eq!(spool.read(5, 9).unwrap(), Piece::Gap { to: 10, reason: GapReason::RotatedUnread });
    assert_eq!(spool.read(10, 9).unwrap(), Piece::Data("x".into()));
}

/// A folder under a file's name is a disk that takes no more segments, also for root.
fn break_disk(dir: &Path, offset: u64) -> std::path::PathBuf {
    let path = dir.join(format!("{offset:020}"));
    std::fs::create_dir(&path).unwrap();
    path
}

#[test]
fn events_that_the_disk_refuses_are_a_gap_of_their_exact_size_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let streams = Streams::open(dir.path(), Retention::default()).unwrap();
    let attempt = streams.attempt(&run(), Attempt(1)).unwrap();
    let broken = break_disk(&attempt.dir.join("events"), 0);
    let refused = records(0..3);
    let size: usize = refused.iter().map(|r| serde_json::to_vec(r).unwrap().len() + 1).sum();
    attempt.append_events(0, &refused).unwrap_err();
    std::fs::remove_dir(broken).unwrap();
    assert_eq!(attempt.next_event(), 3, "they are over, so the next ones can be acknowledged");
    attempt.append_events(3, &records(3..4)).unwrap();
    drop((attempt, streams));
    let again = Streams::open(dir.path(), Retention::default()).unwrap().all().remove(0);
    let gap = Piece::Gap { to: size as u64, reason: GapReason::DiskFailed };
    assert_eq!(again.events.read(0, 99).unwrap(), gap);
    assert!(matches!(again.events.read(size as u64, 99).unwrap(), Piece::Data(_)));
    assert_eq!(again.next_event(), 4, "lost ones keep their numbers");
    println!(
        "3 events of {size} bytes refused by the disk: 1 gap of {size} bytes, 1 event behind it"
    );
}

#[test]
fn what_a_machine_crash_took_is_a_gap_of_its_size() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    spool.append(b"abcdef").unwrap();
    drop(spool);
    let segment = dir.path().join(format!("{:020}", 0));
    std::fs::OpenOptions::new().write(true).open(segment).unwrap().set_len(2).unwrap();
    let spool = open(dir.path());
    spool.rewind(6).unwrap();
    spool.append(b"gh").unwrap();
    assert_eq!(spool.read(0, 99).unwrap(), Piece::Data("ab".into()));
    assert_eq!(spool.read(2, 99).unwrap(), Piece::Gap { to: 6, reason: GapReason::MachineCrashed });
    assert_eq!(spool.read(6, 99).unwrap(), Piece::Data("gh".into()));
}

#[test]
fn all_streams_together_stay_within_their_bound_and_finished_ones_go_first() {
    let dir = tempfile::tempdir().unwrap();
    let bound = 256 * 1024;
    let streams =
        Streams::open(dir.path(), Retention { bytes: bound, ..Retention::default() }).unwrap();
    let made = |n: u32| {
        let run = RunRef { uid: RunUid::from(format!("uid-{n}").as_str()), ..run() };
        streams.attempt(&run, Attempt(1)).unwrap()
    };
    let old = made(0);
    old.log.append(&vec![b'o'; 60 * 1024]).unwrap();
    old.log.complete().unwrap();
    old.events.complete().unwrap();
    let live: Vec<_> = (1..5).map(made).collect();
    for attempt in &live {
        for _ in 0..50 {
            let _ = attempt.log.append(&[b'l'; 1024]);
        }
    }
    assert!(streams.budget.used() <= bound);
    let is_live = |key: &RunKey| key.uid.as_str() != "uid-0";
    let now = old.log.modified().unwrap();
    drop(old);
    streams.retain(now, is_live);
    assert_eq!(streams.all().len(), 4, "the finished one made room");
    assert_eq!(streams.budget.used(), live.iter().map(|a| a.log.stored()).sum::<u64>());
    let (mut stored, mut offered) = (0, 0);
    for attempt in &live {
        for _ in 0..100 {
            let _ = attempt.log.append(&[b'l'; 1024]);
        }
        stored += attempt.log.stored();
        offered += attempt.log.extent().end;
    }
    println!(
        "bound {bound}: {offered} bytes offered by 4 live streams, {stored} stored, the rest gaps"
    );
    assert!(stored <= bound);
    assert_eq!(offered, 4 * 150 * 1024);
}
