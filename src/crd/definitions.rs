//! The definitions that are installed into a cluster: what the derive makes of the types, plus what
//! it cannot say.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
    ValidationRule,
};
use kube::CustomResourceExt as _;

use super::{AgentRun, CodingTask};

/// Most entries of a map (node selectors): it bounds the cost of the rules that read one.
const MAP_ENTRIES_MAX: i64 = 32;

/// Longest value in a map: Kubernetes' limit for label values.
const MAP_VALUE_CHARS_MAX: i64 = 63;

/// Both definitions, in the order in which they are installed.
pub fn all_crds() -> Vec<CustomResourceDefinition> {
    let mut crds = vec![CodingTask::crd(), AgentRun::crd()];
    for crd in &mut crds {
        let rules = match crd.spec.names.kind.as_str() {
            "CodingTask" => work_branch_rules(),
            _ => vec![status_stays_rule()],
        };
        for version in &mut crd.spec.versions {
            if let Some(root) =
                version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut())
            {
                finish(root);
                root.x_kubernetes_validations = Some(rules.clone());
            }
        }
    }
    crds
}

/// The default work branch is made of the task's name, which only a rule at the root can see, and lies
/// below `ai/`, which git cannot store beside a branch `ai`.
fn work_branch_rules() -> Vec<ValidationRule> {
    [
        (
            "!self.metadata.name.endsWith('.lock') || has(self.spec.repository.workBranch)",
            "metadata.name ends in .lock, which git allows in no branch name; set spec.repository.workBranch or choose another name",
        ),
        (
            "has(self.spec.repository.workBranch) || !has(self.spec.repository.branch) || self.spec.repository.branch != 'ai'",
            "spec.repository.branch ai leaves no room for the default work branch ai/<task-name>; set spec.repository.workBranch, for example to agents/my-task",
        ),
    ]
    .map(|(rule, message)| ValidationRule {
        rule: rule.into(),
        message: Some(message.into()),
        ..ValidationRule::default()
    })
    .into()
}

/// The rules inside the status cannot see that the whole of it goes.
fn status_stays_rule() -> ValidationRule {
    ValidationRule {
        rule: "!has(oldSelf.status) || has(self.status)".into(),
        message: Some(
            "status of an AgentRun cannot be removed; delete the AgentRun instead".into(),
        ),
        ..ValidationRule::default()
    }
}

/// Walks a schema and adds what the derive leaves out.
fn finish(schema: &mut JSONSchemaProps) {
    // Without it the API server drops an explicit null, so `field: null` means the same as no field
    // and no rule has to tell the two apart.
    schema.nullable = None;
    // What is missing stays missing: readers fill it in, so that a defaulted value never looks chosen.
    schema.default = None;
    if schema.x_kubernetes_int_or_string == Some(true) {
        // The derive empties the alternatives; the extension alone says the same.
        schema.any_of = None;
    }
    if schema.type_.as_deref() == Some("array") && schema.x_kubernetes_list_type.is_none() {
        schema.x_kubernetes_list_type = Some("atomic".into());
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = schema.additional_properties.as_mut() {
        schema.max_properties.get_or_insert(MAP_ENTRIES_MAX);
        values.max_length.get_or_insert(MAP_VALUE_CHARS_MAX);
        finish(values);
    }
    for property in schema.properties.iter_mut().flat_map(|properties| properties.values_mut()) {
        finish(property);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = schema.items.as_mut() {
        finish(items);
    }
}

#[cfg(test)]
mod tests;
