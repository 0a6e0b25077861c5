//! A small mutating fuzzer: inputs are made from a corpus and a seed alone, so that each replays.
//!
//! Each target takes about two seconds in an ordinary run; `AO_FUZZ_SECONDS=600 cargo test fuzz` looks
//! longer. A failure prints its seed; `AO_FUZZ_SEED=N` begins there.

#![allow(clippy::print_stdout, reason = "the seed and the number of inputs are for people")]

use std::{
    env,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};

/// Time for one target in an ordinary run.
const SECONDS: u64 = 2;
/// Most mutations of one input: more only make noise that every parser refuses at its first byte.
const MUTATIONS_MAX: u64 = 6;

/// `splitmix64`: small, and good enough to pick bytes with.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which must not be zero.
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("below a usize")
    }
}

/// Feeds `target` with `corpus` as it is and then with mutations of it until the time is over; returns
/// how many inputs there were. What the target finds is a panic.
pub fn fuzz(corpus: &[Vec<u8>], target: impl FnMut(&[u8])) -> u64 {
    let seconds = number("AO_FUZZ_SECONDS").unwrap_or(SECONDS);
    let inputs = fuzz_for(Duration::from_secs(seconds), corpus, target);
    println!("{inputs} inputs");
    inputs
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().and_then(|text| text.parse().ok())
}

fn fuzz_for(time: Duration, corpus: &[Vec<u8>], mut target: impl FnMut(&[u8])) -> u64 {
    for input in corpus {
        target(input);
    }
    let end = boot() + time;
    let first = number("AO_FUZZ_SEED").unwrap_or(0);
    let mut seed = first;
    // At least one, so that no machine is so slow that nothing is tried.
    while seed == first || boot() < end {
        let input = input(corpus, seed);
        if let Err(finding) = catch_unwind(AssertUnwindSafe(|| target(&input))) {
            println!("AO_FUZZ_SEED={seed} finds it; {} bytes", input.len());
            resume_unwind(finding);
        }
        seed += 1;
    }
    seed - first
}

fn boot() -> Duration {
    Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).expect("every Linux has this clock"))
}

/// The input of this seed.
fn input(corpus: &[Vec<u8>], seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut bytes = corpus[random.below(corpus.len())].clone();
    for _ in 0..=random.next() % MUTATIONS_MAX {
        mutate(&mut bytes, corpus, &mut random);
    }
    bytes
}

fn mutate(bytes: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut Random) {
    let (from, to) = {
        let (a, b) = (random.below(bytes.len() + 1), random.below(bytes.len() + 1));
        (a.min(b), a.max(b))
    };
    match random.below(7) {
        0 => bytes.truncate(from),
        1 if from < bytes.len() => bytes[from] ^= 1 << random.below(8),
        2 => bytes.insert(from, u8::try_from(random.below(256)).expect("a byte")),
        3 => drop(bytes.drain(from..to)),
        4 => {
            let again = bytes[from..to].to_vec();
            bytes.splice(from..from, again);
        }
        5 => {
            let other = &corpus[random.below(corpus.len())];
            let part = other[random.below(other.len() + 1)..].to_vec();
            bytes.splice(from..to, part);
        }
        _ => bytes[from..to].fill(0),
    }
}

#[test]
fn an_input_is_a_function_of_its_seed_and_inputs_differ() {
    let corpus = [b"hello world".to_vec(), b"another".to_vec()];
    let inputs: Vec<_> = (0..50).map(|seed| input(&corpus, seed)).collect();
    assert_eq!(inputs, (0..50).map(|seed| input(&corpus, seed)).collect::<Vec<_>>());
    assert!(inputs.iter().collect::<std::collections::BTreeSet<_>>().len() > 40);
}

#[test]
fn a_planted_defect_is_found_and_its_seed_replays_it() {
    // A parser that trusts a length: it takes three particular bytes in a row to see it.
    let target = |input: &[u8]| {
        if let Some(at) = input.windows(2).position(|two| two == b"\x02:") {
            assert!(input.len() >= at + 4, "a length beyond the end");
        }
    };
    let corpus = [b"head \x02:ab tail".to_vec(), b"\x01:a".to_vec()];
    let search = || fuzz_for(Duration::from_secs(20), &corpus, target);
    assert!(catch_unwind(search).is_err(), "the defect is not found");
}
