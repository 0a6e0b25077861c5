//! `scripted-model`: the scripted model server as a program, for the local cluster.

use std::{io::Write as _, net::SocketAddr};

use agent_operator_doubles::{Options, ScriptedModel};
use anyhow::Context as _;
use clap::Parser;

/// Speaks the Messages API and answers by script.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1:8089")]
    listen: SocketAddr,
    /// The only API key that is accepted.
    #[arg(long, env = "SCRIPTED_MODEL_KEY", hide_env_values = true)]
    expect_key: Option<String>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let Arguments { listen, expect_key } = Arguments::parse();
    let server = ScriptedModel::start(listen, Options { expect_key })
        .await
        .with_context(|| format!("cannot listen on {listen}"))?;
    writeln!(std::io::stderr(), "scripted model at {}", server.base_url())?;
    server.serve().await.context("the server ended")
}
