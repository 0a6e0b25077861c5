//! `docs/reference` is printed from the types, the chart's values and the proto files; `just docs`
//! writes it anew.

use agent_operator::crd::all_crds;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};

use super::{definitions::hold_generated, reference_text as text};

/// Second line of every printed page.
pub(crate) const HEADER: &str = "<!-- Printed from the sources by `just docs`; do not edit. -->\n";

/// A cell of a table: no line breaks, no bars that would end it.
pub(crate) fn cell(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    text.replace('|', "\\|").replace('<', "&lt;")
}

/// Type of a field with its bounds, as one would say it.
fn type_of(schema: &JSONSchemaProps) -> String {
    let mut said = match schema.type_.as_deref() {
        _ if schema.x_kubernetes_int_or_string == Some(true) => "quantity".to_owned(),
        Some("array") => match &schema.items {
            Some(JSONSchemaPropsOrArray::Schema(items)) => {
                let most = schema.max_items.map(|most| format!(" of at most {most}"));
                format!("list{}: {}", most.unwrap_or_default(), type_of(items))
            }
            _ => "list".to_owned(),
        },
        Some("object") => match &schema.additional_properties {
            Some(JSONSchemaPropsOrBool::Schema(_)) => "map of strings".to_owned(),
            _ => "object".to_owned(),
        },
        Some("string") if schema.format.as_deref() == Some("date-time") => "time".to_owned(),
        Some(other) => other.to_owned(),
        None => "any".to_owned(),
    };
    if let Some(values) = &schema.enum_ {
        let values = values.iter().filter_map(|value| value.0.as_str());
        said = values.map(|value| format!("`{value}`")).collect::<Vec<_>>().join(" or ");
    }
    let mut bounds = Vec::new();
    match (schema.minimum, schema.maximum) {
        (Some(low), Some(high)) => bounds.push(format!("{low} to {high}")),
        (Some(low), None) => bounds.push(format!("at least {low}")),
        (None, Some(high)) => bounds.push(format!("at most {high}")),
        (None, None) => {}
    }
    bounds.extend(schema.max_length.map(|most| format!("at most {most} characters")));
    if bounds.is_empty() { said } else { format!("{said}, {}", bounds.join(", ")) }
}

/// One line for each field below `path`, depth first; required ones in bold.
fn fields(path: &str, schema: &JSONSchemaProps, out: &mut String) {
    let required = schema.required.clone().unwrap_or_default();
    for (name, field) in schema.properties.iter().flatten() {
        let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let shown =
            if required.contains(name) { format!("**`{below}`**") } else { format!("`{below}`") };
        let meaning = cell(field.description.as_deref().unwrap_or_default());
        out.push_str(&format!("| {shown} | {} | {meaning} |\n", type_of(field)));
        match &field.items {
            Some(JSONSchemaPropsOrArray::Schema(items)) => {
                fields(&format!("{below}[]"), items, out);
            }
            _ => fields(&below, field, out),
        }
    }
}

/// What the API server says when a rule of the schema is broken, by the object that the rule is on.
fn rules(path: &str, schema: &JSONSchemaProps, out: &mut Vec<String>) {
    for rule in schema.x_kubernetes_validations.iter().flatten() {
        let said = cell(rule.message.as_deref().unwrap_or(&rule.rule));
        let place = if path.is_empty() { "the object" } else { path };
        out.push(format!("- `{place}`: {said}\n").replace("`the object`", "the object"));
    }
    for (name, field) in schema.properties.iter().flatten() {
        let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        rules(&below, field, out);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &schema.items {
        rules(&format!("{path}[]"), items, out);
    }
}

/// The page of a resource.
fn page(crd: &CustomResourceDefinition) -> String {
    let names = &crd.spec.names;
    let version = &crd.spec.versions[0];
    let root = version.schema.as_ref().and_then(|schema| schema.open_api_v3_schema.as_ref());
    let root = root.expect("each version has a schema");
    let mut out = format!("# {}\n{HEADER}\n", names.kind);
    out.push_str(&format!("{}\n\n", root.description.as_deref().unwrap_or_default()));
    out.push_str(&format!(
        "`apiVersion: {}/{}`, short name `{}`, category `{}`. Fields in **bold** must be there. \
         `kubectl explain {}` says the same.\n",
        crd.spec.group,
        version.name,
        names.short_names.iter().flatten().next().expect("a short name"),
        names.categories.iter().flatten().next().expect("a category"),
        names.singular.as_deref().unwrap_or(&names.plural),
    ));
    let selectable = version
        .selectable_fields
        .iter()
        .flatten()
        .map(|field| format!("`{}`", field.json_path.trim_start_matches('.')));
    out.push_str(&format!(
        "`kubectl get --field-selector` knows {}.\n\n## Columns of `kubectl get`\n\n\
         | column | shows | |\n|---|---|---|\n",
        selectable.collect::<Vec<_>>().join(", ")
    ));
    for column in version.additional_printer_columns.iter().flatten() {
        let wide = if column.priority.unwrap_or(0) > 0 { "with `-o wide`" } else { "" };
        out.push_str(&format!(
            "| {} | `{}` | {wide} |\n",
            column.name,
            column.json_path.trim_start_matches('.').replace('|', "\\|")
        ));
    }
    for part in ["spec", "status"] {
        let schema = &root.properties.as_ref().expect("a root with properties")[part];
        out.push_str(&format!("\n## {part}\n\n| field | type | meaning |\n|---|---|---|\n"));
        fields(part, schema, &mut out);
    }
    let mut said = Vec::new();
    rules("", root, &mut said);
    out.push_str("\n## Rules\n\nWhat the API server answers when they are broken:\n\n");
    out.push_str(&said.concat());
    out
}

#[test]
fn reference_of_the_resources_equals_the_types() {
    for crd in all_crds() {
        let file = crd.spec.names.singular.clone().expect("a singular name");
        hold_generated(&format!("docs/reference/{file}.md"), &page(&crd), "just docs");
    }
}

#[test]
fn reference_of_the_values_equals_the_chart() {
    hold_generated("docs/reference/values.md", &text::values_page(), "just docs");
}

#[test]
fn reference_of_the_grpc_services_equals_the_proto_files() {
    hold_generated("docs/reference/grpc.md", &text::grpc_page(), "just docs");
}

#[test]
fn reference_of_metrics_equals_the_registries() {
    let page = super::metrics::page();
    assert!(page.matches("\n| `agent_operator_").count() > 40, "the registries were not read");
    hold_generated("docs/reference/metrics.md", &page, "just docs");
}

#[test]
fn reference_of_reasons_equals_the_sources() {
    hold_generated("docs/reference/reasons.md", &text::reasons_page(), "just docs");
}

#[test]
fn reference_of_refusals_equals_the_recorded_ones() {
    let page = text::refusals_page();
    assert!(page.lines().count() > 60, "the recorded refusals were not read");
    hold_generated("docs/reference/refusals.md", &page, "just docs");
}
