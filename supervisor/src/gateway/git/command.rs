//! Runs the `git` program: no configuration but ours, no hooks, no prompt, an empty environment,
//! time and output limits, and a credential that the child can read once from a pipe and that
//! stands in no argument, environment variable or file.

use std::{
    ffi::{OsStr, OsString},
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use super::{
    error::GitError,
    finished::Finished,
    heaps::{self, HEAP_KIB_MAX, HeapPermit, Heaps},
    login::Login,
    process::{ProcessGroup, read_capped},
};
use crate::gateway::proxy::ProxyRules;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
};

/// How much of a child's error output is kept; git's own messages are a few lines.
const STDERR_BYTES_MAX: usize = 16 * 1024;
/// Pieces of a streamed output.
const PIECE_BYTES: usize = 64 * 1024;

/// Configuration of every git run, before the operation's own.
const BASE_CONFIG: &[&str] = &[
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.attributesFile=/dev/null",
    // Larger files are streamed and no delta is looked for. In mirrors too: they fetch what was published.
    "core.bigFileThreshold=8m",
    // Names no branch of the mirror to whoever pushes. An empty command would be run, and fail loudly.
    "core.alternateRefsCommand=true",
    "protocol.allow=never",
    "protocol.http.allow=always",
    "protocol.https.allow=always",
    "protocol.file.allow=never",
    "protocol.ext.allow=never",
    "transfer.fsckObjects=true",
    "receive.fsckObjects=true",
    "fetch.fsckObjects=true",
    // Old tools wrote these into many public histories; they are ugly, not dangerous.
    "fetch.fsck.zeroPaddedFilemode=ignore",
    "fetch.fsck.missingSpaceBeforeDate=ignore",
    "fetch.fsck.badTimezone=ignore",
    "fetch.fsck.missingSpaceBeforeEmail=ignore",
    "fetch.fsck.missingNameBeforeEmail=ignore",
    "submodule.recurse=false",
    "fetch.recurseSubmodules=false",
    "push.recurseSubmodules=no",
    // A quarantine borrows objects of its mirror, so nothing may be collected there.
    "gc.auto=0",
    "maintenance.auto=false",
    "receive.autogc=false",
    // The credential goes to the host that was checked and to no other.
    "http.followRedirects=false",
    "http.lowSpeedLimit=1",
    "http.lowSpeedTime=60",
    // The container's user need not own the volume's root.
    "safe.directory=*",
    "credential.helper=",
];

/// Limits the heap of git and of what it starts; the first argument is the limit in KiB.
const BOUND: &str = r#"ulimit -d "$1" || exit 1; shift; "#;
/// Gives the child its standard input as descriptor 3 and nothing as standard input, so that git
/// keeps the pipe open for its credential helper alone.
const HAND_OVER: &str = "exec 3<&0 </dev/null; ";
/// Becomes git.
const EXEC: &str = r#"exec git "$@""#;
/// Answers the first question with what the pipe holds, later ones with nothing.
const CREDENTIAL_HELPER: &str = "credential.helper=!f() { cat <&3; }; f";

/// A repository to look into.
#[derive(Clone, Copy, Debug)]
pub(super) enum At<'a> {
    /// Of the upstream's own objects.
    Mirror(&'a Path),
    /// With objects that a sandbox made.
    Quarantine(&'a Path),
}

/// One git run.
pub(super) struct Run<'a> {
    /// The repository; none for operations on URLs alone.
    pub(super) git_dir: Option<&'a Path>,
    /// Additional `key=value` configuration.
    pub(super) config: Vec<String>,
    /// Subcommand and arguments.
    pub(super) args: Vec<String>,
    /// URL of the upstream that it talks to; none for local operations.
    pub(super) remote: Option<&'a str>,
    /// What the credential helper answers.
    pub(super) login: Option<&'a Login>,
    /// Time limit.
    pub(super) timeout: Duration,
    /// Limit of standard output.
    pub(super) output_bytes_max: usize,
    /// How many heaps it takes, which bound its memory, since it reads objects that a sandbox made; none:
    /// it reads the upstream's alone, and is not bounded.
    pub(super) heaps: u32,
}

impl<'a> Run<'a> {
    /// A local operation: seconds at most, small output.
    pub(super) fn local(git_dir: &'a Path, args: &[&str]) -> Self {
        Self {
            git_dir: Some(git_dir),
            config: Vec::new(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            remote: None,
            login: None,
            timeout: Duration::from_mins(1),
            output_bytes_max: 1024 * 1024,
            heaps: 0,
        }
    }

    /// A local operation on objects that a sandbox made: its memory is bounded.
    pub(super) fn hostile(git_dir: &'a Path, args: &[&str]) -> Self {
        Self { heaps: 1, ..Self::local(git_dir, args) }
    }

    /// A local operation on whatever is there.
    pub(super) fn at(at: At<'a>, args: &[&str]) -> Self {
        match at {
            At::Mirror(path) => Self::local(path, args),
            At::Quarantine(path) => Self::hostile(path, args),
        }
    }

    /// The same on the upstream at `url`, with a credential and another time limit.
    pub(super) fn upstream(
        mut self,
        url: &'a str,
        login: Option<&'a Login>,
        timeout: Duration,
    ) -> Self {
        self.remote = Some(url);
        self.login = login;
        self.timeout = timeout;
        self
    }

    fn operation(&self) -> String {
        self.args.first().cloned().unwrap_or_default()
    }

    /// Does `work` within the run's time, or says that it took too long.
    pub(super) async fn in_time<T>(
        &self,
        work: impl Future<Output = Result<T, GitError>>,
    ) -> Result<T, GitError> {
        let late =
            |_| GitError::AwaitGit { operation: self.operation(), seconds: self.timeout.as_secs() };
        tokio::time::timeout(self.timeout, work).await.map_err(late)?
    }
}

/// Whoever takes git's output has seen enough.
struct BrokenOff;

/// Starts git processes.
#[derive(Debug)]
pub(super) struct Git {
    path: OsString,
    home: PathBuf,
    ca_file: Option<PathBuf>,
    proxies: Arc<ProxyRules>,
    heap_kib_max: u32,
    heaps: Heaps,
}

impl Git {
    /// `home` is an empty directory; `ca_file` holds all certificate authorities, if not the
    /// system's own.
    pub(super) fn new(home: PathBuf, ca_file: Option<PathBuf>, proxies: Arc<ProxyRules>) -> Self {
        let path =
            std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        let heaps = Heaps::default();
        Self { path, home, ca_file, proxies, heap_kib_max: HEAP_KIB_MAX, heaps }
    }

    /// The same with another heap for what reads a sandbox's objects.
    pub(super) fn with_heap(self, heap_kib_max: u32) -> Self {
        Self { heap_kib_max, ..self }
    }

    /// The heaps of all gits that read what sandboxes made.
    pub(super) fn heaps(&self) -> &Heaps {
        &self.heaps
    }

    /// The command line of `run`. A credential reaches its standard input, and no argument.
    fn command(&self, run: &Run<'_>) -> Command {
        let mut command = self.program(run);
        for config in BASE_CONFIG {
            command.args(["-c", config]);
        }
        if run.login.is_some() {
            command.args(["-c", CREDENTIAL_HELPER]);
        }
        if let Some(ca_file) = &self.ca_file {
            let mut config = OsString::from("http.sslCAInfo=");
            config.push(ca_file);
            command.args([OsStr::new("-c"), &config]);
        }
        if run.heaps > 0 {
            command.args(heaps::CONFIG.iter().flat_map(|config| ["-c", config]));
        }
        for config in &run.config {
            command.args(["-c", config]);
        }
        if let Some(git_dir) = run.git_dir {
            let mut argument = OsString::from("--git-dir=");
            argument.push(git_dir);
            command.arg(argument);
        }
        command.args(&run.args);
        self.harden(&mut command);
        self.set_proxy(&mut command, run.remote);
        command
    }

    /// `git`, by way of a shell where something has to be set up before it.
    fn program(&self, run: &Run<'_>) -> Command {
        let hand_over = if run.login.is_some() { HAND_OVER } else { "" };
        let bound = if run.heaps > 0 { BOUND } else { "" };
        if hand_over.is_empty() && bound.is_empty() {
            return Command::new("git");
        }
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &format!("{bound}{hand_over}{EXEC}"), "git"]);
        if run.heaps > 0 {
            command.arg((self.heap_kib_max * run.heaps).to_string());
        }
        command
    }

    /// Names the proxy, if the upstream is behind one. By environment, for its address may hold a
    /// password: unlike a command line, that is open to no other user.
    fn set_proxy(&self, command: &mut Command, remote: Option<&str>) {
        let uri = remote.and_then(|url| url.parse().ok());
        let Some(proxy) = uri.and_then(|uri| self.proxies.for_uri(&uri)) else { return };
        command
            .env("GIT_CONFIG_COUNT", "2")
            .env("GIT_CONFIG_KEY_0", "http.proxy")
            .env("GIT_CONFIG_VALUE_0", proxy.secret_url().as_str())
            // At once, instead of after a refusal of each connection.
            .env("GIT_CONFIG_KEY_1", "http.proxyAuthMethod")
            .env("GIT_CONFIG_VALUE_1", "basic");
    }

    fn harden(&self, command: &mut Command) {
        command
            .env_clear()
            .env("PATH", &self.path)
            .env("HOME", &self.home)
            .env("LC_ALL", "C")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_NO_REPLACE_OBJECTS", "1")
            .current_dir(&self.home)
            .process_group(0)
            .kill_on_drop(true);
    }

    /// Waits for the heaps that `run` takes, as long as it may last.
    pub(super) async fn room(&self, run: &Run<'_>) -> Result<HeapPermit, GitError> {
        run.in_time(async { Ok(self.heaps.take(run.heaps).await) }).await
    }

    /// Runs git to its end.
    pub(super) async fn run(&self, run: Run<'_>) -> Result<Finished, GitError> {
        run.in_time(async {
            let _room = self.heaps.take(run.heaps).await;
            self.run_unlimited(&run).await
        })
        .await
    }

    /// Runs git to its end in the `room` that it has waited for.
    pub(super) async fn run_in(
        &self,
        room: HeapPermit,
        run: Run<'_>,
    ) -> Result<Finished, GitError> {
        let finished = run.in_time(self.run_unlimited(&run)).await;
        drop(room);
        finished
    }

    async fn run_unlimited(&self, run: &Run<'_>) -> Result<Finished, GitError> {
        let operation = run.operation();
        let mut command = self.command(run);
        let stdin = if run.login.is_some() { Stdio::piped() } else { Stdio::null() };
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut group = ProcessGroup::spawn(&mut command)?;
        if let (Some(login), Some(mut pipe)) = (run.login, group.child.stdin.take()) {
            // Fits into the pipe's buffer. A child that is gone already says so by its exit.
            let _ = pipe.write_all(login.helper_answer().as_bytes()).await;
        }
        let stdout = group.child.stdout.take();
        let stderr = group.child.stderr.take();
        let (stdout, stderr) = tokio::join!(
            read_capped(stdout, run.output_bytes_max, false),
            read_capped(stderr, STDERR_BYTES_MAX, true)
        );
        let Some(stdout) = stdout else {
            return Err(GitError::BoundOutput { operation, limit: run.output_bytes_max });
        };
        let status = group
            .child
            .wait()
            .await
            .map_err(|source| GitError::UseDisk { operation: "wait for git", source })?;
        let finished = Finished::new(operation, status, stdout, stderr);
        if run.heaps > 0 { finished.within_memory() } else { Ok(finished) }
    }

    /// Gives `input` to git and its output, whose limit is the caller's, piece by piece to `take`,
    /// which may end it early. Fails when git does.
    pub(super) async fn pass_through(
        &self,
        run: Run<'_>,
        input: Vec<u8>,
        take: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<(), GitError> {
        run.in_time(async {
            let _room = self.heaps.take(run.heaps).await;
            self.pass_through_unlimited(&run, input, take).await
        })
        .await
    }

    async fn pass_through_unlimited(
        &self,
        run: &Run<'_>,
        input: Vec<u8>,
        mut take: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<(), GitError> {
        let mut command = self.command(run);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut group = ProcessGroup::spawn(&mut command)?;
        let (stdin, stdout) = (group.child.stdin.take(), group.child.stdout.take());
        let stderr = group.child.stderr.take();
        let write = async {
            if let Some(mut stdin) = stdin {
                // A child that is gone already says so by its exit.
                let _ = stdin.write_all(&input).await;
            }
            Ok::<_, BrokenOff>(())
        };
        let read = async {
            let Some(mut stdout) = stdout else { return Ok(()) };
            let mut piece = Vec::with_capacity(PIECE_BYTES);
            while stdout.read_buf(&mut piece).await.is_ok_and(|count| count > 0) {
                if take(&piece).is_break() {
                    return Err(BrokenOff);
                }
                piece.clear();
            }
            Ok(())
        };
        let words = async { Ok(read_capped(stderr, STDERR_BYTES_MAX, true).await) };
        let Ok(((), (), words)) = tokio::try_join!(write, read, words) else {
            // Git may still have more to say: it is killed with its group.
            return Ok(());
        };
        let status = group
            .child
            .wait()
            .await
            .map_err(|source| GitError::UseDisk { operation: "wait for git", source })?;
        let finished = Finished::new(run.operation(), status, Vec::new(), words);
        let finished = if run.heaps > 0 { finished.within_memory()? } else { finished };
        finished.whole().map(drop)
    }

    /// Starts git with pipes for a streamed exchange, whose heaps the caller has; standard error is
    /// discarded, for what matters to the client travels in the protocol.
    pub(super) fn start(
        &self,
        run: &Run<'_>,
        git_protocol: Option<&str>,
    ) -> Result<ProcessGroup, GitError> {
        let mut command = self.command(run);
        if let Some(version) = git_protocol {
            command.env("GIT_PROTOCOL", version);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        ProcessGroup::spawn(&mut command)
    }
}
