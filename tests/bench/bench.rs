//! Measured speed: ours, the floor that nobody gets below, and what users would take instead, by turns in the same
//! run. `tests/bench/run --help` says how; `docs/performance.md` has the last table and how it is read.
//!
//! One program: as `bench process controller ...` and the like it is the process that is measured.

// Helpers of benches fail by panicking, as those of tests do.
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub)]
#![allow(clippy::cast_precision_loss, reason = "figures to be read")]
#![allow(clippy::print_stdout, reason = "what is measured goes to standard output")]

mod audit;
mod deadline;
#[path = "../decide/mod.rs"]
mod decide;
mod decisions;
mod far;
#[allow(dead_code, reason = "shared with the simulation")]
#[path = "../simulation/gateway.rs"]
mod gateway;
mod gateway_speed;
mod kubelet;
mod live;
mod log_throughput;
mod measure;
mod plant;
mod processes;
mod requests;
mod scripted;
mod site;
#[allow(dead_code, reason = "shared with the tests of reconciling")]
#[path = "../../controller/tests/reconcile/support.rs"]
mod support;
mod table;

use std::process::ExitCode;

use measure::Scale;
use table::Row;

/// A bench by name.
type Bench = fn(Scale) -> Vec<Row>;

/// Name, what it needs, the bench. In the order in which they run.
const BENCHES: &[(&str, Needs, Bench)] = &[
    ("decide", Needs::Nothing, decisions::run),
    ("deadline", Needs::Nothing, deadline::run),
    ("log-throughput", Needs::Nothing, log_throughput::run),
    ("gateway", Needs::Nothing, gateway_speed::run),
    ("requests", Needs::ApiServer, requests::run),
    ("recovery", Needs::ApiServer, live::recovery),
    ("memory", Needs::ApiServer, live::memory),
];

/// What has to be there for a bench.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    /// kube-apiserver and etcd, see `deploy/local/apiserver`.
    ApiServer,
}

struct Options {
    names: Vec<String>,
    json: bool,
    scale: Scale,
}

fn options(arguments: &[String]) -> Result<Options, String> {
    let mut options = Options { names: Vec::new(), json: false, scale: Scale::Full };
    for argument in arguments {
        match argument.as_str() {
            "--json" => options.json = true,
            "--quick" => options.scale = Scale::Quick,
            // From `cargo bench`.
            "--bench" => {}
            name if BENCHES.iter().any(|(known, ..)| *known == name) => {
                options.names.push(name.to_owned());
            }
            other => return Err(format!("no bench or option is called {other}; see --list")),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(code) = processes::as_one_of_them(&arguments) {
        return code;
    }
    if arguments.first().is_some_and(|first| first == "--list") {
        for (name, needs, _) in BENCHES {
            println!("{name}{}", if *needs == Needs::ApiServer { " apiserver" } else { "" });
        }
        return ExitCode::SUCCESS;
    }
    let options = match options(&arguments) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    let mut rows = Vec::new();
    for (name, _, bench) in BENCHES {
        if options.names.is_empty() || options.names.iter().any(|wanted| wanted == name) {
            eprintln!("{name}...");
            rows.extend(bench(options.scale));
        }
    }
    eprint!("{}", table::text(&rows));
    if options.json {
        println!("{}", table::json(&rows));
    }
    // A time depends on the machine; a count does not.
    if rows.iter().any(Row::is_a_wrong_count) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
