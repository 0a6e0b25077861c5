//! Agent images that somebody else might bring, made of what is in the local registry anyway.

use std::{fs, path::Path, path::PathBuf};

use agent_operator::domain::names::sha256_hex;
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use tokio::process::Command;

use super::{env, release::must, task::unique};

/// The image of the release that has this name in `deploy/images`.
pub(crate) fn of_release(name: &str) -> String {
    let file = PathBuf::from(env("AO_STATE")).join("images.env");
    let text = fs::read_to_string(file).expect("references of the images");
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name}=")));
    line.unwrap_or_else(|| panic!("no image is called {name}")).to_owned()
}

/// Runs `crane` with the local registry; gives what it printed.
pub(crate) async fn crane(arguments: &[&str]) -> String {
    let output = Command::new("crane").args(arguments).arg("--insecure").output().await;
    let output = output.expect("crane runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

/// Debian with git and nothing of ours: what the supervisor's image is before its binary is added.
pub(crate) async fn debian_with_git() -> String {
    without_last_layer(&of_release("supervisor")).await
}

/// Debian without git: what the controller's image is before its binary is added.
pub(crate) async fn debian_without_git() -> String {
    without_last_layer(&of_release("controller")).await
}

/// musl and busybox as Debian packages them, and no glibc.
pub(crate) async fn musl() -> String {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    for package in musl_packages().await {
        must("dpkg-deb", &["-x", &package.to_string_lossy(), &path("root")]).await;
    }
    let (root, layer) = (path("root"), path("layer.tar"));
    must("tar", &["--owner=0", "--group=0", "--mtime=@0", "-C", &root, "-cf", &layer, "."]).await;
    let image = format!("{}/third-party/musl", env("AO_REGISTRY"));
    // A tag that the registry knows would not be pushed again, also where its blobs were swept away.
    let tag = unique("tag");
    let (plain, image) = (format!("{image}:{tag}-layer"), format!("{image}:{tag}"));
    crane(&["append", "--new_layer", &layer, "--new_tag", &plain]).await;
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let platform = format!("linux/{architecture}");
    crane(&["mutate", &plain, "--set-platform", &platform, "--tag", &image]).await;
    let digest = crane(&["digest", &image]).await;
    format!("{}/third-party/musl@{digest}", env("AO_REGISTRY"))
}

/// The package files, fetched once into the cache.
async fn musl_packages() -> Vec<PathBuf> {
    let cache = PathBuf::from(env("AO_CACHE")).join("musl");
    fs::create_dir_all(&cache).expect("a folder of the cache");
    let found = |cache: &Path| {
        let entries = fs::read_dir(cache).expect("the cache").flatten().map(|entry| entry.path());
        entries.filter(|path| path.extension().is_some_and(|it| it == "deb")).collect::<Vec<_>>()
    };
    if found(&cache).len() < 2 {
        // The lists of packages may never have been fetched on this machine.
        let fetch = "cd \"$0\"; apt-get -q download musl busybox-static || { apt-get -q update && apt-get -q download musl busybox-static; }";
        must("sh", &["-ec", fetch, &cache.to_string_lossy()]).await;
    }
    found(&cache)
}

/// `image` as it was before its last layer, under its digest. No byte of a layer is copied: only the
/// lists of them are written anew.
async fn without_last_layer(image: &str) -> String {
    let parse = |text: String| serde_json::from_str::<Value>(&text).expect("JSON");
    let mut manifest = parse(crane(&["manifest", image]).await);
    let mut config = parse(crane(&["config", image]).await);
    let pop = |list: &mut Value| list.as_array_mut().expect("a list").pop().expect("a layer");
    pop(&mut manifest["layers"]);
    pop(&mut config["rootfs"]["diff_ids"]);
    config.as_object_mut().expect("an object").remove("history");
    config["config"] = Value::Object(serde_json::Map::new());
    let config = config.to_string();
    let digest = format!("sha256:{}", sha256_hex(config.as_bytes()));
    manifest["config"]["digest"] = digest.clone().into();
    manifest["config"]["size"] = config.len().into();

    let (repository, _) = image.rsplit_once(':').expect("a tag");
    let (registry, name) = repository.split_once('/').expect("a registry");
    let api = format!("http://{registry}/v2/{name}");
    let kind = manifest["mediaType"].as_str().expect("a media type").to_owned();
    let manifest = manifest.to_string();
    let tip = format!("sha256:{}", sha256_hex(manifest.as_bytes()));
    let result = format!("{repository}@{tip}");
    tokio::task::spawn_blocking(move || {
        let blob = ureq::post(format!("{api}/blobs/uploads/?digest={digest}")).send(config);
        blob.expect("the registry takes a configuration");
        let put = ureq::put(format!("{api}/manifests/{tip}")).header("content-type", kind);
        put.send(manifest).expect("the registry takes a manifest");
    })
    .await
    .expect("the request's thread");
    result
}

/// How the runner came into `pod`, in the words of the chart's value.
pub(crate) fn delivery_of(pod: &Pod) -> &'static str {
    let spec = pod.spec.as_ref().expect("a spec");
    let volume = spec.volumes.iter().flatten().find(|volume| volume.name == "runner");
    let installed = spec.init_containers.as_ref().is_some_and(|list| !list.is_empty());
    match (volume.expect("a volume of the runner").image.is_some(), installed) {
        (true, false) => "imageVolume",
        (false, true) => "initContainer",
        both => panic!("neither or both: {both:?}"),
    }
}
