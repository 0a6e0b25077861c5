//! Many seeds, each in a process of its own: only so is nothing of one run left for the next, down to
//! the counters of libraries.

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::{Verdict, on_paused_time, play};

/// Seeds in an ordinary run of all tests; `tests/run sim` takes 300.
const SEEDS: u64 = 12;
/// A seed that needs longer hangs.
const LIMIT: Duration = Duration::from_mins(5);
/// Lines of a failing seed's history that are shown.
const LINES: usize = 120;
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
    let Verdict { violations, history } = run(seed);
    let text = history.text();
    let whole = std::env::var_os("AO_SIM_HISTORY").is_some();
    let lines: Vec<_> = text.lines().collect();
    let from = if whole { 0 } else { lines.len().saturating_sub(LINES) };
    if whole || !violations.is_empty() {
        eprintln!("{}", lines[from..].join("\n"));
    }
    eprintln!("digest {:016x}", history.digest());
    assert!(violations.is_empty(), "seed {seed}: {violations:#?}");
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

#[test]
fn every_seed_keeps_the_invariants() {
    let (first, count) =
        (number("AO_SIM_FIRST").unwrap_or(0), number("AO_SIM_SEEDS").unwrap_or(SEEDS));
    let next = std::sync::atomic::AtomicU64::new(first);
    let failed = std::sync::Mutex::new(Vec::new());
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    if seed >= first + count {
                        return;
                    }
                    if let Err(text) = finish(start(seed)) {
                        eprintln!("seed {seed} failed:\n{text}");
                        failed.lock().unwrap().push(seed);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    eprintln!("{count} seeds from {first} on, {} failed", failed.len());
    assert!(
        failed.is_empty(),
        "seeds {failed:?} failed; one again, with its whole history: AO_SIM_HISTORY=1 AO_SIM_SEED={} cargo test --test simulation -- --exact {ONE} --ignored --nocapture",
        failed[0]
    );
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
