//! What the programs really count, read from the text that a scrape of each gets.

use std::collections::{BTreeMap, BTreeSet};

use agent_operator_controller::metrics::Metrics as Controller;
use agent_operator_supervisor::{
    gateway::metrics::Metrics as Gateway, metrics::Metrics as Supervisor, streams::gaps::GapReason,
};

use super::reference::{HEADER, cell};

/// One metric of one program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Metric {
    /// `counter`, `gauge` or `histogram`.
    pub(crate) kind: String,
    /// What it counts.
    pub(crate) help: String,
    /// Labels with all values that they can have.
    pub(crate) labels: BTreeMap<String, BTreeSet<String>>,
}

/// Program, where it is scraped, and its text.
fn scrapes() -> [(&'static str, &'static str, String); 3] {
    let controller = Controller::new().render().unwrap();
    let supervisor = Supervisor::new().encode().unwrap();
    // The price table is the chart's; one entry stands for all.
    let gateway = Gateway::new(["MODEL"]).encode(0).unwrap();
    [
        ("Controller", "port 8080 of its pods", controller),
        ("Supervisor", "port 8081 of its pods, one a node", supervisor),
        ("Gateway", "port 8082 of the same pods", gateway),
    ]
}

/// The metrics of a scrape by name, without the endings that samples have.
pub(crate) fn read(text: &str) -> BTreeMap<String, Metric> {
    let mut found: BTreeMap<String, Metric> = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(name), help) => {
                let help = help.unwrap_or_default().trim_end_matches('.').to_owned();
                found.entry(name.to_owned()).or_default().help = help;
            }
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                kind.clone_into(&mut found.entry(name.to_owned()).or_default().kind);
            }
            (None | Some("" | "#"), ..) => {}
            _ => sample(line, &mut found),
        }
    }
    found
}

fn sample(line: &str, found: &mut BTreeMap<String, Metric>) {
    let (series, _) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line:?}"));
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    let base = base_of(name, found).unwrap_or_else(|| panic!("{name} was not declared"));
    let metric = found.get_mut(&base).expect("it was found just now");
    // No value of ours has a quote or a comma in it.
    for pair in labels.trim_end_matches('}').split(',').filter(|pair| !pair.is_empty()) {
        let (label, value) = pair.split_once('=').unwrap_or_else(|| panic!("no label: {pair:?}"));
        if label != "le" {
            let value = value.trim_matches('"').to_owned();
            metric.labels.entry(label.to_owned()).or_default().insert(value);
        }
    }
}

/// The metric that a sample named `name` belongs to.
pub(crate) fn base_of(name: &str, known: &BTreeMap<String, Metric>) -> Option<String> {
    let endings: &[(&str, &[&str])] = &[
        ("gauge", &[""]),
        ("counter", &["_total"]),
        ("histogram", &["_bucket", "_sum", "_count"]),
    ];
    endings.iter().find_map(|(kind, endings)| {
        endings.iter().find_map(|ending| {
            let base = name.strip_suffix(ending)?;
            known.get(base).filter(|metric| metric.kind == *kind).map(|_| base.to_owned())
        })
    })
}

/// All metrics of all programs.
pub(crate) fn all() -> BTreeMap<String, Metric> {
    scrapes().iter().flat_map(|(.., text)| read(text)).collect()
}

/// The name as one writes it in a query.
fn shown(name: &str, metric: &Metric) -> String {
    if metric.kind == "counter" { format!("{name}_total") } else { name.to_owned() }
}

/// The page of the reference.
pub(crate) fn page() -> String {
    let mut out = format!("# Metrics\n{HEADER}\n");
    out.push_str(
        "What Prometheus scrapes at `/metrics` of each program; [Telemetry](../how-to/telemetry.md) \
         says how to get it there. Every series is there from the start, with the value 0. A histogram \
         has the endings `_bucket`, `_sum` and `_count` in queries. `MODEL` stands for the names of \
         the chart's price table (`prices`); models without a price are `other`, and so is a word that \
         this version does not know. What several replicas of the controller see alike is counted by \
         the one that leads, so sums are right; of gauges take `max`.\n",
    );
    for (program, place, text) in scrapes() {
        out.push_str(&format!(
            "\n## {program}\n\nAt {place}.\n\n| metric | type | labels | counts |\n|---|---|---|---|\n"
        ));
        for (name, metric) in read(&text) {
            let labels: Vec<String> = metric
                .labels
                .iter()
                .map(|(label, values)| {
                    let values: Vec<&str> = values.iter().map(String::as_str).collect();
                    format!("`{label}`: {}", values.join(", "))
                })
                .collect();
            let (name, help) = (shown(&name, &metric), cell(&metric.help));
            let labels = cell(&labels.join("; "));
            out.push_str(&format!("| `{name}` | {} | {labels} | {help} |\n", metric.kind));
        }
    }
    out
}

#[test]
fn programs_do_not_share_a_name() {
    let sum: usize = scrapes().iter().map(|(.., text)| read(text).len()).sum();
    assert_eq!(all().len(), sum);
}

#[test]
fn every_metric_has_help_and_few_series() {
    for (name, metric) in all() {
        assert!(metric.help.len() > 8, "{name} says nothing");
        assert!(!metric.kind.is_empty(), "{name} has no type");
        let series: usize = metric.labels.values().map(BTreeSet::len).product();
        assert!(series <= 100, "{name} has {series} series");
    }
}

#[test]
fn every_reason_of_a_gap_is_counted_under_its_own_name() {
    let of_nodes = GapReason::ALL.map(GapReason::as_str);
    assert_eq!(of_nodes, agent_operator_controller::metrics::GAP_REASONS);
}
