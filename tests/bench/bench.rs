//! Measured speed: ours, the floor that nobody gets below, and what users would take instead, by turns in the same
//! run. `tests/bench/run --help` says how; `docs/performance.md` has the last table and how it is read.
//!
//! One program: as `bench process controller ...` and the like it is the process that is measured.

// Helpers of benches fail by panicking, as those of tests do.
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub)]
#![allow(clippy::cast_precision_loss, reason = "figures to be read")]
#![allow(clippy::print_stdout, reason = "what is measured goes to standard output")]

mod audit;
mod choice;
mod cycles;
mod deadline;
#[path = "../decide/mod.rs"]
mod decide;
mod decisions;
mod far;
#[allow(dead_code, reason = "shared with the simulation")]
#[path = "../simulation/gateway.rs"]
mod gateway;
mod gateway_speed;
mod handover;
mod kubelet;
mod live;
mod log_floor;
mod log_latency;
mod log_throughput;
mod measure;
mod nodes;
#[allow(dead_code, unused_imports, reason = "shared with the end-to-end tests")]
#[path = "../e2e/support/mod.rs"]
mod on_cluster;
mod peers;
mod plant;
mod processes;
mod requests;
mod scripted;
mod site;
#[allow(dead_code, unused_imports, reason = "shared with the tests of reconciling")]
#[path = "../../controller/tests/reconcile/support.rs"]
mod support;
mod table;
mod throughput;
mod watchdog;

use std::process::ExitCode;

use choice::{Choice, Needs};
use measure::Scale;
use table::Row;
use watchdog::Watchdog;

/// A bench by name.
type Bench = fn(Scale) -> Vec<Row>;

/// Name, what it needs, the bench. In the order in which they run.
const BENCHES: &[(&str, Needs, Bench)] = &[
    ("decide", Needs::Nothing, decisions::run),
    ("log-throughput", Needs::Nothing, log_throughput::run),
    ("gateway", Needs::Nothing, gateway_speed::run),
    ("requests", Needs::ApiServer, requests::run),
    ("throughput", Needs::ApiServer, throughput::run),
    ("recovery", Needs::ApiServer, live::recovery),
    ("memory", Needs::ApiServer, live::memory),
    ("deadline", Needs::NodesForItsPeer, deadline::run),
    ("handover", Needs::Nodes, handover::run),
    ("log-latency", Needs::Nodes, log_latency::run),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(code) = processes::as_one_of_them(&arguments) {
        return code;
    }
    let choice = match Choice::new(&arguments) {
        Ok(choice) => choice,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    if let Some(answer) = choice.answer() {
        print!("{answer}");
        return ExitCode::SUCCESS;
    }
    let mut rows = Vec::new();
    for (name, bench) in choice.benches() {
        eprintln!("{name}...");
        let _watchdog = Watchdog::start(name, choice.scale);
        rows.extend(bench(choice.scale));
    }
    eprint!("{}", table::text(&rows));
    if choice.json {
        println!("{}", table::json(&rows));
    }
    // A time depends on the machine; a count does not.
    if rows.iter().any(Row::is_a_wrong_count) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
