//! A container that writes at its own pace, whatever becomes of its reader, while a rotator does what kubelet and
//! containerd do: the older files packed, the oldest removed, the live one renamed, and the runtime asked to open it anew.

use std::{
    sync::{
        Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
};

use super::*;

/// Bytes of records a second.
const PACE: u64 = 50 << 20;
/// Records that are written at once: some milliseconds of the pace.
const CHUNK_RECORDS: u64 = 4096;
/// Pause of whoever has nothing to do right now.
const PAUSE: Duration = Duration::from_millis(1);
/// Digits of a record's number, at the beginning of its text.
const DIGITS: usize = 12;
/// Bytes of text of a record, newline included.
const TEXT_BYTES: u64 = 100;
/// Rotated files that are kept; a kubelet's `containerLogMaxFiles` of 5 counts the live one.
const KEPT: usize = 4;
/// Rotations of one life of the reader.
const LIFE: u32 = 10;

/// The container's end: a thread that is asked to open its file anew by a channel, as the runtime is by its API, and that
/// ends with the channel.
struct Container {
    writing: JoinHandle<u64>,
    reopen: mpsc::Sender<mpsc::Sender<()>>,
}

impl Container {
    fn start(live: PathBuf) -> Self {
        let (reopen, requests) = mpsc::channel();
        File::create(&live).unwrap();
        let writing = thread::spawn(move || write(&live, &requests));
        Self { writing, reopen }
    }

    /// Comes back when the old file is closed.
    fn reopen(&self) {
        let (done, wait) = mpsc::channel();
        self.reopen.send(done).unwrap();
        wait.recv().unwrap();
    }

    /// How many records were written.
    fn stop(self) -> u64 {
        drop(self.reopen);
        self.writing.join().unwrap()
    }
}

fn write(live: &Path, requests: &mpsc::Receiver<mpsc::Sender<()>>) -> u64 {
    let open = || OpenOptions::new().create(true).append(true).open(live).unwrap();
    let head = format!("{TIME}.000000000Z stdout F ");
    let rest = "x".repeat(usize::try_from(TEXT_BYTES).unwrap() - DIGITS - 1);
    let mut record = format!("{head}{:0DIGITS$}{rest}\n", 0).into_bytes();
    let (record_bytes, number) = (record.len() as u64, head.len()..head.len() + DIGITS);
    let began = clock::instant();
    let (mut file, mut records, mut chunk) = (open(), 0, Vec::new());
    loop {
        let ahead = records > due(began.elapsed(), record_bytes);
        match requests.recv_timeout(if ahead { PAUSE } else { Duration::ZERO }) {
            Ok(done) => {
                file = open();
                done.send(()).unwrap();
            }
            Err(RecvTimeoutError::Timeout) if ahead => {}
            Err(RecvTimeoutError::Timeout) => {
                chunk.clear();
                for _ in 0..CHUNK_RECORDS {
                    count_up(&mut record[number.clone()], records);
                    chunk.extend_from_slice(&record);
                    records += 1;
                }
                file.write_all(&chunk).unwrap();
            }
            Err(RecvTimeoutError::Disconnected) => return records,
        }
    }
}

/// Records that should have been written by then.
fn due(elapsed: Duration, record_bytes: u64) -> u64 {
    let micros = u64::try_from(elapsed.as_micros()).unwrap();
    micros * PACE / 1_000_000 / record_bytes
}

/// Writes `number` in digits: formatting each record would be slower than what is tested.
fn count_up(digits: &mut [u8], mut number: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + u8::try_from(number % 10).unwrap();
        number /= 10;
    }
}

/// What has come, looked at while it comes: the spool keeps its end alone.
#[derive(Debug, Default)]
struct Received {
    offset: u64,
    /// Number of the record that is next.
    next: u64,
    lost: u64,
    doubled: u64,
    gaps: u64,
    rest: Vec<u8>,
}

impl Received {
    /// Looks at what is there; false when there was nothing.
    fn look(&mut self, streams: &AttemptStreams) -> bool {
        match streams.log.read(self.offset, 1 << 20).unwrap() {
            Piece::Data(bytes) => {
                self.offset += bytes.len() as u64;
                self.rest.extend_from_slice(&bytes);
                let length = usize::try_from(TEXT_BYTES).unwrap();
                let whole = self.rest.len() / length * length;
                let records = std::mem::take(&mut self.rest);
                records[..whole].chunks(length).for_each(|record| self.take(record));
                self.rest.extend_from_slice(&records[whole..]);
                true
            }
            Piece::Gap { to, .. } => {
                (self.offset, self.gaps) = (to, self.gaps + 1);
                true
            }
            Piece::Pending | Piece::End => false,
        }
    }

    fn take(&mut self, record: &[u8]) {
        assert_eq!(record.last(), Some(&b'\n'), "records are whole");
        let number = std::str::from_utf8(&record[..DIGITS]).unwrap().parse::<u64>().unwrap();
        self.lost += number.saturating_sub(self.next) * TEXT_BYTES;
        if number < self.next {
            self.doubled += TEXT_BYTES;
        }
        self.next = self.next.max(number + 1);
    }
}

/// Kubelet and runtime: a rotation every so often, or as often as packing lets it.
struct Rotator {
    folder: PathBuf,
    rotated: Vec<String>,
    serial: u32,
}

impl Rotator {
    /// One rotation, in the kubelet's order.
    fn rotate(&mut self, container: &Container) {
        while self.rotated.len() > KEPT - 1 {
            let oldest = self.rotated.remove(0);
            fs::remove_file(self.folder.join(format!("{oldest}.gz"))).unwrap();
        }
        if let Some(newest) = self.rotated.last() {
            self.pack(newest);
        }
        self.serial += 1;
        let name = format!("0.log.20270115-{:06}", self.serial);
        fs::rename(self.folder.join("0.log"), self.folder.join(&name)).unwrap();
        self.rotated.push(name);
        container.reopen();
    }
}

impl Rotator {
    /// As [`compress`], by a process of its own as the kubelet is one, and at the speed of an optimised one.
    fn pack(&self, name: &str) {
        let packed = self.folder.join(format!("{name}.tmp"));
        let gzip = std::process::Command::new("gzip")
            .args(["-1", "-c"])
            .arg(self.folder.join(name))
            .stdout(File::create(&packed).unwrap())
            .status();
        assert!(gzip.unwrap().success());
        fs::rename(&packed, self.folder.join(format!("{name}.gz"))).unwrap();
        fs::remove_file(self.folder.join(name)).unwrap();
    }
}

/// A thread that works until it is ended, and pauses where there is nothing to do.
struct Thread {
    end: mpsc::Sender<()>,
    working: JoinHandle<()>,
}

impl Thread {
    /// `work` says whether there may be more at once.
    fn start(mut work: impl FnMut() -> bool + Send + 'static) -> Self {
        let (end, ended) = mpsc::channel::<()>();
        let working = thread::spawn(move || {
            let mut more = true;
            let timeout = Err(RecvTimeoutError::Timeout);
            while ended.recv_timeout(if more { Duration::ZERO } else { PAUSE }) == timeout {
                more = work();
            }
        });
        Self { end, working }
    }

    fn end(self) {
        drop(self.end);
        self.working.join().unwrap();
    }
}

/// A reader's life, until it is killed.
fn life(rig: &Rig) -> Thread {
    let mut reader = Reader::resume(rig.folder(), Arc::clone(&rig.streams)).unwrap();
    Thread::start(move || reader.burst(clock::instant()).unwrap() == Burst::More)
}

/// Looks at the stream beside its reader, but not while a new one takes it back to its position.
fn look_on(streams: Arc<AttemptStreams>, received: Arc<Mutex<Received>>) -> Thread {
    Thread::start(move || received.lock().unwrap_or_else(PoisonError::into_inner).look(&streams))
}

fn number(variable: &str, default: u32) -> u32 {
    let text = std::env::var(variable).ok();
    text.map_or(default, |text| text.parse().unwrap_or_else(|e| panic!("{variable}={text}: {e}")))
}

/// Short here, with fewer files than are kept, so that a slow machine loses nothing. As long as promised, with an
/// optimised reader and the kubelet's shortest pause: docs/reliability.md has the command.
#[tokio::test]
async fn a_log_at_fifty_mebibytes_a_second_is_whole_whatever_is_rotated_and_killed() {
    let rotations = number("AO_SOAK_ROTATIONS", 3);
    let pause = Duration::from_millis(u64::from(number("AO_SOAK_PAUSE_MS", 200)));
    let rig = Rig::new();
    let container = Container::start(rig.path().join("0.log"));
    let received = Arc::<Mutex<Received>>::default();
    let looking = look_on(Arc::clone(&rig.streams), Arc::clone(&received));
    let mut rotator = Rotator { folder: rig.path(), rotated: Vec::new(), serial: 0 };
    let (mut reader, mut lives) = (life(&rig), 1);
    let began = clock::instant();
    for rotation in 1..=rotations {
        // The rotator's own pace, as the container has its own.
        let due = began + pause * rotation;
        tokio::time::sleep_until(due.into()).await;
        rotator.rotate(&container);
        if rotation % LIFE == LIFE / 2 || rotation == 1 {
            reader.end();
            let _nobody_looks = received.lock().unwrap_or_else(PoisonError::into_inner);
            (reader, lives) = (life(&rig), lives + 1);
        }
    }
    let records = container.stop();
    let seconds = began.elapsed().as_secs_f64();
    reader.end();
    looking.end();
    rig.drain().await;
    let mut received =
        std::mem::take(&mut *received.lock().unwrap_or_else(PoisonError::into_inner));
    while received.look(&rig.streams) {}
    let written = records * TEXT_BYTES;
    // What never came at all is lost too.
    let lost = received.lost + (records - received.next) * TEXT_BYTES;
    let record_bytes = TEXT_BYTES + format!("{TIME}.000000000Z stdout F ").len() as u64;
    #[allow(clippy::cast_precision_loss, reason = "a figure to be read")]
    let pace = (records * record_bytes) as f64 / f64::from(1 << 20) / seconds;
    println!(
        "figure: {rotations} rotations of a log at {pace:.1} MiB/s in {seconds:.0} s, {lives} lives of its reader: {written} bytes \
         written, {lost} lost, {} doubled, {} gaps",
        received.doubled, received.gaps,
    );
    assert_eq!((lost, received.doubled, received.gaps), (0, 0, 0));
    assert_eq!(received.offset, written);
}
