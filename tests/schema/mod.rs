//! Makes specs of `CodingTask` out of the definition's own schema: every field that it has, at its
//! bounds and between them, so that a field added later is tested without a word here.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use agent_operator::crd::all_crds;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use proptest::{prelude::*, sample::select};
use serde_json::{Map, Number, Value, json};

/// How often a string is anything at all instead of something that its rules may accept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Half of the time: more than the schema accepts, for what runs without an API server.
    Wild,
    /// Seldom: most objects pass the rules, for what an API server filters.
    Plausible,
}

/// Longest string that is made often; the limits themselves are tried now and then.
const OFTEN_CHARS_MAX: usize = 24;

/// Longest list that is made often.
const LIST_OFTEN_MAX: usize = 3;

/// How often an optional field is there.
const PRESENT: f64 = 0.4;

/// End of names whose default branch git cannot store.
const LOCK: &str = ".lock";

/// Specs of tasks.
pub fn specs(manner: Manner) -> BoxedStrategy<Value> {
    let crd = all_crds().into_iter().find(|crd| crd.spec.names.kind == "CodingTask").unwrap();
    let schema = crd.spec.versions[0].schema.clone().unwrap().open_api_v3_schema.unwrap();
    let spec = value("spec", &schema.properties.unwrap()["spec"], manner);
    match manner {
        Manner::Wild => spec,
        Manner::Plausible => spec.prop_map(united).boxed(),
    }
}

/// Names that objects can have, of every length.
pub fn names() -> BoxedStrategy<String> {
    prop_oneof![
        "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?",
        "[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?([.][a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?){1,4}",
        select(vec![1, 39, 47, 62, 63, 64, 235, 236, 253]).prop_map(|length| "n".repeat(length)),
        Just(format!("{}.{}", "a".repeat(126), "b".repeat(126))),
    ]
    .prop_filter("such names need a work branch", |name| !name.ends_with(LOCK))
    .boxed()
}

/// Puts in what belongs together and takes out what does not, as the rules on unions ask.
fn united(mut spec: Value) -> Value {
    let source = &mut spec["source"];
    if source["type"] == "chat" {
        source.as_object_mut().unwrap().remove("github");
        source["chat"] = json!({"sessionId": "s", "userId": "u"});
    } else {
        source.as_object_mut().unwrap().remove("chat");
        source["github"] = json!({"owner": "o", "repo": "r", "issueNumber": 7});
    }
    let tolerations = spec.get_mut("tolerations").and_then(Value::as_array_mut);
    for toleration in tolerations.into_iter().flatten() {
        if toleration["key"].as_str().unwrap_or_default().is_empty() {
            toleration["operator"] = "Exists".into();
        }
        if toleration["operator"] == "Exists" {
            toleration.as_object_mut().unwrap().remove("value");
        }
        if toleration.get("tolerationSeconds").is_some() {
            toleration["effect"] = "NoExecute".into();
        }
    }
    if let Some(agent) = spec.get_mut("agent").and_then(Value::as_object_mut) {
        if agent["type"] == "ClaudeCode" {
            agent.remove("command");
        } else {
            agent.entry("command").or_insert_with(|| json!(["true"]));
        }
    }
    spec
}

/// Values of the field `name` with `schema`.
fn value(name: &str, schema: &JSONSchemaProps, manner: Manner) -> BoxedStrategy<Value> {
    if let Some(values) = &schema.enum_ {
        return select(values.iter().map(|value| value.0.clone()).collect::<Vec<_>>()).boxed();
    }
    if schema.x_kubernetes_int_or_string == Some(true) {
        return quantity(name, manner);
    }
    match schema.type_.as_deref() {
        Some("boolean") => any::<bool>().prop_map(Value::from).boxed(),
        Some("integer") => integer(schema),
        Some("string") => string(name, schema, manner).prop_map(Value::from).boxed(),
        Some("array") => array(name, schema, manner),
        Some("object") => object(name, schema, manner),
        other => panic!("{name} is of type {other:?}, which the generator does not know"),
    }
}

fn integer(schema: &JSONSchemaProps) -> BoxedStrategy<Value> {
    // The bounds of our integers are whole and far below 2^53.
    #[allow(clippy::cast_possible_truncation, reason = "whole and within range")]
    let (least, most) = (
        schema.minimum.expect("a minimum") as i64,
        schema.maximum.map_or_else(|| i64::from(i32::MAX), |most| most as i64),
    );
    prop_oneof![Just(least), Just(most), least..=most].prop_map(Value::from).boxed()
}

/// Quantities within the bounds of the field `name`, in every form.
pub fn quantities(name: &str) -> impl Iterator<Item = &'static str> {
    let forms: &[&str] = match name {
        "cpu" => {
            &["10m", "100m", "0.1", ".5", "1500m", "4", "+2", "1k", "1e2", "5E1", "2.", "2000000u"]
        }
        "memory" | "storage" => &[
            "64Mi",
            "8Gi",
            "1.5Gi",
            "1e9",
            "1E9",
            "999T",
            "1Pi",
            "68719476736",
            "70000000000m",
            "65536Ki",
            "1e+9",
        ],
        _ => &["1m", "500m", "2", "1.5", "1M", "1e3", "0.001"],
    };
    forms.iter().copied()
}

fn quantity(name: &str, manner: Manner) -> BoxedStrategy<Value> {
    let field = name.rsplit('.').next().unwrap();
    let usual = select(quantities(field).map(Value::from).collect::<Vec<_>>());
    let odd = prop_oneof![
        select(
            [
                "",
                "0",
                "-1",
                "Gi",
                "0.5m",
                "1e400",
                "NaN",
                "inf",
                "1e-400",
                "9999999999999999999E",
                ".",
                "1e",
                "٣"
            ]
            .map(str::to_owned)
            .to_vec()
        )
        .prop_map(Value::from),
        any::<i64>().prop_map(|number| Value::Number(Number::from(number))),
        ".{0,32}".prop_map(Value::from),
    ];
    match manner {
        Manner::Wild => prop_oneof![usual, odd].boxed(),
        Manner::Plausible => prop_oneof![40 => usual, 1 => odd].boxed(),
    }
}

/// Texts of a field that its rules may accept; empty: any text.
fn usual(name: &str) -> &'static [&'static str] {
    match name {
        "url" => &[
            "https://github.com/jcwearn/example-repo.git",
            "https://github.com/a.b/c_d~e",
            "https://github.com/group/sub/name.git/",
        ],
        "branch" => &["main", "release/1.x", "a+b_c.d", "x"],
        "workBranch" => &["ai/it", "agents/a.b", "w+1"],
        "agentImage" => &["ubuntu", "ghcr.io/o/i:1.2", "r.example:5000/a/b-c__d/e"],
        "stepTimeout" | "taskTimeout" => &["1s", "30m", "1h30m", "168h", "0h0m604800s", "10000m"],
        "anthropicApiKeyRef.name" | "gitCredentialsRef.name" | "name" => &["agent-secrets"],
        "anthropicApiKeyRef.key" | "gitCredentialsRef.key" => &["github-token"],
        "nodeSelector" => &["kubernetes.io/hostname"],
        "tolerations.key" => &["gpu", "example.com/gpu"],
        "tolerations.value" => &["", "v", "a.b"],
        "runtimeClassName" => &["gvisor", "kata.v2"],
        "allowedHosts" => &["registry.example.com", "x.example:8443", "a-b.example"],
        "default" | "plan" | "implement" | "test" | "pullRequest" => {
            &["claude-x", "claude-y[1m]", "vendor/model:0", "a@b+c"]
        }
        "owner" | "repo" => &["o", "a.b-c_d"],
        _ => &[],
    }
}

/// Any text of at most `most` characters, the limit itself included.
fn text(most: usize) -> BoxedStrategy<String> {
    let often = OFTEN_CHARS_MAX.min(most);
    prop_oneof![
        20 => prop::collection::vec(any::<char>(), 0..=often).prop_map(String::from_iter),
        10 => "[ -~]{0,24}".prop_map(move |text| text.chars().take(most).collect()),
        10 => select(vec![
            "\u{0}", "\u{1b}[31m", "\r\n", "\u{202e}", "\u{feff}", "\u{fffd}", "\u{10ffff}", "{{}}", "$(id)", "%s",
            "--help", "..", "\u{d7ff}e\u{301}", "\u{7f}", "'\"`",
        ])
        .prop_map(move |text| text.chars().take(most).collect()),
        1 => select(vec!['x', 'ü', '\u{1f600}', '\n']).prop_map(move |c| std::iter::repeat_n(c, most).collect()),
    ]
    .boxed()
}

fn string(name: &str, schema: &JSONSchemaProps, manner: Manner) -> BoxedStrategy<String> {
    let most = usize::try_from(schema.max_length.expect("a maxLength")).unwrap();
    let least = usize::try_from(schema.min_length.unwrap_or(0)).unwrap();
    let pad = move |text: String| {
        let missing = least.saturating_sub(text.chars().count());
        text + &"p".repeat(missing)
    };
    let field = name.rsplit('.').next().unwrap();
    let known = [usual(name), usual(field)].into_iter().find(|texts| !texts.is_empty());
    let any_text = text(most).prop_map(pad);
    let Some(known) = known else { return any_text.boxed() };
    let known = select(known.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
    match manner {
        Manner::Wild => prop_oneof![known, any_text].boxed(),
        Manner::Plausible => prop_oneof![60 => known, 1 => any_text].boxed(),
    }
}

fn array(name: &str, schema: &JSONSchemaProps, manner: Manner) -> BoxedStrategy<Value> {
    let Some(JSONSchemaPropsOrArray::Schema(items)) = &schema.items else {
        panic!("{name}: items")
    };
    let most = usize::try_from(schema.max_items.expect("a maxItems")).unwrap();
    let least = usize::try_from(schema.min_items.unwrap_or(0)).unwrap();
    let unique = schema.x_kubernetes_list_type.as_deref() != Some("atomic");
    // A full list of full strings has megabytes, which the API server refuses and each pass would copy.
    let small = short(items);
    prop_oneof![
        8 => prop::collection::vec(value(name, items, manner), least..=LIST_OFTEN_MAX.min(most)),
        1 => prop::collection::vec(value(name, &small, manner), most),
    ]
    .prop_map(move |mut list| {
        if unique {
            let mut seen = Vec::new();
            list.retain(|item| {
                !seen.contains(item) && {
                    seen.push(item.clone());
                    true
                }
            });
        }
        Value::Array(list)
    })
    .boxed()
}

/// `schema` with short strings.
fn short(schema: &JSONSchemaProps) -> JSONSchemaProps {
    let most = i64::try_from(OFTEN_CHARS_MAX).unwrap();
    JSONSchemaProps { max_length: schema.max_length.map(|max| max.min(most)), ..schema.clone() }
}

fn object(name: &str, schema: &JSONSchemaProps, manner: Manner) -> BoxedStrategy<Value> {
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &schema.additional_properties {
        let most = usize::try_from(schema.max_properties.expect("a maxProperties")).unwrap();
        let key = string(
            name,
            &JSONSchemaProps { max_length: Some(63), ..JSONSchemaProps::default() },
            manner,
        );
        let entry = (key, value("tolerations.value", values, manner));
        return prop::collection::vec(entry, 0..=3.min(most))
            .prop_map(|entries| Value::Object(entries.into_iter().collect()))
            .boxed();
    }
    let required = schema.required.clone().unwrap_or_default();
    let mut fields: BoxedStrategy<Map<String, Value>> = Just(Map::new()).boxed();
    for (field, schema) in schema.properties.iter().flatten() {
        let path = if name == "spec" { field.clone() } else { format!("{name}.{field}") };
        let one = value(&path, schema, manner);
        let one = if required.contains(field) {
            one.prop_map(Some).boxed()
        } else {
            prop::option::weighted(PRESENT, one).boxed()
        };
        let field = field.clone();
        fields = (fields, one)
            .prop_map(move |(mut fields, value)| {
                if let Some(value) = value {
                    fields.insert(field.clone(), value);
                }
                fields
            })
            .boxed();
    }
    fields.prop_map(Value::Object).boxed()
}
