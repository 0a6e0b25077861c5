//! `grpcurl`, as a person uses it: with reflection, TLS and a token.

use std::process::Stdio;

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use super::env;

/// A token for a service account of the task namespace, by `kubectl create token`.
pub(crate) async fn token(namespace: &str, account: &str) -> String {
    let output = Command::new("kubectl")
        .args(["create", "token", account, "-n", namespace, "--audience", "agent-operator"])
        .output()
        .await
        .expect("kubectl runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("a token").trim().to_owned()
}

fn command(token: Option<&str>) -> Command {
    let mut command = Command::new("grpcurl");
    command.args(["-cacert", &env("AO_GRPC_CA")]);
    if let Some(token) = token {
        command.args(["-H", &format!("authorization: Bearer {token}")]);
    }
    command.kill_on_drop(true);
    command
}

/// `grpcurl ADDRESS list`.
pub(crate) async fn list(token: Option<&str>) -> String {
    let output =
        command(token).args([&env("AO_GRPC"), "list"]).output().await.expect("grpcurl runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Calls a method to its end: its messages, or what grpcurl says of the failure.
pub(crate) async fn call(
    token: Option<&str>,
    method: &str,
    request: &Value,
) -> Result<Vec<Value>, String> {
    call_at(None, token, method, request).await
}

/// The same at another address than the Service's.
pub(crate) async fn call_at(
    address: Option<&str>,
    token: Option<&str>,
    method: &str,
    request: &Value,
) -> Result<Vec<Value>, String> {
    let address = address.map_or_else(|| env("AO_GRPC"), str::to_owned);
    let output = command(token)
        .args(["-d", &request.to_string(), &address, method])
        .output()
        .await
        .expect("grpcurl runs");
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(serde_json::Deserializer::from_slice(&output.stdout)
        .into_iter::<Value>()
        .collect::<Result<_, _>>()
        .expect("a stream of JSON objects"))
}

/// A running `Follow`: its output line by line as it arrives.
pub(crate) struct Following {
    lines: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
    child: Child,
}

impl Following {
    /// Starts `Follow`.
    pub(crate) fn start(token: &str, request: &Value) -> Self {
        Self::start_at(None, token, request)
    }

    /// The same at another address than the Service's.
    pub(crate) fn start_at(address: Option<&str>, token: &str, request: &Value) -> Self {
        let address = address.map_or_else(|| env("AO_GRPC"), str::to_owned);
        let mut child = command(Some(token))
            .args(["-d", &request.to_string(), &address])
            .arg("agentoperator.v1.StepService/Follow")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("grpcurl runs");
        let stdout = child.stdout.take().expect("a pipe was asked for");
        Self { lines: BufReader::new(stdout).lines(), child }
    }

    /// Reads until a line contains `needle`; false at the end of the stream.
    pub(crate) async fn until(&mut self, needle: &str) -> bool {
        while let Ok(Some(line)) = self.lines.next_line().await {
            if line.contains(needle) {
                return true;
            }
        }
        false
    }

    /// Reads to the end and waits for the process.
    pub(crate) async fn finish(mut self) -> bool {
        while let Ok(Some(_)) = self.lines.next_line().await {}
        self.child.wait().await.is_ok_and(|status| status.success())
    }
}
