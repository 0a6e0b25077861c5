//! What an administrator does to the forge meanwhile: repositories, branches and people that come
//! and go.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::forge::Forge;

/// Owner of all repositories.
const OWNER: &str = "jcwearn";

impl Forge {
    /// Makes a repository with a first commit on `main`.
    pub(crate) async fn create_repository(&self, name: &str) {
        let body = json!({"name": name, "auto_init": true, "default_branch": "main"});
        self.must("POST", &format!("/orgs/{OWNER}/repos"), Some(body)).await;
    }

    /// Removes a repository.
    pub(crate) async fn delete_repository(&self, name: &str) {
        self.must("DELETE", &format!("/repos/{OWNER}/{name}"), None).await;
    }

    /// Makes a branch of the repository from its `main`.
    pub(crate) async fn create_branch(&self, repository: &str, branch: &str) {
        let body = json!({"new_branch_name": branch, "old_branch_name": "main"});
        self.must("POST", &format!("/repos/{OWNER}/{repository}/branches"), Some(body)).await;
    }

    /// Removes a branch.
    pub(crate) async fn delete_branch(&self, repository: &str, branch: &str) {
        let branch = branch.replace('/', "%2F");
        self.must("DELETE", &format!("/repos/{OWNER}/{repository}/branches/{branch}"), None).await;
    }

    /// Adds a file to the repository's `main`.
    pub(crate) async fn add_file(&self, repository: &str, path: &str, text: &str) {
        let body = json!({"content": STANDARD.encode(text), "branch": "main", "message": path});
        let path = format!("/repos/{OWNER}/{repository}/contents/{path}");
        self.must("POST", &path, Some(body)).await;
    }

    /// Makes a person who may read public repositories and write none.
    pub(crate) async fn create_reader(&self, name: &str, password: &str) {
        let body = json!({
            "username": name,
            "email": format!("{name}@forge.invalid"),
            "password": password,
            "must_change_password": false,
        });
        self.must("POST", "/admin/users", Some(body)).await;
    }

    /// Makes a person who may do anything with one repository.
    pub(crate) async fn create_writer(&self, name: &str, password: &str, repository: &str) {
        self.create_reader(name, password).await;
        let path = format!("/repos/{OWNER}/{repository}/collaborators/{name}");
        self.must("PUT", &path, Some(json!({"permission": "admin"}))).await;
    }

    /// Opens a pull request.
    pub(crate) async fn open_pull_request(&self, repository: &str, head: &str, base: &str) {
        let body = json!({"title": "Somebody's work", "head": head, "base": base});
        self.must("POST", &format!("/repos/{OWNER}/{repository}/pulls"), Some(body)).await;
    }

    /// Removes a person.
    pub(crate) async fn delete_user(&self, name: &str) {
        self.must("DELETE", &format!("/admin/users/{name}"), None).await;
    }

    /// What the forge's API answers under a path below a repository; none for 404.
    pub(crate) async fn look(&self, repository: &str, path: &str) -> Option<Value> {
        let url = format!("{}/api/v1/repos/{OWNER}/{repository}{path}", self.base);
        let token = format!("token {}", self.token);
        let answer = move || match ureq::get(&url).header("authorization", &token).call() {
            Ok(mut answer) => Some(answer.body_mut().read_json().expect("JSON")),
            Err(ureq::Error::StatusCode(404)) => None,
            Err(error) => panic!("GET {url}: {error}"),
        };
        tokio::task::spawn_blocking(answer).await.expect("the request's thread")
    }

    /// Tip of a branch of any repository, if it exists.
    pub(crate) async fn tip(&self, repository: &str, branch: &str) -> Option<String> {
        let path = format!("/branches/{}", branch.replace('/', "%2F"));
        let branch = self.look(repository, &path).await?;
        branch["commit"]["id"].as_str().map(str::to_owned)
    }

    /// The administrator's token.
    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    async fn must(&self, method: &'static str, path: &str, body: Option<Value>) {
        let url = format!("{}/api/v1{path}", self.base);
        let token = format!("token {}", self.token);
        tokio::task::spawn_blocking(move || {
            let answer = match (method, body) {
                ("DELETE", _) => ureq::delete(&url).header("authorization", &token).call(),
                ("PUT", body) => ureq::put(&url)
                    .header("authorization", &token)
                    .send_json(body.unwrap_or_default()),
                (_, body) => ureq::post(&url)
                    .header("authorization", &token)
                    .send_json(body.unwrap_or_default()),
            };
            if let Err(error) = answer {
                panic!("{method} {url}: {error}");
            }
        })
        .await
        .expect("the request's thread");
    }
}
