use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixListener,
    sync::mpsc,
    thread,
};

use agent_operator::domain::{Attempt, Reason, RunUid};
use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;

use super::{hand::OwnThread, *};
use crate::pod::{
    adoption::RunOnServer,
    client::{PodApi, PodError},
};

const LIMIT: Duration = Duration::from_secs(30);

fn key(uid: &str) -> RunKey {
    RunKey { uid: RunUid::from(uid), attempt: Attempt(1) }
}

fn guarded(at: BootTime, grace_millis: u64) -> Guarded {
    let message = "too long".to_owned();
    Guarded {
        at,
        order: StopOrder { reason: Reason::TimedOut, message, grace_millis },
        namespace: "agents".to_owned(),
        pod: "pod".to_owned(),
        uid: "uid".into(),
    }
}

/// Tells what was begun.
struct Telling(Mutex<mpsc::Sender<(RunKey, Act, BootTime)>>);

impl Hand for Telling {
    fn begin(&self, run: &RunKey, act: Act, _: &Guarded, _: CancellationToken) {
        let _ = self.0.lock().unwrap().send((run.clone(), act, clock::boot()));
    }
}

fn telling() -> (Guards, mpsc::Receiver<(RunKey, Act, BootTime)>) {
    let (told, acts) = mpsc::channel();
    (Guards::new(Arc::new(Telling(Mutex::new(told)))).unwrap(), acts)
}

#[test]
fn each_deadline_brings_the_order_and_after_its_grace_the_deletion_and_neither_early() {
    let (guards, acts) = telling();
    let start = clock::boot();
    let at = |millis| start.plus(Duration::from_millis(millis));
    guards.hold(key("late"), guarded(at(60), 1)).unwrap();
    guards.hold(key("early"), guarded(at(20), 20)).unwrap();
    let got: Vec<_> = (0..4).map(|_| acts.recv_timeout(LIMIT).unwrap()).collect();
    let of = |uid: &str| {
        let of_run = got.iter().filter(|(run, _, _)| *run == key(uid));
        of_run.map(|(_, act, when)| (act.clone(), *when)).collect::<Vec<_>>()
    };
    for (uid, due) in [("early", [at(20), at(40)]), ("late", [at(60), at(61)])] {
        let acts = of(uid);
        assert_eq!([&acts[0].0, &acts[1].0], [&Act::Stop, &Act::Delete]);
        assert!(acts[0].1 >= due[0] && acts[1].1 >= due[1], "{acts:?}");
    }
}

/// No controller and no API server are here at all; every core is kept busy, twice over.
#[test]
fn figure_deadlines_are_kept_beside_busy_cores() {
    const DEADLINES: usize = 200;
    // I4: dead by deadline + grace + 1 s, so the order may take this long at most.
    const GOAL: Duration = Duration::from_secs(1);
    let (guards, acts) = telling();
    let stop = AtomicBool::new(false);
    let mut late: Vec<Duration> = thread::scope(|scope| {
        let cores = thread::available_parallelism().map_or(2, usize::from);
        for _ in 0..2 * cores {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let start = clock::boot();
        let mut due = HashMap::new();
        for number in 0..DEADLINES as u64 {
            let at = start.plus(Duration::from_millis(200 + 10 * number));
            guards.hold(key(&number.to_string()), guarded(at, 600_000)).unwrap();
            due.insert(key(&number.to_string()), at);
        }
        let late = (0..DEADLINES).map(|_| {
            let (run, act, when) = acts.recv_timeout(LIMIT).unwrap();
            assert_eq!(act, Act::Stop);
            assert!(when >= due[&run], "{run:?} is early");
            when.since(due[&run])
        });
        let late = late.collect();
        stop.store(true, Ordering::Relaxed);
        late
    });
    late.sort();
    let of_goal = |at: usize| late[at].as_secs_f64() / GOAL.as_secs_f64();
    println!(
        "figure: lateness of {DEADLINES} deadlines without a controller, all cores busy: p50 {:.4}, p99 {:.4}, \
         worst {:.4} of the goal of {GOAL:?}",
        of_goal(DEADLINES / 2),
        of_goal(DEADLINES * 99 / 100),
        of_goal(DEADLINES - 1),
    );
}

#[test]
fn a_result_spares_the_order_but_not_the_deletion_and_an_end_spares_both() {
    let (guards, acts) = telling();
    let soon = clock::boot().plus(Duration::from_millis(50));
    guards.hold(key("reported"), guarded(soon, 10)).unwrap();
    guards.hold(key("ended"), guarded(soon, 0)).unwrap();
    guards.spare_the_order(&key("reported"));
    guards.release(&key("ended"));
    let (run, act, _) = acts.recv_timeout(LIMIT).unwrap();
    assert_eq!((run, act), (key("reported"), Act::Delete));
    guards.hold(key("last"), guarded(BootTime(-5), 0)).unwrap();
    let (run, ..) = acts.recv_timeout(LIMIT).unwrap();
    assert_eq!(run, key("last"), "nothing came for the attempt that had ended");
}

/// An API server that counts deletions.
struct Deletions(Mutex<mpsc::Sender<String>>);

#[async_trait]
impl PodApi for Deletions {
    async fn create(&self, _: &Pod) -> Result<Pod, PodError> {
        Err(PodError::TimeOut)
    }
    async fn get(&self, _: &str, _: &str) -> Result<Option<Pod>, PodError> {
        Err(PodError::TimeOut)
    }
    async fn run(&self, _: &str, _: &str) -> Result<Option<RunOnServer>, PodError> {
        Err(PodError::TimeOut)
    }
    async fn delete(&self, namespace: &str, name: &str, uid: &PodUid) -> Result<(), PodError> {
        let _ = self.0.lock().unwrap().send(format!("{namespace}/{name}/{uid}"));
        Ok(())
    }
    async fn remove_finalizer(&self, _: &str, _: &str, _: &PodUid) -> Result<(), PodError> {
        Err(PodError::TimeOut)
    }
}

/// A gateway's socket, served by a plain thread; tells each frame.
fn gateway(socket: &std::path::Path) -> mpsc::Receiver<String> {
    let listener = UnixListener::bind(socket).unwrap();
    let (told, frames) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut line = String::new();
            let mut reader = BufReader::new(stream);
            let _ = reader.read_line(&mut line);
            let _ = reader.into_inner().flush();
            if told.send(line).is_err() {
                return;
            }
        }
    });
    frames
}

/// Every worker of a runtime stands still until it is released.
struct BlockedRuntime {
    release: Arc<(Mutex<bool>, std::sync::Condvar)>,
    blocked: Arc<std::sync::atomic::AtomicUsize>,
    runtime: tokio::runtime::Runtime,
}

const WORKERS: usize = 2;

impl BlockedRuntime {
    fn new() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).build().unwrap();
        let release = Arc::new((Mutex::new(false), std::sync::Condvar::new()));
        let blocked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let (all, entered) = mpsc::channel();
        for _ in 0..WORKERS {
            let (release, blocked, all) = (Arc::clone(&release), Arc::clone(&blocked), all.clone());
            runtime.spawn(async move {
                blocked.fetch_add(1, Ordering::SeqCst);
                all.send(()).unwrap();
                let (released, changed) = &*release;
                let guard = released.lock().unwrap();
                drop(changed.wait_while(guard, |released| !*released).unwrap());
                blocked.fetch_sub(1, Ordering::SeqCst);
            });
        }
        for _ in 0..WORKERS {
            entered.recv_timeout(LIMIT).unwrap();
        }
        Self { release, blocked, runtime }
    }

    fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::SeqCst) == WORKERS
    }

    fn release(self) {
        *self.release.0.lock().unwrap() = true;
        self.release.1.notify_all();
        drop(self.runtime);
    }
}

#[test]
fn with_every_worker_of_the_runtime_blocked_the_order_and_the_deletion_still_go_out() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("gateway.sock");
    let frames = gateway(&socket);
    let (told, deletions) = mpsc::channel();
    let hand = OwnThread::start(socket, move || {
        Some(Arc::new(Deletions(Mutex::new(told))) as Arc<dyn PodApi>)
    });
    let guards = Guards::new(Arc::new(hand.unwrap())).unwrap();
    let runtime = BlockedRuntime::new();
    let at = clock::boot().plus(Duration::from_millis(30));
    guards.hold(key("a"), guarded(at, 300)).unwrap();
    let frame = frames.recv_timeout(LIMIT).unwrap();
    assert!(runtime.is_blocked());
    let frame: HashMap<String, serde_json::Value> = serde_json::from_str(&frame).unwrap();
    assert_eq!((&frame["kind"], &frame["run"]["uid"]), (&"stop".into(), &"a".into()));
    assert_eq!(frame["order"]["reason"], "TimedOut");
    assert_eq!(deletions.recv_timeout(LIMIT).unwrap(), "agents/pod/uid");
    assert!(runtime.is_blocked(), "all of this happened while no worker could run");
    runtime.release();
}

#[test]
fn an_order_is_repeated_until_a_restarted_gateway_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("gateway.sock");
    let hand = OwnThread::start(socket.clone(), || None).unwrap();
    let guards = Guards::new(Arc::new(hand)).unwrap();
    guards.hold(key("a"), guarded(clock::boot(), 60_000)).unwrap();
    let frames = gateway(&socket);
    assert!(frames.recv_timeout(LIMIT).unwrap().contains("\"a\""));
}
