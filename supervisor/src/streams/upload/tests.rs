use agent_operator::domain::{Attempt, RunRef, RunUid};
use v1::chunk::Payload;

use super::*;
use crate::streams::{Retention, gaps::GapReason};

fn run() -> RunRef {
    RunRef { namespace: "n".into(), name: "r".into(), uid: RunUid::from("uid") }
}

fn ack(channel: Channel, offset: u64, complete: bool) -> v1::Ack {
    let channel = v1::Channel::from(channel).into();
    v1::Ack { run: Some((&run()).into()), channel, offset, complete, again: false }
}

fn rig() -> (tempfile::TempDir, Arc<Streams>, Arc<AttemptStreams>) {
    let dir = tempfile::tempdir().unwrap();
    let streams = Arc::new(Streams::open(dir.path(), Retention::default()).unwrap());
    let attempt = streams.attempt(&run(), Attempt(1)).unwrap();
    (dir, streams, attempt)
}

#[test]
fn a_stream_goes_on_from_the_acknowledged_offset_with_gaps_and_an_end() {
    let (_dir, streams, attempt) = rig();
    attempt.log.append(b"0123456789").unwrap();
    attempt.log.skip(5, GapReason::DiskFailed);
    attempt.log.append(b"x").unwrap();
    attempt.log.complete().unwrap();
    let mut upload = Upload::new(streams);
    let opened: Vec<_> = std::iter::from_fn(|| upload.next_chunk()).collect();
    assert_eq!(opened.len(), 2, "both channels open and then wait for an answer");
    upload.acknowledge(&ack(Channel::Log, 4, false));
    let chunks: Vec<_> = std::iter::from_fn(|| upload.next_chunk())
        .map(|c| (c.offset, c.payload.unwrap()))
        .collect();
    assert_eq!(chunks[0], (4, Payload::Data(b"456789".to_vec())));
    assert!(matches!(&chunks[1], (10, Payload::Gap(gap)) if gap.to == 15));
    assert_eq!(chunks[2], (15, Payload::Data(b"x".to_vec())));
    assert_eq!(chunks[3], (16, Payload::End(v1::StreamEnd {})));
    assert_eq!(chunks.len(), 4);
}

#[test]
fn no_more_than_a_window_is_on_the_way() {
    let (_dir, streams, attempt) = rig();
    let mebibytes = 3 * usize::try_from(WINDOW_BYTES).unwrap();
    attempt.log.append(&vec![b'x'; mebibytes]).unwrap();
    let mut upload = Upload::new(streams);
    while upload.next_chunk().is_some() {}
    upload.acknowledge(&ack(Channel::Log, 0, false));
    let sent = std::iter::from_fn(|| upload.next_chunk()).count() * CHUNK_BYTES_MAX;
    assert_eq!(sent as u64, WINDOW_BYTES);
    upload.acknowledge(&ack(Channel::Log, WINDOW_BYTES, false));
    assert!(upload.next_chunk().is_some());
}

#[test]
fn a_few_bytes_wait_while_earlier_ones_are_not_acknowledged_and_then_go_as_one_chunk() {
    let (_dir, streams, attempt) = rig();
    let mut upload = Upload::new(streams);
    while upload.next_chunk().is_some() {}
    upload.acknowledge(&ack(Channel::Log, 0, false));
    let mut sent = || upload.next_chunk().map(|chunk| chunk.payload.unwrap());
    attempt.log.append(b"first").unwrap();
    assert_eq!(sent(), Some(Payload::Data(b"first".to_vec())), "nothing is waited for");
    for bytes in [b"second", b"third_"] {
        attempt.log.append(bytes).unwrap();
        assert_eq!(sent(), None, "too little while the first is on the way");
    }
    upload.acknowledge(&ack(Channel::Log, 5, false));
    let mut sent = || upload.next_chunk().map(|chunk| chunk.payload.unwrap());
    assert_eq!(sent(), Some(Payload::Data(b"secondthird_".to_vec())));
    let worth = usize::try_from(CHUNK_BYTES_WORTH).unwrap();
    attempt.log.append(&vec![b'x'; worth]).unwrap();
    assert_eq!(sent(), Some(Payload::Data(vec![b'x'; worth])), "enough is worth a chunk");
    attempt.log.append(b"last").unwrap();
    attempt.log.complete().unwrap();
    assert_eq!(sent(), Some(Payload::Data(b"last".to_vec())), "nothing comes behind the end");
    assert_eq!(sent(), Some(Payload::End(v1::StreamEnd {})));
}

#[test]
fn what_the_controller_has_whole_is_left_alone() {
    let (_dir, streams, attempt) = rig();
    attempt.log.append(b"abc").unwrap();
    attempt.log.complete().unwrap();
    let mut upload = Upload::new(streams);
    while upload.next_chunk().is_some() {}
    upload.acknowledge(&ack(Channel::Log, 3, true));
    assert_eq!(upload.next_chunk(), None);
}

/// A node keeps the streams of a day.
#[test]
fn only_streams_that_are_not_whole_at_the_controller_are_looked_at_for_a_chunk() {
    let (_dir, streams, attempt) = rig();
    let mut upload = Upload::new(Arc::clone(&streams));
    for spool in [&attempt.log, &attempt.events] {
        spool.complete().unwrap();
    }
    while upload.next_chunk().is_some() {}
    assert_eq!(upload.open.len(), 2, "the controller has nothing yet");
    for channel in Channel::ALL {
        upload.acknowledge(&ack(channel, 0, true));
    }
    assert_eq!((upload.next_chunk(), upload.open.len()), (None, 0));

    let other = RunRef { uid: RunUid::from("other"), ..run() };
    streams.attempt(&other, Attempt(1)).unwrap();
    assert!(upload.next_chunk().is_some_and(|chunk| chunk.run.is_some_and(|r| r.uid == "other")));
    assert_eq!((upload.known.len(), upload.open.len()), (4, 2));
    streams.discard(&attempt.key());
    while upload.next_chunk().is_some() {}
    assert_eq!(upload.known.len(), 2, "what was dropped is forgotten");
}

#[test]
fn streams_that_were_dropped_and_made_again_are_opened_again() {
    let (_dir, streams, attempt) = rig();
    let mut upload = Upload::new(Arc::clone(&streams));
    while upload.next_chunk().is_some() {}
    upload.acknowledge(&ack(Channel::Log, 4, false));
    streams.discard(&attempt.key());
    streams.attempt(&run(), Attempt(1)).unwrap();
    let payloads: Vec<_> =
        std::iter::from_fn(|| upload.next_chunk()).filter_map(|chunk| chunk.payload).collect();
    assert_eq!(payloads, [const { Payload::Open(v1::StreamOpen {}) }; 2]);
}

#[test]
fn a_stream_that_the_controller_lost_is_sent_again_from_where_it_says() {
    let (_dir, streams, attempt) = rig();
    attempt.log.append(b"abcdef").unwrap();
    attempt.log.complete().unwrap();
    let mut upload = Upload::new(streams);
    while upload.next_chunk().is_some() {}
    upload.acknowledge(&ack(Channel::Log, 6, true));
    assert_eq!(upload.next_chunk(), None);
    upload.acknowledge(&v1::Ack { again: true, ..ack(Channel::Log, 2, false) });
    let payloads: Vec<_> =
        std::iter::from_fn(|| upload.next_chunk()).map(|c| (c.offset, c.payload)).collect();
    let expected =
        [(2, Some(Payload::Data(b"cdef".to_vec()))), (6, Some(Payload::End(v1::StreamEnd {})))];
    assert_eq!(payloads, expected);
}

/// Ten pods that write as fast as the disk takes it, and one that says a line now and then.
#[test]
fn a_quiet_stream_waits_one_round_behind_floods_and_no_longer() {
    const FLOODS: u32 = 10;
    let dir = tempfile::tempdir().unwrap();
    let streams = Arc::new(Streams::open(dir.path(), Retention::default()).unwrap());
    let made = |n: u32| {
        let run = RunRef { uid: RunUid::from(format!("uid-{n}").as_str()), ..run() };
        streams.attempt(&run, Attempt(1)).unwrap()
    };
    let floods: Vec<_> = (0..FLOODS).map(made).collect();
    let quiet = made(FLOODS);
    let flood = vec![b'x'; 4 * CHUNK_BYTES_MAX];
    let mut upload = Upload::new(Arc::clone(&streams));
    let acknowledge = |upload: &mut Upload, chunk: &v1::Chunk| {
        let length = match &chunk.payload {
            Some(Payload::Data(bytes)) => bytes.len() as u64,
            _ => 0,
        };
        let (run, channel) = (chunk.run.clone(), chunk.channel);
        let offset = chunk.offset + length;
        upload.acknowledge(&v1::Ack { run, channel, offset, complete: false, again: false });
    };
    let (mut worst, mut bytes) = (0, 0);
    for round in 0..20_u64 {
        for attempt in &floods {
            attempt.log.append(&flood).unwrap();
        }
        quiet.log.append(b"line\n").unwrap();
        let mut before = 0;
        loop {
            let chunk = upload.next_chunk().expect("the quiet stream has a line");
            acknowledge(&mut upload, &chunk);
            if let Some(Payload::Data(data)) = &chunk.payload {
                bytes += data.len();
                let of_quiet = chunk.run.as_ref().is_some_and(|run| run.uid == "uid-10");
                if of_quiet && chunk.offset == round * 5 {
                    break;
                }
            }
            before += 1;
        }
        worst = before.max(worst);
    }
    println!("{FLOODS} floods, {bytes} bytes sent: a quiet line waits for {worst} chunks at most");
    // In the first round each of both channels is opened as well.
    assert!(worst <= 3 * (FLOODS as usize + 1), "{worst}");
}
