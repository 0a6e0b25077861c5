//! The real process holds credentials on their way to the nodes: however it ends, its memory does not
//! stay behind.

// Helpers of tests fail by panicking, as the tests themselves do.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use agent_operator_doubles::process::{Process, free_port, kubeconfig_of_an_outage};

/// Longest wait: far above what it takes.
const LIMIT: Duration = Duration::from_mins(1);

#[tokio::test]
async fn the_controller_leaves_its_memory_in_no_core() {
    let dir = tempfile::tempdir().unwrap();
    let kubeconfig = dir.path().join("kubeconfig");
    kubeconfig_of_an_outage(&kubeconfig).unwrap();
    let arguments = [
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--data-dir={}", dir.path().join("data").display()),
        format!("--http-address={}", free_port().unwrap()),
        format!("--grpc-address={}", free_port().unwrap()),
    ];
    let program = env!("CARGO_BIN_EXE_controller");
    let process = Process::start(program, &arguments, &[], dir.path().join("log")).unwrap();
    let forbidding = async {
        while !process.leaves_no_core().unwrap() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let forbidden = tokio::time::timeout(LIMIT, forbidding).await;
    assert!(forbidden.is_ok(), "{}", process.said());
}
