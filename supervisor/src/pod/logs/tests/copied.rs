//! A container that has ended while its runtime may still have output to copy.

use super::*;

/// What is known of the end of a container whose runner printed so much.
fn printed(text: &str) -> LogEnd {
    LogEnd { printed: Some(text.len() as u64), recorded: false }
}

/// The log is still open when everything else is done.
async fn stays_open(rig: &Rig) {
    tokio::time::sleep(2 * DRAIN_MAX).await;
    assert!(!rig.streams.log.extent().complete, "output may still come");
}

#[tokio::test(start_paused = true)]
async fn a_log_with_all_that_was_printed_is_whole_without_anybody_elses_word() {
    let mut rig = Rig::new();
    rig.write("0.log", "one\ntwo\n");
    let (_told, end) = watch::channel(Some(printed("one\ntwo\n")));
    let began = tokio::time::Instant::now();
    rig.start(end).await.unwrap();
    assert_eq!(rig.dump(), "one\ntwo\n");
    assert!(began.elapsed() < DRAIN_MAX, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn output_that_the_runtime_copies_long_after_the_end_is_waited_for() {
    let mut rig = Rig::new();
    rig.write("0.log", "one\n");
    let (_told, end) = watch::channel(Some(printed("one\ntwo\n")));
    let reading = rig.start(end);
    stays_open(&rig).await;
    rig.write("0.log", "two\n");
    reading.await.unwrap();
    assert_eq!(rig.dump(), "one\ntwo\n");
    assert_eq!(rig.streams.log.extent().gaps, 0);
}

#[tokio::test(start_paused = true)]
async fn output_that_was_not_copied_when_the_end_was_recorded_is_a_gap_of_its_size() {
    let mut rig = Rig::new();
    rig.write("0.log", "one\n");
    let (told, end) = watch::channel(Some(printed("one\ntwo\n")));
    let reading = rig.start(end);
    stays_open(&rig).await;
    told.send_replace(Some(LogEnd { recorded: true, ..printed("one\ntwo\n") }));
    reading.await.unwrap();
    assert_eq!(rig.dump(), "one\n[4 NotCopied]");
}

#[tokio::test(start_paused = true)]
async fn output_that_never_comes_is_waited_for_within_a_limit() {
    let mut rig = Rig::new();
    rig.write("0.log", "one\n");
    let (_told, end) = watch::channel(Some(printed("one\ntwo\n")));
    let began = tokio::time::Instant::now();
    rig.start(end).await.unwrap();
    assert_eq!(rig.dump(), "one\n[4 NotCopied]");
    let waited = began.elapsed();
    assert!(waited >= COPY_MAX && waited < COPY_MAX + DRAIN_MAX, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_killed_runners_log_is_whole_once_its_end_is_recorded_and_open_to_doubt_without() {
    for (recorded, expected) in [(true, "one\n"), (false, "one\n[1 NotCopied]")] {
        let mut rig = Rig::new();
        rig.write("0.log", "one\n");
        let (told, end) = watch::channel(Some(LogEnd::default()));
        let reading = rig.start(end);
        stays_open(&rig).await;
        told.send_replace(Some(LogEnd { printed: None, recorded }));
        reading.await.unwrap();
        assert_eq!(rig.dump(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_is_forgotten_is_not_waited_for() {
    let mut rig = Rig::new();
    rig.write("0.log", "one\n");
    let (told, end) = watch::channel(Some(LogEnd::default()));
    let reading = rig.start(end);
    stays_open(&rig).await;
    drop(told);
    reading.await.unwrap();
    assert_eq!(rig.dump(), "one\n");
}
