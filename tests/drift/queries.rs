//! The queries of board and alerts against what the programs really count: names, labels and values.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{
    metrics::{Metric, all, base_of},
    tree::read,
};

const DASHBOARD: &str = "deploy/helm/agent-operator/files/dashboard.json";
const RULES: &str = "deploy/helm/agent-operator/files/rules.yaml";

/// Labels that a scrape adds by itself.
const OF_TARGETS: [&str; 4] = ["instance", "job", "namespace", "pod"];
/// Words of the query language that are no metrics, beside functions, which have a bracket behind.
const KEYWORDS: [&str; 14] = [
    "and",
    "or",
    "unless",
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
    "bool",
    "offset",
    "inf",
    "nan",
    "atan2",
];
/// Those that have labels in brackets behind them.
const BEFORE_LABELS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];

/// A piece of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Text(String),
    Sign(char),
}

fn tokens(query: &str) -> Vec<Token> {
    let mut found = Vec::new();
    let mut rest = query.chars().peekable();
    while let Some(c) = rest.next() {
        if c == '"' || c == '\'' {
            let text: String = rest.by_ref().take_while(|other| *other != c).collect();
            assert!(!text.contains('\\'), "escapes are not understood here: {query}");
            found.push(Token::Text(text));
        } else if c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '$' | '.') {
            let mut word = c.to_string();
            while let Some(more) =
                rest.next_if(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '.'))
            {
                word.push(more);
            }
            found.push(Token::Word(word));
        } else if !c.is_whitespace() {
            found.push(Token::Sign(c));
        }
    }
    found
}

/// A selector of a query: the metric, and its matchers (label, sign, value).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Selector {
    metric: String,
    matchers: Vec<(String, String, String)>,
}

/// What a query names.
#[derive(Debug, Default)]
struct Named {
    selectors: Vec<Selector>,
    /// Labels that results are grouped by.
    groups: BTreeSet<String>,
}

fn named(query: &str) -> Named {
    let tokens = tokens(query);
    let mut found = Named::default();
    let mut at = 0;
    let sign = |at: usize, c: char| tokens.get(at) == Some(&Token::Sign(c));
    while let Some(token) = tokens.get(at) {
        at += 1;
        match token {
            Token::Word(word) if BEFORE_LABELS.contains(&word.as_str()) && sign(at, '(') => {
                at += 1;
                let labels = tokens[at..].iter().take_while(|token| **token != Token::Sign(')'));
                for token in labels {
                    at += 1;
                    if let Token::Word(label) = token {
                        found.groups.insert(label.clone());
                    }
                }
            }
            Token::Sign('[') => {
                while !sign(at, ']') {
                    at += 1;
                    assert!(at < tokens.len(), "a range does not end: {query}");
                }
            }
            Token::Word(word) => {
                let number = word.starts_with(|c: char| c.is_ascii_digit() || c == '.' || c == '$');
                let keyword = KEYWORDS.contains(&word.to_lowercase().as_str());
                // A function has its arguments behind it, an aggregation perhaps its labels first.
                let grouped = matches!(tokens.get(at), Some(Token::Word(next)) if ["by", "without"].contains(&next.as_str()));
                if !number && !keyword && !grouped && !sign(at, '(') {
                    let mut selector = Selector { metric: word.clone(), matchers: Vec::new() };
                    if sign(at, '{') {
                        at = matchers(&tokens, at + 1, &mut selector.matchers);
                    }
                    found.selectors.push(selector);
                }
            }
            Token::Text(_) | Token::Sign(_) => {}
        }
    }
    found
}

/// Reads matchers up to the closing bracket; gives what comes behind it.
fn matchers(tokens: &[Token], mut at: usize, found: &mut Vec<(String, String, String)>) -> usize {
    loop {
        match &tokens[at..] {
            [Token::Sign('}'), ..] => return at + 1,
            [Token::Sign(','), ..] => at += 1,
            [Token::Word(label), Token::Sign(first), Token::Text(value), ..] => {
                found.push((label.clone(), first.to_string(), value.clone()));
                at += 3;
            }
            [
                Token::Word(label),
                Token::Sign(first),
                Token::Sign(second),
                Token::Text(value),
                ..,
            ] => {
                found.push((label.clone(), format!("{first}{second}"), value.clone()));
                at += 4;
            }
            other => panic!("not a matcher: {other:?}"),
        }
    }
}

/// What of a query the programs do not know.
fn unknown(query: &str, known: &BTreeMap<String, Metric>) -> Vec<String> {
    let Named { selectors, groups } = named(query);
    let mut wrong = Vec::new();
    if selectors.is_empty() {
        wrong.push("names no metric".to_owned());
    }
    for Selector { metric: name, matchers } in &selectors {
        let Some(metric) = base_of(name, known).and_then(|base| known.get(&base)) else {
            wrong.push(format!("no program has {name}"));
            continue;
        };
        for (label, sign, value) in matchers {
            let of_target = OF_TARGETS.contains(&label.as_str());
            match metric.labels.get(label) {
                None if of_target => {}
                None => wrong.push(format!("{name} has no label {label}")),
                Some(values) => {
                    let regular = sign.contains('~');
                    let words = value.split(|c| regular && c == '|');
                    let words = words.filter(|word| !values.contains(*word));
                    wrong.extend(words.map(|word| format!("{label} of {name} is never {word:?}")));
                }
            }
        }
        for label in &groups {
            let bucket = label == "le" && name.ends_with("_bucket");
            let has = metric.labels.contains_key(label) || OF_TARGETS.contains(&label.as_str());
            if !has && !bucket {
                wrong.push(format!("{name} cannot be grouped by {label}"));
            }
        }
        if name.ends_with("_bucket") && !groups.contains("le") {
            wrong.push(format!("buckets of {name} are added up"));
        }
        let rated = ["rate(", "increase("].iter().any(|function| query.contains(function));
        if metric.kind != "gauge" && !rated {
            wrong.push(format!("{name} only ever grows, and the query takes no rate of it"));
        }
    }
    wrong
}

/// Labels in `{{...}}` of a legend or an annotation.
fn quoted(text: &str) -> Vec<String> {
    let words = text.split("{{").skip(1).filter_map(|rest| rest.split("}}").next());
    let words = words.map(|word| word.trim().trim_start_matches("$labels.").to_owned());
    words.filter(|word| word != "$value").collect()
}

/// What is wrong with the labels that a text quotes from the results of a query.
fn unquotable(query: &str, text: &str) -> Vec<String> {
    let Named { selectors, groups } = named(query);
    let aggregated = ["sum", "max", "min", "count", "avg"].iter().any(|word| query.contains(word));
    let there = |label: &String| {
        groups.contains(label) || !aggregated && OF_TARGETS.contains(&label.as_str())
    };
    let missing = quoted(text).into_iter().filter(|label| !there(label));
    missing.map(|label| format!("{label} is not in the results of {selectors:?}")).collect()
}

/// Queries of the board with their legends, and the panel's title.
fn of_board() -> Vec<(String, String, String)> {
    let board: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    let panels = board["panels"].as_array().unwrap();
    let mut found = Vec::new();
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        for target in panel["targets"].as_array().into_iter().flatten() {
            let text = |key: &str| target[key].as_str().unwrap().to_owned();
            found.push((title.to_owned(), text("expr"), text("legendFormat")));
        }
    }
    found
}

/// Alerts: name, query, and everything that is said about it.
fn of_rules() -> Vec<(String, String, String)> {
    let rules: Value = serde_saphyr::from_str(&read(RULES)).unwrap();
    let groups = rules["groups"].as_array().unwrap();
    let rules = groups.iter().flat_map(|group| group["rules"].as_array().unwrap());
    rules
        .map(|rule| {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let annotations = &rule["annotations"];
            let said = [&annotations["summary"], &annotations["description"]].map(text).join("\n");
            (text(&rule["alert"]), text(&rule["expr"]), said)
        })
        .collect()
}

#[test]
fn queries_of_board_and_alerts_name_what_the_programs_count() {
    let known = all();
    let queries = [of_board(), of_rules()].concat();
    assert!(queries.len() > 50, "the queries were not read");
    let mut wrong = Vec::new();
    for (place, query, said) in &queries {
        let found = unknown(query, &known).into_iter().chain(unquotable(query, said));
        wrong.extend(found.map(|problem| format!("{place}: {problem}\n    {query}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn board_shows_every_metric() {
    let shown: BTreeSet<String> = of_board()
        .iter()
        .flat_map(|(_, query, _)| named(query).selectors)
        .filter_map(|selector| base_of(&selector.metric, &all()))
        .collect();
    // Told well enough by others: a limit beside its use, and what a caller does to itself.
    let left_out = [
        "agent_operator_supervisor_slots",
        "agent_operator_supervisor_live_attempts",
        "agent_operator_supervisor_outcomes",
        "agent_operator_followers_dropped",
        "agent_operator_session_bad_messages",
    ];
    let missing: Vec<String> = all()
        .into_keys()
        .filter(|name| !shown.contains(name) && !left_out.contains(&name.as_str()))
        .collect();
    assert!(missing.is_empty(), "the board shows nothing of {missing:?}");
}

#[test]
fn panels_of_the_board_do_not_lie_on_one_another() {
    let board: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    let mut taken = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for panel in board["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel} has an id of another");
        let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(place("x") + place("w") <= 24, "{panel} is too wide");
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(taken.insert((x, y)), "{} lies on another panel", panel["title"]);
            }
        }
    }
}

#[test]
fn a_wrong_query_is_noticed() {
    let known = all();
    let steps = "agent_operator_steps_total";
    for (query, problem) in [
        ("agent_operator_step_total", "no program has agent_operator_step_total"),
        ("sum(rate(agent_operator_steps[5m]))", "no program has agent_operator_steps"),
        ("rate(agent_operator_step_seconds[5m])", "no program has agent_operator_step_seconds"),
        ("sum by (cause) (rate(agent_operator_steps_total[5m]))", "cannot be grouped by cause"),
        ("sum by (le) (rate(agent_operator_steps_total[5m]))", "cannot be grouped by le"),
        ("rate(agent_operator_steps_total{kind=\"x\"}[5m])", "has no label kind"),
        ("rate(agent_operator_steps_total{reason=\"Done\"}[5m])", "is never \"Done\""),
        ("rate(agent_operator_steps_total{reason=~\"Completed|Done\"}[5m])", "is never \"Done\""),
        ("rate(agent_operator_steps_total{reason!=\"Done\"}[5m])", "is never \"Done\""),
        ("max(agent_operator_tasks) / nothing", "no program has nothing"),
        ("sum(agent_operator_steps_total)", "takes no rate"),
        (
            "histogram_quantile(0.9, sum by (step) (rate(agent_operator_step_seconds_bucket[5m])))",
            "are added up",
        ),
        ("vector(1) > 0", "names no metric"),
    ] {
        let found = unknown(query, &known).join("\n");
        assert!(found.contains(problem), "{query}: {found:?}");
    }
    let good = format!(
        "sum by (step) (increase({steps}{{reason=~\"TimedOut|Disrupted\", pod=\"a\"}}[$__range])) > 0.5 * 3"
    );
    assert_eq!(unknown(&good, &known), Vec::<String>::new());
    assert_eq!(
        unquotable(&good, "{{step}} of {{ $labels.step }}: {{ $value }}"),
        Vec::<String>::new()
    );
    assert_eq!(unquotable(&good, "{{pod}}").len(), 1);
    assert_eq!(
        unquotable("agent_operator_leading == 0", "{{ $labels.pod }}"),
        Vec::<String>::new()
    );
}
