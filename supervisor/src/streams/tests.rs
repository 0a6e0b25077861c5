use agent_operator::domain::{RunUid, event::AgentEvent};
use jiff::Timestamp;

use super::{spool::Piece, *};

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
    let streams = Streams::open(dir.path()).unwrap();
    let attempt = streams.attempt(&run(), Attempt(1)).unwrap();
    attempt.append_events(0, &records(0..3)).unwrap();
    attempt.append_events(0, &records(0..3)).unwrap();
    attempt.append_events(2, &records(2..5)).unwrap();
    assert_eq!(attempt.next_event(), 5);
    let again = Streams::open(dir.path()).unwrap();
    assert_eq!(again.all()[0].next_event(), 5);
    assert_eq!(again.all()[0].run, run());
}

#[test]
fn a_hole_reads_as_a_gap_and_offsets_stay_true() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), Arc::default()).unwrap();
    spool.append(b"abc").unwrap();
    spool.skip(7);
    spool.append(b"def").unwrap();
    assert_eq!(spool.read(1, 100).unwrap(), Piece::Data("bc".into()));
    assert_eq!(spool.read(3, 100).unwrap(), Piece::Gap { to: 10 });
    assert_eq!(spool.read(10, 2).unwrap(), Piece::Data("de".into()));
    assert_eq!(spool.read(13, 2).unwrap(), Piece::Pending);
    spool.complete().unwrap();
    assert_eq!(spool.read(13, 2).unwrap(), Piece::End);
    drop(spool);
    let again = Spool::open(dir.path(), Arc::default()).unwrap();
    assert_eq!(again.extent(), spool::Extent { base: 0, end: 13, gaps: 1, complete: true });
}

#[test]
fn a_rewound_stream_goes_on_from_there() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), Arc::default()).unwrap();
    spool.append(b"abc").unwrap();
    spool.skip(1);
    spool.append(b"def").unwrap();
    spool.rewind(2).unwrap();
    spool.append(b"XY").unwrap();
    assert_eq!(spool.read(0, 100).unwrap(), Piece::Data("abXY".into()));
    assert_eq!(spool.extent().end, 4);
}

#[test]
fn only_old_complete_streams_of_dead_attempts_are_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let streams = Streams::open(dir.path()).unwrap();
    let attempt = streams.attempt(&run(), Attempt(1)).unwrap();
    attempt.log.append(b"x").unwrap();
    let written = attempt.log.modified().unwrap();
    let much_later = written + RETENTION * 2;
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
