//! Reads a model request strictly and says what in it would reach past the gateway.
//!
//! The body is passed on as it came, so the gateway and the provider must read it alike: a key that
//! occurs twice is an error, since parsers differ in which one they take. What the provider itself
//! would fetch or run (server tools, MCP servers, images by URL) is egress that no node could stop.

use std::{collections::HashSet, fmt};

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

/// Types of tools that the client runs itself, by prefix; tools without a type are the client's too.
const CLIENT_TOOLS: [&str; 7] = [
    "custom",
    "bash_",
    "text_editor_",
    "memory_",
    "computer_",
    "tool_search_tool_",
    "tool_reference",
];
/// Server tools by the start of their dated types, wherever in the messages one is declared.
const SERVER_TOOLS: [&str; 4] = ["web_search_2", "web_fetch_2", "code_execution_2", "mcp_toolset"];
/// Longest model name.
const MODEL_BYTES_MAX: usize = 256;
/// Most entries of one object. The largest of honest requests are the properties of a tool's input, some
/// hundred; what a tool is given may be a map of some thousand.
const OBJECT_ENTRIES_MAX: usize = 20_000;
/// Most entries of all objects together. Each is three tokens at least, so that a context of a million
/// tokens holds no more than some 330,000. Their keys are kept while their objects are open: beside the
/// keys themselves these are some 30 MiB at most.
const ENTRIES_MAX: usize = 400_000;
/// Longest tool type that is quoted.
const TOOL_BYTES_MAX: usize = 64;

/// What matters of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The model asked for.
    pub model: String,
    /// The most that it may write.
    pub max_tokens: Option<u64>,
}

/// Why a request is not passed on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Not JSON, a key twice, or no model.
    #[error("the request is not a valid model request: {0}")]
    Malformed(String),
    /// More than any model takes, and more than is read here.
    #[error("the request has more entries than any model takes")]
    TooManyEntries,
    /// The provider would reach out by itself.
    #[error("{0} is not allowed here: it would reach the network past the gateway")]
    Forbidden(String),
}

/// Reads `body`; `server_tools` are prefixes of tool types that are allowed besides.
pub fn check(body: &[u8], server_tools: &[String]) -> Result<Facts, RequestError> {
    let mut scan = Scan { server_tools, ..Scan::default() };
    let mut json = serde_json::Deserializer::from_slice(body);
    let read = Node { at: At::Top, scan: &mut scan }.deserialize(&mut json);
    if scan.too_many_entries {
        return Err(RequestError::TooManyEntries);
    }
    read.and_then(|()| json.end()).map_err(|error| RequestError::Malformed(error.to_string()))?;
    if let Some(what) = scan.forbidden {
        return Err(RequestError::Forbidden(what));
    }
    let model = scan
        .model
        .filter(|model| !model.is_empty() && model.len() <= MODEL_BYTES_MAX)
        .ok_or_else(|| RequestError::Malformed("model is missing".to_owned()))?;
    Ok(Facts { model, max_tokens: scan.max_tokens })
}

#[derive(Default)]
struct Scan<'a> {
    server_tools: &'a [String],
    entries: usize,
    too_many_entries: bool,
    model: Option<String>,
    max_tokens: Option<u64>,
    forbidden: Option<String>,
}

impl Scan<'_> {
    fn forbid(&mut self, what: impl Into<String>) {
        self.forbidden.get_or_insert_with(|| what.into());
    }

    fn tool(&mut self, kind: &str) {
        let client = CLIENT_TOOLS.iter().any(|known| kind.starts_with(known));
        let allowed = self.server_tools.iter().any(|known| kind.starts_with(known.as_str()));
        if !client && !allowed {
            let kind = agent_operator::domain::text::truncate(kind, TOOL_BYTES_MAX);
            self.forbid(format!("tool {kind}"));
        }
    }
}

/// Where in the document a value stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Top,
    Model,
    MaxTokens,
    Tools,
    Tool,
    ToolType,
    ContentType,
    /// `source` of an image or document.
    Source,
    SourceType,
    /// Must be absent, null or an empty list.
    MustBeEmpty(&'static str),
    /// Content that may hold sources.
    Content,
    /// Data of the agent's own tools; the provider does not read it.
    Opaque,
}

impl At {
    fn member(self, key: &str) -> Self {
        match (self, key) {
            (Self::Top, "model") => Self::Model,
            (Self::Top, "max_tokens") => Self::MaxTokens,
            (Self::Top, "container") => Self::MustBeEmpty("container"),
            // Tools may also change in mid-conversation, inside a message.
            (Self::Top | Self::Content, "tools") => Self::Tools,
            (Self::Content, "tool") => Self::Tool,
            (Self::Top | Self::Content, "mcp_servers") => Self::MustBeEmpty("mcp_servers"),
            (Self::Content, "type") => Self::ContentType,
            (Self::Tool, "type") => Self::ToolType,
            (Self::Source, "type") => Self::SourceType,
            (Self::Tool | Self::Opaque, _) | (Self::Content, "input") => Self::Opaque,
            (Self::Content, "source") => Self::Source,
            _ => Self::Content,
        }
    }

    fn element(self) -> Self {
        match self {
            Self::Tools => Self::Tool,
            other => other,
        }
    }
}

struct Node<'a, 'b> {
    at: At,
    scan: &'a mut Scan<'b>,
}

impl Node<'_, '_> {
    fn value(self) {
        if let At::MustBeEmpty(what) = self.at {
            self.scan.forbid(what);
        }
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        self.value();
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        self.value();
        Ok(())
    }

    fn visit_u64<E>(self, number: u64) -> Result<(), E> {
        match self.at {
            At::MaxTokens => self.scan.max_tokens = Some(number),
            _ => self.value(),
        }
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        self.value();
        Ok(())
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        match self.at {
            At::Model => self.scan.model = Some(text.to_owned()),
            At::ToolType => self.scan.tool(text),
            At::ContentType if SERVER_TOOLS.iter().any(|tool| text.starts_with(tool)) => {
                self.scan.tool(text);
            }
            At::SourceType if matches!(text, "url" | "file") => {
                self.scan.forbid(format!("a source of type {text}"));
            }
            _ => self.value(),
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { at, scan } = self;
        Node { at, scan }.value();
        let mut keys = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            scan.entries += 1;
            if keys.len() == OBJECT_ENTRIES_MAX || scan.entries > ENTRIES_MAX {
                scan.too_many_entries = true;
                return Err(serde::de::Error::custom("too many entries"));
            }
            map.next_value_seed(Node { at: at.member(&key), scan })?;
            if !keys.insert(key) {
                return Err(serde::de::Error::custom("a key occurs twice"));
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Self { at, scan } = self;
        while seq.next_element_seed(Node { at: at.element(), scan })?.is_some() {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_text(text: &str) -> Result<Facts, RequestError> {
        check(text.as_bytes(), &[])
    }

    #[test]
    fn an_ordinary_request_passes() {
        let facts = check_text(
            r#"{"model":"claude-x","max_tokens":1,"stream":true,
                "system":[{"type":"text","text":"s","cache_control":{"type":"ephemeral"}}],
                "mcp_servers":[],"container":null,
                "tools":[{"name":"Bash","input_schema":{"type":"object","properties":{"url":{"type":"string"}}}},
                         {"type":"custom","name":"x"},{"type":"text_editor_20250728","name":"e"}],
                "messages":[{"role":"user","content":"hi"},
                  {"role":"assistant","content":[{"type":"tool_use","id":"1","name":"x",
                     "input":{"source":{"type":"url","url":"http://x"}}}]},
                  {"role":"user","content":[{"type":"image","source":{"type":"base64","data":""}}]}]}"#,
        );
        assert_eq!(facts, Ok(Facts { model: "claude-x".to_owned(), max_tokens: Some(1) }));
    }

    #[test]
    fn what_the_provider_would_fetch_or_run_is_refused() {
        for text in [
            r#"{"model":"m","tools":[{"type":"web_fetch_20250910","name":"web_fetch"}]}"#,
            r#"{"model":"m","tools":[{"type":"web_search_20250305"}]}"#,
            r#"{"model":"m","tools":[{"type":"code_execution_20250522"}]}"#,
            r#"{"model":"m","mcp_servers":[{"type":"url","url":"https://evil"}]}"#,
            r#"{"model":"m","container":"c"}"#,
            r#"{"model":"m","messages":[{"content":[{"type":"x","tools":[{"type":"web_fetch_20250910"}]}]}]}"#,
            r#"{"model":"m","messages":[{"content":[{"tool":{"type":"code_execution_20250825"}}]}]}"#,
            r#"{"model":"m","messages":[{"content":[{"type":"web_search_20250305"}]}]}"#,
            r#"{"model":"m","messages":[{"role":"user","content":[{"type":"image","source":{"type":"url","url":"https://evil/?x"}}]}]}"#,
            r#"{"model":"m","messages":[{"content":[{"type":"tool_result","content":[{"type":"document","source":{"type":"file","file_id":"f"}}]}]}]}"#,
        ] {
            assert!(matches!(check_text(text), Err(RequestError::Forbidden(_))), "{text}");
        }
        let listed = ["web_search_".to_owned()];
        let text = br#"{"model":"m","tools":[{"type":"web_search_20250305"}]}"#;
        assert!(check(text, &listed).is_ok());
    }

    #[test]
    fn documents_that_parsers_read_differently_are_refused() {
        for text in [
            r#"{"model":"m","tools":[],"tools":[{"type":"web_fetch_1"}]}"#,
            r#"{"model":"cheap","model":"dear"}"#,
            r#"{"model":"m"} {"model":"n"}"#,
            r#"{"model":"m","mo\u0064el":"n"}"#,
            r#"{"messages":[]}"#,
            "[]",
            "",
            "{",
        ] {
            assert!(matches!(check_text(text), Err(RequestError::Malformed(_))), "{text}");
        }
        let deep = format!(r#"{{"model":"m","messages":{}"#, "[".repeat(100_000));
        assert!(matches!(check_text(&deep), Err(RequestError::Malformed(_))));
    }
    /// A request with `objects` of as many entries, one in the other.
    fn nested(objects: usize, entries: usize) -> String {
        let more: Vec<_> = (1..entries).map(|key| format!("\"{key:x}\":0,")).collect();
        let open = format!("{{{}\"in\":", more.concat()).repeat(objects);
        format!(r#"{{"model":"m","metadata":{open}0{}}}"#, "}".repeat(objects))
    }

    #[test]
    fn an_object_has_a_limited_number_of_entries() {
        assert!(check_text(&nested(1, OBJECT_ENTRIES_MAX)).is_ok());
        let refused = check_text(&nested(1, OBJECT_ENTRIES_MAX + 1));
        assert_eq!(refused, Err(RequestError::TooManyEntries));
    }

    #[test]
    fn all_objects_together_have_a_limited_number_of_entries() {
        let objects = ENTRIES_MAX / 10_000;
        // Two more are the request's own.
        assert_eq!(check_text(&nested(objects, 10_000)), Err(RequestError::TooManyEntries));
        assert!(check_text(&nested(objects, 9_999)).is_ok());
        // Behind one another as in one another.
        let item = r#"{"a":0,"b":0},"#.repeat(ENTRIES_MAX / 2);
        let list = format!(r#"{{"model":"m","messages":[{item}0]}}"#);
        assert_eq!(check_text(&list), Err(RequestError::TooManyEntries));
    }
}
