//! The one way in which a child is started: every agent, test command and git call of the step.
//!
//! A child is this binary again (`agent-runner exec -- PROGRAM ...`), which closes the doors behind
//! itself and then becomes the program. So no code runs between fork and exec in PID 1, and what
//! the sandbox adds later has one place.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use nix::sys::{prctl, signal::SigSet};

/// Hidden subcommand under which the binary starts a child.
pub(crate) const EXEC: &str = "exec";
/// Exit code when the program does not exist, as shells have it.
pub(crate) const EXIT_NOT_FOUND: i32 = 127;
/// Exit code when the program cannot be run, as shells have it.
const EXIT_NOT_RUNNABLE: i32 = 126;

/// What to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Invocation {
    /// Program (looked up in the child's `PATH`) and arguments; never empty.
    pub(crate) command: Vec<String>,
    /// Working directory.
    pub(crate) directory: PathBuf,
    /// The whole environment of the child.
    pub(crate) environment: BTreeMap<String, OsString>,
}

/// The command that starts `invocation` confined, in a process group of its own.
pub(crate) fn confined_command(own_binary: &Path, invocation: &Invocation) -> Command {
    let mut command = Command::new(own_binary);
    command
        .arg(EXEC)
        .arg("--")
        .args(&invocation.command)
        .current_dir(&invocation.directory)
        .env_clear()
        .envs(&invocation.environment)
        .process_group(0);
    command
}

/// Becomes `command`; comes back with an exit code only when that fails.
pub(crate) fn become_program(command: &[OsString]) -> (i32, String) {
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
    fn a_child_gets_exactly_the_given_environment() {
        let invocation = Invocation {
            command: vec!["git".into(), "--version".into()],
            directory: "/".into(),
            environment: BTreeMap::from([("A".to_owned(), OsString::from("b"))]),
        };
        let command = confined_command(Path::new("/runner"), &invocation);
        let environment: Vec<_> = command.get_envs().collect();
        assert_eq!(environment, [("A".as_ref(), Some("b".as_ref()))]);
        let arguments: Vec<_> = command.get_args().collect();
        assert_eq!(arguments, ["exec", "--", "git", "--version"]);
    }
}
