//! Every process of the system is killed once and frozen once, in random order and at random moments of
//! the steps, while tasks run. No task may notice.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use agent_operator_supervisor::clock;
use serde_json::json;

use super::{
    harm::victim::{Node, Victim},
    say,
    trial::{Trial, assert_uncharged},
    witness::{Point, Witnesses},
};

/// Longest wait for the moment that was drawn; then the harm is done anyway.
const MOMENT: Duration = Duration::from_secs(8);
/// A killed kubelet or API server stays away for this long, and up to four times of it.
const AWAY: Duration = Duration::from_secs(1);
/// A frozen process stands still for this long, and up to four times of it: below the lease of a node
/// at first, above the lease of the controller and every keepalive at last.
const STILL: Duration = Duration::from_secs(3);
/// Rows of each implement step: some seconds.
const ROWS: u64 = 16;
/// Most tasks of one lane: a bound for the long run too.
const LANE_TASKS_MAX: usize = 200;

#[derive(Clone, Copy, Debug)]
enum Harm {
    Kill,
    Freeze,
}

/// One deck: every victim with every harm, on a node of the dice's choice.
fn deck(random: &mut fastrand::Rng) -> Vec<(Harm, Victim)> {
    let mut cards = Vec::new();
    for harm in [Harm::Kill, Harm::Freeze] {
        let mut node = || if random.bool() { Node::A } else { Node::B };
        cards.push((harm, Victim::Supervisor(node())));
        cards.push((harm, Victim::Gateway(node())));
        cards.push((harm, Victim::Kubelet(node())));
        cards.push((harm, Victim::Controller));
        cards.push((harm, Victim::ApiServer));
    }
    random.shuffle(&mut cards);
    cards
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{variable}={text}: {error}")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the local cluster: tests/run faults"]
async fn tasks_go_through_while_every_process_is_killed_and_frozen() {
    let now = clock::now().wall.as_microsecond().unsigned_abs();
    let seed = number("AO_FAULTS_SEED").unwrap_or(now % 1_000_000);
    let long = Duration::from_secs(number("AO_FAULTS_SECONDS").unwrap_or_default());
    say(&format!("AO_FAULTS_SEED={seed} AO_FAULTS_SECONDS={}", long.as_secs()));
    let mut random = fastrand::Rng::with_seed(seed);
    let trial = Trial::begin("deck").await;
    let done = AtomicBool::new(false);
    let harming = async {
        let until = tokio::time::Instant::now() + long;
        loop {
            for (number, card) in deck(&mut random).into_iter().enumerate() {
                harm(&trial.witnesses, &mut random, number, card).await;
            }
            if tokio::time::Instant::now() >= until {
                break;
            }
        }
        done.store(true, Ordering::Relaxed);
    };
    tokio::join!(harming, lane(&trial, &done), lane(&trial, &done));
    for task in trial.judge(true).await.values() {
        assert_uncharged(task);
    }
}

/// One task after the other, until the last card is played.
async fn lane(trial: &Trial, done: &AtomicBool) {
    for _ in 0..LANE_TASKS_MAX {
        let name = trial.ticking(ROWS, &json!({})).await;
        trial.end_of(&name).await;
        if done.load(Ordering::Relaxed) {
            break;
        }
    }
}

async fn harm(
    witnesses: &Witnesses,
    random: &mut fastrand::Rng,
    number: usize,
    (harm, victim): (Harm, Victim),
) {
    let point = random.choice(Point::ALL).expect("some points");
    let seen = witnesses.next(point, MOMENT).await;
    let moment = if seen { format!("at {point:?}") } else { "between".to_owned() };
    say(&format!("{number}: {harm:?} {victim} {moment}"));
    let factor = random.f64().mul_add(3.0, 1.0);
    match harm {
        Harm::Kill => {
            let killed = victim.kill();
            tokio::time::sleep(AWAY.mul_f64(factor)).await;
            drop(killed);
        }
        Harm::Freeze => {
            let frozen = victim.freeze();
            tokio::time::sleep(STILL.mul_f64(factor)).await;
            drop(frozen);
        }
    }
}
