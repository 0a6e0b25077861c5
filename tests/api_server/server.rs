//! The server under test, and small helpers around it.

use std::{path::PathBuf, process::Command, sync::Once, time::Duration};

use agent_operator::crd::all_crds;
use k8s_openapi::{
    api::core::v1::Namespace,
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Config, ResourceExt as _,
    api::{DynamicObject, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    discovery::ApiResource,
};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

/// How long something may take that the server does in the background.
const LIMIT: Duration = Duration::from_secs(30);

/// Kubeconfig of the server under test. A developer's own cluster is never taken: KUBECONFIG counts
/// only beside the folder that `deploy/local/apiserver` prints.
pub(crate) fn kubeconfig() -> Option<PathBuf> {
    let of = |name| std::env::var_os(name).map(PathBuf::from);
    of("AO_APISERVER_KUBECONFIG")
        .or_else(|| of("AO_APISERVER_STATE").and_then(|_| of("KUBECONFIG")))
}

/// Configuration of an administrator, or none after saying that the test was skipped.
pub(crate) async fn admin() -> Option<Config> {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    });
    let Some(path) = kubeconfig() else {
        let required = ["AO_REQUIRE_APISERVER", "AO_REQUIRE_CLUSTER"]
            .iter()
            .any(|name| std::env::var_os(name).is_some_and(|value| value == "1"));
        assert!(!required, "a kube-apiserver is required: eval \"$(deploy/local/apiserver up)\"");
        eprintln!("skipped: no kube-apiserver; eval \"$(deploy/local/apiserver up)\" starts one");
        return None;
    };
    let file = Kubeconfig::read_from(path).unwrap();
    Some(Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap())
}

/// An administrator's client, with the definitions installed.
pub(crate) async fn client() -> Option<Client> {
    static INSTALLED: OnceCell<()> = OnceCell::const_new();
    let client = Client::try_from(admin().await?).unwrap();
    INSTALLED.get_or_init(|| install(client.clone())).await;
    Some(client)
}

/// Installs the definitions by server-side apply and waits until they are served.
async fn install(client: Client) {
    let api: Api<CustomResourceDefinition> = Api::all(client);
    for crd in all_crds() {
        let params = PatchParams::apply("api-tests").force();
        api.patch(&crd.name_any(), &params, &Patch::Apply(&crd)).await.unwrap();
        eventually("the definition is served", async || {
            let found = api.get(&crd.name_any()).await.unwrap();
            let conditions = found.status.unwrap_or_default().conditions.unwrap_or_default();
            conditions.iter().any(|c| c.type_ == "Established" && c.status == "True").then_some(())
        })
        .await;
    }
}

/// Repeats `attempt` until it gives something, for at most [`LIMIT`].
pub(crate) async fn eventually<T>(what: &str, mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let repeat = async {
        loop {
            if let Some(result) = attempt().await {
                return result;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(LIMIT, repeat).await.unwrap_or_else(|_| panic!("not in {LIMIT:?}: {what}"))
}

/// A namespace of its own for one test.
pub(crate) async fn namespace(client: &Client) -> String {
    let namespace: Namespace = from_json(json!({"metadata": {"generateName": "api-test-"}}));
    Api::all(client.clone()).create(&PostParams::default(), &namespace).await.unwrap().name_any()
}

/// A typed object from JSON.
pub(crate) fn from_json<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// An API of one of our kinds, untyped, so that wrong objects can be sent.
pub(crate) fn untyped(client: &Client, kind: &str, namespace: &str) -> Api<DynamicObject> {
    let resource = ApiResource {
        group: "agents.wearn.dev".into(),
        version: "v1alpha1".into(),
        api_version: "agents.wearn.dev/v1alpha1".into(),
        kind: kind.into(),
        plural: format!("{}s", kind.to_lowercase()),
    };
    Api::namespaced_with(client.clone(), namespace, &resource)
}

/// A sample of `deploy/samples`, moved into `namespace`.
pub(crate) fn sample(file: &str, namespace: &str) -> Value {
    let path = format!("{}/deploy/samples/{file}.yaml", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let mut object: Value = serde_saphyr::from_str(&text).unwrap();
    object["metadata"]["namespace"] = namespace.into();
    object
}

/// Sets the value at a JSON pointer, making the objects on the way; null removes it.
pub(crate) fn set(object: &mut Value, pointer: &str, value: Value) {
    let (parent, last) = pointer.rsplit_once('/').unwrap();
    let mut place = object;
    for key in parent.split('/').skip(1) {
        place = &mut place[key];
    }
    if value.is_null() {
        place.as_object_mut().unwrap().remove(last);
    } else {
        place[last] = value;
    }
}

/// The server's words for a refusal.
pub(crate) fn refusal<T: std::fmt::Debug>(result: Result<T, kube::Error>) -> String {
    match result.expect_err("the server must refuse this") {
        kube::Error::Api(status) => status.message.clone(),
        other => panic!("not a refusal: {other:?}"),
    }
}

/// The chart, rendered with `--set-json` arguments.
pub(crate) fn render(release: &str, namespace: &str, set: &[String]) -> Vec<Value> {
    try_render(release, namespace, set).unwrap_or_else(|error| panic!("{error}"))
}

/// The same, or Helm's words for its refusal.
pub(crate) fn try_render(
    release: &str,
    namespace: &str,
    set: &[String],
) -> Result<Vec<Value>, String> {
    let chart = format!("{}/deploy/helm/agent-operator", env!("CARGO_MANIFEST_DIR"));
    let output = Command::new("helm")
        .args(["template", release, &chart, "--namespace", namespace])
        .args(set.iter().flat_map(|value| ["--set-json", value]))
        .output()
        .expect("helm must be on PATH; deploy/local/apiserver prints the folder");
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let text = String::from_utf8(output.stdout).unwrap();
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}
