//! `log-throughput`: how fast a supervisor takes one container's log from the runtime's files into its own stream, on
//! one core; and whether anything is lost while the files are rotated under it.

use std::{
    fs::{self, File},
    io::{BufWriter, Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use agent_operator::domain::{Attempt, RunRef, RunUid, ids::PodUid};
use agent_operator_supervisor::{
    pod::logs::{Folder, Waker, tail},
    streams::{AttemptStreams, LogEnd, Retention, Streams, spool::Piece},
};
use anyhow::Context as _;
use nix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{
    measure::{ROUNDS, Samples, Scale},
    processes::{PROCESS, block_on, core_seconds, field},
    table::Row,
};

/// Bytes of text in a line of an agent's output.
const LINE_BYTES: usize = 100;
/// Rotations of the second part.
const ROTATIONS: u32 = 100;
/// A bench that hangs is broken.
const LIMIT: Duration = Duration::from_mins(5);
/// All is written that will be.
const ENDED: LogEnd = LogEnd { printed: None, recorded: true };
const MIB: f64 = (1 << 20) as f64;

fn pods(dir: &Path) -> PathBuf {
    dir.join("pods")
}

/// The folder of the container's log, as the kubelet names it.
fn folder(dir: &Path) -> PathBuf {
    pods(dir).join("n_pod_pod-uid").join("agent")
}

fn streams(dir: &Path) -> Arc<AttemptStreams> {
    // One stream may have a quarter of all, and all of it is looked at afterwards.
    let retention = Retention { bytes: 8 << 30, ..Retention::default() };
    let run = RunRef { namespace: "n".into(), name: "r".into(), uid: RunUid::from("uid") };
    let all = Streams::open(&dir.join("streams"), retention).unwrap();
    all.attempt(&run, Attempt(1)).unwrap()
}

fn source(dir: &Path) -> Folder {
    Folder::new(&pods(dir), "n", "pod", &PodUid::from("pod-uid"))
}

/// Writes whole records until the file has `bytes`; lines and bytes of text.
fn fill(path: &Path, first: u64, bytes: u64) -> (u64, u64) {
    let file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    let mut file = BufWriter::with_capacity(1 << 20, file);
    let rest = "x".repeat(LINE_BYTES - 13);
    let (mut size, mut text, mut line) = (0, 0, first);
    while size < bytes {
        let record =
            format!("2027-01-15T10:00:00.{:09}Z stdout F {line:012}{rest}\n", line % 1_000_000_000);
        file.write_all(record.as_bytes()).unwrap();
        size += record.len() as u64;
        text += LINE_BYTES as u64;
        line += 1;
    }
    file.flush().unwrap();
    (line - first, text)
}

/// Time of a core that a process or a thread has used. A machine that does something else as well leaves it alone.
fn cpu_seconds(of: ClockId) -> f64 {
    Duration::from(clock_gettime(of).unwrap()).as_secs_f64()
}

/// Reads all of a log and says what it took. A process of its own, for its memory.
pub fn tail_process(arguments: &[String]) -> anyhow::Result<()> {
    let dir = PathBuf::from(arguments.first().context("the folder is missing")?);
    let (kept, source) = (streams(&dir), source(&dir));
    let (_told, end) = watch::channel(Some(ENDED));
    let began = cpu_seconds(ClockId::CLOCK_PROCESS_CPUTIME_ID);
    block_on(tail(source, Arc::clone(&kept), Arc::new(Waker::new()), end))?;
    let seconds = cpu_seconds(ClockId::CLOCK_PROCESS_CPUTIME_ID) - began;
    let end = kept.log.extent();
    let peak = field("/proc/self/status", "VmHWM:");
    println!(
        "{}",
        json!({"seconds": seconds, "bytes": end.end, "gaps": end.gaps, "peakKiB": peak})
    );
    Ok(())
}

fn tailed(dir: &Path) -> Value {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([PROCESS, "tail"])
        .arg(dir)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A copy through memory, from page cache to page cache.
fn copy(from: &Path, to: &Path) -> f64 {
    let (mut from, mut to) = (File::open(from).unwrap(), File::create(to).unwrap());
    let mut buffer = vec![0; 1 << 20];
    let began = cpu_seconds(ClockId::CLOCK_THREAD_CPUTIME_ID);
    loop {
        let count = from.read(&mut buffer).unwrap();
        if count == 0 {
            return cpu_seconds(ClockId::CLOCK_THREAD_CPUTIME_ID) - began;
        }
        to.write_all(&buffer[..count]).unwrap();
    }
}

/// rsyslog reading the same file into another; seconds of a core, and none where the machine has no rsyslog.
fn rsyslog(dir: &Path, log: &Path) -> Option<f64> {
    let folder = dir.join("rsyslog");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    let (taken, file) = (folder.join("taken"), folder.join("rsyslog.conf"));
    let text = format!(
        "global(workDirectory=\"{}\" maxMessageSize=\"64k\")\nmodule(load=\"imfile\")\n\
         template(name=\"line\" type=\"string\" string=\"%msg%\\n\")\n\
         input(type=\"imfile\" file=\"{}\" tag=\"x\" ruleset=\"take\")\n\
         ruleset(name=\"take\") {{ action(type=\"omfile\" file=\"{}\" template=\"line\" ioBufferSize=\"256k\" \
         asyncWriting=\"off\" flushOnTXEnd=\"off\") }}\n",
        folder.display(),
        log.display(),
        taken.display(),
    );
    fs::write(&file, text).unwrap();
    let mut child = Command::new("rsyslogd")
        .args(["-n", "-i"])
        .arg(folder.join("pid"))
        .arg("-f")
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    // What it holds back in its buffer is not waited for: less than one part in a thousand.
    let nearly = fs::metadata(log).unwrap().len() - (512 << 10);
    let wait = async {
        while fs::metadata(&taken).map_or(0, |meta| meta.len()) < nearly {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let done = block_on(async { tokio::time::timeout(LIMIT, wait).await });
    let took = core_seconds(child.id());
    let _ = child.kill();
    let _ = child.wait();
    done.ok()?;
    took
}

/// Rotates beside the reader, as a kubelet does; bytes lost or doubled, and gaps.
async fn rotated(file_bytes: u64) -> (u64, u64) {
    let dir = tempfile::tempdir().unwrap();
    let log = folder(dir.path());
    fs::create_dir_all(&log).unwrap();
    let live = log.join("0.log");
    File::create(&live).unwrap();
    let (kept, (told, end)) = (streams(dir.path()), watch::channel(None));
    let reading =
        tokio::spawn(tail(source(dir.path()), Arc::clone(&kept), Arc::new(Waker::new()), end));
    let (mut next, mut written, mut names) = (0, 0, Vec::new());
    for number in 0..ROTATIONS {
        let (path, first) = (live.clone(), next);
        let (lines, bytes) =
            tokio::task::spawn_blocking(move || fill(&path, first, file_bytes)).await.unwrap();
        next += lines;
        written += bytes;
        let name = log.join(format!("0.log.20270115-{number:06}"));
        fs::rename(&live, &name).unwrap();
        File::create(&live).unwrap();
        names.push(name);
        // A kubelet keeps five files; its pause of seconds is replaced by the reader's own pace.
        if names.len() > 4 {
            fs::remove_file(names.remove(0)).unwrap();
        }
        let near = async {
            while written - kept.log.extent().end > 2 * file_bytes {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(LIMIT, near).await.expect("the reader keeps up");
    }
    told.send_replace(Some(ENDED));
    reading.await.unwrap().unwrap();
    let (bytes, breaks) = looked_at(&kept);
    (written.abs_diff(bytes), breaks + kept.log.extent().gaps as u64)
}

/// Bytes of the stream, and lines that do not follow the one before.
fn looked_at(kept: &AttemptStreams) -> (u64, u64) {
    let (mut offset, mut bytes, mut next, mut breaks) = (0, 0, 0_u64, 0);
    let mut rest = Vec::new();
    loop {
        match kept.log.read(offset, 1 << 20).unwrap() {
            Piece::Data(data) => {
                offset += data.len() as u64;
                bytes += data.len() as u64;
                rest.extend_from_slice(&data);
                let whole = rest.len() / LINE_BYTES * LINE_BYTES;
                for line in rest[..whole].chunks(LINE_BYTES) {
                    let number =
                        std::str::from_utf8(&line[..12]).ok().and_then(|text| text.parse().ok());
                    breaks += u64::from(number != Some(next));
                    next += 1;
                }
                rest.drain(..whole);
            }
            Piece::Gap { to, .. } => offset = to,
            Piece::Pending | Piece::End => return (bytes, breaks),
        }
    }
}

pub fn run(scale: Scale) -> Vec<Row> {
    let size: u64 = scale.pick(512 << 20, 16 << 20);
    let dir = tempfile::tempdir().unwrap();
    let log = folder(dir.path());
    fs::create_dir_all(&log).unwrap();
    let live = log.join("0.log");
    let (lines, text) = fill(&live, 0, size);
    let file_bytes = fs::metadata(&live).unwrap().len() as f64;
    let (mut ours, mut floor, mut rate, mut peak) = Default::default();
    let (mut peer, mut rate_of_peer) = (Samples::default(), Samples::default());
    let mut lost = 0;
    for _ in 0..scale.pick(ROUNDS, 2) {
        let _ = fs::remove_dir_all(dir.path().join("streams"));
        let read = tailed(dir.path());
        let seconds = read["seconds"].as_f64().unwrap();
        Samples::add(&mut ours, file_bytes / MIB / seconds);
        Samples::add(&mut rate, lines as f64 / seconds);
        Samples::add(&mut peak, read["peakKiB"].as_f64().unwrap() / 1024.0);
        lost += text.abs_diff(read["bytes"].as_u64().unwrap()) + read["gaps"].as_u64().unwrap();
        let copied = copy(&live, &dir.path().join("copy"));
        Samples::add(&mut floor, file_bytes / MIB / copied);
        if scale == Scale::Full
            && let Some(seconds) = rsyslog(dir.path(), &live)
        {
            peer.add(file_bytes / MIB / seconds);
            rate_of_peer.add(lines as f64 / seconds);
        }
    }
    let (of_rotations, breaks) = block_on(rotated(scale.pick(4 << 20, 256 << 10)));
    lost += of_rotations + breaks;
    vec![
        Row::new("log-throughput bytes", "MiB/s a core", ours.median())
            .floor(floor.median())
            .peer(peer.median())
            .at_least(150.0),
        Row::new("log-throughput lines", "lines/s a core", rate.median())
            .peer(rate_of_peer.median())
            .at_least(1_500_000.0),
        Row::new("log-throughput memory", "MiB, peak of the process", peak.median()).at_most(64.0),
        Row::new("log-throughput lost", "bytes lost, doubled or in gaps", Some(lost as f64))
            .at_most(0.0)
            .counted(0.0),
    ]
}
