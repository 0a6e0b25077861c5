//! The clocks of a simulation: tokio's paused time, and wall clocks that differ from one another, run
//! at different speeds and can be stepped.
//!
//! All share one thread, so a wall clock is chosen by whose code is being run: the controllers' crate
//! and the supervisors' ask separately, and a supervisor's tasks are polled with their node's clock
//! ([`OnNode`]). Timers of all follow tokio's one clock, as monotonic clocks on healthy machines do.

use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use agent_operator::domain::ids::BootId;
use agent_operator_controller::clock as of_controller;
use agent_operator_supervisor::{
    clock as of_supervisor,
    steps::moment::{BootTime, Now},
};
use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::world::World;

/// What the wall clocks show when a simulation begins, if they are right.
const BEGIN_SECONDS: i64 = 1_800_000_000;
/// What the boot-time clock shows then.
const BOOTED_SECONDS: i64 = 1000;

/// Most seconds by which a wall clock is wrong from the beginning on.
const WRONG_SECONDS_MAX: i64 = 600;
/// Most millionths by which it is too fast or too slow.
const WRONG_PPM_MAX: i64 = 10_000;

/// Whose wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The API server's.
    ApiServer,
    /// The controllers'.
    Controllers,
    /// That of a node, by its place among the nodes.
    Node(usize),
}

/// Wall clocks: API server, controllers, two nodes.
pub const CLOCKS: [Whose; 4] =
    [Whose::ApiServer, Whose::Controllers, Whose::Node(0), Whose::Node(1)];

/// How a wall clock is wrong.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wrong {
    /// Ahead by so many seconds.
    pub ahead_seconds: i64,
    /// Too fast by so many millionths.
    pub fast_ppm: i64,
}

thread_local! {
    static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
    static WRONG: RefCell<[Wrong; CLOCKS.len()]> = const { RefCell::new([Wrong { ahead_seconds: 0, fast_ppm: 0 }; CLOCKS.len()]) };
    /// The clock that a supervisor reads right now.
    static OF_SUPERVISOR: Cell<Whose> = const { Cell::new(Whose::ApiServer) };
    static BOOT: Cell<u32> = const { Cell::new(0) };
}

/// Begins a simulation on this thread, inside its runtime. All clocks are right.
pub fn begin() {
    BEGAN.set(Some(Instant::now()));
    WRONG.set([Wrong::default(); CLOCKS.len()]);
    of_controller::simulate(|| wall(Whose::Controllers));
    of_supervisor::simulate(of_supervisor::Simulated { now, boot_id });
}

/// Nanoseconds since the beginning.
fn elapsed_nanos() -> i64 {
    let began = BEGAN.get().expect("a simulation has begun on this thread");
    i64::try_from(began.elapsed().as_nanos()).unwrap()
}

/// Time since the beginning.
pub fn elapsed() -> Duration {
    Duration::from_nanos(u64::try_from(elapsed_nanos()).unwrap())
}

fn index(whose: Whose) -> usize {
    CLOCKS.iter().position(|clock| *clock == whose).unwrap()
}

fn wrong(whose: Whose) -> Wrong {
    WRONG.with_borrow(|wrong| wrong[index(whose)])
}

/// The time that nobody in the simulation knows, for its history.
pub fn truth() -> Timestamp {
    Timestamp::from_second(BEGIN_SECONDS).unwrap() + SignedDuration::from_nanos(elapsed_nanos())
}

/// A wall clock.
pub fn wall(whose: Whose) -> Timestamp {
    let Wrong { ahead_seconds, fast_ppm } = wrong(whose);
    let gained_nanos = elapsed_nanos() / 1_000_000 * fast_ppm;
    truth() + SignedDuration::from_secs(ahead_seconds) + SignedDuration::from_nanos(gained_nanos)
}

/// The API server's wall clock.
pub fn of_api_server() -> Timestamp {
    wall(Whose::ApiServer)
}

/// Makes half of the wall clocks wrong from the beginning on.
pub fn set_all(world: &World) {
    for whose in CLOCKS {
        if world.chance(500) {
            let ahead_seconds = world.rng().i64(-WRONG_SECONDS_MAX..=WRONG_SECONDS_MAX);
            let fast_ppm = world.rng().i64(-WRONG_PPM_MAX..=WRONG_PPM_MAX);
            let wrong = Wrong { ahead_seconds, fast_ppm };
            world.note(format!("the clock of {whose:?} is wrong: {wrong:?}"));
            WRONG.with_borrow_mut(|all| all[index(whose)] = wrong);
        }
    }
}

/// Steps all wall clocks together, or one of them alone.
pub fn step(world: &World, seconds: i64) {
    let pick = world.rng().usize(0..=CLOCKS.len());
    let stepping = if pick == CLOCKS.len() { &CLOCKS[..] } else { &CLOCKS[pick..=pick] };
    world.note(format!("wall clocks of {stepping:?} step by {seconds} s"));
    for whose in stepping {
        WRONG.with_borrow_mut(|all| all[index(*whose)].ahead_seconds += seconds);
    }
}

/// How far the wall clock that is furthest behind is behind the truth, and behind any other.
pub fn behind() -> Duration {
    let ahead = CLOCKS.map(|whose| wall(whose).duration_since(truth()).as_secs());
    let (most, least) = (ahead.iter().max().unwrap(), ahead.iter().min().unwrap());
    let behind = (most - least).max(-least);
    Duration::from_secs(u64::try_from(behind).unwrap_or(0))
}

/// The boot that a supervisor reads that starts next.
pub fn set_boot(boot: u32) {
    BOOT.set(boot);
}

/// Runs something with a node's clock.
pub fn on_node<T>(node: usize, work: impl FnOnce() -> T) -> T {
    let before = OF_SUPERVISOR.replace(Whose::Node(node));
    let done = work();
    OF_SUPERVISOR.set(before);
    done
}

/// A future that is polled with a node's clock. Tasks that it spawns are not; in a supervisor none of
/// those reads the wall clock.
pub struct OnNode<F> {
    node: usize,
    work: Pin<Box<F>>,
}

impl<F> OnNode<F> {
    pub fn new(node: usize, work: F) -> Self {
        Self { node, work: Box::pin(work) }
    }
}

impl<F: Future> Future for OnNode<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let node = self.node;
        on_node(node, || self.work.as_mut().poll(context))
    }
}

fn now() -> Now {
    let boot = BootTime(BOOTED_SECONDS * 1_000_000_000 + elapsed_nanos());
    Now { boot, wall: wall(OF_SUPERVISOR.get()) }
}

fn boot_id() -> BootId {
    BootId::new(format!("boot-{}", BOOT.get()))
}
