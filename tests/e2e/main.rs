//! The whole system on real nodes: real API server, kubelets, containerd, forge and Claude Code
//! CLI; only the model is scripted. `tests/run e2e life faults hostile` brings the cluster up and runs these;
//! plain `cargo test` lists them as ignored.

#![allow(clippy::panic, reason = "a helper of a test fails the test")]
#![allow(clippy::print_stdout, reason = "tests of faults tell what they measured")]
#![allow(clippy::large_futures, reason = "one test runs at a time, on a stack of its own")]

mod faults;
mod hostile;
mod kill_points;
mod life;
mod scenarios;
mod support;
