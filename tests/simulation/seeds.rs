//! Many seeds, each in a process of its own: only so is nothing of one run left for the next, down to
//! the counters of libraries.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    process::{Child, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use agent_operator_doubles::history::Fact;

use super::{Verdict, on_paused_time, play};

/// Seeds in an ordinary run of all tests; `tests/run sim` takes 300.
const SEEDS: u64 = 12;
/// A seed that needs longer hangs.
const LIMIT: Duration = Duration::from_mins(5);
/// Lines of a failing seed's history that are shown.
const LINES: usize = 120;
/// A long run says how far it is after so many seeds.
const STRIDE: u64 = 1000;
/// What a seed's process says before the seconds that it simulated.
const SIMULATED: &str = "simulated seconds: ";
/// What it says before the number of steps that succeeded in it.
const SUCCEEDED: &str = "steps that succeeded: ";
/// The test that plays one.
const ONE: &str = "simulation::seeds::replay_a_seed";

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Plays one seed on a thread that begins with it.
fn run(seed: u64) -> Verdict {
    agent_operator_seeded::seed(seed);
    fastrand::seed(seed);
    let dir = std::env::temp_dir().join(format!("agent-operator-sim-{}", std::process::id()));
    let of_thread = dir.clone();
    let thread = std::thread::spawn(move || {
        fastrand::seed(seed);
        on_paused_time(play(seed, &of_thread))
    });
    let verdict = thread.join();
    let _ = std::fs::remove_dir_all(dir);
    verdict.unwrap()
}

#[test]
#[ignore = "plays the one seed of AO_SIM_SEED; tests/run sim plays many"]
fn replay_a_seed() {
    let seed = number("AO_SIM_SEED").expect("AO_SIM_SEED is a number");
    let Verdict { violations, history, simulated } = run(seed);
    let text = history.text();
    let whole = std::env::var_os("AO_SIM_HISTORY").is_some();
    let lines: Vec<_> = text.lines().collect();
    let from = if whole { 0 } else { lines.len().saturating_sub(LINES) };
    if whole || !violations.is_empty() {
        eprintln!("{}", lines[from..].join("\n"));
    }
    eprintln!("digest {:016x}", digest(&text));
    eprintln!("{SIMULATED}{}", simulated.as_secs());
    let succeeded =
        |fact: &Fact| matches!(fact, Fact::Recorded { phase, .. } if phase == "Succeeded");
    eprintln!("{SUCCEEDED}{}", history.count(succeeded));
    assert!(violations.is_empty(), "seed {seed}: {violations:#?}");
}

/// A number that differs where histories do.
fn digest(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

fn start(seed: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", ONE, "--ignored", "--nocapture", "--test-threads=1"])
        .env("AO_SIM_SEED", seed.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What a seed's process said; an error when it failed or hung.
#[allow(clippy::disallowed_methods, reason = "it waits for another process, in real time")]
fn finish(mut child: Child) -> Result<String, String> {
    // Read aside, so that a full pipe does not hold it up.
    let mut errors = child.stderr.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = std::io::Read::read_to_string(&mut errors, &mut text);
        text
    });
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if began.elapsed() > LIMIT {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let text = reader.join().unwrap();
    match status {
        Some(status) if status.success() => Ok(text),
        Some(_) => Err(text),
        None => Err(format!("it did not end in {LIMIT:?}\n{text}")),
    }
}

/// What became of many seeds.
#[derive(Default)]
struct Sum {
    failed: Mutex<Vec<u64>>,
    simulated_seconds: AtomicU64,
    succeeded: AtomicU64,
}

impl Sum {
    fn add(&self, seed: u64, outcome: Result<String, String>) {
        let told = |text: &str, words: &str| -> u64 {
            let number = text.lines().find_map(|line| line.strip_prefix(words)?.parse().ok());
            number.unwrap_or_else(|| panic!("no {words}in:\n{text}"))
        };
        match outcome {
            Ok(text) => {
                self.simulated_seconds.fetch_add(told(&text, SIMULATED), Ordering::SeqCst);
                self.succeeded.fetch_add(told(&text, SUCCEEDED), Ordering::SeqCst);
            }
            Err(text) => {
                eprintln!("seed {seed} failed:\n{text}");
                self.failed.lock().unwrap().push(seed);
            }
        }
    }
}

/// Plays `count` seeds from `first` on, one process a core at a time.
fn play_all(first: u64, count: u64) -> Sum {
    let (next, sum) = (AtomicU64::new(first), Sum::default());
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= first + count {
                        return;
                    }
                    sum.add(seed, finish(start(seed)));
                    if (seed + 1 - first).is_multiple_of(STRIDE) {
                        eprintln!("{} of {count} seeds", seed + 1 - first);
                    }
                }
            });
        }
    });
    sum
}

#[test]
#[allow(clippy::disallowed_methods, reason = "how fast it is is told in real time")]
fn every_seed_keeps_the_invariants() {
    let (first, count) =
        (number("AO_SIM_FIRST").unwrap_or(0), number("AO_SIM_SEEDS").unwrap_or(SEEDS));
    let began = Instant::now();
    let sum = play_all(first, count);
    let failed = sum.failed.into_inner().unwrap();
    let simulated = Duration::from_secs(sum.simulated_seconds.into_inner());
    let succeeded = sum.succeeded.into_inner();
    eprintln!(
        "figure: {count} seeds from {first} on, {} failed: {succeeded} steps succeeded in {:.0} hours of a cluster, each {:.0} times as fast as it would be",
        failed.len(),
        simulated.as_secs_f64() / 3600.0,
        simulated.as_secs_f64() / began.elapsed().as_secs_f64()
    );
    assert!(
        failed.is_empty(),
        "seeds {failed:?} failed; one again, with its whole history: AO_SIM_HISTORY=1 AO_SIM_SEED={} cargo test --test simulation -- --exact {ONE} --ignored --nocapture",
        failed[0]
    );
    // Where nothing runs, nothing is broken.
    assert!(succeeded >= count, "{succeeded} steps in {count} seeds: it does not simulate steps");
}

#[test]
fn a_seed_replays_exactly() {
    let digest = |seed| {
        let text = finish(start(seed)).unwrap_or_else(|text| text);
        let found = text.lines().find(|line| line.starts_with("digest ")).map(str::to_owned);
        found.unwrap_or_else(|| panic!("no digest in:\n{text}"))
    };
    for seed in [1, 2, 7] {
        assert_eq!(digest(seed), digest(seed), "seed {seed}");
    }
    assert_ne!(digest(1), digest(2));
}
