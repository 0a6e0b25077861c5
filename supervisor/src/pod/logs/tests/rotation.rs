//! A rotator of ours does what kubelet and containerd do: rename, a new file, the older ones packed,
//! the oldest removed.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio_util::sync::CancellationToken;

use super::*;

/// Rotated files that are kept; a kubelet's `containerLogMaxFiles` of 5 counts the live one.
const KEPT: usize = 4;

/// Records of one container with a serial number each, through `rotations` files of `file_bytes`.
struct Writer {
    folder: PathBuf,
    file_bytes: u64,
    line: u64,
    written: u64,
    rotated: Vec<String>,
    serial: u32,
}

impl Writer {
    fn new(folder: PathBuf, file_bytes: u64) -> Self {
        Self { folder, file_bytes, line: 0, written: 0, rotated: Vec::new(), serial: 0 }
    }

    /// Fills the live file.
    fn fill(&mut self) {
        let file = OpenOptions::new().create(true).append(true).open(self.folder.join("0.log"));
        let mut file = std::io::BufWriter::with_capacity(32 * 1024, file.unwrap());
        let mut size = 0;
        while size < self.file_bytes {
            let text = format!(
                "{:012} {}",
                self.line,
                "x".repeat(usize::try_from(self.line % 200).unwrap())
            );
            let record = format!("{TIME}.{:09}Z stdout F {text}\n", self.line);
            file.write_all(record.as_bytes()).unwrap();
            size += record.len() as u64;
            self.written += text.len() as u64 + 1;
            self.line += 1;
        }
        file.flush().unwrap();
    }

    /// One rotation, in the kubelet's order.
    fn rotate(&mut self) {
        while self.rotated.len() > KEPT - 1 {
            let oldest = self.rotated.remove(0);
            fs::remove_file(self.folder.join(format!("{oldest}.gz"))).unwrap();
        }
        if let Some(newest) = self.rotated.last() {
            compress(&self.folder, newest);
        }
        self.serial += 1;
        let name = format!("0.log.20270115-{:06}", self.serial);
        fs::rename(self.folder.join("0.log"), self.folder.join(&name)).unwrap();
        self.rotated.push(name);
        File::create(self.folder.join("0.log")).unwrap();
    }
}

/// What the spool has: lines in order, gaps, bytes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Checked {
    bytes: u64,
    lines: u64,
    gaps: u64,
    /// Places where the next number is not the one that follows, and no gap stands there.
    breaks: u64,
}

fn check(rig: &Rig) -> Checked {
    let mut checked = Checked::default();
    let (mut offset, mut next, mut rest, mut after_gap) = (0, 0_u64, Vec::new(), false);
    loop {
        match rig.streams.log.read(offset, 1 << 20).unwrap() {
            Piece::Data(bytes) => {
                offset += bytes.len() as u64;
                checked.bytes += bytes.len() as u64;
                rest.extend_from_slice(&bytes);
                let whole = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
                for line in rest[..whole].split(|byte| *byte == b'\n').filter(|l| !l.is_empty()) {
                    let number = std::str::from_utf8(&line[..12]).unwrap().parse::<u64>().unwrap();
                    let fits = number == next || (after_gap && number > next);
                    checked.breaks += u64::from(!fits);
                    checked.lines += 1;
                    next = number + 1;
                    after_gap = false;
                }
                rest.drain(..whole);
            }
            Piece::Gap { to, .. } => {
                checked.gaps += 1;
                (offset, after_gap) = (to, true);
            }
            Piece::Pending | Piece::End => return checked,
        }
    }
}

/// The reader is killed and started anew every so often, and is never more than two files behind: the
/// kubelet's pause of three seconds between rotations gives it more than that.
async fn soak(rotations: u32, file_bytes: u64) -> (u64, Checked) {
    let mut rig = Rig::new();
    // One stream may have a quarter, and all of it is looked at afterwards.
    let bytes = (8 * u64::from(rotations) * file_bytes).max(Retention::default().bytes);
    rig.streams = Rig::streams(rig.dir.path(), Retention { bytes, ..Retention::default() });
    let written = Arc::new(AtomicU64::new(0));
    let start = || {
        let (folder, streams) = (rig.folder(), Arc::clone(&rig.streams));
        let killed = CancellationToken::new();
        let until = killed.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let mut reader = Reader::resume(folder, streams).unwrap();
            while !until.is_cancelled() {
                if reader.burst(clock::instant()).unwrap() == Burst::Idle {
                    std::thread::yield_now();
                }
            }
        });
        (killed, reading)
    };
    let mut reader = start();
    let mut writer = Writer::new(rig.path(), file_bytes);
    for rotation in 0..rotations {
        let total = Arc::clone(&written);
        writer = tokio::task::spawn_blocking(move || {
            writer.fill();
            total.store(writer.written, Ordering::Relaxed);
            writer.rotate();
            writer
        })
        .await
        .unwrap();
        if rotation % 10 == 9 {
            reader.0.cancel();
            reader.1.await.unwrap();
            reader = start();
        }
        let behind = || written.load(Ordering::Relaxed) - rig.streams.log.extent().end;
        while behind() > 2 * file_bytes {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    reader.0.cancel();
    reader.1.await.unwrap();
    rig.drain().await;
    (writer.written, check(&rig))
}

#[tokio::test]
async fn a_hundred_rotations_lose_and_double_no_byte() {
    // A kubelet's own size for the documentation: AO_SOAK_FILE_KIB=10240.
    let kib = std::env::var("AO_SOAK_FILE_KIB").ok().and_then(|text| text.parse().ok());
    let file_bytes = kib.unwrap_or(256_u64) * 1024;
    let began = clock::instant();
    let (written, checked) = soak(100, file_bytes).await;
    #[allow(clippy::cast_precision_loss, reason = "a figure to be read")]
    let pace = written as f64 / f64::from(1 << 20) / began.elapsed().as_secs_f64();
    println!(
        "figure: 100 rotations of {} KiB at {pace:.0} MiB/s, 10 restarts: {written} bytes written, {} received, \
         {} lost, {} doubled, {} gaps",
        file_bytes / 1024,
        checked.bytes,
        written.saturating_sub(checked.bytes),
        checked.bytes.saturating_sub(written),
        checked.gaps,
    );
    assert_eq!((checked.bytes, checked.gaps, checked.breaks), (written, 0, 0));
}

/// A listing beside two renames may lack the file between them.
#[tokio::test]
async fn files_rotated_while_they_are_listed_are_all_read() {
    const FILES: u64 = 400;
    let rig = Rig::new();
    let folder = rig.path();
    let writing = tokio::task::spawn_blocking(move || {
        for number in 0..FILES {
            let live = folder.join("0.log");
            fs::write(&live, format!("{TIME}.{number:09}Z stdout F {number:012}\n")).unwrap();
            fs::rename(&live, folder.join(format!("0.log.20270115-{number:06}"))).unwrap();
        }
        File::create(folder.join("0.log")).unwrap();
    });
    let mut reader = Reader::resume(rig.folder(), Arc::clone(&rig.streams)).unwrap();
    let mut look = 0;
    let mut done = false;
    while !done {
        // Decided before the last burst: what is written by then is there to be read.
        let written = writing.is_finished();
        look += 1;
        done = reader.burst(clock::instant() + QUIET * look).unwrap() == Burst::Idle && written;
    }
    writing.await.unwrap();
    let checked = check(&rig);
    assert_eq!((checked.lines, checked.breaks, checked.gaps), (FILES, 0, 0));
}

#[tokio::test]
async fn rotations_beside_a_dead_reader_leave_gaps_where_lines_are_missing_and_nowhere_else() {
    let rig = Rig::new();
    let mut writer = Writer::new(rig.path(), 16 * 1024);
    let mut kept = 0;
    for rotations in [1, 3, KEPT, 2 * KEPT, 1] {
        writer.fill();
        // Each reader finds another number of files gone.
        let mut reader = Reader::resume(rig.folder(), Arc::clone(&rig.streams)).unwrap();
        // Time enough for the old file to be quiet, and more bursts than there are files.
        for look in 1..=4 * u32::try_from(KEPT).unwrap() {
            reader.burst(clock::instant() + QUIET * look).unwrap();
        }
        drop(reader);
        for _ in 0..rotations {
            writer.rotate();
            writer.fill();
        }
        kept += 1;
    }
    rig.drain().await;
    let checked = check(&rig);
    println!(
        "{kept} readers beside 17 rotations: {} lines written, {} received, {} gaps",
        writer.line, checked.lines, checked.gaps
    );
    assert_eq!(
        (checked.breaks, checked.gaps),
        (0, 1),
        "only eight rotations are more than are kept"
    );
    assert!(checked.lines < writer.line);
}
