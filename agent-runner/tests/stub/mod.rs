//! A gateway for one attempt: the attempt API in a few lines, and git by `git http-backend`.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    ops::Deref,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::Duration,
};

use agent_operator::{
    attempt::{
        EventsAnswer, EventsRequest, GateAnswer, GateRequest, GitIdentity, Orders, PublishRequest,
        Published, PullRequestRequest, Redeemed, StepRepository, StepResult, StepSpec, StopOrder,
    },
    domain::{
        Attempt, RunRef, RunUid, StepName, TaskRef, TaskUid, assignment::AgentKind,
        event::EventRecord, report::PullRequest,
    },
};
use serde::Serialize;
use serde_json::json;

/// Far above what any test needs; a hang then fails instead of blocking the run.
const LIMIT: Duration = Duration::from_mins(1);

/// What the gateway was told, and what it answers.
#[derive(Default)]
#[allow(clippy::struct_excessive_bools, reason = "independent switches, no hidden state")]
pub(crate) struct State {
    pub(crate) refuse_first: u32,
    pub(crate) remaining_millis: u64,
    /// Takes the result and does not answer.
    pub(crate) hold_result: bool,
    /// Keeps the start gate shut.
    pub(crate) hold_gate: bool,
    /// The attempt was made ahead: what to do is told once the gate is open.
    pub(crate) ahead: bool,
    opened: bool,
    pub(crate) stop: Option<StopOrder>,
    /// Where `/llm` leads.
    pub(crate) model: Option<String>,
    pub(crate) nonces: Vec<String>,
    pub(crate) gate: Option<GateRequest>,
    pub(crate) events: Vec<EventRecord>,
    pub(crate) pull_request: Option<PullRequestRequest>,
    pub(crate) result: Option<StepResult>,
    pub(crate) requests: Vec<(String, Option<String>)>,
    /// Headers and bodies of what went to the model.
    pub(crate) model_requests: Vec<String>,
}

/// The gateway and its folder, which goes when the test is done with it: a connection that still waits
/// for an answer keeps the service alone.
pub(crate) struct Gateway {
    #[allow(
        dead_code,
        reason = "one of the two binaries of tests looks into it; here it is held for its end"
    )]
    pub(crate) folder: tempfile::TempDir,
    service: Arc<Service>,
}

impl Deref for Gateway {
    type Target = Service;

    fn deref(&self) -> &Service {
        &self.service
    }
}

pub(crate) struct Service {
    folder: PathBuf,
    pub(crate) address: String,
    pub(crate) spec: Mutex<StepSpec>,
    state: Mutex<State>,
    changed: Condvar,
}

impl Gateway {
    /// A gateway for `step` with a Command agent that runs `script`, on a repository of one commit.
    pub(crate) fn start(step: StepName, script: &str) -> Arc<Self> {
        let folder = tempfile::tempdir().unwrap();
        let start_commit = seed(folder.path());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let spec = Mutex::new(spec(step, script, start_commit));
        let state = Mutex::new(State { remaining_millis: 60_000, ..State::default() });
        let path = folder.path().to_owned();
        let changed = Condvar::new();
        let service = Arc::new(Service { folder: path, address, spec, state, changed });
        let accepting = Arc::downgrade(&service);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let Some(service) = accepting.upgrade() else { return };
                thread::spawn(move || service.serve(stream));
            }
        });
        Arc::new(Self { folder, service })
    }
}

impl Service {
    pub(crate) fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
        self.changed.notify_all();
    }

    pub(crate) fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.lock().unwrap())
    }

    /// Waits until `condition` holds.
    pub(crate) fn wait_for(&self, condition: impl Fn(&State) -> bool) {
        let state = self.state.lock().unwrap();
        let waited = self.changed.wait_timeout_while(state, LIMIT, |state| !condition(state));
        assert!(!waited.unwrap().1.timed_out(), "the condition did not come about");
    }

    pub(crate) fn result(&self) -> StepResult {
        self.read(|state| state.result.clone()).expect("no result was sent")
    }

    /// The runner, ready to be started.
    pub(crate) fn runner(&self, wrapper: &[&str]) -> Command {
        let binary = Path::new(env!("CARGO_BIN_EXE_agent-runner"));
        self.runner_at(binary, wrapper)
    }

    /// As [`Gateway::runner`], with the runner's binary at `binary`.
    pub(crate) fn runner_at(&self, binary: &Path, wrapper: &[&str]) -> Command {
        let folder = |name: &str| {
            let path = self.folder.join(name);
            std::fs::create_dir_all(&path).unwrap();
            path
        };
        let mut command = match wrapper {
            [] => Command::new(binary),
            [program, arguments @ ..] => {
                let mut command = Command::new(program);
                command.args(arguments).arg(binary);
                command
            }
        };
        command
            .arg("--workspace")
            .arg(folder("workspace"))
            .arg("--home")
            .arg(folder("home"))
            .arg("--runner-dir")
            .arg(folder("runner"))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("AGENT_OPERATOR_GATEWAY", format!("http://{}", self.address))
            .env("AGENT_OPERATOR_TOKEN", "one-time-token")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        command
    }

    /// Runs the step to its end.
    pub(crate) fn run(&self) -> (i32, String) {
        let output = self.runner(&[]).spawn().unwrap().wait_with_output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    }

    /// Git in the bare repository that the gateway serves.
    pub(crate) fn git(&self, arguments: &[&str]) -> String {
        git(&self.folder.join("repositories/main.git"), arguments)
    }

    fn serve(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        // One request a connection keeps the parser honest and short.
        let Some(request) = Request::read(&mut reader) else { return };
        let mut stream = stream;
        if request.path.starts_with("/llm") {
            return self.pass_on(&request, &mut stream);
        }
        let (status, content_type, body) = self.answer(&request);
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\
             connection: close\r\n\r\n",
            body.len()
        );
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
    }

    /// Hands the request to the model and its answer back, byte by byte as it comes.
    fn pass_on(&self, request: &Request, client: &mut TcpStream) {
        let key = request.headers.get("x-api-key").cloned();
        let told = format!("{:?} {}", request.headers, String::from_utf8_lossy(&request.body));
        self.update(|state| {
            state.requests.push((request.path.clone(), key));
            state.model_requests.push(told);
        });
        let mut model =
            TcpStream::connect(self.read(|state| state.model.clone()).unwrap()).unwrap();
        let path = request.path.trim_start_matches("/llm");
        let head = format!(
            "{} {path} HTTP/1.1\r\nhost: model\r\nconnection: close\r\nx-api-key: real-key\r\n\
             content-length: {}\r\n\r\n",
            request.method,
            request.body.len()
        );
        model.write_all(head.as_bytes()).unwrap();
        model.write_all(&request.body).unwrap();
        let _ = std::io::copy(&mut model, client);
    }

    fn answer(&self, request: &Request) -> (u16, String, Vec<u8>) {
        let token = request.headers.get("authorization").cloned();
        self.update(|state| state.requests.push((request.path.clone(), token.clone())));
        if request.path.starts_with("/git/") {
            return self.git_backend(request);
        }
        let expected = if request.path == "/v1/redeem" {
            "Bearer one-time-token"
        } else {
            "Bearer runner-token"
        };
        if token.as_deref() != Some(expected) {
            return error(401, "wrong token", false);
        }
        let refuse = self.read(|state| state.refuse_first > 0);
        if refuse {
            self.update(|state| state.refuse_first -= 1);
            return error(503, "not yet", true);
        }
        self.attempt_api(request)
    }

    fn attempt_api(&self, request: &Request) -> (u16, String, Vec<u8>) {
        let body = &request.body[..];
        match (request.method.as_str(), request.path.as_str()) {
            ("POST", "/v1/redeem") => {
                let nonce: agent_operator::attempt::RedeemRequest =
                    serde_json::from_slice(body).unwrap();
                self.update(|state| state.nonces.push(nonce.nonce));
                let (runner_token, agent_token) = ("runner-token".into(), "agent-token".into());
                ok(&Redeemed { runner_token, agent_token })
            }
            ("GET", "/v1/step") => {
                let mut spec = self.spec.lock().unwrap().clone();
                if self.read(|state| state.ahead && !state.opened) {
                    spec.held = true;
                    spec.prompt.clear();
                    spec.repository.start_commit.clear();
                    spec.repository.may_push = false;
                }
                ok(&spec)
            }
            ("POST", "/v1/gate") => {
                let first = self.read(|state| state.gate.is_none());
                let asked = serde_json::from_slice(body).unwrap();
                self.update(|state| state.gate = Some(asked));
                if first {
                    return ok(&GateAnswer::Closed);
                }
                let state = self.state.lock().unwrap();
                let patience = Duration::from_secs(20);
                let opened =
                    self.changed.wait_timeout_while(state, patience, |state| state.hold_gate);
                drop(opened.unwrap());
                self.update(|state| state.opened = true);
                let remaining_millis = self.read(|state| state.remaining_millis);
                ok(&GateAnswer::Open { remaining_millis })
            }
            ("GET", "/v1/orders") => {
                let state = self.state.lock().unwrap();
                let patience = Duration::from_secs(5);
                let held =
                    self.changed.wait_timeout_while(state, patience, |state| state.stop.is_none());
                ok(&Orders { stop: held.unwrap().0.stop.clone() })
            }
            ("POST", "/v1/events") => {
                let request: EventsRequest = serde_json::from_slice(body).unwrap();
                self.update(|state| {
                    let known = state.events.len() - usize::try_from(request.first).unwrap();
                    state.events.extend(request.records.into_iter().skip(known));
                });
                ok(&EventsAnswer { next: self.read(|state| state.events.len() as u64) })
            }
            ("POST", "/v1/publish") => self.publish(body),
            ("POST", "/v1/pull-request") => {
                let request = serde_json::from_slice(body).unwrap();
                self.update(|state| state.pull_request = Some(request));
                ok(&PullRequest { url: "http://forge.invalid/pulls/7".into(), number: 7 })
            }
            ("POST", "/v1/result") => {
                let result = serde_json::from_slice(body).unwrap();
                self.update(|state| state.result = Some(result));
                let state = self.state.lock().unwrap();
                let held = self.changed.wait_timeout_while(state, LIMIT, |state| state.hold_result);
                drop(held.unwrap());
                (204, "text/plain".into(), Vec::new())
            }
            _ => error(404, "no such route", false),
        }
    }

    fn publish(&self, body: &[u8]) -> (u16, String, Vec<u8>) {
        let request: PublishRequest = serde_json::from_slice(body).unwrap();
        let work_branch = self.spec.lock().unwrap().repository.work_branch.clone();
        let tip = self.git(&["rev-parse", &format!("refs/heads/{work_branch}")]);
        if tip != request.commit {
            return error(409, "another commit is in quarantine", false);
        }
        ok(&Published { work_branch, head_commit: request.commit })
    }

    fn git_backend(&self, request: &Request) -> (u16, String, Vec<u8>) {
        let basic = request.headers.get("authorization").map(String::as_str);
        // agent:agent-token
        if basic != Some("Basic YWdlbnQ6YWdlbnQtdG9rZW4=") {
            return (401, "text/plain".into(), b"wrong token".to_vec());
        }
        let path = request.path.trim_start_matches("/git");
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let header = |name: &str| request.headers.get(name).cloned().unwrap_or_default();
        let mut child = Command::new("git")
            .arg("http-backend")
            .env("GIT_PROJECT_ROOT", self.folder.join("repositories"))
            .env("GIT_HTTP_EXPORT_ALL", "1")
            .env("REMOTE_USER", "agent")
            .env("PATH_INFO", path)
            .env("QUERY_STRING", query)
            .env("REQUEST_METHOD", &request.method)
            .env("CONTENT_TYPE", header("content-type"))
            .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
            .env("GIT_PROTOCOL", header("git-protocol"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&request.body).unwrap();
        let Output { stdout, .. } = child.wait_with_output().unwrap();
        let end = stdout.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(stdout[..end].to_vec()).unwrap();
        let field = |name: &str| {
            head.lines()
                .find_map(|line| line.strip_prefix(name))
                .map(|value| value.trim().to_owned())
        };
        let status =
            field("Status:").map_or(200, |text| text.split(' ').next().unwrap().parse().unwrap());
        (status, field("Content-Type:").unwrap_or_default(), stdout[end + 4..].to_vec())
    }
}

struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Request {
    fn read(reader: &mut impl BufRead) -> Option<Self> {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let mut words = line.split_ascii_whitespace();
        let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.insert(name.to_lowercase(), value.trim().to_owned());
        }
        assert!(!headers.contains_key("transfer-encoding"), "chunked bodies are not spoken here");
        let length = headers.get("content-length").map_or(0, |text| text.parse().unwrap());
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        Some(Self { method, path, headers, body })
    }
}

fn ok(body: &impl Serialize) -> (u16, String, Vec<u8>) {
    (200, "application/json".into(), serde_json::to_vec(body).unwrap())
}

fn error(status: u16, message: &str, retryable: bool) -> (u16, String, Vec<u8>) {
    let body = json!({ "reason": null, "message": message, "retryable": retryable });
    (status, "application/json".into(), body.to_string().into_bytes())
}

pub(crate) fn git(directory: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .args(arguments)
        .current_dir(directory)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .envs([("GIT_AUTHOR_NAME", "a"), ("GIT_COMMITTER_NAME", "a")])
        .envs([("GIT_AUTHOR_EMAIL", "a@b"), ("GIT_COMMITTER_EMAIL", "a@b")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A bare repository with one commit; returns its id.
fn seed(folder: &Path) -> String {
    let bare: PathBuf = folder.join("repositories/main.git");
    let work = folder.join("seed");
    for path in [&bare, &work] {
        std::fs::create_dir_all(path).unwrap();
    }
    git(&bare, &["init", "--quiet", "--bare", "--initial-branch=main"]);
    git(&bare, &["config", "http.receivepack", "true"]);
    git(&work, &["init", "--quiet", "--initial-branch=main"]);
    std::fs::write(work.join("server.js"), "// a server\n").unwrap();
    git(&work, &["add", "--all"]);
    git(&work, &["commit", "--quiet", "--message=start"]);
    git(&work, &["push", "--quiet", bare.to_str().unwrap(), "main"]);
    git(&work, &["rev-parse", "HEAD"])
}

fn spec(step: StepName, script: &str, start_commit: String) -> StepSpec {
    StepSpec {
        run: RunRef {
            namespace: "agent-system".to_owned(),
            name: "add-healthcheck-1".to_owned(),
            uid: RunUid::from("run-uid"),
        },
        task: TaskRef { name: "add-healthcheck".to_owned(), uid: TaskUid::from("task-uid") },
        step,
        attempt: Attempt(1),
        prompt: "Add a /healthz endpoint that returns 200 OK".to_owned(),
        plan: None,
        feedback: None,
        agent: AgentKind::Command { command: ["sh", "-c", script].map(str::to_owned).to_vec() },
        model: None,
        max_turns: None,
        test_command: Some(["sh", "-c", script].map(str::to_owned).to_vec()),
        issue: None,
        repository: StepRepository {
            name: "main".to_owned(),
            base_branch: "main".to_owned(),
            base_commit: start_commit.clone(),
            work_branch: "ai/add-healthcheck".to_owned(),
            start_commit,
            may_push: step.may_push(),
        },
        identity: GitIdentity {
            name: "agent-operator".to_owned(),
            email: "agent@example.invalid".to_owned(),
        },
        grace_seconds: 2,
        canary: None,
        held: false,
    }
}
