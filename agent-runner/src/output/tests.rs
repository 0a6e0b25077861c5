use std::sync::mpsc;

use proptest::prelude::*;

use super::*;
use crate::clock;

fn lines(chunks: &[&[u8]]) -> Vec<String> {
    let (mut lines, mut all) = (Lines::default(), Vec::new());
    for chunk in chunks {
        lines.feed(chunk, |line| all.push(line.to_owned()));
    }
    lines.finish(|line| all.push(line.to_owned()));
    all
}

#[test]
fn lines_are_whole_whatever_the_chunks() {
    assert_eq!(lines(&[b"a", b"b\n\nc", b"d"]), ["ab", "", "cd"]);
    assert_eq!(lines(&["ä".as_bytes().split_at(1).0, "ä\n".as_bytes().split_at(1).1]), ["ä"]);
}

#[test]
fn redrawn_lines_and_colours_become_plain_lines() {
    assert_eq!(lines(&[b"10%\r20%\rdone\r\n"]), ["10%", "20%", "done"]);
    assert_eq!(lines(&[b"\x1b[1;31mred\x1b[0m \x1b]0;title\x07x\n"]), ["red x"]);
    assert_eq!(lines(&[b"\x1b]0;never ended\nnext"]), ["", "next"]);
}

#[test]
fn p24_a_line_without_an_end_comes_in_pieces() {
    let all = lines(&[&vec![b'x'; 3 * PIECE_BYTES_MAX + 1]]);
    assert_eq!(all.len(), 4);
    assert!(all.iter().all(|line| line.len() <= PIECE_BYTES_MAX + 4));
}

#[test]
fn a_capture_keeps_head_and_tail_and_counts_the_rest() {
    let mut capture = Capture::new(1024);
    for number in 0..100_000 {
        capture.take(format!("line {number}\n").as_bytes());
    }
    let text = capture.finish();
    assert!(text.len() <= 1024, "{}", text.len());
    assert!(text.starts_with("line 0\n") && text.ends_with("line 99999\n"), "{text}");
    assert!(text.contains("bytes left out"));
}

proptest! {
    #[test]
    fn a_capture_never_exceeds_its_limit(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20),
        max in 200usize..2000,
    ) {
        let mut capture = Capture::new(max);
        let mut whole = Vec::new();
        for chunk in &chunks {
            capture.take(chunk);
            whole.extend_from_slice(chunk);
        }
        let text = capture.finish();
        prop_assert!(text.len() <= max.max(200));
        if whole.len() <= max && whole.iter().all(u8::is_ascii_alphanumeric) {
            prop_assert_eq!(text.as_bytes(), whole);
        }
    }
}

/// A target that lets nothing pass until told to.
struct Gate(mpsc::Receiver<()>, mpsc::Sender<Vec<u8>>);

impl Write for Gate {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let _ = self.0.recv();
        let _ = self.1.send(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn lines_that_nobody_takes_become_a_mark_of_their_size_and_only_the_first_is_waited_for() {
    let (open, gate) = mpsc::channel();
    let (sender, written) = mpsc::channel();
    let (printer, thread) = Printer::with_wait(Gate(gate, sender), Duration::from_millis(200));
    let long = "x".repeat(QUEUE_BYTES_MAX / 2 - LINE_BYTES);
    let before = clock::boot_now();
    // The first is being written, two fill the queue, the rest has no room.
    let lines = [&*long; 3].into_iter().chain(["xx"; 1000]);
    let pushed: usize = lines.clone().map(|line| line.len() + 1).sum();
    for line in lines {
        printer.print_line(line);
    }
    let waited = clock::boot_now().saturating_sub(before);
    assert!(waited < Duration::from_mins(1), "each of 1000 lines was waited for: {waited:?}");
    drop(open);
    printer.flush(Duration::from_mins(1));
    printer.print_line("after");
    assert_eq!(printer.printed(), (pushed + "after\n".len()) as u64, "what had no room counts");
    printer.close();
    thread.join().unwrap();
    let text: Vec<u8> = written.into_iter().flatten().collect();
    let text = String::from_utf8(text).unwrap();
    let marks: Vec<_> = text.lines().filter_map(|line| Omitted::parse(line.as_bytes())).collect();
    let [mark] = marks[..] else { panic!("{} marks", marks.len()) };
    let shown: usize = text.lines().filter(|line| line.starts_with('x')).map(|l| l.len() + 1).sum();
    assert_eq!(mark.bytes, (pushed - shown) as u64, "to the byte");
    assert!(text.ends_with(&format!("{mark}\nafter\n")), "in its place");
}

#[test]
fn f28_a_flood_of_empty_lines_fills_the_queue_like_any_other() {
    const LINES: usize = 4 * QUEUE_BYTES_MAX / LINE_BYTES;
    let (open, gate) = mpsc::channel();
    let (sender, written) = mpsc::channel();
    let (printer, thread) = Printer::with_wait(Gate(gate, sender), Duration::from_millis(10));
    for _ in 0..LINES {
        printer.print_line("");
    }
    assert!(printer.lock().lines.len() <= QUEUE_BYTES_MAX / LINE_BYTES);
    drop(open);
    printer.flush(Duration::from_mins(1));
    printer.close();
    thread.join().unwrap();
    let text = String::from_utf8(written.into_iter().flatten().collect()).unwrap();
    let (marks, lines): (Vec<_>, Vec<_>) =
        text.lines().map(|line| Omitted::parse(line.as_bytes())).partition(Option::is_some);
    let omitted: u64 = marks.into_iter().flatten().map(|mark| mark.lines).sum();
    assert_eq!(lines.len() as u64 + omitted, LINES as u64);
}

#[test]
fn the_last_lines_are_marked_too_when_nothing_comes_behind_them() {
    let (open, gate) = mpsc::channel();
    let (sender, written) = mpsc::channel();
    let (printer, thread) = Printer::with_wait(Gate(gate, sender), Duration::from_millis(10));
    let long = "x".repeat(QUEUE_BYTES_MAX / 2 - LINE_BYTES);
    for _ in 0..6 {
        printer.print_line(&long);
    }
    drop(open);
    printer.flush(Duration::from_mins(1));
    printer.close();
    thread.join().unwrap();
    let text: Vec<u8> = written.into_iter().flatten().collect();
    let last = text.split(|byte| *byte == b'\n').rev().nth(1).unwrap();
    assert!(Omitted::parse(last).is_some());
}

#[test]
fn no_control_character_reaches_the_log() {
    let (open, gate) = mpsc::channel();
    let (sender, written) = mpsc::channel();
    let (printer, thread) = Printer::start(Gate(gate, sender));
    drop(open);
    printer.print("a\u{1b}[2J\u{7}b\nc");
    printer.close();
    thread.join().unwrap();
    let text: Vec<u8> = written.into_iter().flatten().collect();
    assert_eq!(String::from_utf8(text).unwrap(), "a\u{fffd}[2J\u{fffd}b\nc\n");
}
