//! Parsers of what others, or a crash, have written, fed with damaged input for a bounded time.
//!
//! Each target takes about two seconds in an ordinary run; `AO_FUZZ_SECONDS=600 cargo test --test fuzz`
//! looks longer. A failure prints its seed; `AO_FUZZ_SEED=N` begins there.

#![allow(clippy::panic, reason = "a finding fails the test")]
#![allow(clippy::print_stdout, reason = "the seed and the number of inputs are for people")]

mod harness;
mod ledger;
