//! What came out, for people and for programs.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// One measured thing.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// Bench and what of it.
    pub name: &'static str,
    pub unit: &'static str,
    pub ours: Option<f64>,
    pub floor: Option<f64>,
    pub peer: Option<f64>,
    goals: Vec<Goal>,
    /// A number of things, the same on every machine: beyond this the run fails.
    count: Option<f64>,
}

/// A line that is never moved.
#[derive(Clone, Debug)]
struct Goal {
    words: String,
    met: bool,
    /// How far beyond the line, as a factor.
    beyond: f64,
}

impl Row {
    pub fn new(name: &'static str, unit: &'static str, ours: Option<f64>) -> Self {
        Self { name, unit, ours, ..Self::default() }
    }

    pub fn floor(mut self, floor: Option<f64>) -> Self {
        self.floor = floor;
        self
    }

    pub fn peer(mut self, peer: Option<f64>) -> Self {
        self.peer = peer;
        self
    }

    /// Says that it is a count: more than `known` fails the run. Where the goal itself is missed, `known` is what stands
    /// in `docs/performance.md` with its reason, so that it grows no further.
    pub fn counted(mut self, known: f64) -> Self {
        self.count = Some(known);
        self
    }

    pub fn at_most(self, limit: f64) -> Self {
        let ours = self.ours;
        self.goal(format!("<= {}", number(limit)), ours, |ours| ours / limit)
    }

    pub fn at_least(self, limit: f64) -> Self {
        let ours = self.ours;
        self.goal(format!(">= {}", number(limit)), ours, |ours| limit / ours)
    }

    pub fn at_most_of_floor(self, times: f64) -> Self {
        let ratio = self.to_floor();
        self.goal(format!("<= {} x floor", number(times)), ratio, |ratio| ratio / times)
    }

    pub fn at_least_of_floor(self, times: f64) -> Self {
        let ratio = self.to_floor();
        self.goal(format!(">= {} x floor", number(times)), ratio, |ratio| times / ratio)
    }

    pub fn at_most_of_peer(self, times: f64) -> Self {
        let ratio = self.to_peer();
        self.goal(format!("<= {} x peer", number(times)), ratio, |ratio| ratio / times)
    }

    /// Adds a goal; what was not measured meets nothing and misses nothing.
    fn goal(mut self, words: String, value: Option<f64>, beyond: impl Fn(f64) -> f64) -> Self {
        if let Some(value) = value {
            // No limit of zero divides: 0 of 0 is met.
            let beyond = if value == 0.0 { 0.0 } else { beyond(value) };
            self.goals.push(Goal { words, met: beyond <= 1.0, beyond });
        }
        self
    }

    fn to_floor(&self) -> Option<f64> {
        ratio(self.ours, self.floor)
    }

    fn to_peer(&self) -> Option<f64> {
        ratio(self.ours, self.peer)
    }

    fn met(&self) -> Option<bool> {
        (!self.goals.is_empty()).then(|| self.goals.iter().all(|goal| goal.met))
    }

    fn goal_words(&self) -> String {
        self.goals.iter().map(|goal| goal.words.clone()).collect::<Vec<_>>().join(", ")
    }

    pub fn is_a_wrong_count(&self) -> bool {
        self.count.zip(self.ours).is_some_and(|(known, ours)| ours > known)
    }

    fn verdict(&self) -> String {
        let missed: Vec<_> = self.goals.iter().filter(|goal| !goal.met).collect();
        match (self.goals.is_empty(), missed.as_slice()) {
            (true, _) => "-".to_owned(),
            (false, []) => "met".to_owned(),
            (false, missed) => {
                let each = missed.iter().map(|goal| {
                    let times = if goal.beyond.is_finite() {
                        number(goal.beyond)
                    } else {
                        "far".to_owned()
                    };
                    format!("MISSED {}: {times} times the line", goal.words)
                });
                each.collect::<Vec<_>>().join("; ")
            }
        }
    }
}

fn ratio(ours: Option<f64>, other: Option<f64>) -> Option<f64> {
    let other = other.filter(|other| *other != 0.0)?;
    Some(ours? / other)
}

/// Three digits that count.
fn number(value: f64) -> String {
    let size = value.abs();
    if value.fract() == 0.0 || size >= 100.0 {
        format!("{value:.0}")
    } else if size >= 10.0 {
        format!("{value:.1}")
    } else if size >= 0.1 {
        format!("{value:.2}")
    } else {
        format!("{value:.4}")
    }
}

/// A Markdown table.
pub fn text(rows: &[Row]) -> String {
    let shown = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), number);
    let mut text = String::from(
        "\n| name | unit | ours | floor | peer | to floor | to peer | goal | |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {} | {} | {} | {} | {} | {} |",
            row.name,
            row.unit,
            shown(row.ours),
            shown(row.floor),
            shown(row.peer),
            shown(row.to_floor()),
            shown(row.to_peer()),
            row.goal_words(),
            row.verdict()
        );
    }
    text
}

pub fn json(rows: &[Row]) -> String {
    let rows: Vec<Value> = rows
        .iter()
        .map(|row| {
            json!({
                "name": row.name, "unit": row.unit, "ours": row.ours, "floor": row.floor, "peer": row.peer,
                "ratio_to_floor": row.to_floor(), "ratio_to_peer": row.to_peer(),
                "goal": row.goal_words(), "met": row.met(),
            })
        })
        .collect();
    serde_json::to_string_pretty(&rows).unwrap()
}
