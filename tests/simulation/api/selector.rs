//! Label and field selectors, as far as equality goes.

use serde_json::Value;

use super::call::Call;

/// What a list or a watch is limited to.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    namespace: Option<String>,
    labels: Vec<(String, String)>,
    fields: Vec<(String, String)>,
}

impl Selector {
    /// Of a request.
    pub fn of(call: &Call) -> Self {
        let pairs = |name: &str| call.query.get(name).map_or_else(Vec::new, |text| parse(text));
        let mut fields = pairs("fieldSelector");
        // A watch on one object names it in the path.
        fields.extend(call.name.iter().map(|name| ("metadata.name".to_owned(), name.clone())));
        Self { namespace: call.namespace.clone(), labels: pairs("labelSelector"), fields }
    }

    /// Whether `object` is meant.
    pub fn matches(&self, object: &Value) -> bool {
        let meta = &object["metadata"];
        let here = self.namespace.as_ref().is_none_or(|wanted| meta["namespace"] == **wanted);
        let labelled = |(key, value): &(String, String)| meta["labels"][key] == **value;
        here && self.labels.iter().all(labelled)
            && self.fields.iter().all(|(path, value)| field(object, path) == value.as_str())
    }
}

fn parse(text: &str) -> Vec<(String, String)> {
    let pair = |part: &str| {
        let (key, value) = part.split_once('=')?;
        Some((key.to_owned(), value.trim_start_matches('=').to_owned()))
    };
    text.split(',').filter_map(pair).collect()
}

/// A field that is absent is empty, as the server has it.
fn field<'a>(object: &'a Value, path: &str) -> &'a str {
    let found = path.split('.').try_fold(object, |value, part| value.get(part));
    found.and_then(Value::as_str).unwrap_or_default()
}
