//! agent-runner: PID 1 of the agent pod. It prepares the workspace, runs the agent or the tests,
//! and reports a typed result that the agent cannot forge.
//!
//! Threads, all synchronous:
//!
//! | thread | does | talks by |
//! |---|---|---|
//! | main | the step, in order | everything below |
//! | signals | reaps orphans; SIGTERM from outside becomes a stop order | [`stop::Stop`] |
//! | deadline | stops the step at its deadline, ends the process after the grace | [`stop::Stop`] |
//! | orders | long poll for the gateway's stop order | [`stop::Stop`] |
//! | events | sends typed events in batches | [`events::Events`] |
//! | printer | writes lines to standard output | [`output::Printer`] |
//! | a few a child | feed its input, drain its output, wait for it | [`process::Processes`] |

mod agent;
mod attempt;
mod clock;
mod confine;
mod context;
mod deadline;
mod events;
mod files;
mod gate;
mod image;
mod output;
mod process;
mod result;
mod run;
mod signals;
mod steps;
mod stop;
#[cfg(test)]
mod testing;
mod verify;
mod workspace;

use std::{env, ffi::OsString, io::Write as _, path::PathBuf, process::exit};

use agent_operator::attempt::{HOME_DIR, RUNNER_DIR, WORKSPACE_DIR};
use anyhow::Context as _;
use clap::{Parser, Subcommand};

use crate::{
    confine::{Walls, probe},
    context::Layout,
};

/// Exit code of a runner that could not begin (`EX_USAGE` of sysexits.h).
const EXIT_USAGE: i32 = 64;

#[derive(Parser)]
#[command(name = "agent-runner", version, about = "PID 1 of an agent-operator pod")]
struct Arguments {
    /// Parent folder of the work tree.
    #[arg(long, default_value = WORKSPACE_DIR)]
    workspace: PathBuf,
    /// Home folder of the agent.
    #[arg(long, default_value = HOME_DIR)]
    home: PathBuf,
    /// Folder with the agent CLI.
    #[arg(long, default_value = RUNNER_DIR)]
    runner_dir: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Copies this program and the agent CLI into a folder, for nodes without image volumes.
    Install {
        /// The folder.
        folder: PathBuf,
        /// The agent CLI.
        #[arg(long, default_value = "/claude")]
        claude: PathBuf,
    },
    /// Says how far the confinement of children holds on this kernel.
    #[command(name = probe::PROBE, hide = true)]
    Probe {
        #[command(flatten)]
        walls: Walls,
    },
    /// Becomes a program, confined; how the runner starts its own children.
    #[command(name = confine::EXEC, hide = true)]
    Exec {
        #[command(flatten)]
        walls: Walls,
        /// Program and arguments.
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
}

fn main() {
    let arguments = Arguments::parse();
    let code = match arguments.command {
        Some(Command::Probe { walls }) => finish(show_probe(&walls).map(|()| 0)),
        Some(Command::Exec { walls, command }) => {
            let (code, message) = confine::become_program(&walls, &command);
            complain(&message);
            code
        }
        Some(Command::Install { folder, claude }) => finish(install(&folder, &claude).map(|()| 0)),
        None => {
            let Arguments { workspace, home, runner_dir, .. } = arguments;
            finish(run::run(Layout { workspace, home, runner: runner_dir }))
        }
    };
    exit(code);
}

fn show_probe(walls: &Walls) -> anyhow::Result<()> {
    let reached = serde_json::to_vec(&probe::probe(walls)?)?;
    std::io::stdout().write_all(&reached).context("nobody reads the answer")
}

fn install(folder: &std::path::Path, claude: &std::path::Path) -> anyhow::Result<()> {
    let own = env::current_exe().context("cannot find this program's own file")?;
    files::install(&own, folder, "agent-runner")
        .with_context(|| format!("cannot install agent-runner into {}", folder.display()))?;
    files::install(claude, folder, "claude")
        .with_context(|| format!("cannot install {} into {}", claude.display(), folder.display()))
}

fn finish(result: anyhow::Result<i32>) -> i32 {
    result.unwrap_or_else(|error| {
        complain(&format!("{error:#}"));
        EXIT_USAGE
    })
}

fn complain(message: &str) {
    // Without a standard error nobody can be told.
    let _ = writeln!(std::io::stderr(), "agent-runner: {message}");
}
