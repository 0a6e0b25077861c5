use super::*;

fn parse(lines: &[&str]) -> (Option<Finished>, Usage) {
    let (printer, _) = Printer::start(std::io::sink());
    let events = Events::default();
    let mut stream = Stream::new(&printer, &events);
    for line in lines {
        // In two chunks, as a pipe may deliver it.
        let (head, tail) = line.as_bytes().split_at(line.len() / 2);
        stream.take(head);
        stream.take(tail);
        stream.take(b"\n");
    }
    stream.end();
    stream.finish()
}

#[test]
fn a_good_run_ends_with_text_and_usage() {
    let (finished, usage) = parse(&[
        r#"{"type":"system","subtype":"init","model":"m","tools":["Bash"]}"#,
        r#"{"type":"assistant","message":{"content":[{"type":"text","text":"hi"},{"type":"tool_use","id":"t","name":"Bash","input":{"command":"ls"}}]}}"#,
        r#"{"type":"user","message":{"content":[{"type":"tool_result","tool_use_id":"t","content":[{"type":"text","text":"a\nb"}]}]}}"#,
        r#"{"type":"result","subtype":"success","is_error":false,"result":"done","num_turns":2,"total_cost_usd":0.0123,"usage":{"input_tokens":10,"output_tokens":5,"cache_read_input_tokens":3,"cache_creation_input_tokens":2}}"#,
    ]);
    let finished = finished.unwrap();
    assert_eq!((finished.text.as_str(), &finished.error), ("done", &None));
    assert_eq!((usage.turns, usage.input_tokens, usage.output_tokens), (2, 10, 5));
    assert_eq!((usage.cache_read_tokens, usage.cache_write_tokens), (3, 2));
    assert_eq!(usage.cost_micro_usd, 12_300);
}

#[test]
fn unknown_lines_are_passed_over() {
    let (finished, _) =
        parse(&["warning: x", "{\"type\":\"new\"}", "[1]", "", "{\"type\":\"assistant\"}"]);
    assert_eq!(finished, None);
}

#[test]
fn a_failed_run_says_why() {
    let (finished, _) =
        parse(&[r#"{"type":"result","subtype":"error_max_turns","is_error":true,"num_turns":9}"#]);
    let failure = finished.unwrap().into_failure(1);
    assert_eq!(failure.reason, Reason::AgentFailed);
    assert_eq!(failure.message, "Claude Code failed: error_max_turns");
}

#[test]
fn an_unavailable_model_is_the_providers_failure() {
    let (finished, _) = parse(&[
        r#"{"type":"result","subtype":"success","is_error":true,"result":"API Error: 529 overloaded","api_error_status":529}"#,
    ]);
    let failure = finished.unwrap().into_failure(1);
    assert_eq!(failure.reason, Reason::ProviderUnavailable);
    assert_eq!(failure.exit_code, Some(1));
}

#[test]
fn p24_a_huge_line_is_drained_and_the_rest_is_read() {
    let huge = format!(r#"{{"type":"user","x":"{}"}}"#, "y".repeat(LINE_BYTES_MAX + 10));
    let result = r#"{"type":"result","subtype":"success","is_error":false,"result":"ok"}"#;
    assert_eq!(parse(&[&huge, result]).0.unwrap().text, "ok");
}

#[test]
fn d13_a_cost_that_is_no_number_counts_as_nothing() {
    for cost in [None, Some(f64::NAN), Some(f64::INFINITY), Some(-1.0), Some(1e300)] {
        assert_eq!(micro_usd(cost), 0, "{cost:?}");
    }
    assert_eq!(micro_usd(Some(1.5)), 1_500_000);
}

/// Where a printer writes to, so that a test reads it.
#[derive(Clone, Default)]
struct Kept(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What is known and shown after `input` came in pieces of `size`.
fn in_pieces(input: &[u8], size: usize) -> (Option<Finished>, Usage, Vec<u8>) {
    let kept = Kept::default();
    let (printer, thread) = Printer::start(kept.clone());
    let events = Events::default();
    let mut stream = Stream::new(&printer, &events);
    input.chunks(size).for_each(|piece| stream.take(piece));
    stream.end();
    let (finished, usage) = stream.finish();
    printer.close();
    thread.join().unwrap();
    let shown = kept.0.lock().unwrap().clone();
    (finished, usage, shown)
}

#[test]
fn fuzz_a_stream_reads_alike_in_pieces_and_shows_no_control_characters() {
    let corpus = [
        "{\"type\":\"system\",\"subtype\":\"init\",\"model\":\"m\"}\n{\"type\":\"assistant\",\"message\":{\"content\":[{\"type\":\"text\",\"text\":\"hi\\u0018\\u001b[2J\"},{\"type\":\"tool_use\",\"id\":\"t\",\"name\":\"Bash\",\"input\":{\"command\":\"ls\"}}]}}\n",
        "{\"type\":\"user\",\"message\":{\"content\":[{\"type\":\"tool_result\",\"tool_use_id\":\"t\",\"content\":[{\"type\":\"text\",\"text\":\"a\\nb\"}]}]}}\n{\"type\":\"result\",\"subtype\":\"success\",\"is_error\":false,\"result\":\"done\",\"num_turns\":2,\"total_cost_usd\":0.0123,\"usage\":{\"input_tokens\":10}}\n",
        "{\"type\":\"result\",\"is_error\":true,\"total_cost_usd\":1e300,\"num_turns\":-1,\"api_error_status\":529}\nplain text\x18[... 1 lines, 1 bytes left out ...]\n",
    ]
    .map(|text| text.as_bytes().to_vec());
    let mut finished = 0_u32;
    agent_operator_doubles::fuzz::fuzz(&corpus, |input| {
        let whole = in_pieces(input, input.len().max(1));
        assert_eq!(in_pieces(input, 7), whole);
        let shown = String::from_utf8(whole.2).expect("it is text");
        let odd = shown.chars().find(|c| c.is_control() && !matches!(c, '\n' | '\t'));
        assert_eq!(odd, None, "{shown:?}");
        finished += u32::from(whole.0.is_some());
    });
    assert!(finished > 1);
}
