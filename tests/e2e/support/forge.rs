//! The real forge (Gitea), by its API and as an administrator.

use serde_json::Value;

use super::env;

/// Owner and name of the sample's repository.
const REPOSITORY: &str = "jcwearn/example-repo";
/// Its name alone.
const SAMPLE: &str = "example-repo";

/// The forge of the local cluster.
pub(crate) struct Forge {
    pub(super) base: String,
    pub(super) token: String,
}

impl Forge {
    pub(crate) fn from_env() -> Self {
        let token = std::fs::read_to_string(env("AO_FORGE_TOKEN_FILE")).expect("the forge's token");
        Self { base: env("AO_FORGE_URL"), token: token.trim().to_owned() }
    }

    /// Pull requests (open and closed) of the sample's repository whose head is `branch`.
    pub(crate) async fn pull_requests(&self, branch: &str) -> Vec<Value> {
        self.pull_requests_of(SAMPLE, branch).await
    }

    /// Pull requests (open and closed) of any repository whose head is `branch`.
    pub(crate) async fn pull_requests_of(&self, repository: &str, branch: &str) -> Vec<Value> {
        let mut found = Vec::new();
        for page in 1.. {
            let path = format!("/pulls?state=all&limit=50&page={page}");
            let Some(Value::Array(pulls)) = self.look(repository, &path).await else { break };
            if pulls.is_empty() {
                break;
            }
            found.extend(pulls.into_iter().filter(|pull| pull["head"]["ref"] == branch));
        }
        found
    }

    /// Opens an issue and gives its number.
    pub(crate) async fn open_issue(&self, title: &str, body: &str) -> i64 {
        let url = format!("{}/api/v1/repos/{REPOSITORY}/issues", self.base);
        let token = format!("token {}", self.token);
        let issue = serde_json::json!({"title": title, "body": body});
        tokio::task::spawn_blocking(move || {
            let request = ureq::post(&url).header("authorization", &token);
            let mut answer = request.send_json(&issue).expect("the issue is opened");
            let made: Value = answer.body_mut().read_json().expect("JSON");
            made["number"].as_i64().expect("its number")
        })
        .await
        .expect("the request's thread")
    }

    /// Tip of a branch, if it exists.
    pub(crate) async fn branch(&self, name: &str) -> Option<String> {
        let branch = self.get(&format!("/branches/{}", name.replace('/', "%2F"))).await?;
        branch["commit"]["id"].as_str().map(str::to_owned)
    }

    /// Names of all branches that start with `prefix`.
    pub(crate) async fn branches(&self, prefix: &str) -> Vec<String> {
        let mut found = Vec::new();
        for page in 1.. {
            let Some(Value::Array(branches)) =
                self.get(&format!("/branches?limit=50&page={page}")).await
            else {
                break;
            };
            if branches.is_empty() {
                break;
            }
            found.extend(
                branches
                    .iter()
                    .filter_map(|branch| branch["name"].as_str())
                    .filter(|name| name.starts_with(prefix))
                    .map(str::to_owned),
            );
        }
        found
    }

    /// Commits of `branch` that `main` does not have, newest first.
    pub(crate) async fn commits_ahead(&self, branch: &str) -> Vec<Value> {
        let path = format!("/compare/main...{}", branch.replace('/', "%2F"));
        match self.get(&path).await {
            Some(compare) => compare["commits"].as_array().cloned().unwrap_or_default(),
            None => Vec::new(),
        }
    }

    /// Content of a file on a branch.
    pub(crate) async fn file(&self, path: &str, branch: &str) -> Option<String> {
        let branch = branch.replace('/', "%2F");
        self.request(&format!("/raw/{path}?ref={branch}")).await
    }

    async fn get(&self, path: &str) -> Option<Value> {
        self.request(path).await.map(|text| serde_json::from_str(&text).expect("JSON"))
    }

    /// The body of the answer; none for 404.
    async fn request(&self, path: &str) -> Option<String> {
        let url = format!("{}/api/v1/repos/{REPOSITORY}{path}", self.base);
        let token = format!("token {}", self.token);
        tokio::task::spawn_blocking(move || {
            let answer = ureq::get(&url).header("authorization", &token).call();
            match answer {
                Ok(mut answer) => Some(answer.body_mut().read_to_string().expect("a body")),
                Err(ureq::Error::StatusCode(404)) => None,
                Err(error) => panic!("GET {url}: {error}"),
            }
        })
        .await
        .expect("the request's thread")
    }
}
