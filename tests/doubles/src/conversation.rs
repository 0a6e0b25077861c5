//! What a request of the Messages API says: which step, which turn, which script.

use serde_json::Value;

/// A request, reduced to what scripts look at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conversation {
    /// Model name.
    pub model: String,
    /// Text of the first user message, blocks joined by newlines.
    pub prompt: String,
    /// The step named by the line `Step: NAME` of the prompt; none for other callers.
    pub step: Option<String>,
    /// The script named by `[[script:NAME]]` in the prompt.
    pub script: Option<String>,
    /// Number of tool results so far.
    pub turn: usize,
    /// Whether the prompt holds the output of failing tests.
    pub has_feedback: bool,
    /// Names of the tools that the caller offers.
    pub tools: Vec<String>,
    /// Whether the answer is to be streamed.
    pub stream: bool,
}

impl Conversation {
    /// Reads a request body.
    pub fn parse(body: &Value) -> Self {
        let empty = Vec::new();
        let messages = body["messages"].as_array().unwrap_or(&empty);
        let prompt = messages
            .iter()
            .find(|message| message["role"] == "user")
            .map(|message| text_of(&message["content"]))
            .unwrap_or_default();
        let tools = body["tools"].as_array().unwrap_or(&empty);
        Self {
            model: body["model"].as_str().unwrap_or_default().to_owned(),
            step: line_after(&prompt, "Step: "),
            script: between(&prompt, "[[script:", "]]").map(|name| name.trim().to_owned()),
            turn: messages.iter().map(|message| tool_results(&message["content"])).sum(),
            has_feedback: prompt.contains("<failing-tests>"),
            tools: tools
                .iter()
                .filter_map(|tool| tool["name"].as_str())
                .map(str::to_owned)
                .collect(),
            stream: body["stream"].as_bool().unwrap_or(false),
            prompt,
        }
    }

    /// The file that the pull-request step is told to write.
    pub fn pull_request_file(&self) -> Option<&str> {
        between(&self.prompt, "The file: `", "`")
    }

    /// The task within the prompt.
    pub fn task(&self) -> &str {
        between(&self.prompt, "<task>\n", "\n</task>").unwrap_or(&self.prompt)
    }
}

fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => {
            let texts: Vec<_> = blocks.iter().filter_map(|block| block["text"].as_str()).collect();
            texts.join("\n")
        }
        _ => String::new(),
    }
}

fn tool_results(content: &Value) -> usize {
    let blocks = content.as_array().map_or(&[][..], Vec::as_slice);
    blocks.iter().filter(|block| block["type"] == "tool_result").count()
}

fn line_after(text: &str, prefix: &str) -> Option<String> {
    text.lines().find_map(|line| line.strip_prefix(prefix)).map(|rest| rest.trim().to_owned())
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    let rest = text.split_once(start)?.1;
    rest.split_once(end).map(|(inner, _)| inner)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn step_turn_and_script_come_from_the_conversation() {
        let body = json!({
            "model": "m", "stream": true, "tools": [{"name": "Bash"}],
            "messages": [
                {"role": "user", "content": [
                    {"type": "text", "text": "<system-reminder>x</system-reminder>"},
                    {"type": "text", "text": "Step: implement\n\n<task>\nDo [[script: break-once]]\n</task>"},
                ]},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "1"}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "Step: plan"}]},
            ],
        });
        let conversation = Conversation::parse(&body);
        assert_eq!(conversation.step.as_deref(), Some("implement"));
        assert_eq!(conversation.script.as_deref(), Some("break-once"));
        assert_eq!((conversation.turn, conversation.stream), (1, true));
        assert_eq!(conversation.tools, ["Bash"]);
        assert_eq!(conversation.task(), "Do [[script: break-once]]");
        assert!(!conversation.has_feedback);
    }

    #[test]
    fn anything_parses() {
        for body in [json!(null), json!([]), json!({"messages": 1}), json!({"messages": [1, {}]})] {
            assert_eq!(Conversation::parse(&body), Conversation::default());
        }
    }
}
