//! Answers in the form of the Messages API.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::{Value, json};

use crate::{conversation::Conversation, script::Answer};

/// Characters a token, roughly; usage only has to be plausible and reproducible.
const CHARACTERS_PER_TOKEN: usize = 4;
/// Size of one streamed piece of text.
const PIECE_CHARS: usize = 40;

/// Token counts of one answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Not cached.
    pub input: usize,
    /// Read from the cache.
    pub cache_read: usize,
    /// Written to the cache.
    pub cache_write: usize,
    /// Answered.
    pub output: usize,
}

impl Tokens {
    /// Counts for a request of `request_bytes` and its answer. A first request fills the cache, later
    /// ones read most of it, as the CLI's do.
    pub fn count(conversation: &Conversation, request_bytes: usize, answer: &Answer) -> Self {
        let total = (request_bytes / CHARACTERS_PER_TOKEN).max(10);
        let (cache_read, cache_write) =
            if conversation.turn == 0 { (0, total * 9 / 10) } else { (total * 8 / 10, total / 10) };
        let answered = match answer {
            Answer::Tool { text, input, .. } => text.len() + input.to_string().len(),
            Answer::Text(text) => text.len(),
            Answer::Error { .. } => 0,
        };
        let input = total - cache_read - cache_write;
        Self { input, cache_read, cache_write, output: answered / CHARACTERS_PER_TOKEN + 1 }
    }

    fn json(self, output: usize) -> Value {
        json!({
            "input_tokens": self.input,
            "cache_read_input_tokens": self.cache_read,
            "cache_creation_input_tokens": self.cache_write,
            "output_tokens": output,
            "service_tier": "standard",
        })
    }
}

/// One answer, ready to be written.
#[derive(Debug)]
pub struct Message<'a> {
    /// What was asked.
    pub conversation: &'a Conversation,
    /// What is answered.
    pub answer: &'a Answer,
    /// Counts.
    pub tokens: Tokens,
}

impl Message<'_> {
    /// The whole message as one JSON object.
    pub fn json(&self) -> Value {
        let mut message = self.frame();
        message["content"] = Value::Array(self.blocks());
        message["stop_reason"] = self.stop_reason().into();
        message["usage"] = self.tokens.json(self.tokens.output);
        message
    }

    /// The message as server-sent events.
    pub fn events(&self) -> Vec<String> {
        let mut start = self.frame();
        start["usage"] = self.tokens.json(1);
        let mut events =
            vec![event("message_start", &json!({ "message": start })), event("ping", &json!({}))];
        for (index, block) in self.blocks().into_iter().enumerate() {
            block_events(index, &block, &mut events);
        }
        let delta = json!({ "stop_reason": self.stop_reason(), "stop_sequence": null });
        let usage = self.tokens.json(self.tokens.output);
        events.push(event("message_delta", &json!({ "delta": delta, "usage": usage })));
        events.push(event("message_stop", &json!({})));
        events
    }

    fn frame(&self) -> Value {
        json!({
            "id": format!("msg_scripted_{:016x}", self.hash()),
            "type": "message",
            "role": "assistant",
            "model": self.conversation.model,
            "content": [],
            "stop_reason": null,
            "stop_sequence": null,
        })
    }

    fn blocks(&self) -> Vec<Value> {
        match self.answer {
            Answer::Tool { text, name, input } => {
                let id = format!("toolu_scripted_{:016x}", self.hash());
                vec![
                    json!({ "type": "text", "text": text }),
                    json!({ "type": "tool_use", "id": id, "name": name, "input": input }),
                ]
            }
            Answer::Text(text) => vec![json!({ "type": "text", "text": text })],
            Answer::Error { .. } => Vec::new(),
        }
    }

    fn stop_reason(&self) -> &'static str {
        if matches!(self.answer, Answer::Tool { .. }) { "tool_use" } else { "end_turn" }
    }

    /// Ids differ from turn to turn and from task to task, and are the same on every run.
    fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.conversation.prompt, &self.conversation.step, self.conversation.turn)
            .hash(&mut hasher);
        hasher.finish()
    }
}

fn block_events(index: usize, block: &Value, events: &mut Vec<String>) {
    let (empty, deltas) = if block["type"] == "tool_use" {
        let mut empty = block.clone();
        empty["input"] = json!({});
        let pieces = pieces(&block["input"].to_string());
        let delta = |piece| json!({ "type": "input_json_delta", "partial_json": piece });
        (empty, pieces.into_iter().map(delta).collect::<Vec<_>>())
    } else {
        let pieces = pieces(block["text"].as_str().unwrap_or_default());
        let delta = |piece| json!({ "type": "text_delta", "text": piece });
        (json!({ "type": "text", "text": "" }), pieces.into_iter().map(delta).collect())
    };
    events.push(event("content_block_start", &json!({ "index": index, "content_block": empty })));
    for delta in deltas {
        events.push(event("content_block_delta", &json!({ "index": index, "delta": delta })));
    }
    events.push(event("content_block_stop", &json!({ "index": index })));
}

fn pieces(text: &str) -> Vec<String> {
    let characters: Vec<char> = text.chars().collect();
    characters.chunks(PIECE_CHARS).map(|piece| piece.iter().collect()).collect()
}

fn event(kind: &str, data: &Value) -> String {
    let mut data = data.clone();
    data["type"] = kind.into();
    format!("event: {kind}\ndata: {data}\n\n")
}

/// The body of an API error.
pub fn error(kind: &str, message: &str) -> Value {
    json!({ "type": "error", "error": { "type": kind, "message": message } })
}
