//! Every credential of these tasks is a canary, and after runs of all kinds it is nowhere but in its Secret
//! and with the upstream that it is for. So are the release's own credentials, and the tokens of a run, which may lie
//! in few places besides; each has its reason here.

use std::{path::PathBuf, time::Duration};

use agent_operator_supervisor::clock;
use kube::ResourceExt as _;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, net::TcpListener};

use super::{
    haystacks::{self, Needles},
    parameters::halves,
    place::{self, PROGRAM},
    say, tokens,
    trial::hostile_task,
};
use crate::support::{
    cluster::{Cluster, NAMESPACE, SYSTEM},
    env,
    images::{crane, of_release},
    logs::viewer_token,
    release::must,
    secrets::{GIT_KEY, MODEL_KEY},
    task::{command_agent, merge, task, unique},
};

/// Four tasks side by side on a busy machine.
const LIMIT: Duration = Duration::from_mins(5);
/// How long the step may take that will not end: time to look into its memory.
const SLOW_SECONDS: u32 = 20;
/// Images of the release, all of which run beside a credential.
const IMAGES: [&str; 4] = ["controller", "supervisor", "runner", "agent"];

/// The places that are searched.
struct Places {
    token: String,
    tasks: Vec<String>,
    metrics: Vec<String>,
    images: Vec<String>,
    /// Seconds since 1970 when the canaries were made.
    since: u64,
}

impl Places {
    /// Hits in all of them, by the name of the place.
    async fn search(
        &self,
        cluster: &Cluster,
        needles: &Needles,
    ) -> Vec<(&'static str, Vec<String>)> {
        let nodes = haystacks::node_folders();
        let forge = PathBuf::from(env("AO_STATE")).join("forge/data/repositories");
        let git = [&nodes[..], &[forge]].concat();
        let (metrics, pages) = haystacks::metrics(self.metrics.clone(), needles).await;
        assert!(pages >= 3, "controller, supervisor and gateway show metrics, not {pages}");
        let images = if self.images.is_empty() {
            Vec::new()
        } else {
            haystacks::images(&self.images, needles).await
        };
        vec![
            ("objects", haystacks::objects(needles).await),
            ("logs", all_logs(cluster, needles).await),
            ("streams", haystacks::streams(&self.token, &self.tasks, needles).await),
            ("metrics", metrics),
            ("disks", haystacks::disks(&nodes, self.since, needles).await),
            ("git", haystacks::git_objects(&git, needles).await),
            ("requests", haystacks::requests(self.since, needles).await),
            ("images", images),
        ]
    }

    /// The same places but for the images, which are older than every run.
    fn of_runs(&self) -> Self {
        Self {
            token: self.token.clone(),
            tasks: self.tasks.clone(),
            metrics: self.metrics.clone(),
            images: Vec::new(),
            since: self.since,
        }
    }
}

/// Hits in the logs of the release and of all tasks.
async fn all_logs(cluster: &Cluster, needles: &Needles) -> Vec<String> {
    let mut hits = Vec::new();
    for namespace in [SYSTEM, NAMESPACE] {
        let pods = haystacks::pods(cluster, namespace).await;
        hits.extend(haystacks::logs(cluster, namespace, &pods, needles).await);
    }
    hits
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run hostile"]
async fn after_runs_of_all_kinds_no_credential_is_anywhere_but_where_it_belongs() {
    let cluster = Cluster::connect().await;
    let name = unique("canaries");
    let since = u64::try_from(clock::now().wall.as_second()).expect("after 1970");
    let model_key = format!("sk-{}", unique("canary-of-the-model"));
    let git_token = cluster.forge.token().to_owned();
    let keys = [(MODEL_KEY, model_key.as_str()), (GIT_KEY, git_token.as_str())];
    cluster.secret(NAMESPACE, &name, &keys).await;
    let image = place::image().await;
    let mut known = tokens::of_release(&cluster).await;
    known.extend([model_key.clone(), git_token.clone()]);
    let tasks = create_all(&cluster, &name, &image, &[&model_key, &git_token]).await;
    let of_slow = tokens::of_run(&cluster, &format!("{name}-slow"), "plan").await;
    for task in &tasks {
        cluster.finished_within(NAMESPACE, task, LIMIT).await;
    }
    // Accounts have got other tokens since, if theirs were old.
    known.extend(tokens::of_release(&cluster).await);
    known.extend(of_slow.secrets());
    // The other side: the right key did arrive, or nothing was there to leak.
    let sent = cluster.model.requests_with(&model_key).await;
    assert!(!sent.is_empty(), "the model was asked with its key");
    let others = cluster.model.requests_with(&git_token).await;
    assert!(others.is_empty(), "the model got git's token: {}", others.len());

    let mut places = Places {
        token: viewer_token(&cluster, &format!("{name}-viewer")).await,
        tasks,
        metrics: haystacks::metrics_of_release(&cluster).await,
        images: IMAGES.map(of_release).to_vec(),
        since,
    };
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let found = places.search(&cluster, &Needles::of(&known)).await;
    one_time_stays_with_its_pod(&cluster, &places.of_runs(), &of_slow.one_time).await;
    printed_stays_with_its_run(&cluster, &places.of_runs(), &format!("{name}-failed")).await;
    // A search that finds nothing must be able to find something.
    let planted = Planted::in_all(&cluster, &name, &mut places).await;
    let seen = places.search(&cluster, &Needles::of(&[&planted.canary])).await;
    planted.remove(&cluster).await;
    cluster.delete_secret(NAMESPACE, &name).await;

    say(&format!("hits: {found:?}"));
    let blind: Vec<_> = seen.iter().filter(|(_, hits)| hits.is_empty()).collect();
    assert!(blind.is_empty(), "a planted canary was not found in {blind:?}");
    let kinds = &seen[0].1;
    for kind in ["pods", "configmaps", "events", "codingtasks.agents.wearn.dev"] {
        assert!(kinds.iter().any(|hit| hit.ends_with(&format!(" {kind}"))), "{kind}: {kinds:?}");
    }
    assert!(found.iter().all(|(_, hits)| hits.is_empty()), "{found:#?}");
}

/// What was found, but for what is allowed of it.
fn beyond(
    found: Vec<(&'static str, Vec<String>)>,
    allowed: impl Fn(&str, &str) -> bool,
) -> Vec<(&'static str, String)> {
    let hits =
        found.into_iter().flat_map(|(place, hits)| hits.into_iter().map(move |h| (place, h)));
    hits.filter(|(place, hit)| !allowed(place, hit)).collect()
}

/// The one-time token is in the pod's specification, from which the container gets it. It is worth nothing once it is
/// redeemed, which was before the agent started. So whoever keeps specifications has it: the API server, and the node's
/// container runtime.
async fn one_time_stays_with_its_pod(cluster: &Cluster, places: &Places, token: &str) {
    let found = places.search(cluster, &Needles::of(&[token])).await;
    let pods = "an object of kind pods";
    assert!(
        found[0].1.iter().any(|hit| hit == pods),
        "it is looked for in specifications: {found:?}"
    );
    let elsewhere = beyond(found, |place, hit| match place {
        "objects" => hit == pods,
        "disks" => hit.contains("/containerd/"),
        _ => false,
    });
    assert!(elsewhere.is_empty(), "the one-time token is in {elsewhere:#?}");
}

/// An agent that prints its own token has it in its own log, which nobody can take back: the kubelet has it first. It is
/// worth nothing there: it counts from the address of its pod alone, and died with the attempt.
async fn printed_stays_with_its_run(cluster: &Cluster, places: &Places, task: &str) {
    let run = cluster.runs(NAMESPACE, task).await.remove(0);
    let pod = run.status.clone().and_then(|status| status.pod_name).expect("a pod");
    let printed = tokens::printed(&cluster.log(NAMESPACE, &pod).await);
    let found = places.search(cluster, &Needles::of(&[&printed])).await;
    let uid = run.uid().expect("a uid");
    let elsewhere = beyond(found, |place, hit| match place {
        "logs" => hit.ends_with(&format!("/{pod}")),
        "streams" => hit.ends_with(&format!(" {task}")),
        "disks" => hit.contains(&pod) || hit.contains(&uid),
        _ => false,
    });
    assert!(elsewhere.is_empty(), "what {pod} has printed is in {elsewhere:#?}");
}

/// A good run, one that fails, one that runs out of time and one that searches and attacks.
async fn create_all(
    cluster: &Cluster,
    name: &str,
    image: &str,
    canaries: &[&str; 2],
) -> Vec<String> {
    let refs = json!({
        "anthropicApiKeyRef": {"name": name, "key": MODEL_KEY},
        "gitCredentialsRef": {"name": name, "key": GIT_KEY},
        "maxRetries": 0,
    });
    let with = |spec: Value| {
        let mut whole = refs.clone();
        merge(&mut whole, &spec);
        whole
    };
    let timed_out = with(json!({"stepTimeout": format!("{SLOW_SECONDS}s")}));
    let mut sleeping = command_agent("sleep 3607");
    merge(&mut sleeping, &timed_out);
    let parameters = json!({
        "marker": format!("{name}-hostile"),
        "canaries": canaries.map(halves),
    });
    let hostile = with(json!({"agent": {
        "type": "Command",
        "command": ["python3", PROGRAM, parameters.to_string(), "credentials"],
    }}));
    let all = [
        ("good", task(&format!("{name}-good"), &format!("Add a /healthz endpoint. {name}"), &refs)),
        ("failed", task(&format!("{name}-failed"), "Fail.", &with(command_agent("env; exit 3")))),
        ("slow", task(&format!("{name}-slow"), "Sleep.", &sleeping)),
        ("hostile", hostile_task(&format!("{name}-hostile"), image, "example-repo", &hostile)),
    ];
    let mut names = Vec::new();
    for (_, task) in &all {
        cluster.create(NAMESPACE, task).await;
        names.push(task.name_any());
    }
    names
}

/// Another canary, in every place and in one form or another.
struct Planted {
    canary: String,
    name: String,
    folder: PathBuf,
    page: tokio::task::JoinHandle<()>,
}

impl Planted {
    async fn in_all(cluster: &Cluster, name: &str, places: &mut Places) -> Self {
        let canary = unique("planted-canary");
        let name = format!("{name}-planted");
        plant_objects(&name, &canary).await;
        // A request that names it in its address.
        let asked = ["get", "configmap", "-n", NAMESPACE, &canary, "--ignore-not-found"];
        must("kubectl", &asked).await;
        // Log, stream and the node's log files: an agent that prints it.
        let printing = command_agent(&format!("echo key={canary}; exit 3"));
        cluster.create(NAMESPACE, &task(&name, "Print.", &printing)).await;
        cluster.finished_within(NAMESPACE, &name, LIMIT).await;
        places.tasks.push(name.clone());
        let (page, url) = serve(&canary).await;
        places.metrics.push(url);
        let node = haystacks::node_folders().pop().expect("a node");
        let folder = node.join("host/var/lib/agent-operator").join(&name);
        haystacks::plant_git_object(&folder.join("mirror.git"), &canary);
        places.images.push(image_with(&canary).await);
        Self { canary, name, folder, page }
    }

    async fn remove(&self, cluster: &Cluster) {
        self.page.abort();
        std::fs::remove_dir_all(&self.folder).expect("the planted repository");
        let kinds = ["pod", "configmap", "event"];
        for kind in kinds {
            must("kubectl", &["delete", kind, "-n", NAMESPACE, &self.name, "--wait=false"]).await;
        }
        cluster.delete(NAMESPACE, &self.name).await;
    }
}

/// One object of each kind that anybody may make.
async fn plant_objects(name: &str, canary: &str) {
    use base64::Engine as _;
    let encoded = base64::engine::general_purpose::STANDARD.encode(format!("user:{canary}\n"));
    let restricted = json!({
        "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": true,
        "runAsUser": 1000,
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    let metadata = json!({"name": name, "namespace": NAMESPACE});
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"auth": encoded}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {
            // No node has this label: it is an object and nothing else.
            "nodeSelector": {"agents.wearn.dev/nowhere": "true"},
            "containers": [{"name": "planted", "image": "planted.invalid/none", "securityContext": restricted,
                "resources": {"requests": {"cpu": "1m", "memory": "1Mi"}, "limits": {"cpu": "1m", "memory": "1Mi"}},
                "env": [{"name": "KEY", "value": canary}]}],
        }},
        {"apiVersion": "v1", "kind": "Event", "metadata": metadata, "reason": "Planted", "type": "Normal",
            "message": format!("https://{canary}@forge.invalid"),
            "involvedObject": {"apiVersion": "v1", "kind": "Pod", "name": name, "namespace": NAMESPACE}},
    ]});
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), objects.to_string()).expect("the objects");
    must("kubectl", &["create", "-f", &file.path().to_string_lossy()]).await;
}

/// A page of metrics with the canary as a label.
async fn serve(canary: &str) -> (tokio::task::JoinHandle<()>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/metrics", listener.local_addr().expect("an address"));
    let body = format!("requests_total{{key=\"{canary}\"}} 1\n");
    let answer = format!(
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    (task, url)
}

/// An image with the canary in a file of its last, compressed layer.
async fn image_with(canary: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().join("root/etc");
    std::fs::create_dir_all(&root).expect("a folder");
    std::fs::write(root.join("netrc"), format!("machine x password {canary}\n")).expect("a file");
    let base = format!("{}/pause:1", env("AO_REGISTRY"));
    assert!(!crane(&["digest", &base]).await.is_empty());
    place::append(&base, folder.path(), "agent-operator-planted").await
}
