//! Followed logs, checked by the numbers of their rows.

use k8s_openapi::api::{core::v1::ServiceAccount, rbac::v1::RoleBinding};
use kube::{Api, api::PostParams};
use serde_json::{Value, json};

use super::{
    cluster::{Cluster, NAMESPACE},
    grpcurl,
};

/// The method.
pub(crate) const FOLLOW: &str = "agentoperator.v1.StepService/Follow";

/// A token of a service account that may read logs in the task namespace.
pub(crate) async fn viewer_token(cluster: &Cluster, name: &str) -> String {
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    let account = serde_json::from_value(json!({"metadata": {"name": name}}));
    let account: ServiceAccount = account.expect("an account");
    accounts.create(&PostParams::default(), &account).await.expect("a new account");
    let bindings: Api<RoleBinding> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    let binding = serde_json::from_value(json!({
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE}],
    }));
    let binding: RoleBinding = binding.expect("a binding");
    bindings.create(&PostParams::default(), &binding).await.expect("a new binding");
    grpcurl::token(NAMESPACE, name).await
}

/// What a Follow told of lines `row N ...`.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    /// The numbers, in the order in which they came.
    pub(crate) rows: Vec<u64>,
    /// Gaps of the log: from, to and reason.
    pub(crate) gaps: Vec<String>,
}

impl Rows {
    /// Of the events of one or more calls, one after the other.
    pub(crate) fn of(events: &[Value]) -> Self {
        let mut told = Self::default();
        for event in events {
            let text = event["log"]["text"].as_str().unwrap_or_default();
            if let Some(number) = text.strip_prefix("row ") {
                let number = number.split(' ').next().unwrap_or_default();
                told.rows.push(number.parse().expect("a row's number"));
            }
            if event["gap"].is_object() {
                told.gaps.push(event["gap"].to_string());
            }
        }
        told
    }

    /// Rows that do not come behind the one before: doubled, or out of order.
    pub(crate) fn disordered(&self) -> usize {
        self.rows.windows(2).filter(|pair| pair[1] <= pair[0]).count()
    }
}
