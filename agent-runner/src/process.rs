//! Children: started, watched, stopped, reaped; and nothing left over at the end.

use std::{
    collections::HashSet,
    fs,
    io::{self, Read, Write},
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::{Child, ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
    time::Duration,
};

use nix::{
    sys::{
        signal::{self, Signal},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::{Pid, getpid},
};

use crate::{
    clock,
    confine::{Invocation, confined_command},
    stop::{Stop, Stopping, Woken},
};

/// Longest wait for killed processes to be gone. SIGKILL takes milliseconds; what is still there
/// then is stuck in the kernel, and the node sees that.
const GONE_LIMIT: Duration = Duration::from_secs(2);
/// One read of a child's output: the size of a pipe.
const READ_BYTES: usize = 64 * 1024;

/// Why a child could not be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProcessError {
    /// The system refused a new process or pipe.
    #[error("cannot start {program}")]
    Start {
        /// What was to be started.
        program: String,
        /// The system's words.
        source: io::Error,
    },
    /// The child's exit status got lost.
    #[error("cannot wait for {program}")]
    Wait {
        /// What was waited for.
        program: String,
    },
}

/// Takes a child's output as it comes. Must never block for long, and never refuses more: a child
/// whose output is not drained dies or hangs.
pub(crate) trait Sink: Send {
    /// The next bytes.
    fn take(&mut self, bytes: &[u8]);
    /// There is no more.
    fn end(&mut self) {}
}

/// How a child's error output is handled.
pub(crate) enum Errors<'a> {
    /// Into the same pipe as its output, in the order written.
    Merged,
    /// On its own.
    Apart(&'a mut dyn Sink),
}

/// How a child ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    /// Exit code; 128 + n for a death by signal n.
    pub(crate) exit_code: i32,
    /// The stop order that ended it, if one came meanwhile.
    pub(crate) stopped: Option<Stopping>,
}

/// Which processes belong to the runner and go with the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ownership {
    /// PID 1: everything in the PID namespace.
    Namespace,
    /// A subreaper outside a container: all children, orphans included.
    Children,
    /// Only each child's process group; for tests that share a process.
    #[cfg(test)]
    Group,
}

impl Ownership {
    /// What this process is.
    pub(crate) fn detect() -> Self {
        if getpid().as_raw() == 1 { Self::Namespace } else { Self::Children }
    }
}

/// Starts children and knows which of them are alive.
pub(crate) struct Processes {
    own_binary: PathBuf,
    writable: Vec<PathBuf>,
    ownership: Ownership,
    stop: Arc<Stop>,
    tracked: Mutex<HashSet<i32>>,
}

impl Processes {
    /// `own_binary` is the path of agent-runner itself; children may write below `writable`.
    pub(crate) fn new(
        own_binary: PathBuf,
        writable: Vec<PathBuf>,
        ownership: Ownership,
        stop: Arc<Stop>,
    ) -> Self {
        Self { own_binary, writable, ownership, stop, tracked: Mutex::default() }
    }

    /// Runs `invocation` to its end, feeding it `input`. A stop order sends SIGTERM to its process
    /// group and SIGKILL at the order's end. What it leaves behind is killed before this returns.
    pub(crate) fn run(
        &self,
        invocation: &Invocation,
        input: &[u8],
        output: &mut dyn Sink,
        errors: Errors<'_>,
    ) -> Result<Ended, ProcessError> {
        self.run_unless(invocation, input, output, errors, &|| false)
    }

    /// As [`Processes::run`], and kills the child at once when `given_up` has become true. Whoever
    /// makes it true calls [`Stop::wake`].
    pub(crate) fn run_unless(
        &self,
        invocation: &Invocation,
        input: &[u8],
        output: &mut dyn Sink,
        errors: Errors<'_>,
        given_up: &dyn Fn() -> bool,
    ) -> Result<Ended, ProcessError> {
        let program = invocation.command.first().map_or("", String::as_str);
        let failed = |source| ProcessError::Start { program: program.to_owned(), source };
        let mut command = confined_command(&self.own_binary, &self.writable, invocation);
        command.stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() });
        let (output_pipe, writer) = io::pipe().map_err(failed)?;
        let error_pipe = match &errors {
            Errors::Merged => {
                command.stderr(writer.try_clone().map_err(failed)?);
                None
            }
            Errors::Apart(_) => {
                let (reader, writer) = io::pipe().map_err(failed)?;
                command.stderr(writer);
                Some(reader)
            }
        };
        command.stdout(writer);
        let mut child = self.spawn(&mut command).map_err(failed)?;
        // The command holds our copies of the write ends; readers would never see the end.
        drop(command);
        let exit = OnceLock::new();
        let pid = Pid::from_raw(child.id().cast_signed());
        let stopped = thread::scope(|scope| {
            if let Some(mut pipe) = child.stdin.take() {
                // A child that does not read its input is no error of ours.
                scope.spawn(move || drop(pipe.write_all(input)));
            }
            scope.spawn(|| drain(output_pipe, output));
            if let (Some(pipe), Errors::Apart(sink)) = (error_pipe, errors) {
                scope.spawn(|| drain(pipe, sink));
            }
            scope.spawn(|| self.reap_child(&mut child, pid, &exit));
            let stopped = self.await_exit(pid, || exit.get().is_some(), given_up);
            // Whatever still holds the pipes must go, or draining would not end.
            self.kill_rest(pid);
            stopped
        });
        let status = exit.into_inner().flatten();
        let status = status.ok_or_else(|| ProcessError::Wait { program: program.to_owned() })?;
        Ok(Ended { exit_code: exit_code(status), stopped })
    }

    /// Reaps orphans that were given to this process. Called at each SIGCHLD.
    pub(crate) fn reap_orphans(&self) {
        // Held while looking, so that a child that is just being started is not taken for an orphan.
        let tracked = self.lock();
        for process in children_of(getpid().as_raw()) {
            if process.zombie && !tracked.contains(&process.pid) {
                let _ = waitpid(Pid::from_raw(process.pid), Some(WaitPidFlag::WNOHANG));
            }
        }
    }

    /// Kills everything that is left, and waits until it is gone or [`GONE_LIMIT`] has passed.
    pub(crate) fn kill_everything(&self) {
        let until = clock::boot_now() + GONE_LIMIT;
        while clock::boot_now() < until {
            if self.ownership == Ownership::Namespace {
                let _ = signal::kill(Pid::from_raw(-1), Signal::SIGKILL);
            }
            let mut alive = false;
            for process in children_of(getpid().as_raw()) {
                alive |= !process.zombie;
                if self.ownership != Ownership::Namespace && !process.zombie {
                    let _ = signal::kill(Pid::from_raw(process.pid), Signal::SIGKILL);
                }
            }
            self.reap_orphans();
            if !alive {
                return;
            }
            // No event says 'all are gone'; a millisecond keeps the loop from spinning.
            let soon = clock::boot_now() + Duration::from_millis(1);
            let _ = clock::sleep_until(soon);
        }
    }

    fn spawn(&self, command: &mut std::process::Command) -> io::Result<Child> {
        let mut tracked = self.lock();
        let child = command.spawn()?;
        tracked.insert(child.id().cast_signed());
        Ok(child)
    }

    fn reap_child(&self, child: &mut Child, pid: Pid, exit: &OnceLock<Option<ExitStatus>>) {
        let status = child.wait().ok();
        self.lock().remove(&pid.as_raw());
        let _ = exit.set(status);
        self.stop.wake();
    }

    fn await_exit(
        &self,
        pid: Pid,
        exited: impl Fn() -> bool,
        given_up: &dyn Fn() -> bool,
    ) -> Option<Stopping> {
        let Woken::Stopping(stopping) = self.stop.wait(None, || exited() || given_up()) else {
            if !exited() {
                self.kill_child(pid, &exited);
            }
            return self.stop.order();
        };
        let _ = signal::killpg(pid, Signal::SIGTERM);
        if self.stop.wait_regardless(Some(stopping.kill_at), &exited) != Woken::Done {
            self.kill_child(pid, &exited);
        }
        Some(stopping)
    }

    fn kill_child(&self, pid: Pid, exited: impl Fn() -> bool) {
        let _ = signal::killpg(pid, Signal::SIGKILL);
        let _ = signal::kill(pid, Signal::SIGKILL);
        self.stop.wait_regardless(None, exited);
    }

    fn kill_rest(&self, #[cfg_attr(not(test), expect(unused_variables))] group: Pid) {
        match self.ownership {
            Ownership::Namespace | Ownership::Children => self.kill_everything(),
            #[cfg(test)]
            Ownership::Group => {
                let _ = signal::killpg(group, Signal::SIGKILL);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<i32>> {
        // Inserting and removing an integer cannot be interrupted half-way by a panic.
        self.tracked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The exit code as shells have it.
fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

fn drain(mut pipe: impl Read, sink: &mut dyn Sink) {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match pipe.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => sink.take(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    sink.end();
}

struct Process {
    pid: i32,
    zombie: bool,
}

/// Direct children of `parent`, from `/proc`.
fn children_of(parent: i32) -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let (state, its_parent) = parse_stat(&stat)?;
            (its_parent == parent).then_some(Process { pid, zombie: matches!(state, 'Z' | 'X') })
        })
        .collect()
}

/// State and parent from a line of `/proc/PID/stat`. The name in brackets may hold anything.
fn parse_stat(stat: &str) -> Option<(char, i32)> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.next()?.parse().ok()?))
}

#[cfg(test)]
pub(crate) mod tests;
