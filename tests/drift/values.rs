//! `values.yaml`, its comments and its schema say the same; nothing of the chart is tied to a
//! namespace, and a small node has room for the sample.

use std::{collections::BTreeSet, fs};

use serde_json::Value;

use super::tree::{read, root};

const CHART: &str = "deploy/helm/agent-operator";
/// Maps whose keys belong to the user: the schema describes their values only.
const FREE: &[&str] = &["prices"];

fn values() -> Value {
    serde_saphyr::from_str(&read(format!("{CHART}/values.yaml"))).unwrap()
}

fn schema() -> Value {
    serde_json::from_str(&read(format!("{CHART}/values.schema.json"))).unwrap()
}

/// Keys that start a line, with the depth of the line and whether a comment stands above it. Keys of
/// a map in one line belong to the comment of that line.
fn undocumented(values: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut free_until = None;
    let mut commented = false;
    for line in values.lines() {
        let text = line.trim_start();
        let depth = line.len() - text.len();
        let key = text.split_once(':').map(|(key, _)| key);
        let key = key.filter(|key| !key.starts_with(['#', '-', '{']));
        if let Some(key) = key {
            if free_until.is_some_and(|free| depth <= free) {
                free_until = None;
            }
            if !commented && free_until.is_none() {
                found.push(format!("{key} in {line:?}"));
            }
            if FREE.contains(&key) {
                free_until = Some(depth);
            }
        }
        commented = text.starts_with('#');
    }
    found
}

#[test]
fn every_value_has_a_comment_of_its_own() {
    let missing = undocumented(&read(format!("{CHART}/values.yaml")));
    assert!(missing.is_empty(), "values without a comment above them: {missing:#?}");
}

#[test]
fn a_value_without_a_comment_is_noticed() {
    let text = "# One.\na: 1\nb:\n  # Two.\n  c: 2\n  d: 3\n# Free.\nprices:\n  x: {y: 1}\ne: 5\n";
    let names: Vec<_> = undocumented(text);
    let names: Vec<_> = names.iter().map(|name| &name[..1]).collect();
    assert_eq!(names, ["b", "d", "e"]);
}

/// Follows a reference to a definition.
fn resolved<'a>(schema: &'a Value, node: &'a Value) -> &'a Value {
    match node["$ref"].as_str() {
        Some(path) => schema.pointer(path.trim_start_matches('#')).expect("a definition"),
        None => node,
    }
}

/// What one of the two sides has and the other lacks, as paths.
fn differences(schema: &Value, node: &Value, value: &Value, path: &str, found: &mut Vec<String>) {
    let node = resolved(schema, node);
    let Some(map) = value.as_object() else { return };
    let Some(known) = node["properties"].as_object() else {
        // A map of the user's: labels, prices, affinity. Its values have a schema, or are passed on.
        if node["type"] != "object" {
            found.push(format!("{path} is a map, and its schema is not"));
        }
        return;
    };
    if node["additionalProperties"] != Value::Bool(false) {
        found.push(format!("{path} takes unknown names"));
    }
    for (key, value) in map {
        let path = format!("{path}.{key}");
        match known.get(key) {
            Some(node) => differences(schema, node, value, &path, found),
            None => found.push(format!("{path} is not in the schema")),
        }
    }
    // Resources and requests have names that one may leave out; they are no values of ours.
    let open = ["requests", "limits", "resources"].iter().any(|end| path.ends_with(end));
    for key in known.keys().filter(|key| !map.contains_key(*key)) {
        let free = open || path.is_empty() && *key == "global";
        if !free {
            found.push(format!("{path}.{key} is in the schema and not in values.yaml"));
        }
    }
}

#[test]
fn values_and_schema_name_the_same_things() {
    let schema = schema();
    let mut found = Vec::new();
    differences(&schema, &schema, &values(), "", &mut found);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn a_value_that_only_one_side_has_is_noticed() {
    let mut values = values();
    values["gateway"]["proxy"]["socks"] = "x".into();
    values["controller"].as_object_mut().unwrap().remove("replicas");
    let schema = schema();
    let mut found = Vec::new();
    differences(&schema, &schema, &values, "", &mut found);
    assert_eq!(
        found,
        [
            ".controller.replicas is in the schema and not in values.yaml",
            ".gateway.proxy.socks is not in the schema"
        ]
    );
}

/// Paths of `values.yaml`'s maps and leaves.
fn paths(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value.as_object().filter(|map| !map.is_empty()) {
        Some(map) if !FREE.contains(&path.trim_start_matches('.')) => {
            for (key, value) in map {
                paths(value, &format!("{path}.{key}"), found);
            }
        }
        _ => {
            found.insert(path.to_owned());
        }
    }
}

#[test]
fn every_value_is_used_by_a_template() {
    let mut templates = String::new();
    for entry in fs::read_dir(root().join(CHART).join("templates")).unwrap() {
        templates += &fs::read_to_string(entry.unwrap().path()).unwrap();
    }
    let mut all = BTreeSet::new();
    paths(&values(), "", &mut all);
    for path in all {
        // Templates hand maps on by a variable, so the last two names need not stand side by side.
        let last = path.rsplit('.').next().unwrap();
        let whole = ["requests", "limits", "resources", "nodeSelector", "gitIdentity", "labels"];
        if !path.rsplit('.').skip(1).any(|map| whole.contains(&map)) {
            assert!(templates.contains(&format!(".{last}")), "no template uses {path}");
        }
    }
}

#[test]
fn nothing_is_tied_to_a_namespace_by_name() {
    for entry in fs::read_dir(root().join(CHART).join("templates")).unwrap() {
        let entry = entry.unwrap();
        let text = fs::read_to_string(entry.path()).unwrap();
        for name in ["agent-operator-system", "agent-system", "namespace: default", "kube-public"] {
            assert!(!text.contains(name), "{:?} names the namespace {name}", entry.file_name());
        }
    }
}

/// A quantity in thousandths of a core, or in bytes.
fn quantity(value: &Value) -> f64 {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: f64 = digits.parse().unwrap();
    number
        * match &text[digits.len()..] {
            "m" => 0.001,
            "" => 1.0,
            "Ki" => 1024.0,
            "Mi" => 1024.0 * 1024.0,
            "Gi" => 1024.0 * 1024.0 * 1024.0,
            other => panic!("unit {other:?}"),
        }
}

/// A node of 2 CPU, 4 GiB and 20 GB, less what clusters reserve of such nodes and what their own
/// `DaemonSets` take: about a core and 1.6 GiB stay.
#[test]
fn the_sample_fits_a_small_node_beside_the_whole_system() {
    let values = values();
    let requests = [
        &values["controller"]["resources"]["requests"],
        &values["supervisor"]["resources"]["requests"],
        &values["gateway"]["resources"]["requests"],
        &values["agent"]["requests"],
    ];
    let sum = |name: &str| requests.iter().map(|requests| quantity(&requests[name])).sum::<f64>();
    assert!(sum("cpu") <= 1.0, "{} cores", sum("cpu"));
    let gibibytes = sum("memory") / f64::from(1 << 30);
    assert!(gibibytes <= 1.6, "{gibibytes} GiB");
    // Nothing asks for disk: workspaces have limits only, and a node of 20 GB has less than these.
    assert!(requests.iter().all(|requests| requests["ephemeral-storage"].is_null()));
}
