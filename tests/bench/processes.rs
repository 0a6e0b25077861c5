//! The processes that are measured: this program under another name, so that one build has them all.

use std::{
    io::Write as _,
    path::PathBuf,
    process::{Child, Command, ExitCode, Stdio},
};

use agent_operator::telemetry::{Tracer, logs};
use agent_operator_controller::{args as of_controller, run};
use agent_operator_supervisor::{args as of_supervisor, daemon, gateway as of_gateway};
use clap::Parser as _;
use tokio_util::sync::CancellationToken;

/// First argument of this program when it is to be one of the processes.
pub const PROCESS: &str = "process";

/// Runs as the process that the arguments name; none when they name none.
pub fn as_one_of_them(arguments: &[String]) -> Option<ExitCode> {
    let arguments = arguments.strip_prefix(&[PROCESS.to_owned()])?;
    let ended = match arguments.first()?.as_str() {
        "controller" => controller(arguments),
        "supervisor" => supervisor(arguments),
        "gateway" => gateway(arguments),
        "tail" => crate::log_throughput::tail_process(&arguments[1..]),
        "list" => crate::live::list_process(&arguments[1..]),
        _ => return None,
    };
    Some(match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    })
}

/// As the controller's `main` does it.
fn controller(arguments: &[String]) -> anyhow::Result<()> {
    let args = of_controller::Cli::parse_from(arguments).run;
    logs::start(args.telemetry.log_format, &args.telemetry.log)?;
    block_on(async {
        let tracer = Tracer::start(&args.telemetry, "agent-operator-controller")?;
        Box::pin(run::run(args, tracer)).await
    })
}

/// As the supervisor's `main` does it.
fn supervisor(arguments: &[String]) -> anyhow::Result<()> {
    let cli = of_supervisor::Cli::parse_from(arguments);
    logs::start(cli.telemetry.log_format, &cli.telemetry.log)?;
    let of_supervisor::Command::Run(args) = cli.command else { anyhow::bail!("only `run`") };
    block_on(async {
        let tracer = Tracer::start(&cli.telemetry, "agent-operator-supervisor")?;
        Box::pin(daemon::run(*args, tracer, CancellationToken::new())).await
    })
}

/// The same binary's other process. Its arguments are the subcommand's.
fn gateway(arguments: &[String]) -> anyhow::Result<()> {
    let line = std::iter::once("supervisor").chain(arguments.iter().map(String::as_str));
    let cli = of_supervisor::Cli::parse_from(line);
    logs::start(cli.telemetry.log_format, &cli.telemetry.log)?;
    let of_supervisor::Command::Gateway(args) = cli.command else {
        anyhow::bail!("only `gateway`")
    };
    block_on(async {
        let tracer = Tracer::start(&cli.telemetry, "agent-operator-gateway")?;
        Box::pin(of_gateway::run(*args, tracer, CancellationToken::new())).await
    })
}

pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    runtime().block_on(work)
}

/// Whatever is connected in it lives as long as it does.
pub fn runtime() -> tokio::runtime::Runtime {
    // A second call finds it installed.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap()
}

/// A process of ours; killed when it is dropped.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts this program with these arguments. What it says goes to `log`, added to what is there.
    pub fn start(arguments: &[String], environment: &[(&str, &str)], log: PathBuf) -> Self {
        let said = std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .arg(PROCESS)
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(said.try_clone().unwrap())
            .stderr(said)
            .spawn()
            .unwrap();
        Self { child, log }
    }

    /// Proportional set size in KiB: what it has alone, and its part of what it shares.
    pub fn pss_kib(&self) -> f64 {
        field(&format!("/proc/{}/smaps_rollup", self.child.id()), "Pss:")
    }

    /// What it has used of a core so far, in seconds.
    pub fn core_seconds(&self) -> f64 {
        core_seconds(self.child.id()).unwrap()
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Panics with the end of its log when it has ended by itself.
    pub fn must_live(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<_> = log.lines().rev().take(20).collect();
            panic!("a process ended by itself ({status}):\n{}", lines.join("\n"));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// What a process has used of a core, in seconds, by the kernel's accounts; none when it is gone.
pub fn core_seconds(pid: u32) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // User and system time, in hundredths of a second; fields are counted after the name.
    let after = stat.rsplit_once(')')?.1;
    let ticks = after.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<f64>().ok());
    Some(ticks.sum::<f64>() / 100.0)
}

/// A number of KiB from a file of /proc.
pub fn field(file: &str, name: &str) -> f64 {
    let text = std::fs::read_to_string(file).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}
