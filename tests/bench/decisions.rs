//! `decide`: pure decisions a second on one core, over everything that a controller sees in the life of a task.

use std::{hint::black_box, time::Duration};

use agent_operator::domain::Reason;
use agent_operator_controller::decide::{Observed, decide as decision};
use jiff::Timestamp;

use crate::{
    decide::Model,
    measure::{ROUNDS, Samples, Scale, now},
    table::Row,
};

/// What is seen at each moment of a task that needs a second attempt at its implementation.
fn life() -> Vec<(Observed, Timestamp)> {
    let mut model = Model::new();
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

pub fn run(scale: Scale) -> Vec<Row> {
    let seen = life();
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
    vec![Row::new("decide", "decisions/s a core", rates.median()).at_least(20_000.0)]
}
