//! The bill of materials of an image names everything that is linked into it, as the lock file has it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    process::Command,
};

use serde_json::Value;

use super::tree::{read, root};

fn sbom(image: &str, packages: &str) -> Value {
    let mut list = tempfile::NamedTempFile::new().unwrap();
    list.write_all(packages.as_bytes()).unwrap();
    let output = Command::new(root().join("deploy/images/sbom"))
        .arg(image)
        .arg("--packages")
        .arg(list.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn components(sbom: &Value, kind: &str) -> BTreeSet<String> {
    let all = sbom["components"].as_array().unwrap();
    let urls = all.iter().map(|component| component["purl"].as_str().unwrap());
    urls.filter(|url| url.starts_with(&format!("pkg:{kind}/"))).map(str::to_owned).collect()
}

/// What `cargo metadata` says of the crates below a package of ours: those that must be linked into it,
/// and those that may be, with optional ones. A walk over its graph, apart from the script's own way.
fn linked(package: &str) -> [BTreeSet<String>; 2] {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new("cargo")
        .args(["metadata", "--locked", "--format-version", "1", "--filter-platform", &target])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let by_id = |list: &Value| -> BTreeMap<String, Value> {
        let list = list.as_array().unwrap().iter();
        list.map(|item| (item["id"].as_str().unwrap().to_owned(), item.clone())).collect()
    };
    let (packages, nodes) = (by_id(&metadata["packages"]), by_id(&metadata["resolve"]["nodes"]));
    let text = |id: &str, field: &str| packages[id][field].as_str().unwrap().to_owned();
    let first = packages.keys().find(|id| text(id, "name") == package).unwrap();
    [true, false].map(|required| {
        let (mut found, mut queue) = (BTreeSet::new(), vec![first.clone()]);
        while let Some(id) = queue.pop() {
            let purl = format!("pkg:cargo/{}@{}", text(&id, "name"), text(&id, "version"));
            if !found.insert(purl) {
                continue;
            }
            for dep in nodes[&id]["deps"].as_array().unwrap() {
                let kinds = dep["dep_kinds"].as_array().unwrap();
                let next = dep["pkg"].as_str().unwrap();
                let always =
                    packages[&id]["dependencies"].as_array().unwrap().iter().any(|wanted| {
                        wanted["name"] == packages[next]["name"]
                            && wanted["optional"] == false
                            && wanted["kind"].is_null()
                            && wanted["target"].is_null()
                    });
                if kinds.iter().any(|kind| kind["kind"].is_null()) && (always || !required) {
                    queue.push(next.to_owned());
                }
            }
        }
        found
    })
}

#[test]
fn a_bill_of_materials_names_each_linked_crate_with_its_checksum() {
    let lock = read("Cargo.lock");
    for image in ["controller", "supervisor", "runner"] {
        let sbom = sbom(image, "");
        let named = components(&sbom, "cargo");
        assert!(named.len() > 50, "{image}: {}", named.len());
        let [required, possible] = linked(&format!("agent-operator-{image}"));
        assert!(required.len() > 30, "{image}: {}", required.len());
        let missing: Vec<_> = required.difference(&named).collect();
        assert!(missing.is_empty(), "{image}: {missing:?}");
        let unknown: Vec<_> = named.difference(&possible).collect();
        assert!(unknown.is_empty(), "{image}: {unknown:?}");
        for component in sbom["components"].as_array().unwrap() {
            let name = component["name"].as_str().unwrap();
            if name.starts_with("agent-operator") || name.starts_with('@') {
                continue;
            }
            assert!(component["licenses"][0]["expression"].is_string(), "{name}");
            let sum = component["hashes"][0]["content"].as_str().unwrap();
            let version = component["version"].as_str().unwrap();
            let entry = format!("name = \"{name}\"\nversion = \"{version}\"\n");
            let (_, entry) = lock.split_once(&entry).unwrap_or_else(|| panic!("{name} {version}"));
            assert!(entry.split("\n\n").next().unwrap().contains(sum), "{name} {version}");
        }
        for known in ["serde", "serde_json", "thiserror"] {
            assert!(named.iter().any(|url| url.starts_with(&format!("pkg:cargo/{known}@"))));
        }
    }
}

#[test]
fn a_bill_of_materials_names_packages_and_programs_and_is_the_same_each_time() {
    let packages = "git 1:2.39.5-0+deb12u2 amd64\nzlib1g 1:1.2.13.dfsg-1 amd64\n";
    let agent = sbom("agent", packages);
    assert_eq!(components(&agent, "deb").len(), 2);
    assert_eq!(components(&agent, "npm").len(), 2);
    assert_eq!(components(&agent, "cargo").len(), 0);
    let runner = sbom("runner", "");
    assert!(components(&runner, "npm").first().unwrap().contains("claude-code"));
    assert_eq!(agent, sbom("agent", packages));
    for sbom in [&agent, &runner] {
        assert_eq!(
            (&sbom["bomFormat"], &sbom["specVersion"]),
            (&"CycloneDX".into(), &"1.6".into())
        );
    }
}
