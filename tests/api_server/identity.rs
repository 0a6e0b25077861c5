//! Who a supervisor is, as the controller learns it from the real API server: by a token that the API
//! server has signed for this audience and bound to a pod that is there.

use std::{io::Write as _, process::Stdio};

use agent_operator::domain::names::TOKEN_AUDIENCE;
use agent_operator_controller::grpc::auth::{Authority, Caller, KubeReviewer, Rule};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::DeleteParams};
use serde_json::{Value, json};
use tonic::Code;

use super::{policies::Installed, server::eventually};

/// The node that the controller takes whoever shows `token` for, or why it takes it for nobody.
async fn node(installed: &Installed, token: &str) -> Result<String, Code> {
    let reviewer = KubeReviewer::new(installed.controller().await);
    let (system, release) = (&installed.system, installed.release());
    let account = format!("system:serviceaccount:{system}:{release}-supervisor");
    // A new one each time: it believes a token for a minute.
    let authority = Authority::new(reviewer, account);
    match authority.authenticate(Rule::Supervisor, token).await {
        Ok(Some(Caller::Supervisor { node })) => Ok(node.to_string()),
        Ok(other) => panic!("no supervisor, and not refused: {other:?}"),
        Err(status) => Err(status.code()),
    }
}

/// The same token with other claims, signed as the API server signs.
fn signed_anew(token: &str, change: impl FnOnce(&mut Value)) -> String {
    let state = std::env::var("AO_APISERVER_STATE").expect("the folder of the API server");
    let (head, rest) = token.split_once('.').unwrap();
    let claims = BASE64.decode(rest.split('.').next().unwrap()).unwrap();
    let mut claims: Value = serde_json::from_slice(&claims).unwrap();
    change(&mut claims);
    let text = format!("{head}.{}", BASE64.encode(claims.to_string()));
    let mut openssl = std::process::Command::new("openssl")
        .args(["dgst", "-sha256", "-sign", &format!("{state}/pki/sa.key")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    openssl.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let signature = openssl.wait_with_output().unwrap();
    assert!(signature.status.success());
    format!("{text}.{}", BASE64.encode(plain(&signature.stdout)))
}

/// A signature of P-256 as a token has it: both numbers of the DER sequence in 32 bytes each.
fn plain(der: &[u8]) -> Vec<u8> {
    let (first, second) = der[4..].split_at(usize::from(der[3]));
    let number = |bytes: &[u8]| {
        let digits = &bytes[bytes.len().saturating_sub(32)..];
        [vec![0; 32 - digits.len()], digits.to_vec()].concat()
    };
    [number(first), number(&second[2..])].concat()
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn the_controller_takes_nobody_for_a_node_but_who_has_a_live_token_of_its_pod() {
    let Some(installed) = Installed::new().await else { return };
    let pod = installed.bound_to("node-a").await;
    let good = installed.token(&[TOKEN_AUDIENCE], Some(&pod)).await;
    // Rights and policies are there a moment after they are stored.
    eventually("the controller may ask", async || node(&installed, &good).await.ok()).await;
    assert_eq!(node(&installed, &good).await.as_deref(), Ok("node-a"));

    // Made for the API server alone.
    let default = installed.token(&[], Some(&pod)).await;
    assert_eq!(node(&installed, &default).await, Err(Code::Unauthenticated));
    let foreign = installed.token(&["somebody-else"], Some(&pod)).await;
    assert_eq!(node(&installed, &foreign).await, Err(Code::Unauthenticated));
    // Of the right account, and of no pod and so of no node.
    let unbound = installed.token(&[TOKEN_AUDIENCE], None).await;
    assert_eq!(node(&installed, &unbound).await, Err(Code::PermissionDenied));

    // The signature is as good as the API server's own, so what is refused is what was changed.
    let same = signed_anew(&good, |_| ());
    assert_eq!(node(&installed, &same).await.as_deref(), Ok("node-a"));
    let expired = signed_anew(&good, |claims| {
        let issued = claims["iat"].as_i64().unwrap();
        for (claim, seconds) in [("iat", 1200), ("nbf", 1200), ("exp", 600)] {
            claims[claim] = json!(issued - seconds);
        }
    });
    assert_eq!(node(&installed, &expired).await, Err(Code::Unauthenticated));
    let forged = good.rsplit_once('.').unwrap().0.to_owned() + ".AAAA";
    assert_eq!(node(&installed, &forged).await, Err(Code::Unauthenticated));

    let pods: Api<Pod> = Api::namespaced(installed.admin.clone(), &installed.system);
    let name = pod["name"].as_str().unwrap();
    pods.delete(name, &DeleteParams::default().grace_period(0)).await.unwrap();
    // The API server remembers a token for some seconds.
    eventually("the token ends with its pod", async || {
        (node(&installed, &good).await == Err(Code::Unauthenticated)).then_some(())
    })
    .await;
}
