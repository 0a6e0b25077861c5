//! A process of ours under a test, which can be left without a free file descriptor or without memory,
//! and a connection to its HTTP port that is there before.

use std::{
    ffi::OsStr,
    fmt,
    fs::{self, OpenOptions},
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::json;

/// Longest wait for an answer: far above what it takes.
const ANSWER_LIMIT: Duration = Duration::from_mins(1);
/// Longest head of an answer.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// The first number that no standard stream has: below it every number is taken, so nothing more can be
/// opened. What is open stays so.
pub const NO_MORE: u32 = 3;
/// What the kernel says to a process that opens something all the same.
pub const NO_DESCRIPTORS: &str = "Too many open files";
/// Less than any process has already.
const NO_MEMORY_BYTES: u32 = 1;
/// As many as a process needs in any test.
const ENOUGH: u32 = 512;

/// The process; killed when it is dropped.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `program`; what it says is added to `log`.
    pub fn start(
        program: &str,
        arguments: &[String],
        environment: &[(&str, &OsStr)],
        log: PathBuf,
    ) -> io::Result<Self> {
        let said = OpenOptions::new().create(true).append(true).open(&log)?;
        let child = Command::new(program)
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(said.try_clone()?)
            .stderr(said)
            .spawn()?;
        Ok(Self { child, log })
    }

    /// Whether it has not ended.
    pub fn is_alive(&mut self) -> io::Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// What it has said so far.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// From here on it cannot open anything.
    pub fn take_descriptors(&self) -> io::Result<()> {
        self.limit("nofile", NO_MORE)
    }

    /// From here on it can again.
    pub fn give_descriptors(&self) -> io::Result<()> {
        self.limit("nofile", ENOUGH)
    }

    /// From here on the kernel gives it no more memory.
    pub fn take_memory(&self) -> io::Result<()> {
        self.limit("data", NO_MEMORY_BYTES)
    }

    /// Whether the kernel makes no core of it, neither a file nor one for a program of the node: the
    /// limit is 1 byte, and cannot be raised again.
    pub fn leaves_no_core(&self) -> io::Result<bool> {
        let row = limits_of(self.child.id(), "Max core file size")?;
        Ok(row.split_whitespace().eq(["1", "1", "bytes"]))
    }

    /// Sets a soft limit alone, which may be raised again.
    fn limit(&self, resource: &str, value: u32) -> io::Result<()> {
        let pid = self.child.id().to_string();
        let limit = format!("--{resource}={value}:");
        let status = Command::new("prlimit").args(["--pid", &pid, &limit]).status()?;
        let failed = || io::Error::other(format!("prlimit {limit}: {status}"));
        if status.success() { Ok(()) } else { Err(failed()) }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Soft limit, hard limit and unit of one of a process' limits, as `/proc/PID/limits` has them.
pub fn limits_of(pid: impl fmt::Display, name: &str) -> io::Result<String> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let row = limits.lines().find_map(|line| line.strip_prefix(name));
    let row = row.ok_or_else(|| io::Error::other(format!("no {name:?} in {limits}")))?;
    Ok(row.trim().to_owned())
}

/// Writes a kubeconfig whose API server is away, as during an outage.
pub fn kubeconfig_of_an_outage(path: &Path) -> io::Result<()> {
    let nowhere = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "none",
        "contexts": [{"name": "none", "context": {"cluster": "none", "user": "none"}}],
        "clusters": [{"name": "none", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "none", "user": {}}],
    });
    fs::write(path, nowhere.to_string())
}

/// A port of this machine that nobody has right now.
pub fn free_port() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

/// A connection that stays open from one request to the next.
pub struct Connection(TcpStream);

impl Connection {
    /// Connects. The kernel accepts, also for a process that cannot.
    pub fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        Ok(Self(stream))
    }

    /// Asks for a path.
    pub fn ask(&mut self, path: &str) -> io::Result<()> {
        self.0.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes())
    }

    /// Posts JSON with a token, and gives the status code of the answer.
    pub fn post(&mut self, path: &str, token: &str, body: &str) -> io::Result<u16> {
        let length = body.len();
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        self.0.write_all(request.as_bytes())?;
        self.answer()
    }

    /// The status code of the answer.
    pub fn answer(&mut self) -> io::Result<u16> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && head.len() < HEAD_BYTES_MAX {
            self.0.read_exact(&mut byte)?;
            head.extend_from_slice(&byte);
        }
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        let length = length.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        io::copy(&mut (&mut self.0).take(length), &mut io::sink())?;
        let code = head.split_whitespace().nth(1).and_then(|code| code.parse().ok());
        code.ok_or_else(|| io::Error::other(format!("no status in {head:?}")))
    }

    /// Asks, and gives the status code of the answer.
    pub fn get(&mut self, path: &str) -> io::Result<u16> {
        self.ask(path)?;
        self.answer()
    }
}
