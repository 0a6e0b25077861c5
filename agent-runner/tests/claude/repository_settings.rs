//! What a repository brings for the agent CLI is content and never configuration. Each kind is planted
//! in `tests/hostile-repository`; a control run, with the CLI's own defaults, shows that it works.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use agent_operator::domain::StepName;
use agent_operator_doubles::{Options, ScriptedModel};
use serde_json::Value;

use super::{as_user, cli, hand_over, is_root, run, stub::Gateway};

/// How something planted shows that it took effect.
#[derive(Clone, Copy, Debug)]
enum Trace {
    /// It ran, and left `$HOME/ran-NAME`.
    Ran(&'static str),
    /// The model was told.
    Told(&'static str),
}
use Trace::{Ran, Told};

/// What the CLI takes from a repository by default.
const PLANTED: [Trace; 14] = [
    Ran("hook-SessionStart"),
    Ran("hook-UserPromptSubmit"),
    Ran("hook-PreToolUse"),
    Ran("hook-Stop"),
    Ran("hook-of-local-settings"),
    Ran("apiKeyHelper"),
    Ran("bash-env"),
    Ran("mcp"),
    Told("canary-model"),
    Told("CANARY-HEADER"),
    Told("CANARY-AGENT"),
    Told("CANARY-SKILL"),
    Told("CANARY-STYLE"),
    Told("CANARY-RULE"),
];
/// Of those, what managed settings alone hold off.
const MANAGED: [Trace; 6] = [
    Ran("hook-SessionStart"),
    Ran("hook-UserPromptSubmit"),
    Ran("hook-PreToolUse"),
    Ran("hook-Stop"),
    Ran("hook-of-local-settings"),
    Ran("mcp"),
];
/// Planted as well, but this CLI takes it only at a terminal, from other providers, or on request.
const NOT_SHOWN: [Trace; 4] =
    [Ran("statusLine"), Ran("awsAuthRefresh"), Ran("otelHeadersHelper"), Told("CANARY-COMMAND")];

/// The traces of a run: names of markers, and all that the model was told.
struct Traces {
    gateway: Arc<Gateway>,
    told: String,
}

impl Traces {
    fn of(gateway: Arc<Gateway>) -> Self {
        let told = gateway.read(|state| state.model_requests.concat());
        Self { gateway, told }
    }

    fn has(&self, trace: Trace) -> bool {
        match trace {
            Ran(name) => self.gateway.folder.join(format!("home/ran-{name}")).exists(),
            Told(words) => self.told.contains(words),
        }
    }
}

fn plant(into: &Path) {
    let planted = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hostile-repository/.");
    assert!(Command::new("cp").arg("-r").arg(planted).arg(into).status().unwrap().success());
}

/// Points the base URL of the repository's settings to a server that counts connections.
fn plant_base_url(repository: &Path) -> Arc<AtomicUsize> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let path = repository.join(".claude/settings.json");
    let mut settings: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    settings["env"]["ANTHROPIC_BASE_URL"] = url.into();
    fs::write(path, settings.to_string()).unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&connections);
    // Each is closed at once; the thread ends with the process.
    thread::spawn(move || {
        for _ in listener.incoming() {
            counter.fetch_add(1, Ordering::SeqCst);
        }
    });
    connections
}

/// Runs the CLI in the planted repository without agent-runner, by its own defaults but for what makes
/// it end; `managed` are managed settings in a mount namespace of its own.
fn bare(prepare: impl FnOnce(&Path), seconds: u32, managed: Option<&str>) -> Traces {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let options = Options { expect_key: Some("real-key".to_owned()) };
    let model = ScriptedModel::start("127.0.0.1:0".parse().unwrap(), options);
    let model = runtime.block_on(model).unwrap();
    let gateway = Gateway::start(StepName::Plan, "");
    gateway.update(|state| state.model = Some(model.address().to_string()));
    let folder = &gateway.folder;
    let (repository, home) = (folder.join("bare"), folder.join("home"));
    for path in [&repository, &home] {
        fs::create_dir_all(path).unwrap();
    }
    plant(&repository);
    prepare(&repository);
    hand_over(folder, &["bare", "home"]);
    let program = folder.join("claude");
    fs::copy(cli(), &program).unwrap();
    let prompt = folder.join("prompt");
    fs::write(&prompt, "Step: plan\n\nAdd a /healthz endpoint").unwrap();
    let mut words: Vec<String> = Vec::new();
    if let Some(settings) = managed {
        let etc = folder.join("etc");
        let copied = Command::new("cp").args(["-a", "/etc"]).arg(&etc).status().unwrap();
        assert!(copied.success());
        fs::create_dir_all(etc.join("claude-code")).unwrap();
        fs::write(etc.join("claude-code/managed-settings.json"), settings).unwrap();
        let script = "mount --bind \"$0\" /etc && exec \"$@\"";
        words.extend(["unshare", "--mount", "sh", "-c", script].map(str::to_owned));
        words.push(etc.to_string_lossy().into_owned());
    }
    words.extend(as_user().iter().map(|word| (*word).to_owned()));
    words.extend(["timeout".to_owned(), seconds.to_string()]);
    words.push(program.to_string_lossy().into_owned());
    words.extend(
        [
            "--print",
            "--dangerously-skip-permissions",
            "--output-format",
            "stream-json",
            "--verbose",
        ]
        .map(str::to_owned),
    );
    words.extend(["--setting-sources", "user,project,local"].map(str::to_owned));
    let ended = Command::new(&words[0])
        .args(&words[1..])
        .current_dir(&repository)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", &home)
        .env("ANTHROPIC_BASE_URL", format!("http://{}/llm", gateway.address))
        .env("ANTHROPIC_API_KEY", "agent-token")
        .env("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1")
        .env("DISABLE_AUTOUPDATER", "1")
        .stdin(fs::File::open(prompt).unwrap())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    // A run without a model that answers has no good end.
    println!("the CLI {ended}");
    Traces::of(gateway)
}

#[test]
#[ignore = "needs the Claude Code CLI: tests/run e2e"]
fn control_what_a_repository_plants_works_where_the_cli_loads_it() {
    let traces = bare(|_| {}, 60, None);
    for trace in PLANTED {
        assert!(traces.has(trace), "{trace:?} has rotted: it proves nothing any more");
    }
    // It never ends by itself there; a busy machine needs more of the time that it is given.
    let connects = |seconds| {
        let mut connections = None;
        bare(|repository| connections = Some(plant_base_url(repository)), seconds, None);
        connections.unwrap().load(Ordering::SeqCst) > 0
    };
    assert!([5, 20, 60].into_iter().any(connects), "the base URL has rotted");
}

#[test]
#[ignore = "needs the Claude Code CLI: tests/run e2e"]
fn a_repositorys_own_agent_configuration_neither_runs_nor_redirects() {
    let mut connections = None;
    let run = run(StepName::Plan, "Add a /healthz endpoint", |gateway| {
        let seed = gateway.folder.join("seed");
        plant(&seed);
        connections = Some(plant_base_url(&seed));
    });
    assert_eq!(run.code, 0, "{}", run.log);
    let traces = Traces::of(Arc::clone(&run.gateway));
    for trace in PLANTED.into_iter().chain(NOT_SHOWN) {
        assert!(!traces.has(trace), "{trace:?}\n{}", run.log);
    }
    assert_eq!(connections.unwrap().load(Ordering::SeqCst), 0, "nothing leaves by the base URL");
    // What the repository says to agents is passed on as text.
    assert!(run.requests[0].prompt.contains("CANARY-ORDER"));
    assert!(run.requests[0].prompt.contains("<repository-guide>"));
}

#[test]
#[ignore = "needs the Claude Code CLI: tests/run e2e"]
fn managed_settings_of_the_agent_image_win_over_a_repository_that_is_loaded() {
    assert!(is_root(), "a mount namespace needs root");
    let settings = include_str!("../../../deploy/images/managed-settings.json");
    let traces = bare(|_| {}, 60, Some(settings));
    assert!(traces.has(Told("canary-model")), "the repository's settings were loaded");
    for trace in MANAGED {
        assert!(!traces.has(trace), "{trace:?}");
    }
    let with_model = settings.replacen('{', "{\"model\": \"managed-model\",", 1);
    let traces = bare(|_| {}, 60, Some(&with_model));
    assert!(traces.has(Told("managed-model")) && !traces.has(Told("canary-model")));
}
