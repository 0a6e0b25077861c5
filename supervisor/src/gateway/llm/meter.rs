//! Counts what a model call used while its answer passes by: server-sent events as they come, or a
//! JSON body at its end. Only the provider's own figures count, never the agent's.

use std::{borrow::Cow, fmt};

use agent_operator::domain::Usage;
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;

/// Longest event line that is looked at. The events with figures are short; text deltas may be long
/// and count by their length alone.
const LINE_BYTES_MAX: usize = 256 * 1024;
/// Longest JSON answer: an answer of the largest models is below 1 MiB.
const JSON_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Longest answer in events. The longest of a model is 128,000 tokens, and with an event of 200 bytes
/// for each it is below 26 MiB; what has no end but pings in time is no answer.
pub(in crate::gateway) const EVENTS_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes of text that make one token, for what ends before its final figures.
pub(super) const BYTES_PER_TOKEN: u64 = 4;

/// The answer is longer than any honest one, so it is not passed on any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the model's answer is too long")]
pub struct TooLong;

/// How the answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Tokens; turns and cost are not set here.
    pub usage: Usage,
    /// Of the tokens written to the cache, those that it keeps for an hour, which cost more.
    pub cached_for_an_hour: u64,
    /// Whether the provider has said what it read.
    pub told: bool,
    /// Model that answered, if the answer says so.
    pub model: Option<String>,
    /// The provider's error inside the answer.
    pub error: Option<String>,
    /// Whether the answer came to its proper end.
    pub complete: bool,
}

/// A running count of one answer.
#[derive(Debug)]
pub struct Meter {
    format: Format,
    /// Bytes of events so far.
    bytes: usize,
    line: Vec<u8>,
    skipping: bool,
    seen: Seen,
}

#[derive(Debug, PartialEq, Eq)]
enum Format {
    Events,
    Json,
}

#[derive(Debug, Default)]
struct Seen {
    usage: Usage,
    cached_for_an_hour: u64,
    told: bool,
    text_bytes: u64,
    model: Option<String>,
    error: Option<String>,
    complete: bool,
}

impl Meter {
    /// A meter for server-sent events.
    pub fn events() -> Self {
        let (format, seen) = (Format::Events, Seen::default());
        Self { format, bytes: 0, line: Vec::new(), skipping: false, seen }
    }

    /// A meter for one JSON document.
    pub fn json() -> Self {
        Self { format: Format::Json, ..Self::events() }
    }

    /// Looks at the next bytes of the answer.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        if self.format == Format::Json {
            self.line.extend_from_slice(bytes);
            return if self.line.len() > JSON_BYTES_MAX { Err(TooLong) } else { Ok(()) };
        }
        self.bytes = self.bytes.saturating_add(bytes.len());
        if self.bytes > EVENTS_BYTES_MAX {
            return Err(TooLong);
        }
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let ends = piece.ends_with(b"\n");
            // Most lines come as a whole, and need not be kept.
            if ends && self.line.is_empty() && !self.skipping && piece.len() <= LINE_BYTES_MAX {
                self.seen.line(piece);
                continue;
            }
            if self.line.len() + piece.len() > LINE_BYTES_MAX {
                self.seen.text_bytes += u64::try_from(self.line.len()).unwrap_or(u64::MAX);
                self.line.clear();
                self.skipping = true;
            }
            if self.skipping {
                self.seen.text_bytes += u64::try_from(piece.len()).unwrap_or(u64::MAX);
            } else {
                self.line.extend_from_slice(piece);
            }
            if ends {
                if !self.skipping {
                    self.seen.line(&self.line);
                }
                self.line.clear();
                self.skipping = false;
            }
        }
        Ok(())
    }

    /// The count; an answer that broke off is counted by what was seen of it.
    pub fn finish(mut self) -> Counted {
        match self.format {
            Format::Json => self.seen.document(&self.line),
            Format::Events => {
                self.seen.line(&self.line);
                if !self.seen.complete {
                    let least = self.seen.text_bytes.div_ceil(BYTES_PER_TOKEN);
                    let output = &mut self.seen.usage.output_tokens;
                    *output = (*output).max(least);
                }
            }
        }
        let Seen { usage, cached_for_an_hour, told, model, error, complete, .. } = self.seen;
        Counted { usage, cached_for_an_hour, told, model, error, complete }
    }
}

/// The parts of an event that matter here. Nearly all events are deltas, so nothing of a delta is copied.
#[derive(Debug, Deserialize)]
struct Event<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    message: Option<Message>,
    usage: Option<Value>,
    #[serde(default)]
    delta: TextBytes,
    error: Option<Value>,
}

/// Bytes of the strings in an object, whatever their names; 0 for anything else.
#[derive(Debug, Default, PartialEq, Eq)]
struct TextBytes(u64);

impl<'de> Deserialize<'de> for TextBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Texts { of_object: true }).map(Self)
    }
}

/// Counts the strings of an object, or (of one of its values) a string itself.
struct Texts {
    of_object: bool,
}

#[derive(Debug, Deserialize)]
struct Message {
    model: Option<String>,
    usage: Option<Value>,
}

/// A value of an object.
struct Text(u64);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Texts { of_object: false }).map(Self)
    }
}

impl<'de> Visitor<'de> for Texts {
    type Value = u64;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<u64, A::Error> {
        let mut bytes = 0_u64;
        while map.next_key::<IgnoredAny>()?.is_some() {
            let Text(text) = map.next_value()?;
            bytes = bytes.saturating_add(text);
        }
        Ok(if self.of_object { bytes } else { 0 })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<u64, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(0)
    }

    fn visit_str<E>(self, text: &str) -> Result<u64, E> {
        let bytes = u64::try_from(text.len()).unwrap_or(u64::MAX);
        Ok(if self.of_object { 0 } else { bytes })
    }

    fn visit_bool<E>(self, _: bool) -> Result<u64, E> {
        Ok(0)
    }

    fn visit_i64<E>(self, _: i64) -> Result<u64, E> {
        Ok(0)
    }

    fn visit_u64<E>(self, _: u64) -> Result<u64, E> {
        Ok(0)
    }

    fn visit_f64<E>(self, _: f64) -> Result<u64, E> {
        Ok(0)
    }

    fn visit_unit<E>(self) -> Result<u64, E> {
        Ok(0)
    }
}

impl Seen {
    fn line(&mut self, line: &[u8]) {
        let Some(data) = line.strip_prefix(b"data:") else { return };
        let Ok(event) = serde_json::from_slice::<Event>(data) else { return };
        match event.kind.as_ref() {
            "content_block_delta" => self.text_bytes += event.delta.0,
            "error" => self.error = Some(error_text(event.error.as_ref())),
            "message_stop" => self.complete = true,
            _ => {
                if let Some(message) = event.message {
                    self.model = message.model.or_else(|| self.model.take());
                    self.usage(message.usage.as_ref());
                }
                self.usage(event.usage.as_ref());
            }
        }
    }

    fn document(&mut self, bytes: &[u8]) {
        let Ok(message) = serde_json::from_slice::<Message>(bytes) else { return };
        self.complete = message.usage.is_some();
        self.usage(message.usage.as_ref());
        self.model = message.model;
    }

    /// Figures are cumulative within one answer, so the highest counts.
    fn usage(&mut self, usage: Option<&Value>) {
        let Some(usage) = usage else { return };
        let told = |path: &str| usage.pointer(path).and_then(Value::as_u64);
        self.told |= told("/input_tokens").is_some();
        let most = |known: &mut u64, path| *known = (*known).max(told(path).unwrap_or(0));
        most(&mut self.usage.input_tokens, "/input_tokens");
        most(&mut self.usage.output_tokens, "/output_tokens");
        most(&mut self.usage.cache_read_tokens, "/cache_read_input_tokens");
        most(&mut self.usage.cache_write_tokens, "/cache_creation_input_tokens");
        most(&mut self.cached_for_an_hour, "/cache_creation/ephemeral_1h_input_tokens");
    }
}

/// The kind of a provider's error; its message may quote the prompt and stays out of our texts.
fn error_text(error: Option<&Value>) -> String {
    let kind = error.and_then(|error| error.get("type")).and_then(Value::as_str);
    let known = kind.filter(|kind| {
        kind.len() <= 64 && kind.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
    });
    known.unwrap_or("error").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = "event: message_start\n\
        data: {\"type\":\"message_start\",\"message\":{\"model\":\"claude-x\",\"usage\":{\"input_tokens\":10,\"cache_read_input_tokens\":7,\"cache_creation_input_tokens\":3,\"output_tokens\":1}}}\n\n\
        event: content_block_delta\n\
        data: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"hello usage\"}}\r\n\r\n\
        data: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":25}}\n\n\
        data: {\"type\":\"message_stop\"}\n\n";

    fn figures(usage: &Usage) -> [u64; 4] {
        [usage.input_tokens, usage.output_tokens, usage.cache_read_tokens, usage.cache_write_tokens]
    }

    #[test]
    fn a_stream_is_counted_alike_whatever_its_pieces() {
        for size in [1, 2, 7, 64, STREAM.len()] {
            let mut meter = Meter::events();
            for piece in STREAM.as_bytes().chunks(size) {
                meter.feed(piece).unwrap();
            }
            let counted = meter.finish();
            assert_eq!(figures(&counted.usage), [10, 25, 7, 3], "pieces of {size}");
            assert_eq!(counted.model.as_deref(), Some("claude-x"));
            assert!(counted.complete && counted.error.is_none());
        }
    }

    #[test]
    fn a_stream_that_breaks_off_counts_the_text_that_was_seen() {
        let mut meter = Meter::events();
        let cut = STREAM.find("data: {\"type\":\"message_delta").unwrap();
        meter.feed(&STREAM.as_bytes()[..cut]).unwrap();
        let text = "x".repeat(400);
        let delta = format!(
            "data: {{\"type\":\"content_block_delta\",\"delta\":{{\"type\":\"t\",\"text\":\"{text}\"}}}}\n"
        );
        meter.feed(delta.as_bytes()).unwrap();
        let counted = meter.finish();
        assert!(!counted.complete);
        assert!(counted.usage.output_tokens >= 100);
        assert_eq!((counted.usage.input_tokens, counted.told), (10, true));
    }

    #[test]
    fn an_answer_without_figures_is_told_from_one_that_used_nothing() {
        let told = |mut meter: Meter, answer: &str| {
            meter.feed(answer.as_bytes()).unwrap();
            meter.finish().told
        };
        for nothing in ["", "{}", r#"{"model":"m","usage":{}}"#, r#"{"usage":{"input_tokens":1"#] {
            assert!(!told(Meter::json(), nothing), "{nothing}");
        }
        assert!(told(Meter::json(), r#"{"usage":{"input_tokens":0}}"#));
        assert!(!told(Meter::events(), "data: {\"type\":\"ping\"}\n\n"));
    }

    #[test]
    fn the_strings_of_a_delta_count_whatever_else_it_has() {
        let bytes = |json: &str| serde_json::from_str::<TextBytes>(json).unwrap().0;
        assert_eq!(
            bytes(r#"{"type":"t","text":"a\u00e9\n"}"#),
            5,
            "as they read, not as they are escaped"
        );
        assert_eq!(
            bytes(r#"{"text":"ab","n":[1,"x"],"o":{"text":"x"},"f":1.5,"i":-1,"b":true,"u":null}"#),
            2
        );
        for other in ["null", "\"text\"", "[\"text\"]", "3", "{}"] {
            assert_eq!(bytes(other), 0, "{other}");
        }
        assert!(serde_json::from_str::<TextBytes>("{\"text\":").is_err());
    }

    #[test]
    fn an_error_inside_a_stream_is_noticed_without_its_words() {
        let mut meter = Meter::events();
        meter
            .feed(b"data: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"secret\"}}\n")
            .unwrap();
        assert_eq!(meter.finish().error.as_deref(), Some("overloaded_error"));
    }

    #[test]
    fn a_json_answer_is_counted_and_odd_figures_are_not() {
        let mut meter = Meter::json();
        meter.feed(br#"{"model":"m","usage":{"input_tokens":5,"#).unwrap();
        meter.feed(br#""output_tokens":-3,"cache_read_input_tokens":1e300}}"#).unwrap();
        let counted = meter.finish();
        assert_eq!(figures(&counted.usage), [5, 0, 0, 0]);
        assert!(counted.complete);
    }

    #[test]
    fn what_the_cache_keeps_for_an_hour_is_told_apart() {
        let start = r#"data: {"type":"message_start","message":{"usage":{"input_tokens":1,"cache_creation_input_tokens":9,"cache_creation":{"ephemeral_5m_input_tokens":2,"ephemeral_1h_input_tokens":7}}}}"#;
        let mut meter = Meter::events();
        meter.feed(start.as_bytes()).unwrap();
        // The last event repeats the sum without its parts.
        meter.feed(b"\ndata: {\"type\":\"message_delta\",\"usage\":{\"cache_creation_input_tokens\":9}}\n").unwrap();
        let counted = meter.finish();
        assert_eq!((counted.usage.cache_write_tokens, counted.cached_for_an_hour), (9, 7));
    }

    #[test]
    fn long_lines_are_skipped_in_bounded_memory() {
        let mut meter = Meter::events();
        for _ in 0..100 {
            meter.feed(&vec![b'x'; 64 * 1024]).unwrap();
            assert!(meter.line.len() <= LINE_BYTES_MAX);
        }
        meter.feed(b"\n").unwrap();
        meter.feed(STREAM.as_bytes()).unwrap();
        assert_eq!(meter.finish().usage.output_tokens, 25);
        let mut json = Meter::json();
        assert_eq!(json.feed(&vec![b' '; JSON_BYTES_MAX + 1]), Err(TooLong));
    }
}
