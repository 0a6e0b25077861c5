//! Model calls: requests from a sandbox, answers from a provider.

use agent_operator_doubles::fuzz::fuzz;
use agent_operator_supervisor::gateway::llm::{
    meter::Meter,
    request::{RequestError, check},
};
use serde_json::Value;

const REQUESTS: [&str; 5] = [
    r#"{"model":"m","max_tokens":5,"messages":[{"role":"user","content":"hi"}]}"#,
    r#"{"model":"m","tools":[{"name":"Bash","input_schema":{"type":"object"}},{"type":"bash_20250124","name":"bash"}],"messages":[]}"#,
    r#"{"model":"m","tools":[{"type":"web_search_20250305","name":"web_search"}],"messages":[]}"#,
    r#"{"model":"m","mcp_servers":[{"type":"url","url":"https://attacker.example"}],"messages":[]}"#,
    r#"{"model":"m","messages":[{"role":"user","content":[{"type":"image","source":{"type":"url","url":"https://attacker.example"}}]}]}"#,
];

/// Types of tools that the client runs; all others reach out from the provider.
const CLIENT_TOOLS: [&str; 5] = ["custom", "bash_", "text_editor_", "memory_", "computer_"];

/// What an independent reading of the document finds that must not pass; none of it may be missed.
fn reaches_out(body: &Value) -> bool {
    let is_set = |field: &str| match &body[field] {
        Value::Null => false,
        Value::Array(items) => !items.is_empty(),
        _ => true,
    };
    let tools = body["tools"].as_array().into_iter().flatten();
    let types = tools.filter_map(|tool| tool["type"].as_str());
    let mut foreign = types.filter(|kind| {
        let other = ["tool_search_tool_", "tool_reference"];
        !CLIENT_TOOLS.iter().chain(&other).any(|known| kind.starts_with(known))
    });
    is_set("mcp_servers") || is_set("container") || foreign.next().is_some()
}

#[test]
fn a_request_that_passes_reads_alike_to_another_parser_and_reaches_nothing() {
    let (mut passed, mut forbidden) = (0_u32, 0_u32);
    fuzz(&REQUESTS.map(|text| text.as_bytes().to_vec()), |bytes| match check(bytes, &[]) {
        Ok(facts) => {
            passed += 1;
            let body: Value = serde_json::from_slice(bytes).expect("it is JSON to others as well");
            assert_eq!(body["model"].as_str(), Some(facts.model.as_str()));
            assert!(!reaches_out(&body), "{body}");
        }
        Err(RequestError::Forbidden(what)) => {
            forbidden += 1;
            assert!(what.len() < 200, "{what}");
        }
        Err(RequestError::Malformed(_) | RequestError::TooManyEntries) => {}
    });
    assert!(passed > 1 && forbidden > 3);
}

const ANSWERS: [&str; 3] = [
    "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"model\":\"m\",\"usage\":{\"input_tokens\":10,\"output_tokens\":1,\"cache_read_input_tokens\":3}}}\n\nevent: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"hello\"}}\n\nevent: message_delta\ndata: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":5}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
    "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"x\"}}\n\n",
    "{\"model\":\"m\",\"usage\":{\"input_tokens\":1,\"output_tokens\":2},\"content\":[]}",
];

#[test]
fn an_answer_counts_alike_in_whatever_pieces_it_comes() {
    let mut complete = 0_u32;
    fuzz(&ANSWERS.map(|text| text.as_bytes().to_vec()), |bytes| {
        for meter in [Meter::events, Meter::json] {
            let mut whole = meter();
            whole.feed(bytes).unwrap();
            let whole = whole.finish();
            for size in [1, 7, 64] {
                let mut pieces = meter();
                bytes.chunks(size).for_each(|piece| pieces.feed(piece).unwrap());
                assert_eq!(pieces.finish(), whole, "in pieces of {size}");
            }
            complete += u32::from(whole.complete);
        }
    });
    assert!(complete > 1);
}
