//! The controller's binary.

use std::{io::Write as _, process::ExitCode};

use agent_operator::{
    core_dumps,
    crd::all_crds,
    telemetry::{Tracer, logs},
};
use agent_operator_controller::{
    args::{AwaitPurgeArgs, CheckArgs, Cli, Command, RunArgs, UninstallArgs},
    check, run, uninstall,
};
use anyhow::Context as _;
use clap::Parser as _;

fn main() -> ExitCode {
    let result = core_dumps::forbid().context("forbid core dumps");
    let result = result.and_then(|()| obey(Cli::parse()));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The log may not have started; this is the one place where an error is told twice.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn obey(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Some(Command::Crd) => print_crds(),
        Some(Command::Check(args)) => check_release(&args),
        Some(Command::Uninstall(args)) => prepare_removal(&args),
        Some(Command::AwaitPurge(args)) => await_purge(&args),
        Some(Command::Run(args)) => start(*args),
        None => start(cli.run),
    }
}

fn start(args: RunArgs) -> anyhow::Result<()> {
    logs::start(args.telemetry.log_format, &args.telemetry.log)?;
    block_on(async {
        let tracer = Tracer::start(&args.telemetry, "agent-operator-controller")?;
        let ended = run::run(args, tracer.clone()).await;
        tracer.stop().await;
        ended
    })
}

fn prepare_removal(args: &UninstallArgs) -> anyhow::Result<()> {
    logs::start(args.job.log_format, &args.job.log)?;
    block_on(async {
        let client = run::client(args.job.kubeconfig.as_deref()).await?;
        uninstall::uninstall(client, args).await.context("prepare the release for its removal")
    })
}

fn await_purge(args: &AwaitPurgeArgs) -> anyhow::Result<()> {
    logs::start(args.job.log_format, &args.job.log)?;
    block_on(async {
        let client = run::client(args.job.kubeconfig.as_deref()).await?;
        uninstall::await_purge(client, args).await.context("remove what is kept on the nodes")
    })
}

fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    // Both providers may be in a build by way of some dependency; without a choice rustls panics at
    // its first use.
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another TLS provider was installed before"))?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime")?
        .block_on(work)
}

fn check_release(args: &CheckArgs) -> anyhow::Result<()> {
    block_on(async {
        let findings = check::run(args).await?;
        write!(std::io::stdout().lock(), "{findings}").context("print the findings")?;
        anyhow::ensure!(findings.good(), "the release does not work as a whole, see above");
        Ok(())
    })
}

fn print_crds() -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for crd in all_crds() {
        let yaml = serde_saphyr::to_string(&crd).context("write a definition as YAML")?;
        write!(out, "---\n{yaml}").context("print the definitions")?;
    }
    Ok(())
}
