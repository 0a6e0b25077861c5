use super::*;

/// Calls `check` with the path and schema of every property, array item and map value.
fn walk(path: &str, schema: &JSONSchemaProps, check: &mut impl FnMut(&str, &JSONSchemaProps)) {
    for (name, property) in schema.properties.iter().flatten() {
        let path = format!("{path}.{name}");
        check(&path, property);
        walk(&path, property, check);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &schema.items {
        check(&format!("{path}[]"), items);
        walk(&format!("{path}[]"), items, check);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &schema.additional_properties {
        check(&format!("{path}{{}}"), values);
        walk(&format!("{path}{{}}"), values, check);
    }
}

/// Problems of all definitions, one line each.
fn problems(mut find: impl FnMut(&str, &JSONSchemaProps) -> Option<&'static str>) -> Vec<String> {
    let mut found = Vec::new();
    for crd in all_crds() {
        let schema = crd.spec.versions[0].schema.as_ref().unwrap();
        let root = schema.open_api_v3_schema.as_ref().unwrap();
        walk(&crd.spec.names.kind, root, &mut |path, schema| {
            if let Some(problem) = find(path, schema) {
                found.push(format!("{path}: {problem}"));
            }
        });
    }
    found
}

fn is(schema: &JSONSchemaProps, type_: &str) -> bool {
    schema.type_.as_deref() == Some(type_)
}

#[test]
fn every_field_has_a_description_for_kubectl_explain() {
    let missing = problems(|path, schema| {
        let own_words = !path.ends_with(['[', ']', '{', '}']);
        (own_words && schema.description.as_deref().unwrap_or_default().is_empty())
            .then_some("no description")
    });
    assert_eq!(missing, Vec::<String>::new());
}

#[test]
fn every_string_list_and_map_is_bounded() {
    let unbounded = problems(|_, schema| {
        let dated = schema.format.as_deref() == Some("date-time");
        if is(schema, "string") && schema.max_length.is_none() && schema.enum_.is_none() && !dated {
            return Some("no maxLength");
        }
        if is(schema, "array") && schema.max_items.is_none() {
            return Some("no maxItems");
        }
        (schema.additional_properties.is_some() && schema.max_properties.is_none())
            .then_some("no maxProperties")
    });
    assert_eq!(unbounded, Vec::<String>::new());
}

#[test]
fn every_list_says_how_it_is_merged() {
    let silent = problems(|_, schema| {
        (is(schema, "array") && schema.x_kubernetes_list_type.is_none()).then_some("no list type")
    });
    assert_eq!(silent, Vec::<String>::new());
}

#[test]
fn numbers_are_signed_bounded_integers() {
    let wrong = problems(|_, schema| {
        if is(schema, "number") {
            return Some("floating point");
        }
        if !is(schema, "integer") {
            return None;
        }
        if !matches!(schema.format.as_deref(), Some("int32" | "int64")) {
            return Some("neither int32 nor int64");
        }
        schema.minimum.is_none().then_some("no minimum")
    });
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn optional_settings_have_no_schema_default() {
    let defaulted = problems(|path, schema| {
        (path.contains(".spec.") && schema.default.is_some()).then_some("has a default")
    });
    assert_eq!(defaulted, Vec::<String>::new());
}

#[test]
fn an_explicit_null_means_the_same_as_no_field() {
    let nullable = problems(|_, schema| schema.nullable.map(|_| "is nullable"));
    assert_eq!(nullable, Vec::<String>::new());
}

#[test]
fn every_rule_has_a_message_with_field_and_remedy() {
    let mut rules = Vec::new();
    problems(|path, schema| {
        for rule in schema.x_kubernetes_validations.iter().flatten() {
            rules.push((path.to_owned(), rule.message.clone().unwrap_or_default()));
        }
        None
    });
    assert!(rules.len() > 20, "the walk must see the rules: {}", rules.len());
    for (path, message) in rules {
        // Types that stand at several fields share a message; the API server puts the field before it.
        assert!(
            message.contains("spec")
                || message.contains("AgentRun")
                || message.starts_with("must "),
            "{path}: {message:?} names no field"
        );
        assert!(message.len() > 40, "{path}: {message:?} gives no remedy");
    }
}

#[test]
fn definitions_fit_the_annotation_of_client_side_apply() {
    const ANNOTATION_BYTES_MAX: usize = 262_144;
    for crd in all_crds() {
        let size = serde_json::to_vec(&crd).unwrap().len();
        assert!(size < ANNOTATION_BYTES_MAX / 2, "{} has {size} bytes", crd.spec.names.kind);
    }
}
