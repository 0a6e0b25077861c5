//! F37: the real process in want. Without a free file descriptor it lives, keeps on disk what it is told,
//! names what is missing, and goes on by itself once there are descriptors again. Without memory it ends at
//! once, and its next life goes on from the disk. However it ends, its memory does not stay behind.

// Helpers of tests fail by panicking, as the tests themselves do.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{net::SocketAddr, path::Path, time::Duration};

use agent_operator::{
    attempt::StepResult,
    domain::{Assignment, Epoch, Reason, RunKey, Usage, ids::PodUid, report::StepFacts},
};
use agent_operator_doubles::process::{
    Connection, NO_DESCRIPTORS, Process, free_port, kubeconfig_of_an_outage,
};
use agent_operator_supervisor::{
    clock,
    ledger::{Entry, Ledger},
    link::{
        contract::{DurableEvent, FromGateway, Grant, LINK_VERSION, Redemption, ToGateway},
        frame::{JsonLines, framed},
    },
    steps::{moment::Moment, record::Record},
};
use futures::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::codec::Framed;

/// Longest wait for anything: far above what it takes.
const LIMIT: Duration = Duration::from_mins(1);
/// The token of a runner that has redeemed its own before.
const RUNNER_TOKEN: &str = "a-runner-token";
/// Bytes of a message for which memory has to be asked of the kernel.
const MESSAGE_BYTES: usize = 4 << 20;

/// A gateway's end of the link.
type Link = Framed<UnixStream, JsonLines<ToGateway>>;

fn assignment() -> Assignment {
    let changes = json!({
        "step": "implement", "epoch": 3, "timeoutSeconds": 3600, "startDeadlineSeconds": 3600,
    });
    serde_json::from_value(agent_operator_doubles::assignment::assignment(&changes)).unwrap()
}

/// A ledger with one attempt whose step runs.
fn write_ledger(dir: &Path, run: &RunKey) {
    let (mut ledger, ..) = Ledger::open(dir).unwrap();
    let at = Moment::new(clock::now(), &clock::boot_id().unwrap());
    let (assignment, one_time_hash) = (Box::new(assignment()), "hash".to_owned());
    let facts = [
        Record::Accepted { assignment, one_time_hash, at: at.clone() },
        Record::PodCreated { uid: PodUid::from("pod-uid") },
        Record::GateOpened { at, device: None },
    ];
    let of_run = |fact| Entry::Attempt { run: run.clone(), fact: Box::new(fact) };
    let mut entries = vec![Entry::HighestEpoch { epoch: Epoch(3) }];
    entries.extend(facts.map(of_run));
    ledger.append(&entries, true).unwrap();
}

/// The exit code of the result that stands in the ledger. Looks at a copy: the ledger is another's.
fn result_on_disk(dir: &Path, run: &RunKey) -> Option<i32> {
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(dir.join("ledger.jsonl"), copy.path().join("ledger.jsonl")).unwrap();
    let (_, memory, _) = Ledger::open(copy.path()).unwrap();
    memory.attempts[run].result.as_ref().map(|result| result.exit_code)
}

/// A supervisor whose API server and controller are away, as during an outage.
fn start(dir: &Path, http: SocketAddr) -> Process {
    let text = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    kubeconfig_of_an_outage(&dir.join("kubeconfig")).unwrap();
    std::fs::write(dir.join("token"), "token").unwrap();
    let arguments = [
        "run".to_owned(),
        "--node-name=node-a".to_owned(),
        "--pod-namespace=system".to_owned(),
        "--controller-address=127.0.0.1:1".to_owned(),
        "--controller-ca-configmap=ca".to_owned(),
        format!("--token-file={}", text("token")),
        "--task-namespace=agents".to_owned(),
        format!("--data-dir={}", text("data")),
        format!("--gateway-socket={}", text("gateway.sock")),
        "--gateway-service=10.96.0.1:8080".to_owned(),
        format!("--pod-log-dir={}", text("pods")),
        "--runner-image=registry.test/runner:1".to_owned(),
        format!("--http-address={http}"),
    ];
    let environment = [("KUBECONFIG", dir.join("kubeconfig"))];
    let environment = environment.each_ref().map(|(name, value)| (*name, value.as_os_str()));
    let program = env!("CARGO_BIN_EXE_supervisor");
    Process::start(program, &arguments, &environment, dir.join("log")).unwrap()
}

async fn soon<T>(what: &str, wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, wait).await.unwrap_or_else(|_| panic!("not in {LIMIT:?}: {what}"))
}

/// The supervisor's next connection, after the greetings.
async fn linked(listener: &UnixListener, live: &[RunKey]) -> Link {
    let link = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut link: Link = framed(stream);
        let hello = link.next().await.unwrap().unwrap();
        assert!(matches!(hello, ToGateway::Hello { version: LINK_VERSION }), "{hello:?}");
        let (version, instance, live) = (LINK_VERSION, "one".to_owned(), live.to_vec());
        link.send(FromGateway::Hello { version, instance, live }).await.unwrap();
        link
    };
    soon("the supervisor links up", link).await
}

/// Waits until the supervisor says something that is `wanted`.
async fn hear(link: &mut Link, what: &str, wanted: impl Fn(&ToGateway) -> bool) {
    let hearing = async { while !wanted(&link.next().await.unwrap().unwrap()) {} };
    soon(what, hearing).await;
}

/// Waits until the process has ended for want of memory.
async fn end_without_memory(process: &mut Process) {
    let ending = async {
        while process.is_alive().unwrap() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon("it ends", ending).await;
    assert!(process.said().contains("memory allocation of"), "{}", process.said());
}

/// Waits until the process has said these words.
async fn say(process: &Process, words: &str) {
    let saying = async {
        while !process.said().contains(words) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon(words, saying).await;
}

fn completed(message: &str) -> DurableEvent {
    let result = StepResult {
        reason: Reason::Completed,
        message: message.to_owned(),
        start_fault: None,
        exit_code: 0,
        facts: StepFacts::default(),
        reported_usage: Usage::default(),
        events: 0,
        printed: None,
    };
    DurableEvent::Result { result: Box::new(result), usage: Usage::default(), refusals: Vec::new() }
}

#[tokio::test]
async fn f37_a_supervisor_without_descriptors_keeps_results_says_what_is_missing_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let run = assignment().key();
    write_ledger(&data, &run);
    let listener = UnixListener::bind(dir.path().join("gateway.sock")).unwrap();
    let http = free_port().unwrap();
    let mut process = start(dir.path(), http);
    let mut link = linked(&listener, std::slice::from_ref(&run)).await;
    hear(&mut link, "attempts are known", |said| matches!(said, ToGateway::Synced)).await;
    let mut before = Connection::open(http).unwrap();
    assert_eq!(before.get("/readyz").unwrap(), 200);
    assert!(!process.said().contains(NO_DESCRIPTORS));

    process.take_descriptors().unwrap();
    // Nothing that it is told is lost: the result is on disk before it is acknowledged.
    link.send(FromGateway::Durable { id: 1, run: run.clone(), event: completed("done") })
        .await
        .unwrap();
    hear(&mut link, "the result is acknowledged", |said| matches!(said, ToGateway::Ack { id: 1 }))
        .await;
    assert_eq!(result_on_disk(&data, &run), Some(0));
    // What it has to open now, it cannot, and says why.
    drop(link);
    say(&process, NO_DESCRIPTORS).await;
    let mut meanwhile = Connection::open(http).unwrap();
    meanwhile.ask("/livez").unwrap();
    assert_eq!(before.get("/livez").unwrap(), 200);
    assert!(process.is_alive().unwrap());

    process.give_descriptors().unwrap();
    assert_eq!(meanwhile.answer().unwrap(), 200, "whoever waited is served");
    let mut link = linked(&listener, std::slice::from_ref(&run)).await;
    hear(&mut link, "attempts are known again", |said| matches!(said, ToGateway::Synced)).await;
    assert!(process.is_alive().unwrap());
    drop(process);
    assert_eq!(result_on_disk(&data, &run), Some(0));
}

#[tokio::test]
async fn f37_a_supervisor_without_memory_ends_at_once_and_its_next_life_takes_the_result() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let run = assignment().key();
    write_ledger(&data, &run);
    let listener = UnixListener::bind(dir.path().join("gateway.sock")).unwrap();
    let live = std::slice::from_ref(&run);
    let mut process = start(dir.path(), free_port().unwrap());
    let mut link = linked(&listener, live).await;
    hear(&mut link, "attempts are known", |said| matches!(said, ToGateway::Synced)).await;

    process.take_memory().unwrap();
    let result = || FromGateway::Durable {
        id: 1,
        run: run.clone(),
        event: completed(&"x".repeat(MESSAGE_BYTES)),
    };
    // It may be gone before it has read all of it.
    let _ = link.send(result()).await;
    end_without_memory(&mut process).await;
    assert_eq!(result_on_disk(&data, &run), None);

    // The gateway repeats what was not acknowledged.
    let process = start(dir.path(), free_port().unwrap());
    let mut link = linked(&listener, live).await;
    hear(&mut link, "attempts are known", |said| matches!(said, ToGateway::Synced)).await;
    link.send(result()).await.unwrap();
    hear(&mut link, "the result is acknowledged", |said| matches!(said, ToGateway::Ack { id: 1 }))
        .await;
    drop(process);
    assert_eq!(result_on_disk(&data, &run), Some(0));
}

/// A gateway, and where sandboxes reach it.
fn start_gateway(dir: &Path) -> (Process, SocketAddr) {
    let listen = free_port().unwrap();
    std::fs::write(dir.join("gateway.yaml"), "llm: {}").unwrap();
    let text = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let arguments = [
        "gateway".to_owned(),
        format!("--listen={listen}"),
        format!("--socket={}", text("gateway.sock")),
        format!("--git-dir={}", text("git")),
        format!("--config={}", text("gateway.yaml")),
    ];
    let program = env!("CARGO_BIN_EXE_supervisor");
    (Process::start(program, &arguments, &[], dir.join("log")).unwrap(), listen)
}

/// A supervisor's end of the link, after the greetings.
async fn link_up(socket: &Path) -> Framed<UnixStream, JsonLines<FromGateway>> {
    let connecting = async {
        loop {
            match UnixStream::connect(socket).await {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    let mut link = framed(soon("the gateway listens", connecting).await);
    link.send(ToGateway::Hello { version: LINK_VERSION }).await.unwrap();
    let hello = soon("the gateway greets", link.next()).await.unwrap().unwrap();
    assert!(matches!(hello, FromGateway::Hello { version: LINK_VERSION, .. }), "{hello:?}");
    link
}

/// Asserts that the gateway answers on this link about an attempt that it has.
async fn assert_knows(link: &mut Framed<UnixStream, JsonLines<FromGateway>>, run: &RunKey) {
    link.send(ToGateway::Describe { run: run.clone() }).await.unwrap();
    let answer = async {
        loop {
            if let FromGateway::Survivor(survivor) = link.next().await.unwrap().unwrap() {
                return survivor.assignment.key();
            }
        }
    };
    assert_eq!(soon("the gateway knows the attempt", answer).await, *run);
}

fn grant() -> Grant {
    Grant {
        assignment: assignment(),
        one_time_hash: "hash".to_owned(),
        redemption: None,
        open_remaining_millis: None,
        usage: Usage::default(),
        refusals: Vec::new(),
        next_event: 0,
        canary: None,
        probe: None,
    }
}

#[tokio::test]
async fn f37_a_gateway_without_descriptors_keeps_what_it_knows_says_what_is_missing_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let (mut process, listen) = start_gateway(dir.path());
    let mut link = link_up(&dir.path().join("gateway.sock")).await;
    let run = assignment().key();
    link.send(ToGateway::Register(Box::new(grant()))).await.unwrap();
    link.send(ToGateway::Synced).await.unwrap();
    assert_knows(&mut link, &run).await;
    let refusal = Connection::open(listen).unwrap().get("/v1/step").unwrap();
    assert!(!process.said().contains(NO_DESCRIPTORS));

    process.take_descriptors().unwrap();
    let mut meanwhile = Connection::open(listen).unwrap();
    meanwhile.ask("/v1/step").unwrap();
    say(&process, NO_DESCRIPTORS).await;
    assert_knows(&mut link, &run).await;
    assert!(process.is_alive().unwrap());

    process.give_descriptors().unwrap();
    assert_eq!(meanwhile.answer().unwrap(), refusal, "whoever waited is served");
    assert_knows(&mut link, &run).await;
    assert!(process.is_alive().unwrap());
}

/// Waits until the gateway asks for the credentials of an attempt.
async fn hear_need(link: &mut Framed<UnixStream, JsonLines<FromGateway>>, wanted: &RunKey) {
    let hearing = async {
        loop {
            if let FromGateway::NeedCredentials { run } = link.next().await.unwrap().unwrap() {
                return run;
            }
        }
    };
    assert_eq!(soon("it asks for credentials", hearing).await, *wanted);
}

#[tokio::test]
async fn f37_a_gateway_without_memory_ends_at_once_and_its_next_life_asks_for_credentials_and_serves()
 {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("gateway.sock");
    let run = assignment().key();
    let hash = |token: &str| agent_operator::domain::names::sha256_hex(token.as_bytes());
    // An attempt in the middle of its step.
    let live = Grant {
        redemption: Some(Redemption {
            nonce_hash: hash("nonce"),
            pod_ip: "127.0.0.1".parse().unwrap(),
            runner_hash: hash(RUNNER_TOKEN),
            agent_hash: hash("an-agent-token"),
        }),
        open_remaining_millis: Some(3_600_000),
        ..grant()
    };
    let is_open = |listen: SocketAddr| {
        let mut connection = Connection::open(listen).unwrap();
        connection.post("/v1/gate", RUNNER_TOKEN, r#"{"sandbox":{}}"#).unwrap() == 200
    };
    let (mut process, listen) = start_gateway(dir.path());
    let mut link = link_up(&socket).await;
    link.send(ToGateway::Register(Box::new(live.clone()))).await.unwrap();
    link.send(ToGateway::Synced).await.unwrap();
    hear_need(&mut link, &run).await;
    assert!(is_open(listen));

    process.take_memory().unwrap();
    let mut large = grant();
    large.assignment.work.prompt = "x".repeat(MESSAGE_BYTES);
    // It may be gone before it has read all of it.
    let _ = link.send(ToGateway::Register(Box::new(large))).await;
    end_without_memory(&mut process).await;

    // What it held in memory comes again from its supervisor; the credentials it has to ask for.
    let (mut process, listen) = start_gateway(dir.path());
    let mut link = link_up(&socket).await;
    link.send(ToGateway::Register(Box::new(live))).await.unwrap();
    link.send(ToGateway::Synced).await.unwrap();
    hear_need(&mut link, &run).await;
    assert_knows(&mut link, &run).await;
    assert!(is_open(listen), "the runner goes on with the token that it has");
    assert!(process.is_alive().unwrap());
}

#[tokio::test]
async fn neither_supervisor_nor_gateway_leaves_its_memory_in_a_core() {
    let [of_supervisor, of_gateway] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let supervisor = start(of_supervisor.path(), free_port().unwrap());
    let (gateway, _) = start_gateway(of_gateway.path());
    for process in [supervisor, gateway] {
        let forbidding = async {
            while !process.leaves_no_core().unwrap() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        soon("cores are forbidden", forbidding).await;
    }
}
