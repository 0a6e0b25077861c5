//! Outputs of a sandbox are data: every field that comes from one is brought into its bounds here,
//! before anything else sees it. Text is cut by the stated rules of `domain::text`, loses characters
//! that steer a terminal or hide something, and the task's secrets are masked in it; what has a form
//! (commit ids, links, branches) has that form or is left out.
//!
//! | field | rule |
//! |---|---|
//! | `result.message` | 2 KiB, head and tail |
//! | `result.facts.output` | 16 KiB, head and tail |
//! | `result.facts.command` | 256 arguments of 16 KiB in all |
//! | `result.facts.baseCommit`, `.headCommit` | a full commit id |
//! | `result.facts.workBranch`, `.pullRequest` | left out: the gateway knows what it wrote upstream |
//! | `gate.sandbox.*` | words of 64 bytes, on one line |
//! | `gate.probe.*` | 32 addresses; left out unless it is about all that was ordered |
//! | `events[].text`, `.input`, `.output` | 64 KiB |
//! | `events[].id`, `.name` | 256 bytes, on one line |
//!
//! Commit ids of `publish`, what commits hold and say, and texts of `pull-request` are checked where
//! they are used (`git`, `forge`).

use agent_operator::{
    attempt::{GateRequest, ProbeReport, StepResult},
    domain::{
        event::{AgentEvent, EventRecord},
        limits::{EVENT_BYTES_MAX, MESSAGE_BYTES_MAX, OUTPUT_BYTES_MAX},
        report::{SandboxStatus, StepFacts},
        text,
    },
};

use crate::scrub::Watchlist;

/// Longest word of the isolation that the runner saw: names of Kubernetes objects are shorter.
const WORD_BYTES_MAX: usize = 64;
/// Longest id and name of a tool call: ids have 30 characters, names of MCP tools up to 128.
const NAME_BYTES_MAX: usize = 256;
/// Most arguments of a command: the task's own has fewer.
const ARGUMENTS_MAX: usize = 256;
/// Bytes of all of them: the longest that a task can name.
const COMMAND_BYTES_MAX: usize = 16 * 1024;
/// More output than a step can print: a pebibyte takes a day at the speed of memory. Offsets stay far from their end.
const PRINTED_BYTES_MAX: u64 = 1 << 50;
/// Most addresses of a probe's report: it is asked for a handful.
const PROBED_MAX: usize = 32;

/// Text on several lines, with head and tail of what is too long.
fn long(value: String, max: usize, secrets: &Watchlist) -> String {
    text::head_and_tail(&text::printable(&secrets.scrub(value)), max)
}

/// Text on one line.
fn short(value: String, max: usize, secrets: &Watchlist) -> String {
    text::truncate(&text::one_line(&secrets.scrub(value)), max).to_owned()
}

/// The runner's result within its bounds.
pub(super) fn result(result: StepResult, secrets: &Watchlist) -> StepResult {
    // By name, so that a new field cannot pass unseen.
    let StepResult {
        reason,
        message,
        exit_code,
        start_fault,
        facts,
        reported_usage,
        events,
        printed,
    } = result;
    let message = long(message, MESSAGE_BYTES_MAX, secrets);
    let facts = step_facts(facts, secrets);
    let printed = printed.filter(|bytes| *bytes <= PRINTED_BYTES_MAX);
    StepResult { reason, message, exit_code, start_fault, facts, reported_usage, events, printed }
}

fn step_facts(facts: StepFacts, secrets: &Watchlist) -> StepFacts {
    let StepFacts { output, command, base_commit, head_commit, work_branch: _, pull_request: _ } =
        facts;
    StepFacts {
        output: output.map(|output| long(output, OUTPUT_BYTES_MAX, secrets)),
        command: command.map(|command| arguments(command, secrets)),
        base_commit: base_commit.filter(|id| is_commit_id(id)),
        head_commit: head_commit.filter(|id| is_commit_id(id)),
        work_branch: None,
        pull_request: None,
    }
}

fn arguments(command: Vec<String>, secrets: &Watchlist) -> Vec<String> {
    let mut left = COMMAND_BYTES_MAX;
    let cut = command.into_iter().take(ARGUMENTS_MAX).map(|argument| {
        let argument = text::printable(&secrets.scrub(argument));
        let argument = text::truncate(&argument, left).to_owned();
        left -= argument.len();
        argument
    });
    cut.collect()
}

fn is_commit_id(id: &str) -> bool {
    matches!(id.len(), 40 | 64)
        && id.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// What the runner saw at the gate, within its bounds.
pub(super) fn gate(request: GateRequest, secrets: &Watchlist) -> GateRequest {
    // What the supervisor sees is not the sandbox's to say.
    let GateRequest { sandbox, iflink, canary_before, probe, listening: _, dropped_before: _ } =
        request;
    let SandboxStatus {
        runtime_class,
        egress,
        pids_limit,
        user_namespace,
        landlock,
        seccomp_filter,
    } = sandbox;
    let word = |word: Option<String>| word.map(|word| short(word, WORD_BYTES_MAX, secrets));
    let sandbox = SandboxStatus {
        runtime_class: word(runtime_class),
        egress: word(egress),
        pids_limit,
        user_namespace,
        landlock,
        seccomp_filter,
    };
    let probe = probe.map(|ProbeReport { mut tried, mut reached }| {
        tried.truncate(PROBED_MAX);
        reached.truncate(PROBED_MAX);
        ProbeReport { tried, reached }
    });
    GateRequest { sandbox, iflink, canary_before, probe, listening: None, dropped_before: None }
}

/// Event records within their bounds.
pub(super) fn events(records: &[EventRecord], secrets: &Watchlist) -> Vec<EventRecord> {
    let clean = |record: &EventRecord| EventRecord {
        time: record.time,
        event: event(record.event.clone(), secrets),
    };
    records.iter().map(clean).collect()
}

fn event(event: AgentEvent, secrets: &Watchlist) -> AgentEvent {
    let body = |text| long(text, EVENT_BYTES_MAX, secrets);
    let name = |text| short(text, NAME_BYTES_MAX, secrets);
    match event {
        AgentEvent::Status { text } => AgentEvent::Status { text: body(text) },
        AgentEvent::Text { text } => AgentEvent::Text { text: body(text) },
        AgentEvent::ToolCall { id, name: tool, input } => {
            AgentEvent::ToolCall { id: name(id), name: name(tool), input: body(input) }
        }
        AgentEvent::ToolResult { id, output, is_error } => {
            AgentEvent::ToolResult { id: name(id), output: body(output), is_error }
        }
        AgentEvent::Usage { usage } => AgentEvent::Usage { usage },
    }
}

#[cfg(test)]
mod tests {
    use agent_operator::domain::{Reason, Usage, report::PullRequest};

    use super::*;
    use crate::testing::git_credential;

    const SECRET: &str = "canary-of-the-outputs";

    fn secrets() -> Watchlist {
        Watchlist::of(&[git_credential(SECRET)])
    }

    /// What a hostile sandbox puts into every field that takes text.
    fn hostile() -> String {
        format!("\u{1b}[2J\u{202e}{SECRET}\r\n{}", "ä".repeat(2 * EVENT_BYTES_MAX))
    }

    fn hostile_result() -> StepResult {
        StepResult {
            reason: Reason::Completed,
            message: hostile(),
            exit_code: 0,
            start_fault: None,
            facts: StepFacts {
                output: Some(hostile()),
                command: Some(vec![hostile(); 1000]),
                base_commit: Some("../../etc".to_owned()),
                head_commit: Some("A".repeat(40)),
                work_branch: Some("main".to_owned()),
                pull_request: Some(PullRequest { url: "javascript:1".to_owned(), number: -1 }),
            },
            reported_usage: Usage::default(),
            events: u64::MAX,
            printed: Some(u64::MAX),
        }
    }

    #[test]
    fn every_text_of_a_sandbox_ends_up_within_its_bounds() {
        let list = secrets();
        let result = result(hostile_result(), &list);
        assert_eq!(result.printed, None, "no log is so long");
        let word = Some(hostile());
        let sandbox =
            SandboxStatus { runtime_class: word.clone(), egress: word, ..SandboxStatus::default() };
        let listening = Some(vec!["10.96.0.1:443".parse().unwrap()]);
        let gate = gate(GateRequest { sandbox, listening, ..GateRequest::default() }, &list);
        assert_eq!(gate.listening, None, "what listens is the supervisor's to say");
        let gate = gate.sandbox;
        let command = result.facts.command.clone().unwrap();
        let text = |event| match event {
            AgentEvent::Status { text } | AgentEvent::Text { text } => vec![text],
            AgentEvent::ToolCall { id, name, input } => vec![input, id, name],
            AgentEvent::ToolResult { id, output, .. } => vec![output, id],
            AgentEvent::Usage { .. } => vec![],
        };
        let mut table = vec![
            ("message", result.message, MESSAGE_BYTES_MAX, true),
            ("output", result.facts.output.unwrap(), OUTPUT_BYTES_MAX, true),
            ("command", command.concat(), COMMAND_BYTES_MAX, true),
            ("runtime class", gate.runtime_class.unwrap(), WORD_BYTES_MAX, false),
            ("egress", gate.egress.unwrap(), WORD_BYTES_MAX, false),
        ];
        for sent in [
            AgentEvent::Status { text: hostile() },
            AgentEvent::Text { text: hostile() },
            AgentEvent::ToolCall { id: hostile(), name: hostile(), input: hostile() },
            AgentEvent::ToolResult { id: hostile(), output: hostile(), is_error: true },
        ] {
            let record = EventRecord { time: jiff::Timestamp::UNIX_EPOCH, event: sent };
            let mut texts = text(events(&[record], &list).remove(0).event).into_iter();
            table.push(("event", texts.next().unwrap(), EVENT_BYTES_MAX, true));
            table.extend(texts.map(|name| ("name", name, NAME_BYTES_MAX, false)));
        }
        assert_eq!(table.len(), 12);
        for (field, text, bytes_max, lines) in table {
            assert!(text.len() <= bytes_max, "{field} has {} bytes", text.len());
            assert!(!text.contains(SECRET), "{field} shows a secret");
            assert!(!text.contains(['\u{1b}', '\r', '\u{202e}']), "{field} steers a terminal");
            assert!(lines || !text.contains('\n'), "{field} has more than one line");
            assert!(text.contains("**"), "{field} was not masked but lost");
        }
        assert!(command.len() <= ARGUMENTS_MAX);
    }

    #[test]
    fn what_has_a_form_has_it_or_is_left_out() {
        let facts = result(hostile_result(), &Watchlist::default()).facts;
        assert_eq!((facts.base_commit, facts.head_commit), (None, None));
        assert_eq!((facts.work_branch, facts.pull_request), (None, None));
        let mut good = hostile_result();
        good.facts.head_commit = Some("a1".repeat(20));
        assert_eq!(result(good, &Watchlist::default()).facts.head_commit, Some("a1".repeat(20)));
    }

    #[test]
    fn what_is_in_order_is_left_as_it_is() {
        let events_in = vec![EventRecord {
            time: jiff::Timestamp::UNIX_EPOCH,
            event: AgentEvent::ToolCall {
                id: "toolu_1".to_owned(),
                name: "Bash".to_owned(),
                input: "{\"command\":\"cargo test\"}\n\t".to_owned(),
            },
        }];
        assert_eq!(events(&events_in, &secrets()), events_in);
    }
}
