//! The supervisor's binary: the daemon of a node, and its gateway and its enforcer as processes of
//! their own.

use agent_operator::{
    core_dumps,
    telemetry::{Tracer, logs},
};
use agent_operator_supervisor::{
    args::{Cli, Command},
    daemon, enforcer, gateway,
};
use anyhow::Context as _;
use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

fn main() -> anyhow::Result<()> {
    // First of all, for its children as well: git gets credentials too.
    core_dumps::forbid().context("could not forbid core dumps")?;
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a TLS provider was installed before"))?;
    let cli = Cli::parse();
    logs::start(cli.telemetry.log_format, &cli.telemetry.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("could not start the runtime")?;
    runtime.block_on(run(cli))
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("could not listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("could not listen for SIGINT")?;
    let of_signals = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        of_signals.cancel();
    });
    let start = |service| Tracer::start(&cli.telemetry, service);
    match cli.command {
        Command::Run(args) => {
            let tracer = start("agent-operator-supervisor")?;
            let ended = daemon::run(*args, tracer.clone(), shutdown).await;
            tracer.stop().await;
            ended
        }
        Command::Gateway(args) => {
            let tracer = start("agent-operator-gateway")?;
            let ended = gateway::run(*args, tracer.clone(), shutdown).await;
            tracer.stop().await;
            ended
        }
        Command::Enforcer(args) => enforcer::run(*args, shutdown).await,
    }
}
