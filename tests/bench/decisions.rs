//! `decide`: pure decisions a second on one core, over everything that a controller sees in the life of a task.

use std::{hint::black_box, time::Duration};

use agent_operator::domain::Reason;
use agent_operator_controller::decide::{Observed, decide as decision};
use jiff::Timestamp;

use crate::{
    decide::{Model, node},
    measure::{ROUNDS, Samples, Scale, now},
    table::Row,
};

/// What is seen at each moment of a task that needs a second attempt at its implementation.
fn life(nodes: usize) -> Vec<(Observed, Timestamp)> {
    let mut model = Model::new();
    model.nodes.extend((2..nodes).map(|number| node(&format!("node-{number}"))));
    let mut seen = Vec::new();
    let mut look = |model: &mut Model| {
        seen.push((model.observed(), model.now));
        model.settle();
        seen.push((model.observed(), model.now));
    };
    look(&mut model);
    let reasons = [
        Reason::Completed,
        Reason::Completed,
        Reason::VerifyFailed,
        Reason::Completed,
        Reason::Completed,
    ];
    for reason in reasons.into_iter().chain([Reason::Completed]) {
        model.start_live();
        look(&mut model);
        model.advance(10);
        model.end_live(reason, Some("output of the step\nlast line"));
        look(&mut model);
    }
    assert!(model.finished(), "the task of the bench ends: {}", model.message());
    seen
}

/// Decisions a second beside so many nodes, which each decision about a place looks through.
fn rate(scale: Scale, nodes: usize) -> Option<f64> {
    let seen = life(nodes);
    let period = scale.pick(Duration::from_secs(1), Duration::from_millis(100));
    let mut rates = Samples::default();
    for _ in 0..ROUNDS {
        let (began, mut decisions) = (now(), 0_u32);
        while began.elapsed() < period {
            for (observed, at) in &seen {
                black_box(decision(black_box(observed), *at));
                decisions += 1;
            }
        }
        rates.add(f64::from(decisions) / began.elapsed().as_secs_f64());
    }
    rates.median()
}

pub fn run(scale: Scale) -> Vec<Row> {
    let unit = "decisions/s a core";
    vec![
        Row::new("decide", unit, rate(scale, 2)).at_least(20_000.0),
        Row::new("decide at 100 nodes", unit, rate(scale, 100)),
        Row::new("decide at 1,000 nodes", unit, rate(scale, 1000)),
        Row::new("decide at 10,000 nodes", unit, rate(scale, 10_000)),
    ]
}
