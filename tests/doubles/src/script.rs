//! The answers. Each follows from the conversation alone, so repeating a request repeats its answer.

use serde_json::{Value, json};

use crate::conversation::Conversation;

/// What the model does next.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Says something and calls a tool.
    Tool {
        /// Text before the call.
        text: String,
        /// Tool name.
        name: &'static str,
        /// Its arguments.
        input: Value,
    },
    /// Says something and ends its turn.
    Text(String),
    /// An API error.
    Error {
        /// HTTP status.
        status: u16,
        /// Kind, as the API names it.
        kind: &'static str,
        /// Words.
        message: &'static str,
    },
}

/// Longest time that the CLI's Bash tool takes.
const SLEEP_MILLIS: u64 = 600_000;

/// The answer to a conversation.
pub fn answer(conversation: &Conversation) -> Answer {
    let script = conversation.script.as_deref().unwrap_or("default");
    match script {
        "rate-limited" => {
            return error(429, "rate_limit_error", "This request would exceed your rate limit");
        }
        "overloaded" => return error(529, "overloaded_error", "Overloaded"),
        _ => {}
    }
    // Titles, summaries and probes of the CLI come without tools.
    if !conversation.tools.iter().any(|name| name == "Bash") {
        return Answer::Text("Scripted answer".to_owned());
    }
    let step = conversation.step.as_deref().unwrap_or_default();
    if script == "sleep" || (script == "sleep-implement" && step == "implement") {
        return sleep(conversation.turn);
    }
    match step {
        "plan" => plan(conversation),
        "implement" => implement(conversation, script),
        "pull-request" => pull_request(conversation),
        _ => Answer::Text("There is nothing to do.".to_owned()),
    }
}

fn plan(conversation: &Conversation) -> Answer {
    match conversation.turn {
        0 => bash(
            "I look at the repository first.",
            "git log --oneline | head -n 5; ls; cat README.md",
        ),
        1 => bash("Now the code and its tests.", "cat package.json server.js; ls test"),
        _ => Answer::Text(PLAN.to_owned()),
    }
}

fn implement(conversation: &Conversation, script: &str) -> Answer {
    if script == "shell-only" {
        return shell_only(conversation.turn);
    }
    let breaks = match script {
        "break-once" => !conversation.has_feedback,
        "never-green" => true,
        _ => false,
    };
    let (first, edit) = match (breaks, conversation.has_feedback) {
        (false, false) => ("I add the route and its test.", edit(200, "")),
        (false, true) => ("The tests show the cause: I repair the route.", edit(200, "")),
        (true, false) => ("I add the route and its test.", edit(500, "")),
        (true, true) => ("I try something else.", edit(500, "\n// Another try.\n")),
    };
    match (conversation.turn, breaks) {
        (0, _) => bash("I look at what is there.", "git status --short; cat server.js; ls test"),
        (1, _) => bash(first, &edit),
        (2, false) => bash("I run the tests.", "npm test 2>&1 | tail -n 25"),
        (2, true) => Answer::Text("I added the endpoint.".to_owned()),
        _ => Answer::Text(
            "I added `GET /healthz`, which answers 200 OK, and a test for it. All tests pass."
                .to_owned(),
        ),
    }
}

/// A change that needs nothing of the image but a shell.
fn shell_only(turn: usize) -> Answer {
    if turn > 0 {
        return Answer::Text("I wrote down what is to be done.".to_owned());
    }
    bash("I write a note.", "echo 'GET /healthz is to answer 200 OK.' > HEALTHZ.md")
}

fn pull_request(conversation: &Conversation) -> Answer {
    let Some(file) = conversation.pull_request_file() else {
        return Answer::Text("No file is named for title and body.".to_owned());
    };
    match conversation.turn {
        0 => {
            bash("I look at the changes.", "git log --oneline | head -n 5; git diff HEAD~1 --stat")
        }
        1 => {
            let content = json!({ "title": PULL_REQUEST_TITLE, "body": PULL_REQUEST_BODY });
            let command = format!("cat > '{file}' <<'END_OF_FILE'\n{content}\nEND_OF_FILE");
            bash("I write title and body.", &command)
        }
        _ => Answer::Text("Title and body are written.".to_owned()),
    }
}

fn sleep(turn: usize) -> Answer {
    if turn > 0 {
        return Answer::Text("I have slept.".to_owned());
    }
    Answer::Tool {
        text: "I wait a while.".to_owned(),
        name: "Bash",
        input: json!({ "command": "sleep 600", "description": "Wait", "timeout": SLEEP_MILLIS }),
    }
}

fn bash(text: &str, command: &str) -> Answer {
    let description = text.trim_end_matches('.');
    let input = json!({ "command": command, "description": description });
    Answer::Tool { text: text.to_owned(), name: "Bash", input }
}

fn error(status: u16, kind: &'static str, message: &'static str) -> Answer {
    Answer::Error { status, kind, message }
}

/// The command that gives the example repository the route with `status`, and its test. It may be
/// repeated: it replaces what it made before. In any other repository it leaves a file.
fn edit(status: u16, note: &str) -> String {
    format!(
        r"node - <<'END_OF_SCRIPT' && git diff --stat
const fs = require('node:fs');
const status = {status};
const note = {note};
if (!fs.existsSync('server.js')) {{
  fs.writeFileSync('HEALTHZ.md', `The health endpoint answers ${{status}}.\n${{note}}`);
  process.exit(0);
}}
let source = fs.readFileSync('server.js', 'utf8');
source = source.replace(/  'GET \/healthz': [\s\S]*?\n  }},\n/, '');
const route = `  'GET /healthz': (request, response) => {{
    response.writeHead(${{status}}, {{ 'content-type': 'text/plain; charset=utf-8' }});
    response.end('OK\\n');
  }},
`;
source = source.replace(/const routes = \{{\n/, (start) => start + route);
fs.writeFileSync('server.js', source + note);
fs.mkdirSync('test', {{ recursive: true }});
fs.writeFileSync('test/healthz.test.js', `'use strict';

const assert = require('node:assert/strict');
const {{ once }} = require('node:events');
const {{ test }} = require('node:test');

const {{ createServer }} = require('../server.js');

test('GET /healthz answers 200 OK', async () => {{
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  try {{
    const response = await fetch('http://127.0.0.1:' + server.address().port + '/healthz');
    assert.equal(response.status, 200);
    assert.match(await response.text(), /OK/);
  }} finally {{
    server.close();
  }}
}});
`);
END_OF_SCRIPT",
        note = json!(note)
    )
}

/// Text of the sample task's plan.
const PLAN: &str = "\
## Plan

1. `server.js`: add the entry `GET /healthz` to the table `routes`. It answers 200 with the text \
`OK`, like the entry beside it.
2. `test/healthz.test.js`: start the server on a free port, fetch `/healthz`, and expect status 200 \
and `OK`.
3. Verify with `npm test`; all earlier tests must still pass.

No other file changes; there is no dependency to add.";

/// Title of the sample task's pull request.
pub const PULL_REQUEST_TITLE: &str = "Add a /healthz endpoint";

/// Its body.
const PULL_REQUEST_BODY: &str = "\
Adds `GET /healthz`, which answers 200 OK, so that a load balancer or a kubelet can probe the server.

## Testing

`npm test` passes, with a new test for the endpoint.
";

#[cfg(test)]
mod tests;
