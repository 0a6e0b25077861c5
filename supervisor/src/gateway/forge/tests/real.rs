//! The whole way at a real forge: `AO_FORGE_URL` and `AO_FORGE_TOKEN_FILE`, as `deploy/local/env`
//! sets them.

use super::{
    super::super::git::{
        GitError, GitLimits, GitService, GitSettings, ProtectedPaths,
        tests::upstream::{client_async, run, serve_gateway},
    },
    conformance::{self, Stage},
    *,
};
use crate::scrub::Watchlist;

/// A private repository of its own at the forge, removed at the end.
struct Repository {
    url: String,
    token: String,
    name: String,
    owner: String,
}

impl Repository {
    fn new(url: String, token: String) -> Self {
        let mut random = [0; 4];
        getrandom::fill(&mut random).unwrap();
        let name = format!("spike-{:08x}", u32::from_be_bytes(random));
        let body = json!({
            "name": name, "private": true, "auto_init": true, "default_branch": "main",
        });
        let mut new = Self { url, token, name, owner: String::new() };
        let made = new.api("POST", "/user/repos", &body);
        made["owner"]["login"].as_str().unwrap().clone_into(&mut new.owner);
        new
    }

    /// Calls the API with curl: a second opinion, not the client under test.
    fn api(&self, method: &str, path: &str, body: &Value) -> Value {
        let url = format!("{}/api/v1{path}", self.url);
        let (header, body) = (format!("Authorization: token {}", self.token), body.to_string());
        let args = [
            "-sS",
            "-m",
            "20",
            "-X",
            method,
            "-H",
            &header,
            "-H",
            "Content-Type: application/json",
            "-d",
            &body,
            &url,
        ];
        let text = run(Path::new("/"), "curl", &args);
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    fn tip(&self, branch: &str) -> String {
        let path = format!("/repos/{}/{}/branches/{branch}", self.owner, self.name);
        let answer = self.api("GET", &path, &Value::Null);
        answer["commit"]["id"].as_str().unwrap_or_default().to_owned()
    }
}

impl Stage for Repository {
    fn branch(&self, name: &str) {
        let path = format!("/repos/{}/{}/contents/{name}.txt", self.owner, self.name);
        let content = json!({
            "branch": "main", "new_branch": name, "message": name, "content": "eA==",
        });
        let made = self.api("POST", &path, &content);
        assert!(made["commit"].is_object(), "{made}");
    }

    fn issue(&self, title: &str, body: &str) -> IssueRef {
        let path = format!("/repos/{}/{}/issues", self.owner, self.name);
        let made = self.api("POST", &path, &json!({"title": title, "body": body}));
        let number = made["number"].as_i64().unwrap();
        IssueRef { owner: self.owner.clone(), repo: self.name.clone(), number }
    }

    fn close(&self, number: i64) {
        let path = format!("/repos/{}/{}/pulls/{number}", self.owner, self.name);
        let closed = self.api("PATCH", &path, &json!({"state": "closed"}));
        assert_eq!(closed["state"], "closed", "{closed}");
    }
}

impl Drop for Repository {
    fn drop(&mut self) {
        self.api("DELETE", &format!("/repos/{}/{}", self.owner, self.name), &Value::Null);
    }
}

/// A person at the forge, who may read the repository or not; removed at the end.
struct Reader<'a> {
    repository: &'a Repository,
    name: String,
    password: String,
}

impl<'a> Reader<'a> {
    fn of(repository: &'a Repository) -> Self {
        let reader = Self::without_rights(repository, "reader");
        let path = format!(
            "/repos/{}/{}/collaborators/{}",
            repository.owner, repository.name, reader.name
        );
        repository.api("PUT", &path, &json!({"permission": "read"}));
        reader
    }

    /// Somebody with an account and no right to the private repository.
    fn without_rights(repository: &'a Repository, who: &str) -> Self {
        let name = format!("{}-{who}", repository.name);
        let password = format!("canary-{name}");
        let person = json!({
            "username": name, "email": format!("{name}@forge.invalid"), "password": password,
            "must_change_password": false,
        });
        let made = repository.api("POST", "/admin/users", &person);
        assert_eq!(made["login"].as_str(), Some(name.as_str()), "{made}");
        Self { repository, name, password }
    }

    fn credential(&self) -> Credential {
        super::credential(&format!("{}:{}", self.name, self.password))
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        let path = format!("/admin/users/{}?purge=true", self.name);
        self.repository.api("DELETE", &path, &Value::Null);
    }
}

fn environment() -> (String, String) {
    let read = |name| std::env::var(name).expect("the environment of deploy/local/env");
    let token = std::fs::read_to_string(read("AO_FORGE_TOKEN_FILE")).expect("the forge's token");
    (read("AO_FORGE_URL"), token.trim().to_owned())
}

#[tokio::test]
#[ignore = "needs the local forge: tests/run e2e"]
async fn a_change_becomes_one_pull_request_at_a_real_forge() {
    let (url, token) = environment();
    let repository = Repository::new(url.clone(), token.clone());
    let map =
        vec![Upstream { host: "github.com".to_owned(), base_url: url, forge: ForgeKind::Gitea }];
    let directory = tempfile::tempdir().unwrap();
    let git = GitService::new(GitSettings {
        git_dir: directory.path().join("git"),
        upstreams: map.clone(),
        ca_file: None,
        proxies: std::sync::Arc::default(),
        limits: GitLimits::default(),
        protected: ProtectedPaths::default(),
    })
    .unwrap();
    let credential = credential(&token);
    let permit = Permit::granted(Epoch(1), Duration::from_secs(30));

    let mut order = order();
    let clone_url = format!("https://github.com/{}/{}.git", repository.owner, repository.name);
    order.grant.repository.url = clone_url;
    order.grant.may_push = true;
    let grant = order.grant.clone();
    let wrong = git.prepare(&grant, Some(&super::credential("wrong"))).await.unwrap_err();
    assert!(matches!(wrong, GitError::Authenticate { .. }), "{wrong}");

    let commit = change(&git, &grant, &credential, directory.path(), "one").await;
    let published =
        git.publish(&grant, &credential, &commit, &Watchlist::default(), &permit).await.unwrap().0;
    assert_eq!(
        (published.work_branch.as_str(), repository.tip("ai%2Fx")),
        ("ai/x", commit.clone())
    );
    assert_eq!(
        git.publish(&grant, &credential, &commit, &Watchlist::default(), &permit).await.unwrap().0,
        published
    );

    nothing_for_a_stranger(&git, &repository, &grant, directory.path()).await;

    // A task of the same name loses the compare-and-swap and gets a branch of its own.
    let mut other = grant.clone();
    other.run.uid = "other".into();
    other.task.uid = "fffff000".into();
    let theirs = change(&git, &other, &credential, directory.path(), "two").await;
    let published =
        git.publish(&other, &credential, &theirs, &Watchlist::default(), &permit).await.unwrap().0;
    assert_eq!(published.work_branch, "ai/x-fffff");
    assert_eq!(repository.tip("ai%2Fx"), commit);

    let forges = Forges::new(map, super::direct_client());
    let (opened, news) = forges.ensure_pull_request(&order, &credential, &permit).await.unwrap();
    assert!(news, "it was opened by this");
    let (again, news) = forges.ensure_pull_request(&order, &credential, &permit).await.unwrap();
    assert!(!news, "it was found");
    assert_eq!(opened, again);
    let path = format!("/repos/{}/{}/pulls?state=all", repository.owner, repository.name);
    let listed = repository.api("GET", &path, &Value::Null);
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
    assert_eq!(listed[0]["html_url"].as_str().unwrap(), opened.url);
    assert_eq!(listed[0]["head"]["sha"].as_str().unwrap(), commit);

    let forge = forges.forge(&order.grant.repository.url, &credential).unwrap();
    let reader = Reader::of(&repository);
    let reading = forges.forge(&order.grant.repository.url, &reader.credential()).unwrap();
    conformance::holds(&*forge, &*reading, &repository).await;

    let mut missing = order.clone();
    missing.head_branch = "ai/none".to_owned();
    let error = forges.ensure_pull_request(&missing, &credential, &permit).await.unwrap_err();
    assert!(matches!(error, ForgeError::FindRepository { .. }), "{error}");
}

/// Another tenant, with a good account and no right, gets nothing of what is cached by now.
async fn nothing_for_a_stranger(
    git: &GitService,
    repository: &Repository,
    grant: &RepositoryGrant,
    directory: &Path,
) {
    let stranger = Reader::without_rights(repository, "stranger");
    for namespace in [grant.namespace.as_str(), "tenant-b"] {
        let mut theirs = grant.clone();
        theirs.namespace = namespace.to_owned();
        theirs.run.uid = format!("stranger-{namespace}").as_str().into();
        let refused = git.prepare(&theirs, Some(&stranger.credential())).await.unwrap_err();
        let hidden =
            matches!(refused, GitError::FindRepository { .. } | GitError::Authenticate { .. });
        assert!(hidden, "{namespace}: {refused}");
        let (address, _server) =
            serve_gateway(git.clone(), theirs, Some(stranger.credential())).await;
        let url = format!("http://{address}/git/main.git");
        let listed = client_async(directory, &["ls-remote", &url]).await;
        assert!(!listed.status.success(), "{namespace}");
    }
}

/// Clones through the gateway, commits one file and pushes into quarantine.
async fn change(
    git: &GitService,
    grant: &RepositoryGrant,
    credential: &Credential,
    directory: &Path,
    file: &str,
) -> String {
    let step = git.prepare(grant, Some(credential)).await.unwrap();
    let (address, _server) =
        serve_gateway(git.clone(), grant.clone(), Some(credential.clone())).await;
    let url = format!("http://{address}/git/main.git");
    let tree = directory.join(file);
    let path = tree.to_string_lossy().into_owned();
    let branch = step.work_branch.as_str();
    let cloned = client_async(directory, &["clone", "-q", "--branch", branch, &url, &path]).await;
    assert!(cloned.status.success(), "{}", String::from_utf8_lossy(&cloned.stderr));
    std::fs::write(tree.join(file), file).unwrap();
    run(&tree, "git", &["add", "."]);
    let message = format!("change\n\nAgent-Operator-Task-Uid: {}\n", grant.task.uid);
    run(&tree, "git", &["commit", "-qm", &message]);
    let refspec = format!("HEAD:refs/heads/{branch}");
    let pushed = client_async(&tree, &["push", "-q", "origin", &refspec]).await;
    assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
    run(&tree, "git", &["rev-parse", "HEAD"])
}
