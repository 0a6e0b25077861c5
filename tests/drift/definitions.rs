//! The custom resource definitions: types, `deploy/crds` and the chart's copy say the same.

use std::fs;

use agent_operator::crd::all_crds;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

use super::tree::root;

const HEADER: &str = "# Generated from src/crd by `just crds`; do not edit.\n";

/// Path of the file with this definition.
fn file_of(crd: &CustomResourceDefinition) -> String {
    format!("deploy/crds/{}_{}.yaml", crd.spec.group, crd.spec.names.plural)
}

/// Contents of [`file_of`].
fn file_text(crd: &CustomResourceDefinition) -> String {
    format!("{HEADER}{}", serde_saphyr::to_string(crd).unwrap())
}

/// The chart's copy: a template, because Helm installs its `crds/` folder once and never upgrades it;
/// kept at uninstall, because deleting a definition deletes every task.
fn chart_text() -> String {
    let mut text = format!("{HEADER}{{{{- if .Values.crds.install }}}}\n");
    for mut crd in all_crds() {
        let annotations = crd.metadata.annotations.get_or_insert_default();
        annotations.insert("helm.sh/resource-policy".into(), "keep".into());
        let yaml = serde_saphyr::to_string(&crd).unwrap();
        assert!(!yaml.contains("{{"), "Helm would read a pair of braces as its own");
        text.push_str("---\n");
        text.push_str(&yaml);
    }
    text.push_str("{{- end }}\n");
    text
}

/// Both definitions in one file, for who installs them apart from the chart.
const INSTALL_FILE: &str = "deploy/crds/install.yaml";

/// Contents of [`INSTALL_FILE`].
fn install_text() -> String {
    let mut text = format!("{HEADER}# kubectl apply --server-side -f deploy/crds/install.yaml\n");
    for crd in all_crds() {
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(&crd).unwrap());
    }
    text
}

/// Compares a checked-in file with what it should be; writes it instead when `AO_WRITE` is set.
fn hold(path: &str, expected: &str) {
    hold_generated(path, expected, "just crds");
}

/// The same for any file that is printed from the sources; `remedy` writes it.
pub(crate) fn hold_generated(path: &str, expected: &str, remedy: &str) {
    let path = root().join(path);
    if std::env::var_os("AO_WRITE").is_some() {
        fs::write(&path, expected).unwrap();
        return;
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    let line = found.lines().zip(expected.lines()).position(|(a, b)| a != b);
    assert!(
        found == expected,
        "{} differs from its sources (first at line {}); run `{remedy}`",
        path.display(),
        line.unwrap_or_else(|| found.lines().count()) + 1
    );
}

#[test]
fn custom_resource_files_equal_the_types() {
    for crd in all_crds() {
        hold(&file_of(&crd), &file_text(&crd));
    }
}

#[test]
fn custom_resource_install_file_equals_the_types() {
    hold(INSTALL_FILE, &install_text());
}

#[test]
fn custom_resource_copy_of_the_chart_equals_the_types() {
    hold("deploy/helm/agent-operator/templates/crds.yaml", &chart_text());
}

#[test]
fn custom_resource_folder_holds_nothing_else() {
    let mut expected: Vec<String> = all_crds().iter().map(file_of).collect();
    expected.push(INSTALL_FILE.to_owned());
    for entry in fs::read_dir(root().join("deploy/crds")).unwrap() {
        let name = format!("deploy/crds/{}", entry.unwrap().file_name().to_string_lossy());
        assert!(expected.contains(&name), "{name} belongs to no type");
    }
}
