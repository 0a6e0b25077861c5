//! A small mutating fuzzer: inputs are made from a corpus and a seed alone, so that each replays.

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
pub(crate) struct Random(u64);

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

/// Feeds `target` with mutations of `corpus` until the time is over; returns how many there were.
pub(crate) fn fuzz(corpus: &[Vec<u8>], mut target: impl FnMut(&[u8])) -> u64 {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let end = boot() + Duration::from_secs(number("AO_FUZZ_SECONDS").unwrap_or(SECONDS));
    let first = number("AO_FUZZ_SEED").unwrap_or(0);
    let mut seed = first;
    while boot() < end {
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
