//! `deadline`: how late the order to stop comes out of the supervisor's own thread of deadlines, at the socket where
//! the gateway would read it. 100 live steps, all cores busy, no controller and no API server at all. Beside it, where
//! there are real nodes, how late a kubelet ends pods that have `activeDeadlineSeconds`.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader},
    os::unix::net::UnixListener,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use agent_operator::{
    attempt::StopOrder,
    domain::{Attempt, Reason, RunKey, RunUid},
};
use agent_operator_supervisor::{
    clock,
    steps::{
        guard::{Guarded, Guards, hand::OwnThread},
        moment::BootTime,
    },
};
use k8s_openapi::api::core::v1::Pod;
use nix::{
    sys::time::TimeSpec,
    time::{ClockId, ClockNanosleepFlags, clock_nanosleep},
};

use crate::{
    measure::{ROUNDS, Samples, Scale, millis},
    nodes::{Nodes, on_monotonic, program, stamp},
    on_cluster::task::unique,
    processes::runtime,
    table::Row,
};

/// Live steps in a round.
const STEPS: u64 = 100;
/// Pods of the peer in a round.
const PODS: usize = 4;
/// Seconds that they have, most of which their start may take.
const POD_SECONDS: i64 = 5;
/// Pause between two deadlines.
const PACE: Duration = Duration::from_millis(10);
/// Nothing is due before everything stands.
const LEAD: Duration = Duration::from_millis(300);
/// A bench whose orders do not come is broken.
const LIMIT: Duration = Duration::from_secs(30);

/// The socket of a gateway: each order with the time at which it was there to be read.
fn gateway(socket: &Path) -> mpsc::Receiver<(String, BootTime)> {
    let listener = UnixListener::bind(socket).unwrap();
    let (told, orders) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut line = String::new();
            let read = BufReader::new(stream).read_line(&mut line);
            let at = clock::boot();
            // Given up before it was written, which a busy machine brings about; it comes again.
            if line.is_empty() {
                continue;
            }
            if read.is_err() || told.send((line, at)).is_err() {
                return;
            }
        }
    });
    orders
}

/// Keeps all cores busy until it is dropped, whether its round went well or not.
struct Busy(Arc<AtomicBool>);

impl Busy {
    fn start() -> Self {
        let over = Arc::new(AtomicBool::new(false));
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            let over = Arc::clone(&over);
            thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        Self(over)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A bare timer: one thread that sleeps until each moment.
fn timer(moments: Vec<BootTime>) -> thread::JoinHandle<Vec<Duration>> {
    thread::spawn(move || {
        let late = moments.into_iter().map(|at| {
            let until = TimeSpec::from_duration(Duration::from_nanos(u64::try_from(at.0).unwrap()));
            let absolute = ClockNanosleepFlags::TIMER_ABSTIME;
            clock_nanosleep(ClockId::CLOCK_BOOTTIME, absolute, &until).unwrap();
            clock::boot().since(at)
        });
        late.collect()
    })
}

fn round(ours: &mut Samples, floor: &mut Samples) -> u32 {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("gateway.sock");
    let orders = gateway(&socket);
    let guards = Guards::new(Arc::new(OwnThread::start(socket, || None).unwrap())).unwrap();
    let start = clock::boot().plus(LEAD);
    let at = |number: u64| start.plus(PACE * u32::try_from(number).unwrap());
    for number in 0..STEPS {
        let message = "out of time".to_owned();
        let guarded = Guarded {
            at: at(number),
            order: StopOrder { reason: Reason::TimedOut, message, grace_millis: 600_000 },
            namespace: "agents".to_owned(),
            pod: "pod".to_owned(),
            uid: "uid".into(),
        };
        let run = RunKey { uid: RunUid::from(number.to_string().as_str()), attempt: Attempt(1) };
        guards.hold(run, guarded).unwrap();
    }
    // Halfway between two of ours, under the same load.
    let bare = timer((0..STEPS).map(|number| at(number).plus(PACE / 2)).collect());
    let (mut early, mut seen) = (0, BTreeSet::new());
    while (seen.len() as u64) < STEPS {
        let (order, arrived) = orders.recv_timeout(LIMIT).unwrap();
        let order: serde_json::Value = serde_json::from_str(&order).unwrap();
        let number: u64 = order["run"]["uid"].as_str().unwrap().parse().unwrap();
        // Orders are repeated until their grace is over; the first one counts.
        if seen.insert(number) {
            early += u32::from(arrived < at(number));
            ours.add(millis(arrived.since(at(number))));
        }
    }
    for late in bare.join().unwrap() {
        floor.add(millis(late));
    }
    early
}

/// Pods with a deadline of Kubernetes' own, which say when they are told to stop. The deadline counts from the start
/// time in the pod's status, which has whole seconds; so does the kubelet's own count.
async fn peer(nodes: &Nodes, late: &mut Samples) {
    let mut spec =
        nodes.pod_spec(&program("$SIG{TERM} = sub { stamp('told'); exit 0 }; sleep 60 while 1;"));
    spec["activeDeadlineSeconds"] = POD_SECONDS.into();
    let names: Vec<_> = (0..PODS).map(|_| unique("deadline")).collect();
    for name in &names {
        nodes.create_pod(name, &spec).await;
    }
    for name in &names {
        let status = nodes.ended(name).await.status.unwrap_or_default();
        let log = nodes.log(&nodes.peers::<Pod>(), name).await;
        let told =
            stamp(&log, "told").unwrap_or_else(|| panic!("{name} was told nothing: {status:?}"));
        let due = status.start_time.expect("a pod that ran was started").0
            + jiff::SignedDuration::from_secs(POD_SECONDS);
        late.add((told.as_secs_f64() - on_monotonic(due).as_secs_f64()) * 1000.0);
        nodes.delete_pod(name).await;
    }
}

pub fn run(scale: Scale) -> Vec<Row> {
    let (mut ours, mut floor, mut early) = (Samples::default(), Samples::default(), 0);
    let (mut late_pods, runtime) = (Samples::default(), runtime());
    let nodes = std::env::var_os("AO_NODES").map(|_| runtime.block_on(Nodes::connect()));
    let busy = Busy::start();
    for _ in 0..scale.pick(ROUNDS, 2) {
        early += round(&mut ours, &mut floor);
        if let Some(nodes) = &nodes {
            runtime.block_on(peer(nodes, &mut late_pods));
        }
    }
    drop(busy);
    let late = |name, of: fn(&Samples) -> Option<f64>, limit| {
        Row::new(name, "ms late", of(&ours)).floor(of(&floor)).peer(of(&late_pods)).at_most(limit)
    };
    vec![
        late("deadline p50", Samples::median, 2.0),
        late("deadline p99", Samples::p99, 20.0),
        Row::new("deadline early", "kills", Some(f64::from(early))).at_most(0.0).counted(0.0),
    ]
}
