//! Pages of the reference whose source is text with comments: values, proto files, reasons.

use agent_operator::domain::StartFault;

use super::{
    reference::{HEADER, cell},
    tree::read,
};

// --- values ---

/// Longest default that a row shows; a longer one is read better where it is set.
const DEFAULT_BYTES_MAX: usize = 160;

/// A value of the chart: its path, what it is by default, what it means.
struct Value {
    path: String,
    default: String,
    meaning: String,
}

/// The values in the order of the file.
fn values() -> Vec<Value> {
    let mut found: Vec<Value> = Vec::new();
    let mut parents: Vec<(usize, String)> = Vec::new();
    let mut comment = String::new();
    for line in read("deploy/helm/agent-operator/values.yaml").lines() {
        let text = line.trim_start();
        let depth = line.len() - text.len();
        if let Some(said) = text.strip_prefix('#') {
            comment.push_str(said);
        } else if let Some(item) = text.strip_prefix("- ") {
            let last = &mut found.last_mut().expect("a list belongs to a key").default;
            let comma = if last.is_empty() { "" } else { ", " };
            last.push_str(&format!("{comma}{item}"));
        } else if let Some((key, default)) = text.split_once(':') {
            parents.retain(|(indent, _)| *indent < depth);
            parents.push((depth, key.to_owned()));
            let path = parents.iter().map(|(_, key)| key.as_str()).collect::<Vec<_>>().join(".");
            let meaning = std::mem::take(&mut comment);
            found.push(Value { path, default: default.trim().to_owned(), meaning });
        } else {
            // An empty line ends a comment that belongs to no key.
            comment.clear();
        }
    }
    found
}

pub(crate) fn values_page() -> String {
    let mut out = format!(
        "# Values of the chart\n{HEADER}\nEach can be set with `--set` or in a file of yours. Unknown names and wrong \
         types are refused by `values.schema.json`.\n\n| value | default | meaning |\n|---|---|---|\n"
    );
    for Value { path, default, meaning } in values() {
        let default = if default.is_empty() {
            String::new()
        } else if default.len() > DEFAULT_BYTES_MAX {
            "see `values.yaml`".to_owned()
        } else {
            format!("`{}`", default.replace('|', "\\|"))
        };
        out.push_str(&format!("| `{path}` | {default} | {} |\n", cell(&meaning)));
    }
    out
}

// --- proto ---

/// Prints one proto file: services and their calls, messages and their fields.
fn proto(file: &str, out: &mut String) {
    let mut comment = String::new();
    let mut open: Vec<&str> = Vec::new();
    let mut choice = "";
    for line in read(format!("proto/agentoperator/v1/{file}.proto")).lines() {
        let text = line.trim();
        if let Some(said) = text.strip_prefix("//") {
            comment.push_str(said);
            continue;
        }
        let said = cell(&std::mem::take(&mut comment));
        let words: Vec<&str> = text.split([' ', '{']).filter(|word| !word.is_empty()).collect();
        match words.as_slice() {
            [kind @ ("service" | "message" | "enum"), name, rest @ ..] => {
                out.push_str(&format!("\n### {name}\n\n"));
                if !said.is_empty() {
                    out.push_str(&format!("{said}\n\n"));
                }
                let head = match *kind {
                    "service" => "| call | meaning |\n|---|---|\n",
                    "message" => "| field | type | meaning |\n|---|---|---|\n",
                    _ => "| value | meaning |\n|---|---|\n",
                };
                if rest.first() == Some(&"}") {
                    out.push_str("No fields.\n");
                } else {
                    out.push_str(head);
                    open.push(kind);
                }
            }
            ["oneof", name, ..] => {
                choice = name;
                open.push("oneof");
            }
            ["rpc", ..] => {
                let call = text.trim_start_matches("rpc ").trim_end_matches([';', ' ', '{', '}']);
                out.push_str(&format!("| `{call}` | {said} |\n"));
            }
            ["}", ..] => {
                open.pop();
            }
            _ if open.is_empty() || text.is_empty() || text.starts_with("reserved") => {}
            words => {
                let name_at = words.iter().position(|word| *word == "=").expect("name = number");
                let name = words[name_at - 1];
                let type_ = words[..name_at - 1].join(" ");
                match open.last() {
                    Some(&"enum") => out.push_str(&format!("| `{name}` | {said} |\n")),
                    Some(&"oneof") => out.push_str(&format!(
                        "| `{name}` | `{type_}`, one of `{choice}` | {said} |\n"
                    )),
                    _ => out.push_str(&format!("| `{name}` | `{type_}` | {said} |\n")),
                }
            }
        }
    }
}

pub(crate) fn grpc_page() -> String {
    let mut out = format!(
        "# gRPC services\n{HEADER}\nPackage `agentoperator.v1`, port 8443, TLS by the controller's own CA, server \
         reflection on. Every call carries `authorization: Bearer TOKEN` with a Kubernetes token of audience \
         `agent-operator`. How to call it: [watch and debug a task](../how-to/watch-and-debug.md#follow-it-live).\n"
    );
    for (title, file) in [
        ("For people and their tools", "step"),
        ("Shared types", "types"),
        ("Between a node and the controller", "supervisor"),
    ] {
        out.push_str(&format!("\n## {title}\n"));
        proto(file, &mut out);
    }
    out
}

// --- reasons ---

/// Names with the comment above them: lines that `name_of` finds a name in.
fn commented<'a>(
    text: &'a str,
    name_of: impl Fn(&'a str) -> Option<(&'a str, &'a str)>,
) -> Vec<(&'a str, &'a str, String)> {
    let mut comment = String::new();
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(said) = line.strip_prefix("///") {
            comment.push_str(said);
        } else {
            let said = cell(&std::mem::take(&mut comment)).replace("[`", "`").replace("`]", "`");
            if let Some((name, more)) = name_of(line) {
                found.push((name, more, said));
            }
        }
    }
    found
}

/// Reasons of a run: name, budget, meaning.
fn run_reasons(source: &str) -> Vec<(&str, &str, String)> {
    let table = source.split("\nreasons! {").nth(1).expect("the table of reasons");
    let table = table.split("\n}").next().expect("its end");
    commented(table, |line| line.trim_end_matches(',').split_once(" => "))
}

/// `pub const NAME: &str = "Value";`
fn constant(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.strip_prefix("pub const ")?.split_once(": &str = \"")?;
    Some((name, value.trim_end_matches("\";")))
}

/// A module's name, and its constants with name, value and meaning.
type Reasons<'a> = (&'a str, Vec<(&'a str, &'a str, String)>);

/// Reasons of conditions, by the module that holds them.
fn condition_reasons(source: &str) -> Vec<Reasons<'_>> {
    let modules = source.split("\npub mod ").skip(1);
    modules
        .map(|module| {
            let (name, body) = module.split_once(" {").expect("a body");
            let body = body.split("\n}").next().expect("its end");
            (name, commented(body, constant))
        })
        .collect()
}

/// Everything that a task may wait for, with what helps.
fn waiting(out: &mut String) {
    out.push_str(
        "\n## What a task waits for\n\nThe condition is False while it waits; `taskTimeout` ends each of these waits. Whatever \
         the remedy is, the task then goes on by itself.\n\n\
         | condition | reason | meaning | what helps | looked at again |\n|---|---|---|---|---|\n",
    );
    for entry in agent_operator::crd::conditions::waiting_reasons() {
        out.push_str(&format!(
            "| `{}` | `{}` | {} | {} | {} |\n",
            entry.condition,
            entry.reason,
            cell(entry.meaning),
            cell(entry.remedy),
            cell(entry.retried)
        ));
    }
    out.push_str(
        "\n## Why a pod does not start\n\nReasons of `Scheduled` being False while a pod was tried. No attempt is used up.\n\n\
         | reason | what helps |\n|---|---|\n",
    );
    for fault in StartFault::ALL {
        out.push_str(&format!("| `{}` | {} |\n", fault.as_str(), cell(fault.remedy())));
    }
}

/// Names that a page on remedies must have a row for: the others have theirs in [`waiting`].
pub(crate) fn reasons_with_remedies() -> Vec<String> {
    let outcome = read("src/domain/outcome.rs");
    run_reasons(&outcome).into_iter().map(|(name, ..)| name.to_owned()).collect()
}

pub(crate) fn reasons_page() -> String {
    let (outcome, conditions) = (read("src/domain/outcome.rs"), read("src/crd/conditions.rs"));
    let mut out = format!(
        "# Conditions and reasons\n{HEADER}\nWhat to do about each is in \
         [watch and debug a task](../how-to/watch-and-debug.md#what-it-says-and-what-helps).\n\n\
         ## Conditions\n\n| type | meaning |\n|---|---|\n"
    );
    let types = conditions.split("\npub mod ").next().expect("the types come first");
    for (_, value, said) in commented(types, constant) {
        out.push_str(&format!("| `{value}` | {said} |\n"));
    }
    for (module, reasons) in condition_reasons(&conditions) {
        out.push_str(&format!(
            "\n### Reasons of `{}{}`\n\n| reason | meaning |\n|---|---|\n",
            module[..1].to_uppercase(),
            &module[1..]
        ));
        for (_, value, said) in reasons {
            out.push_str(&format!("| `{value}` | {said} |\n"));
        }
    }
    waiting(&mut out);
    out.push_str("\n## Reasons of a run\n\n`AgentRun.status.reason`, and the reason of `Finished` of a task that such a run ended.\n\n| reason | meaning | budget |\n|---|---|---|\n");
    for (name, budget, said) in run_reasons(&outcome) {
        out.push_str(&format!("| `{name}` | {said} | {budget} |\n"));
    }
    out.push_str("\n## Budgets\n\nEach failure is charged to one of them.\n\n| budget | meaning |\n|---|---|\n");
    let budgets = outcome.split("pub enum Budget {").nth(1).expect("the budgets");
    let budgets = budgets.split("\n}").next().expect("their end");
    for (name, _, said) in commented(budgets, |line| line.strip_suffix(',').map(|name| (name, "")))
    {
        out.push_str(&format!("| {name} | {said} |\n"));
    }
    out
}

// --- refusals ---

/// Wrong values and the API server's answers, as the tests against a real one have recorded them.
fn refusals(golden: &str, out: &mut String) {
    let text = read(format!("tests/api_server/snapshots/api_server__refusals__{golden}.snap"));
    let body = text.splitn(3, "---\n").nth(2).expect("a snapshot has a head");
    let mut wrong = "";
    for line in body.lines() {
        match line.strip_prefix("    ") {
            Some(said) => {
                // Patterns must not look like links and emphasis.
                let said = cell(said.trim_start_matches("<nil>: Invalid value: "))
                    .replace("](", "]\\(")
                    .replace('*', "\\*");
                out.push_str(&format!("| `{}` | {said} |\n", wrong.replace('|', "\\|")));
            }
            None => wrong = line,
        }
    }
}

pub(crate) fn refusals_page() -> String {
    let mut out = format!(
        "# Refusals\n{HEADER}\nWhat `kubectl apply` answers to wrong objects, recorded from a real API server. `null` means \
         that the field is left out; long values are shortened.\n"
    );
    for (title, golden) in [("CodingTask", "refused_tasks"), ("AgentRun", "refused_runs")] {
        out.push_str(&format!("\n## {title}\n\n| wrong | answer |\n|---|---|\n"));
        refusals(golden, &mut out);
    }
    out
}

#[test]
fn every_reason_of_the_code_is_found() {
    let found = reasons_with_remedies();
    for reason in agent_operator::domain::Reason::ALL {
        assert!(found.iter().any(|name| name == reason.as_str()), "{reason} was not read");
    }
    let conditions = read("src/crd/conditions.rs");
    let modules = condition_reasons(&conditions);
    assert!(modules.iter().any(|(name, reasons)| *name == "accepted" && reasons.len() > 3));
}
