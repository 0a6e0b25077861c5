use std::sync::{Arc, mpsc};

use agent_operator::{attempt::ApiError, domain::Usage};

use super::*;

fn text(text: &str) -> AgentEvent {
    AgentEvent::Text { text: text.to_owned() }
}

fn output(output: String) -> AgentEvent {
    AgentEvent::ToolResult { id: "1".to_owned(), output, is_error: false }
}

fn gone() -> CallError {
    let error = ApiError { reason: None, message: "gone".to_owned(), retryable: false };
    CallError::Refused { status: 401, error, retry_after: None }
}

#[test]
fn events_arrive_in_order_with_serials_and_a_lost_answer_repeats_the_batch() {
    let events = Arc::new(Events::default());
    for number in 0..600 {
        events.push(text(&number.to_string()));
    }
    let (sender, received) = mpsc::channel::<EventsRequest>();
    let thread_events = Arc::clone(&events);
    let thread = std::thread::spawn(move || {
        let mut lost = true;
        let mut taken = 0;
        thread_events.send_all(|request| {
            if std::mem::take(&mut lost) {
                return Err(CallError::Unreachable("lost".to_owned()));
            }
            if taken == 600 {
                return Err(gone());
            }
            // Takes one less than sent, once: the rest must come again.
            let sent = request.records.len() as u64;
            let next = request.first + if taken == 0 { sent - 1 } else { sent };
            taken = next;
            sender.send(request.clone()).unwrap();
            Ok(EventsAnswer { next })
        });
    });
    events.flush(Duration::from_secs(20));
    assert_eq!(events.acknowledged(), 600);
    events.push(text("the end"));
    thread.join().unwrap();
    let mut next = 0;
    for request in received {
        assert!(request.records.len() <= EVENTS_PER_REQUEST_MAX);
        for (serial, record) in (request.first..).zip(&request.records) {
            if serial < next {
                continue;
            }
            assert_eq!(record.event, text(&serial.to_string()));
            next = serial + 1;
        }
    }
    assert_eq!(next, 600);
}

#[test]
fn a_full_queue_drops_tool_outputs_first() {
    let events = Events::default();
    events.push(text("first"));
    for _ in 0..QUEUE_BYTES_MAX / 30_000 {
        events.push(output("y".repeat(60_000)));
    }
    let state = events.lock();
    assert!(state.bytes <= QUEUE_BYTES_MAX);
    assert_eq!(state.waiting.front().unwrap().0.event, text("first"));
    assert_eq!(state.waiting[1].0.event, output(LEFT_OUT.to_owned()));
    let real: usize =
        state.waiting.iter().map(|(record, _)| serde_json::to_vec(record).unwrap().len()).sum();
    assert!(real <= QUEUE_BYTES_MAX + 64 * state.waiting.len(), "{real}");
}

#[test]
fn a_queue_full_of_text_drops_the_oldest_and_says_how_many() {
    let events = Events::default();
    for _ in 0..QUEUE_BYTES_MAX / 50_000 {
        events.push(text(&"z".repeat(60_000)));
    }
    let state = events.lock();
    let AgentEvent::Status { text } = &state.waiting.front().unwrap().0.event else {
        panic!("no mark");
    };
    assert!(text.contains("events left out"), "{text}");
}

#[test]
fn a_record_fits_its_limit_even_when_every_byte_is_escaped() {
    for event in [
        text(&"\u{1}".repeat(200_000)),
        output("\"".repeat(200_000)),
        AgentEvent::ToolCall { id: "1".into(), name: "x".into(), input: "ä".repeat(100_000) },
    ] {
        let (record, size) = bounded(EventRecord { time: clock::wall_now(), event });
        assert!(size <= EVENT_BYTES_MAX);
        assert_eq!(serde_json::to_vec(&record).unwrap().len(), size);
    }
    let usage = AgentEvent::Usage { usage: Usage::default() };
    assert!(bounded(EventRecord { time: clock::wall_now(), event: usage }).1 < 512);
}

#[test]
fn after_a_final_refusal_nothing_waits() {
    let events = Events::default();
    events.push(text("x"));
    events.send_all(|_| Err(gone()));
    events.push(text("y"));
    events.flush(Duration::from_mins(1));
    assert_eq!(events.acknowledged(), 0);
}
