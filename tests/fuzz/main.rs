//! Parsers of what others, or a crash, have written, fed with damaged input for a bounded time. Beside
//! 'it does not panic' each target has a property that a wrong parser breaks. Parsers that are no part of
//! a crate's interface have their targets beside them, in modules called `fuzz`.

#![allow(clippy::panic, reason = "a finding fails the test")]
#![allow(clippy::print_stdout, reason = "the number of inputs is for people")]
#![allow(clippy::unwrap_used, reason = "a test program")]

mod attempt_api;
mod ledger;
mod link;
mod model;
mod names;
mod tunnel;
