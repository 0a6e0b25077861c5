//! The release in a company's network: the only way out is a proxy with a password, and every server shows a
//! certificate of the company's own authority. Set up by the commands of the how-to page.

use std::{fs, net::SocketAddr};

use agent_operator_doubles::network::Network;
use serde_json::json;

use crate::support::{
    cluster::{Cluster, NAMESPACE, SYSTEM},
    env,
    pages::{Page, bash},
    release::{self, must},
    task::{task, unique},
};

const PAGE: &str = "docs/how-to/proxy-and-ca.md";
/// Names that nobody but the proxy knows.
const MODEL: &str = "model.corp.example";
const FORGE: &str = "git.corp.example";

#[tokio::test]
#[ignore = "needs the local cluster: tests/run life"]
async fn a_task_behind_a_proxy_and_a_private_authority_ends_as_a_pull_request() {
    let undo = async {
        for object in ["secret/proxy-credentials", "configmap/company-ca"] {
            must("kubectl", &["-n", SYSTEM, "delete", object, "--ignore-not-found"]).await;
        }
    };
    release::restored(behind_the_proxy, undo).await;
}

fn address(of: &str) -> SocketAddr {
    env(of).trim_start_matches("http://").parse().expect("an address")
}

async fn behind_the_proxy(before: String) {
    let cluster = Cluster::connect().await;
    let host = address("AO_MODEL_URL").ip();
    let network = Network::start(host, Some("robot:s3cret")).await.expect("a network");
    network.serve_tls(MODEL, address("AO_MODEL_URL")).expect("a certificate");
    network.serve_tls(FORGE, address("AO_FORGE_URL")).expect("a certificate");

    // The page's two commands: the password of the proxy, the certificate of the authority.
    let folder = tempfile::tempdir().expect("a folder");
    fs::copy(network.bundle(), folder.path().join("ca.crt")).expect("the certificate");
    let folder = folder.path().to_str().expect("UTF-8");
    let stands_for = [("--from-file=ca.crt", "--from-file=\"$FOLDER/ca.crt\"")];
    let (user, password) = network.password().and_then(|both| both.split_once(':')).expect("both");
    let environment = [("FOLDER", folder), ("USER_NAME", user), ("PASSWORD", password)];
    for script in Page::read(PAGE).scripts(&stands_for) {
        bash(&script, &environment).await.unwrap_or_else(|error| panic!("{error}"));
    }

    // And what it says about values, with this network's names.
    let values = json!({
        "llm": {"baseURL": format!("https://{MODEL}")},
        "upstreams": [{"host": "github.com", "baseURL": format!("https://{FORGE}"), "forge": "gitea"}],
        "gateway": {
            "proxy": {
                "https": format!("http://{}", network.proxy),
                "credentialsSecret": {"name": "proxy-credentials"},
            },
            "caBundle": {"configMap": "company-ca", "key": "ca.crt"},
        },
    });
    let file = format!("{folder}/values.json");
    fs::write(&file, values.to_string()).expect("the values");
    let more = ["--values", file.as_str()];
    release::install(&release::chart().to_string_lossy(), SYSTEM, &before, &more).await;

    let name = unique("company");
    let prompt = "Add a /healthz endpoint that returns 200 OK";
    cluster.create(NAMESPACE, &task(&name, prompt, &json!({}))).await;
    let done = cluster.complete(NAMESPACE, &name).await;
    assert!(done.status.and_then(|status| status.pull_request).is_some(), "no pull request");
    let asked = network.asked();
    for name in [MODEL, FORGE] {
        let wanted = format!("CONNECT {name}:443");
        assert!(asked.contains(&wanted), "{name} was reached past the proxy: {asked:?}");
    }
}
