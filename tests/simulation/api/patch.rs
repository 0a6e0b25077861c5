//! Merge patch (RFC 7396), the part of the strategic one that takes values out of lists, and
//! server-side apply where each field has one owner.

use serde_json::{Map, Value};

/// Lists that are maps: their items are told apart by this field.
const MAP_LISTS: [(&str, &str); 4] =
    [("conditions", "type"), ("agentRuns", "name"), ("repositories", "name"), ("env", "name")];

/// Lays `patch` over `target`; null removes.
pub fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *target = patch.clone();
        return;
    };
    let into = object_of(target);
    for (name, value) in fields {
        if value.is_null() {
            into.remove(name);
        } else {
            merge(into.entry(name).or_insert(Value::Null), value);
        }
    }
}

/// Directive of a strategic patch: takes these values out of the list whose name follows.
const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList/";

/// Lays `patch` over `target` as [`merge`] does, but for the values that it takes out of lists.
pub fn strategic(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else { return merge(target, patch) };
    let into = object_of(target);
    for (name, value) in fields {
        if let Some(list) = name.strip_prefix(DELETE_FROM_LIST) {
            let out = value.as_array().map(Vec::as_slice).unwrap_or_default();
            if let Some(items) = into.get_mut(list).and_then(Value::as_array_mut) {
                items.retain(|item| !out.contains(item));
                if items.is_empty() {
                    into.remove(list);
                }
            }
        } else if value.is_null() {
            into.remove(name);
        } else {
            strategic(into.entry(name).or_insert(Value::Null), value);
        }
    }
}

/// Applies `now` for an owner that had applied `before`: what it no longer names goes.
pub fn apply(target: &mut Value, before: &Value, now: &Value) {
    release(target, before, now);
    lay(target, now);
}

fn object_of(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("it was made one")
}

fn release(target: &mut Value, before: &Value, now: &Value) {
    let (Some(target), Some(before)) = (target.as_object_mut(), before.as_object()) else { return };
    for (name, owned) in before {
        let kept = now.get(name).filter(|value| !value.is_null());
        let Some(there) = target.get_mut(name) else { continue };
        match (list_key(name, owned), kept) {
            (Some(key), kept) => release_items(there, owned, kept, key),
            (None, Some(kept)) => release(there, owned, kept),
            (None, None) if owned.is_object() => release(there, owned, &Value::Null),
            (None, None) => *there = Value::Null,
        }
        if is_hollow(there) && kept.is_none() {
            target.remove(name);
        }
    }
}

fn release_items(there: &mut Value, owned: &Value, kept: Option<&Value>, key: &str) {
    let names = |items: Option<&Value>| -> Vec<Value> {
        let items = items.and_then(Value::as_array);
        items.into_iter().flatten().map(|item| item[key].clone()).collect()
    };
    let (owned, kept) = (names(Some(owned)), names(kept));
    if let Some(items) = there.as_array_mut() {
        items.retain(|item| !owned.contains(&item[key]) || kept.contains(&item[key]));
    }
}

fn is_hollow(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

fn list_key(name: &str, value: &Value) -> Option<&'static str> {
    let known = MAP_LISTS.iter().find(|(list, _)| *list == name && value.is_array());
    known.map(|(_, key)| *key)
}

fn lay(target: &mut Value, now: &Value) {
    let Some(fields) = now.as_object() else {
        *target = now.clone();
        return;
    };
    let into = object_of(target);
    for (name, value) in fields {
        if value.is_null() {
            continue;
        }
        let there = into.entry(name).or_insert(Value::Null);
        match (list_key(name, value), value) {
            (Some(key), Value::Array(items)) => lay_items(there, items, key),
            (_, Value::Object(_)) => lay(there, value),
            _ => *there = value.clone(),
        }
    }
}

/// The owner's order counts; items of others keep their place behind.
fn lay_items(there: &mut Value, items: &[Value], key: &str) {
    let present = there.as_array().cloned().unwrap_or_default();
    let find = |wanted: &Value| present.iter().find(|item| item[key] == wanted[key]).cloned();
    let mut all: Vec<_> = items
        .iter()
        .map(|item| {
            let mut merged = find(item).unwrap_or(Value::Null);
            lay(&mut merged, item);
            merged
        })
        .collect();
    let others = present.iter().filter(|item| !items.iter().any(|own| own[key] == item[key]));
    all.extend(others.cloned());
    *there = Value::Array(all);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_merge_adds_changes_and_removes() {
        let mut target = json!({"a": {"b": 1, "c": 2}, "list": [1, 2]});
        merge(&mut target, &json!({"a": {"b": null, "d": 3}, "list": [3]}));
        assert_eq!(target, json!({"a": {"c": 2, "d": 3}, "list": [3]}));
    }

    #[test]
    fn a_strategic_patch_takes_single_values_out_of_a_list() {
        let mut target = json!({"metadata": {"uid": "u", "finalizers": ["a", "b"]}});
        let without = |value| json!({"metadata": {"$deleteFromPrimitiveList/finalizers": [value]}});
        strategic(&mut target, &without("a"));
        strategic(&mut target, &without("c"));
        assert_eq!(target, json!({"metadata": {"uid": "u", "finalizers": ["b"]}}));
        strategic(&mut target, &without("b"));
        assert_eq!(target, json!({"metadata": {"uid": "u"}}));
    }

    #[test]
    fn an_owner_takes_back_what_it_no_longer_names_and_nothing_of_others() {
        let mut target = json!({"phase": "Running", "other": 1, "usage": {"turns": 1, "cost": 2},
            "conditions": [{"type": "A", "status": "True"}, {"type": "B"}, {"type": "Theirs"}]});
        let before = json!({"phase": "Running", "usage": {"turns": 1},
            "conditions": [{"type": "A", "status": "True"}, {"type": "B"}]});
        let now = json!({"message": "m", "conditions": [{"type": "B", "status": "False"}]});
        apply(&mut target, &before, &now);
        assert_eq!(
            target,
            json!({"message": "m", "other": 1, "usage": {"cost": 2},
                "conditions": [{"type": "B", "status": "False"}, {"type": "Theirs"}]})
        );
    }
}
