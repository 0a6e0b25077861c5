//! Secrets of a test's own, and conditions of tasks that wait for them.

use agent_operator::crd::CodingTask;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{
    cluster::{Cluster, TASK_LIMIT},
    eventually,
};

/// Key of the model's credential.
pub(crate) const MODEL_KEY: &str = "anthropic-api-key";
/// Key of git's.
pub(crate) const GIT_KEY: &str = "github-token";

impl Cluster {
    /// Creates or replaces the Secret `name` with these keys.
    pub(crate) async fn secret(&self, namespace: &str, name: &str, keys: &[(&str, &str)]) {
        let data: serde_json::Map<String, Value> =
            keys.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        let secret: Secret =
            serde_json::from_value(json!({"metadata": {"name": name}, "stringData": data}))
                .expect("a Secret");
        self.put_secret(namespace, &secret).await;
    }

    /// Creates or replaces the Secret `name` with a good git token and this model key.
    pub(crate) async fn secret_with_model_key(&self, namespace: &str, name: &str, key: &str) {
        self.secret(namespace, name, &[(GIT_KEY, self.forge.token()), (MODEL_KEY, key)]).await;
    }

    /// Annotates a Secret.
    pub(crate) async fn annotate_secret(
        &self,
        namespace: &str,
        name: &str,
        annotation: (&str, &str),
    ) {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let (key, value) = annotation;
        let patch = json!({"metadata": {"annotations": {key: value}}});
        api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await.expect("a Secret");
    }

    /// Removes a Secret.
    pub(crate) async fn delete_secret(&self, namespace: &str, name: &str) {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        api.delete(name, &DeleteParams::default()).await.expect("the Secret");
    }

    /// Sets `spec.suspend`.
    pub(crate) async fn suspend(&self, namespace: &str, task: &str, suspend: bool) {
        let patch = json!({"spec": {"suspend": suspend}});
        let patched =
            self.tasks(namespace).patch(task, &PatchParams::default(), &Patch::Merge(&patch)).await;
        patched.expect("the task takes a changed suspend");
    }

    /// Waits until a condition of the task has this status and reason; gives its message.
    pub(crate) async fn condition(
        &self,
        namespace: &str,
        task: &str,
        (type_, status, reason): (&str, &str, &str),
    ) -> (CodingTask, String) {
        eventually(&format!("{task} has {type_}={status}/{reason}"), TASK_LIMIT, || async {
            let task = self.tasks(namespace).get(task).await.map_err(|error| error.to_string())?;
            let conditions = task.status.as_ref().map(|status| status.conditions.clone());
            let found = conditions.iter().flatten().find(|known| {
                known.type_ == type_ && known.status == status && known.reason == reason
            });
            match found.map(|known| known.message.clone()) {
                Some(message) => Ok((task, message)),
                None => Err(format!("{conditions:#?}")),
            }
        })
        .await
    }
}
