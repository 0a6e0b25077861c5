//! The chart's texts against the code: versions, flags, rights, documentation. What needs Helm is
//! in `tests/api_server`.

use std::{collections::BTreeSet, fs};

use super::tree::{read, root};

const CHART: &str = "deploy/helm/agent-operator";

/// The value of the first line `key: value`.
fn field(text: &str, key: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
    line.unwrap_or_else(|| panic!("no {key}")).trim_matches('"').to_owned()
}

#[test]
fn chart_images_and_crates_have_one_version() {
    let cargo = read("Cargo.toml");
    let version = cargo.split("[workspace.package]").nth(1).unwrap();
    let version = version.lines().find_map(|line| line.strip_prefix("version = ")).unwrap();
    let version = version.trim_matches('"');
    let chart = read(format!("{CHART}/Chart.yaml"));
    assert_eq!(field(&chart, "version"), version);
    assert_eq!(field(&chart, "appVersion"), version);
    let values = read(format!("{CHART}/values.yaml"));
    let images: Vec<_> = values.lines().filter(|line| line.contains(": ghcr.io/")).collect();
    assert_eq!(images.len(), 4);
    for image in images {
        assert!(image.ends_with(&format!(":{version}")), "{image} is not of version {version}");
    }
}

/// Flags (`--name=`) that templates pass, by the program they are for.
fn flags(template: &str, from: &str, to: &str) -> BTreeSet<String> {
    let text = read(format!("{CHART}/templates/{template}"));
    let text = text.split(from).nth(1).unwrap_or_else(|| panic!("{template} has no {from:?}"));
    let text = text.split(to).next().unwrap();
    let flags = text.lines().filter_map(|line| line.trim().strip_prefix("- --"));
    flags.map(|flag| flag.split('=').next().unwrap().to_owned()).collect()
}

/// Fails unless a clap struct in `file` has an argument for each of the flags.
fn hold_flags(file: &str, flags: &BTreeSet<String>) {
    assert!(!flags.is_empty());
    let code = read(file);
    for flag in flags {
        let field = format!("{}:", flag.replace('-', "_"));
        let renamed = format!("long = \"{flag}\"");
        assert!(code.contains(&field) || code.contains(&renamed), "{file} knows no --{flag}");
    }
}

#[test]
fn flags_of_the_chart_are_flags_of_the_programs() {
    let file = |path: &str| root().join(path).exists().then(|| path.to_owned());
    if let Some(file) = file("controller/src/args.rs") {
        hold_flags(&file, &flags("controller.yaml", "args:", "env:"));
        hold_flags(&file, &flags("uninstall.yaml", "- uninstall\n", "- end }}\n{{- end }}"));
        hold_flags(&file, &flags("purge-nodes.yaml", "- await-purge\n", "- end }}"));
    }
    if let Some(file) = file("supervisor/src/args.rs") {
        hold_flags(
            &file,
            &flags("_helpers.tpl", "ao.supervisorArgs\" -", "{{- end }}\n{{- end }}"),
        );
    }
    hold_flags("supervisor/src/gateway/args.rs", &flags("supervisor.yaml", "- gateway\n", "env:"));
    hold_flags("supervisor/src/enforcer/args.rs", &flags("enforcer.yaml", "- enforcer\n", "env:"));
}

/// The enforcer takes no setting but those that the chart gives it, and has no port.
#[test]
fn the_enforcer_gets_each_of_its_flags_and_has_neither_port_nor_token() {
    let given = flags("enforcer.yaml", "- enforcer\n", "env:");
    let code = read("supervisor/src/enforcer/args.rs");
    let known: BTreeSet<String> = code
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pub ")?.split_once(": "))
        .map(|(field, _)| field.replace('_', "-"))
        .collect();
    assert_eq!(given, known);
    let template = read(format!("{CHART}/templates/enforcer.yaml"));
    for banned in ["containerPort", "ports:", "serviceAccountName", "-listen", "secretKeyRef"] {
        assert!(!template.contains(banned), "the enforcer has {banned}");
    }
    assert!(template.contains("automountServiceAccountToken: false"));
    assert!(template.contains("capabilities: {drop: [ALL], add: [NET_ADMIN]}"));
}

#[test]
fn a_purge_knows_every_folder_that_is_kept_on_nodes() {
    let kept = read(format!("{CHART}/templates/supervisor.yaml"));
    let purge = read(format!("{CHART}/templates/purge-nodes.yaml"));
    let named = purge.lines().find_map(|line| line.trim().strip_prefix("for folder in "));
    let named: BTreeSet<_> = named.unwrap().trim_end_matches("; do").split(' ').collect();
    let folders: BTreeSet<_> = kept
        .lines()
        .filter_map(|line| {
            line.split_once("hostPath: {path: {{ $own.hostPath }}/")?.1.split_once(',')
        })
        .map(|(folder, _)| format!("/host/{folder}"))
        .collect();
    assert_eq!(folders.len(), 3, "the folders must be seen: {folders:?}");
    assert_eq!(named, folders.iter().map(String::as_str).collect());
}

#[test]
fn no_role_has_a_wildcard_or_a_way_around() {
    for entry in fs::read_dir(root().join(CHART).join("templates")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if !name.starts_with("rbac-") {
            continue;
        }
        let text = read(format!("{CHART}/templates/{name}"));
        let rules = text.lines().filter(|line| !line.trim_start().starts_with('#'));
        for line in rules {
            for banned in [
                "'*'",
                "\"*\"",
                "[*",
                "nodes/proxy",
                "impersonate",
                "escalate",
                "bind]",
                "pods/exec",
            ] {
                assert!(!line.contains(banned), "{name}: {line}");
            }
        }
    }
}

#[test]
fn the_longest_default_of_a_step_is_what_the_definition_allows() {
    let rules = read("src/crd/rules.rs");
    let line = rules.lines().find(|line| line.contains("const STEP_TIMEOUT: ")).unwrap();
    let hours = line.split('"').nth(1).unwrap();
    let seconds = hours.parse::<u32>().unwrap() * 3600;
    let template = read(format!("{CHART}/templates/controller-config.yaml"));
    for text in [format!("$of.s) {seconds} }}}}"), format!("at most {hours}h")] {
        assert!(template.contains(&text), "{text} is not in the template");
    }
}

#[test]
fn gateway_container_has_no_token_and_no_host_logs() {
    let text = read(format!("{CHART}/templates/supervisor.yaml"));
    let gateway = text.split("- name: gateway\n").nth(1).unwrap();
    let gateway = gateway.split("      volumes:").next().unwrap();
    for banned in ["kube-api-access", "controller-token", "pod-logs", "cgroup", "name: ledger"] {
        assert!(!gateway.contains(banned), "the gateway mounts {banned}");
    }
    assert!(gateway.contains("name: git") && gateway.contains("name: socket"));
    assert!(text.contains("automountServiceAccountToken: false\n      enableServiceLinks"));
}

#[test]
fn sample_of_the_design_is_the_sample_of_the_chart_notes() {
    let notes = read(format!("{CHART}/templates/NOTES.txt"));
    let notes = notes.split("<<YAML\n").nth(1).unwrap().split("\nYAML").next().unwrap();
    let notes = notes.replace("{{ $task }}", "agent-system").replace("${USER:-me}", "jackson");
    assert_eq!(notes.trim(), read("deploy/samples/codingtask.yaml").trim());
}

#[test]
fn ports_that_the_release_test_asks_are_those_of_the_chart() {
    let check = read("controller/src/check.rs");
    let networkpolicies = read(format!("{CHART}/templates/networkpolicies.yaml"));
    let supervisor = read(format!("{CHART}/templates/supervisor.yaml"));
    let controller = read(format!("{CHART}/templates/controller.yaml"));
    assert!(check.contains("METRICS_PORT: u16 = 8081") && check.contains("GRPC_PORT: u16 = 8443"));
    assert!(networkpolicies.contains("port: 8081") && controller.contains("port: 8443"));
    assert!(supervisor.contains("{name: http, containerPort: 8081}"));
    assert!(supervisor.contains("{name: gateway-metrics, containerPort: 8082}"));
    assert!(supervisor.contains("--metrics-listen=[::]:8082"));
    assert!(networkpolicies.contains("port: 8082"));
    hold_flags("controller/src/args.rs", &flags("test.yaml", "- check\n", "resources:"));
}
