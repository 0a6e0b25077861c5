//! The CLI's `stream-json`: one JSON object a line.

use agent_operator::domain::{
    Reason, Usage,
    event::AgentEvent,
    text::{printable, truncate},
};
use serde_json::Value;

use crate::{events::Events, output::Printer, process::Sink, result::Failure};

/// Longest line that is parsed; longer ones (an image in a tool result) are passed over with a
/// note. They are drained all the same.
const LINE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Tool calls and results are excerpts on the log; the events have more of them.
const CALL_BYTES_MAX: usize = 240;
/// See [`CALL_BYTES_MAX`].
const RESULT_LINES_MAX: usize = 12;
/// See [`CALL_BYTES_MAX`].
const RESULT_BYTES_MAX: usize = 1200;
/// Dollars to millionths.
const MICRO_USD: f64 = 1_000_000.0;
/// Above this a reported cost is taken for nonsense: f64 is exact below 2^53.
const COST_MICRO_USD_MAX: f64 = 9_007_199_254_740_992.0;

/// The CLI's last event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finished {
    /// Final text.
    pub(super) text: String,
    /// What kind of failure, if it is one (`error_max_turns`, ...).
    pub(super) error: Option<String>,
    /// HTTP status of the model API, where that was the failure.
    pub(super) api_status: Option<u64>,
}

impl Finished {
    /// The failure that this end means.
    pub(super) fn into_failure(self, exit_code: i32) -> Failure {
        let words = printable(self.text.trim());
        let kind = self.error.unwrap_or_else(|| "failed".to_owned());
        let words = if words.is_empty() { kind } else { words };
        let message = format!("Claude Code failed: {}", truncate(&words, 1024));
        // Which retry budget is used; what was really refused, the gateway has counted itself.
        let unavailable = self.api_status.is_some_and(|status| status == 429 || status >= 500);
        let reason = if unavailable { Reason::ProviderUnavailable } else { Reason::AgentFailed };
        Failure::with_exit_code(reason, message, exit_code)
    }
}

/// Reads the stream as it comes.
pub(super) struct Stream<'a> {
    printer: &'a Printer,
    events: &'a Events,
    line: Vec<u8>,
    skipping: bool,
    finished: Option<Finished>,
    usage: Usage,
}

impl<'a> Stream<'a> {
    /// Shows on `printer`, sends to `events`.
    pub(super) fn new(printer: &'a Printer, events: &'a Events) -> Self {
        let usage = Usage::default();
        Self { printer, events, line: Vec::new(), skipping: false, finished: None, usage }
    }

    /// The last event, and what the agent says it used.
    pub(super) fn finish(self) -> (Option<Finished>, Usage) {
        (self.finished, self.usage)
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        if std::mem::take(&mut self.skipping) {
            self.printer.print("[an event of more than 8 MiB is not shown]");
            return;
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        match serde_json::from_slice::<Value>(&line) {
            Ok(event) => self.event(&event),
            Err(_) => self.printer.print(&String::from_utf8_lossy(&line)),
        }
    }

    fn event(&mut self, event: &Value) {
        match event["type"].as_str().unwrap_or_default() {
            "system" if event["subtype"] == "init" => {
                let text = format!("model {}", event["model"].as_str().unwrap_or("unknown"));
                self.printer.print(&text);
                self.events.push(AgentEvent::Status { text });
            }
            "system" if event["subtype"] == "api_retry" => self.api_retry(event),
            "assistant" => blocks(event).iter().for_each(|block| self.assistant(block)),
            "user" => blocks(event).iter().for_each(|block| self.tool_result(block)),
            "result" => self.result(event),
            // Notices for user interfaces.
            "system" => {}
            // Other kinds come and go with versions of the CLI.
            kind => self.printer.print(truncate(&format!("[{kind}]"), CALL_BYTES_MAX)),
        }
    }

    fn api_retry(&self, event: &Value) {
        let field = |name: &str| match &event[name] {
            Value::Null => "?".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let text = format!(
            "the model call failed ({} {}): retry {} of {}",
            field("error_status"),
            field("error"),
            field("attempt"),
            field("max_retries")
        );
        self.printer.print(&text);
        self.events.push(AgentEvent::Status { text });
    }

    fn assistant(&self, block: &Value) {
        match block["type"].as_str().unwrap_or_default() {
            "text" => {
                let text = block["text"].as_str().unwrap_or_default().to_owned();
                if !text.trim().is_empty() {
                    self.printer.print(text.trim());
                    self.events.push(AgentEvent::Text { text });
                }
            }
            "tool_use" => {
                let name = block["name"].as_str().unwrap_or("tool").to_owned();
                let what = one_line(&summary(&block["input"]));
                self.printer.print(&format!("→ {name}: {}", truncate(&what, CALL_BYTES_MAX)));
                self.events.push(AgentEvent::ToolCall {
                    id: block["id"].as_str().unwrap_or_default().to_owned(),
                    name,
                    input: block["input"].to_string(),
                });
            }
            // Thoughts are neither shown nor kept.
            _ => {}
        }
    }

    fn tool_result(&self, block: &Value) {
        if block["type"] != "tool_result" {
            return;
        }
        let output = content_text(&block["content"]);
        let is_error = block["is_error"].as_bool().unwrap_or(false);
        let id = block["tool_use_id"].as_str().unwrap_or_default().to_owned();
        self.show_result(&output, is_error);
        self.events.push(AgentEvent::ToolResult { id, output, is_error });
    }

    fn show_result(&self, output: &str, is_error: bool) {
        let mark = if is_error { "✗" } else { "│" };
        let excerpt = truncate(output, RESULT_BYTES_MAX);
        for line in excerpt.lines().take(RESULT_LINES_MAX) {
            self.printer.print(&format!("  {mark} {line}"));
        }
        let lines = output.lines().count();
        let shown = excerpt.lines().count().min(RESULT_LINES_MAX);
        if lines > shown {
            self.printer.print(&format!("  {mark} ... {} more lines", lines - shown));
        }
    }

    fn result(&mut self, event: &Value) {
        let count = |name: &str| event["usage"][name].as_u64().unwrap_or(0);
        self.usage = Usage {
            turns: event["num_turns"].as_u64().unwrap_or(0),
            input_tokens: count("input_tokens"),
            output_tokens: count("output_tokens"),
            cache_read_tokens: count("cache_read_input_tokens"),
            cache_write_tokens: count("cache_creation_input_tokens"),
            cost_micro_usd: micro_usd(event["total_cost_usd"].as_f64()),
        };
        self.events.push(AgentEvent::Usage { usage: self.usage });
        let subtype = event["subtype"].as_str().unwrap_or("unknown").to_owned();
        let failed = event["is_error"].as_bool().unwrap_or(subtype != "success");
        self.finished = Some(Finished {
            text: event["result"].as_str().unwrap_or_default().to_owned(),
            error: failed.then_some(subtype),
            api_status: event["api_error_status"].as_u64(),
        });
    }
}

impl Sink for Stream<'_> {
    fn take(&mut self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            if !self.skipping {
                self.line.extend_from_slice(part);
                if self.line.len() > LINE_BYTES_MAX {
                    self.skipping = true;
                    self.line = Vec::new();
                }
            }
            if part.ends_with(b"\n") {
                self.end_line();
            }
        }
    }

    fn end(&mut self) {
        self.end_line();
    }
}

fn blocks(event: &Value) -> &[Value] {
    event["message"]["content"].as_array().map_or(&[], Vec::as_slice)
}

/// Text of a tool result: a string, or a list of blocks.
fn content_text(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => blocks
            .iter()
            .map(|block| match block["text"].as_str() {
                Some(text) => text.to_owned(),
                None => format!("[{}]", block["type"].as_str().unwrap_or("block")),
            })
            .collect::<Vec<_>>()
            .join("\n"),
        _ => String::new(),
    }
}

/// The one argument that tells a person what a tool call does.
fn summary(input: &Value) -> String {
    const TELLING: [&str; 8] =
        ["command", "file_path", "path", "pattern", "url", "query", "description", "prompt"];
    TELLING
        .into_iter()
        .find_map(|name| input[name].as_str().map(str::to_owned))
        .unwrap_or_else(|| input.to_string())
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Dollars as whole micro-dollars; what is not a sensible number counts as 0.
fn micro_usd(dollars: Option<f64>) -> u64 {
    let micro = dollars.unwrap_or(0.0) * MICRO_USD;
    // The comparison is false for NaN.
    if (0.0..COST_MICRO_USD_MAX).contains(&micro) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked")]
        let micro = micro.round() as u64;
        return micro;
    }
    0
}

#[cfg(test)]
mod tests;
