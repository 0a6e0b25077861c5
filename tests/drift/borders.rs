//! Which module may know of what; see the list of module borders in ARCHITECTURE.md.

use std::process::Command;

use super::{
    source::{code, is_test},
    tree::{root, rust_files},
};

/// Folder or file, words that must not occur in it, and why.
const BANNED: &[(&str, &[&str], &str)] = &[
    (
        "src/domain",
        &[
            "kube::",
            "k8s_openapi",
            "tonic",
            "tokio",
            "schemars",
            "prost",
            "crate::crd",
            "crate::proto",
        ],
        "every part of the system shares the domain, agent-runner too",
    ),
    (
        "controller/src/decide",
        PURE,
        "a decision is a function of what was observed, so that it can be tested exhaustively",
    ),
    ("controller/src/plan.rs", PURE, "a plan is data"),
    ("supervisor/src/steps/machine.rs", PURE, "the machine is replayed from the ledger"),
    (
        "supervisor/src/gateway",
        &[
            "kube::",
            "k8s_openapi",
            "tonic::",
            "crate::session",
            "crate::steps",
            "crate::ledger",
            "crate::pod",
            "crate::streams",
        ],
        "the gateway is its own process: no cluster identity, and nothing shared but the socket's contract",
    ),
    (
        "supervisor/src/enforcer",
        &[
            "kube::",
            "k8s_openapi",
            "tonic::",
            "hyper",
            "crate::session",
            "crate::steps",
            "crate::ledger",
            "crate::pod",
            "crate::streams",
            "crate::gateway",
            "crate::link",
        ],
        "the enforcer is its own process with a capability on the node: it shares nothing with the others",
    ),
    (
        "supervisor/src/steps/egress.rs",
        PURE,
        "whether a network counts as closed is decided from facts",
    ),
    (
        "controller/src/fleet",
        &["kube::", "proto::", "k8s_openapi"],
        "wire types stop at grpc/, cluster types at observe and apply",
    ),
    ("agent-runner/src", &["kube::", "tonic", "rustls", "tokio"], "PID 1 of the sandbox is small"),
];

/// What makes a function give another answer the second time, and the clients of other systems.
const PURE: &[&str] = &[
    "k8s_openapi",
    "kube::Client",
    "kube::Api",
    "kube::runtime",
    "tonic",
    "tokio",
    "std::env",
    "std::fs",
    "std::net",
    "std::thread",
    "getrandom",
    "Instant::now",
    "SystemTime",
    "Timestamp::now",
    "Zoned::now",
    ".await",
    "async fn",
];

/// Whether `line` has `word` with no identifier character after it (`.await` is not `.awaiting`).
fn contains_word(line: &str, word: &str) -> bool {
    let open =
        |at: usize| line[at + word.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_');
    let ends_open = word.ends_with(':');
    line.match_indices(word).any(|(at, _)| ends_open || !open(at))
}

#[test]
fn no_module_reaches_over_its_border() {
    let mut found = Vec::new();
    for (folder, words, reason) in BANNED {
        for path in rust_files(folder).into_iter().filter(|path| !is_test(path)) {
            for (number, line) in code(&path).lines().enumerate() {
                for word in words.iter().filter(|word| contains_word(line, word)) {
                    found.push(format!("{}:{}: {word} ({reason})", path.display(), number + 1));
                }
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn wire_types_stop_at_the_edges() {
    let edges = ["controller/src/grpc", "supervisor/src/session"];
    let mut found = Vec::new();
    for folder in ["controller/src", "supervisor/src", "agent-runner/src"] {
        for path in rust_files(folder).into_iter().filter(|path| !is_test(path)) {
            let name = path.display().to_string();
            if !edges.iter().any(|edge| name.starts_with(edge))
                && code(&path).contains("agent_operator::proto")
            {
                found.push(name);
            }
        }
    }
    assert!(found.is_empty(), "{found:?} use wire types; convert them at {edges:?}");
}

/// Names of the packages that `package` is made of.
fn tree(arguments: &[&str]) -> Vec<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "--prefix", "none", "--format", "{p}"])
        .args(arguments)
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[test]
fn runner_is_built_without_kubernetes_grpc_and_tls() {
    let packages = tree(&["-p", "agent-operator-runner", "-e", "normal,build"]);
    assert!(packages.iter().any(|name| name == "ureq"), "the tree must be the runner's");
    for banned in ["kube", "k8s-openapi", "tonic", "prost", "rustls", "aws-lc-rs", "tokio"] {
        assert!(!packages.iter().any(|name| name == banned), "agent-runner is built with {banned}");
    }
}

#[test]
fn one_tls_provider_and_no_second_client() {
    let packages = tree(&["--workspace", "-e", "all"]);
    assert!(packages.iter().any(|name| name == "aws-lc-rs"), "the tree must be the whole one");
    for banned in ["ring", "openssl", "native-tls", "reqwest", "jsonwebtoken", "serde_yaml"] {
        assert!(!packages.iter().any(|name| name == banned), "{banned} is in the tree");
    }
}

#[test]
fn only_the_github_client_brings_chrono() {
    let users = tree(&["--workspace", "-e", "normal,build,dev", "-i", "chrono", "--depth", "1"]);
    assert_eq!(users, ["chrono", "octocrab"], "kube and we use jiff");
}

#[test]
fn controller_and_supervisor_do_not_know_one_another() {
    let controller = tree(&["-p", "agent-operator-controller", "-e", "normal"]);
    let supervisor = tree(&["-p", "agent-operator-supervisor", "-e", "normal"]);
    assert!(!controller.iter().any(|name| name == "agent-operator-supervisor"));
    assert!(!supervisor.iter().any(|name| name == "agent-operator-controller"));
}
