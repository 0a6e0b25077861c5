//! The one way in which a child is started: every agent, test command and git call of the step.
//!
//! A child is this binary again (`agent-runner exec -- PROGRAM ...`), which closes the doors behind
//! itself and then becomes the program. So no code runs between fork and exec in PID 1. The doors:
//!
//! | door | module | holds off |
//! |---|---|---|
//! | Landlock | [`ruleset`] | writes outside the step's folders, signals to the runner, other ports for git |
//! | seccomp | [`syscalls`] | looking into, limiting or slowing down other processes; asynchronous I/O of the node |
//! | limits | [`limits`] | a full table of open files, and cores that the node writes down |
//!
//! Where the kernel lacks one, the other stays; [`probe`] finds out what is reached, and the status
//! of the run says it.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use clap::Args;
use nix::sys::{prctl, signal::SigSet};

mod limits;
pub(crate) mod probe;
mod ruleset;
mod syscalls;

/// Hidden subcommand under which the binary starts a child.
pub(crate) const EXEC: &str = "exec";
/// Exit code when the program does not exist, as shells have it.
pub(crate) const EXIT_NOT_FOUND: i32 = 127;
/// Exit code when the program cannot be run, as shells have it.
const EXIT_NOT_RUNNABLE: i32 = 126;

/// Why a child could not be confined.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfineError {
    /// Landlock refused the rules.
    #[error("cannot restrict files, ports and signals: {0}")]
    Ruleset(String),
    /// A limit could not be lowered.
    #[error("cannot limit open files and cores: {0}")]
    Limits(String),
    /// The filter of system calls was refused.
    #[error("cannot restrict system calls: {0}")]
    Syscalls(String),
}

/// What a child may do beyond reading and computing.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Walls {
    /// Folder that the child may write below; it may be given several times.
    #[arg(long = "writable")]
    pub(crate) writable: Vec<PathBuf>,
    /// The one TCP port that the child may connect to, and none to listen on; any without it.
    #[arg(long)]
    pub(crate) only_port: Option<u16>,
}

impl Walls {
    fn arguments(&self) -> Vec<OsString> {
        let writable = self.writable.iter().flat_map(|folder| ["--writable".into(), folder.into()]);
        let port = self.only_port.map(|port| format!("--only-port={port}").into());
        writable.chain(port).collect()
    }

    /// Puts this process behind the walls, for good; returns the Landlock ABI in force, if any.
    fn raise(&self) -> Result<Option<i32>, ConfineError> {
        limits::restrict()?;
        let landlock = ruleset::restrict(self)?;
        syscalls::restrict()?;
        Ok(landlock)
    }
}

/// What to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Invocation {
    /// Program (looked up in the child's `PATH`) and arguments; never empty.
    pub(crate) command: Vec<String>,
    /// Working directory.
    pub(crate) directory: PathBuf,
    /// The whole environment of the child.
    pub(crate) environment: BTreeMap<String, OsString>,
    /// The one TCP port that it may connect to; any without it. Tests start servers and talk to
    /// them, so only git is held to the gateway here; the rest is held by the node.
    pub(crate) only_port: Option<u16>,
}

/// The command that starts `invocation` confined, in a process group of its own.
pub(crate) fn confined_command(
    own_binary: &Path,
    writable: &[PathBuf],
    invocation: &Invocation,
) -> Command {
    let walls = Walls { writable: writable.to_vec(), only_port: invocation.only_port };
    let mut command = Command::new(own_binary);
    command
        .arg(EXEC)
        .args(walls.arguments())
        .arg("--")
        .args(&invocation.command)
        .current_dir(&invocation.directory)
        .env_clear()
        .envs(&invocation.environment)
        .process_group(0);
    command
}

/// Becomes `command` behind `walls`; comes back with an exit code only when that fails.
pub(crate) fn become_program(walls: &Walls, command: &[OsString]) -> (i32, String) {
    let Some((program, arguments)) = command.split_first() else {
        return (EXIT_NOT_RUNNABLE, "no program given".to_owned());
    };
    // PID 1 takes its signals from a descriptor and so has them blocked; children must not.
    if let Err(error) = SigSet::empty().thread_set_mask() {
        return (EXIT_NOT_RUNNABLE, format!("cannot unblock signals: {error}"));
    }
    if let Err(error) = prctl::set_no_new_privs() {
        return (EXIT_NOT_RUNNABLE, format!("cannot give up privileges: {error}"));
    }
    if let Err(error) = walls.raise() {
        return (EXIT_NOT_RUNNABLE, error.to_string());
    }
    // The standard library's exec also gives SIGPIPE its default back.
    let error = Command::new(program).args(arguments).exec();
    let missing = error.kind() == std::io::ErrorKind::NotFound;
    let code = if missing { EXIT_NOT_FOUND } else { EXIT_NOT_RUNNABLE };
    (code, format!("cannot run {}: {error}", program.to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_gets_exactly_the_given_environment_and_walls() {
        let invocation = Invocation {
            command: vec!["git".into(), "--version".into()],
            directory: "/".into(),
            environment: BTreeMap::from([("A".to_owned(), OsString::from("b"))]),
            only_port: Some(8080),
        };
        let command = confined_command(Path::new("/runner"), &["/workspace".into()], &invocation);
        let environment: Vec<_> = command.get_envs().collect();
        assert_eq!(environment, [("A".as_ref(), Some("b".as_ref()))]);
        let arguments: Vec<_> = command.get_args().collect();
        let expected =
            ["exec", "--writable", "/workspace", "--only-port=8080", "--", "git", "--version"];
        assert_eq!(arguments, expected);
    }
}
