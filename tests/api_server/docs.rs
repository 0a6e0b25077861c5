//! The examples of the documentation: the API server takes the objects, the chart takes the values.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use kube::{
    Api,
    api::{DynamicObject, GroupVersionKind, Patch, PatchParams, TypeMeta},
    discovery::{self, Scope},
};
use serde_json::Value;

use crate::server::{client, namespace};

/// Every page below `docs`.
fn pages() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    found
}

/// The YAML documents of a page: its `yaml` blocks, and what its shell blocks write by here-document.
fn documents(page: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(page).unwrap();
    let within = |opening: &str, closing: &str| -> Vec<String> {
        let parts = text.split(opening).skip(1);
        parts.filter_map(|part| part.split(closing).next()).map(str::to_owned).collect()
    };
    let blocks = within("\n```yaml\n", "\n```").into_iter();
    let written = within("<<'YAML'\n", "\nYAML\n");
    blocks
        .chain(written)
        .flat_map(|block| {
            serde_saphyr::from_multiple::<Value>(&block)
                .unwrap_or_else(|error| panic!("{}: {error}\n{block}", page.display()))
        })
        .collect()
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn objects_in_the_documentation_are_accepted_by_the_server() {
    let Some(client) = client().await else { return };
    let namespace = namespace(&client).await;
    let mut seen = 0;
    for page in pages() {
        for mut object in documents(&page).into_iter().filter(|it| it.get("kind").is_some()) {
            let name = object["metadata"]["name"].as_str().unwrap().to_owned();
            let types: TypeMeta = serde_json::from_value(object.clone()).unwrap();
            let kind = GroupVersionKind::try_from(types).unwrap();
            let (resource, capabilities) = discovery::pinned_kind(&client, &kind).await.unwrap();
            let api: Api<DynamicObject> = if capabilities.scope == Scope::Namespaced {
                object["metadata"]["namespace"] = namespace.as_str().into();
                Api::namespaced_with(client.clone(), &namespace, &resource)
            } else {
                Api::all_with(client.clone(), &resource)
            };
            let params = PatchParams::apply("docs").dry_run().validation_strict();
            api.patch(&name, &params, &Patch::Apply(&object))
                .await
                .unwrap_or_else(|error| panic!("{}: {name}: {error}", page.display()));
            seen += 1;
        }
    }
    assert!(seen >= 4, "the examples were not found");
}

#[test]
#[ignore = "needs helm: tests/run api"]
fn values_in_the_documentation_are_taken_by_the_chart() {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/helm/agent-operator");
    let folder = tempfile::tempdir().unwrap();
    let mut seen = 0;
    for page in pages() {
        for values in documents(&page).into_iter().filter(|it| it.get("kind").is_none()) {
            let file = folder.path().join("values.json");
            std::fs::write(&file, values.to_string()).unwrap();
            let output = Command::new("helm")
                .arg("template")
                .arg("docs")
                .arg(&chart)
                .arg("--values")
                .arg(&file)
                .output()
                .expect("helm must be on PATH; deploy/local/apiserver prints the folder");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}: {said}\n{values}", page.display());
            seen += 1;
        }
    }
    assert!(seen >= 4, "the examples were not found");
}
