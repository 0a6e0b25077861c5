//! F37: the real process without a free file descriptor.

use std::{path::PathBuf, time::Duration};

use agent_operator::crd::CodingTask;
use agent_operator_doubles::process::{Connection, Process, free_port};
use serde_json::json;

use super::support::{Ground, eventually, ground};

/// What the kernel says.
const NO_DESCRIPTORS: &str = "Too many open files";
/// For this long the process is asked whether it lives while it has none: several of its renewals.
const SHORTAGE: Duration = Duration::from_secs(8);

/// A process with ports and folders of its own.
struct Started {
    process: Process,
    http: std::net::SocketAddr,
    grpc: std::net::SocketAddr,
    _dir: tempfile::TempDir,
}

fn start(ground: &Ground) -> Started {
    let dir = tempfile::tempdir().unwrap();
    let text = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let settings = json!({
        "taskNamespaces": [ground.namespace],
        "agent": {"image": "registry.test/agent:1", "requests": {"cpu": "100m", "memory": "256Mi"}},
    });
    std::fs::write(dir.path().join("settings.yaml"), settings.to_string()).unwrap();
    let (http, grpc) = (free_port().unwrap(), free_port().unwrap());
    let kubeconfig = PathBuf::from(std::env::var_os("KUBECONFIG").unwrap());
    let arguments = [
        format!("--config={}", text("settings.yaml")),
        format!("--namespace={}", ground.namespace),
        format!("--grpc-address={grpc}"),
        format!("--http-address={http}"),
        format!("--data-dir={}", text("data")),
        format!("--kubeconfig={}", kubeconfig.display()),
    ];
    let program = env!("CARGO_BIN_EXE_controller");
    let process = Process::start(program, &arguments, &[], dir.path().join("log")).unwrap();
    Started { process, http, grpc, _dir: dir }
}

/// Waits until the controller has looked at the task and says what it lacks.
async fn is_decided(ground: &Ground, name: &str) {
    let api = ground.tasks();
    let lacks = |task: &CodingTask| {
        let conditions = task.status.as_ref().map(|status| status.conditions.as_slice());
        conditions.unwrap_or_default().iter().any(|condition| condition.reason == "SecretMissing")
    };
    eventually(&format!("{name} is decided"), async || {
        api.get(name).await.ok().filter(lacks).map(|_| ())
    })
    .await;
}

async fn is_ready(started: &Started) -> Connection {
    eventually("the controller is ready", async || {
        let mut connection = Connection::open(started.http).ok()?;
        (connection.get("/readyz").ok()? == 200).then_some(connection)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn f37_a_controller_without_descriptors_lives_says_so_and_decides_what_came_meanwhile() {
    let Some(ground) = ground().await else { return };
    let mut started = start(&ground);
    let mut before = is_ready(&started).await;
    ground.task("before", json!({})).await;
    is_decided(&ground, "before").await;

    started.process.take_descriptors().unwrap();
    ground.task("meanwhile", json!({})).await;
    let waiting = std::net::TcpStream::connect(started.grpc).unwrap();
    eventually("the log names what is missing", async || {
        started.process.said().contains(NO_DESCRIPTORS).then_some(())
    })
    .await;
    let began = tokio::time::Instant::now();
    while began.elapsed() < SHORTAGE {
        assert!(started.process.is_alive().unwrap(), "{}", started.process.said());
        assert_eq!(before.get("/livez").unwrap(), 200);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let mut meanwhile = Connection::open(started.http).unwrap();
    meanwhile.ask("/livez").unwrap();

    started.process.give_descriptors().unwrap();
    assert_eq!(meanwhile.answer().unwrap(), 200, "whoever waited is served");
    is_decided(&ground, "meanwhile").await;
    ground.task("after", json!({})).await;
    is_decided(&ground, "after").await;
    assert!(started.process.is_alive().unwrap(), "{}", started.process.said());
    drop(waiting);
}
