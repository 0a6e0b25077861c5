//! What happened, as the outside saw it, and whether it kept the promises.
//!
//! A [`History`] is one log of facts from witnesses that are not the system itself: the container
//! runtime (starts and ends of agent containers), the API server's audit log (assignments, status
//! writes), the forge (pull requests), and a reader of the followed logs. [`check`] reads it as a whole
//! and names every break of I1 to I12. It knows nothing of the code that it judges: names of reasons and
//! their budgets are written down here a second time, on purpose.
//!
//! The same judge sits over real nodes (`tests/e2e/faults`) and over the simulation
//! (`tests/simulation`), whose witnesses see other things: an invariant is held against whatever facts
//! there are.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    time::Duration,
};

use jiff::Timestamp;

mod attempts;
mod effects;
mod ends;
mod outcomes;

#[cfg(test)]
mod tests;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// When, by the machine's clock.
    pub at: Timestamp,
    /// What.
    pub fact: Fact,
}

/// What can happen. Tasks and runs go by their names; those are never used twice in one history.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    /// A task was made.
    TaskMade {
        /// The task.
        task: String,
        /// Its `maxRetries`.
        retries_max: u32,
    },
    /// A run was made durable, and may be handed to its node from now on.
    Assigned {
        /// The run.
        run: String,
        /// Its task.
        task: String,
        /// Where it is to run.
        node: String,
        /// Longest time from the opening of its gate to its end, grace not included.
        timeout: Duration,
        /// Term of the controller that decided.
        epoch: i64,
        /// Made ahead, beside the step before: it is a live attempt from the opening of its gate.
        prepared: bool,
    },
    /// The runtime started an agent container.
    Started {
        /// Whose.
        run: String,
        /// Identity of the pod.
        pod: String,
        /// Where.
        node: String,
    },
    /// The gate of a run opened, as its sandbox saw it.
    Opened {
        /// Whose.
        run: String,
        /// What of its time was gone when the sandbox heard of it, for the gateway that was told to open
        /// it had been restarted. The step's clock starts with the supervisor's order.
        gone: Duration,
    },
    /// The runner has told its gateway how the step ended.
    Reported {
        /// Whose.
        run: String,
        /// The exit code that it told.
        exit_code: i32,
    },
    /// The runtime saw the end of an agent container.
    Ended {
        /// Whose.
        run: String,
        /// Identity of the pod.
        pod: String,
        /// The exit code of its main process; none: the runtime itself was away and has lost it.
        exit_code: Option<i32>,
    },
    /// The status of a run was written.
    Recorded {
        /// The run.
        run: String,
        /// Its phase.
        phase: String,
        /// Why it ended.
        reason: Option<String>,
        /// The exit code on record.
        exit_code: Option<i32>,
        /// When its gate opened, where no sandbox tells it.
        opened: Option<Timestamp>,
        /// Whether an open gate is on record.
        began: bool,
    },
    /// A run has the condition that the kubelet's record contradicts its runner's report.
    Contradicted {
        /// The run.
        run: String,
    },
    /// The status of a task was written.
    TaskRecorded {
        /// The task.
        task: String,
        /// Its phase.
        phase: String,
        /// Retries on record.
        retries: Retries,
    },
    /// A task was deleted, and its runs with it.
    TaskGone {
        /// The task.
        task: String,
    },
    /// A run was deleted, with whatever stood in it.
    RunGone {
        /// The run.
        run: String,
    },
    /// A person declared that nothing of this node has an effect any more.
    Fenced {
        /// The node.
        node: String,
    },
    /// The word about a fenced node was taken back.
    Trusted {
        /// The node.
        node: String,
    },
    /// A commit of a run moved the work branch upstream.
    Published {
        /// The run.
        run: String,
    },
    /// A pull request of a task was found at the forge.
    PullRequest {
        /// The task.
        task: String,
        /// Its number.
        number: i64,
    },
    /// A numbered row of a run's log arrived at its reader.
    Row {
        /// The run.
        run: String,
        /// Number of the row, from 0.
        row: u64,
    },
    /// A gap arrived in place of rows.
    Gap {
        /// The run.
        run: String,
    },
    /// The log of a run was read to its end.
    Read {
        /// The run.
        run: String,
        /// How many rows it printed.
        rows: u64,
    },
    /// From here on nothing was left to do, until the time given.
    Quiet {
        /// The end of the quiet.
        until: Timestamp,
    },
    /// The system wrote an object of ours.
    Wrote {
        /// Who.
        by: String,
        /// Verb and object.
        what: String,
    },
    /// Something of an attempt is still there although all has ended and had its time to be tidied up.
    Left {
        /// What: a pod, a grant.
        what: String,
    },
    /// A secret stands where none may stand.
    Leaked {
        /// Where.
        place: String,
    },
    /// A process of the system ended by itself.
    Died {
        /// Which.
        process: String,
    },
    /// What was done to the system, for people who read. It accuses nobody.
    Note {
        /// In words.
        what: String,
    },
}

/// Retries on record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retries {
    /// Charged to the agent or the code.
    pub application: u32,
    /// Charged to nodes and the like.
    pub infrastructure: u32,
    /// Charged to model and forge.
    pub provider: u32,
}

/// A promise (see the invariants of the reliability page).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// At most one pod per run; at most one live attempt per task.
    I1,
    /// One outcome per run, never changed, and not before its end.
    I2,
    /// The exit code is the runtime's; no success by default. Report and record of a runner that nobody
    /// killed agree.
    I3,
    /// Dead by deadline, grace and slack, and not for its deadline before it.
    I4,
    /// Every row once and in order, or a gap in its place.
    I5,
    /// No writes while there is nothing to do.
    I6,
    /// One pull request per task.
    I7,
    /// Retries within their budgets, counted apart.
    I8,
    /// Nothing without a live owner is left.
    I9,
    /// No secret where none may be.
    I10,
    /// No process ends by itself.
    I11,
    /// Every task ends.
    I12,
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq)]
pub struct Violation {
    /// Which.
    pub invariant: Invariant,
    /// How.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.what)
    }
}

/// The numbers that the promises contain.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Time between the order to stop and SIGKILL.
    pub grace: Duration,
    /// How much later than deadline and grace a container may end, the witnesses' own delays included.
    pub slack: Duration,
    /// How late a witness may write down an end: two moments closer than this have no order.
    pub skew: Duration,
    /// Retries after lost nodes and the like.
    pub infrastructure_retries: u32,
    /// Which of its witnesses tell everything.
    pub witnesses: Witnesses,
}

/// What a history can be trusted to tell whole. Where it cannot, some breaks look like none.
#[derive(Clone, Copy, Debug)]
pub struct Witnesses {
    /// Every report of a runner is a fact. If not, the runner's word is believed wherever the runtime
    /// has lost an exit code.
    pub reports: bool,
    /// Facts come in the order of their causes: no write is held up on its way beyond the term of the
    /// controller that sent it. Where writes are held up on purpose, an assignment of an older term may
    /// come late; it is the node that must not obey it.
    pub prompt_writes: bool,
}

/// The log of one stretch of time.
#[derive(Clone, Debug, Default)]
pub struct History {
    events: Vec<Event>,
}

impl History {
    /// Adds a fact; they may come in any order.
    pub fn push(&mut self, at: Timestamp, fact: Fact) {
        self.events.push(Event { at, fact });
    }

    /// The facts in the order of their time; those of one moment in the order in which they came.
    pub fn sorted(&self) -> Vec<Event> {
        let mut events = self.events.clone();
        events.sort_by_key(|event| event.at);
        events
    }

    /// One line of counts, for people.
    pub fn summary(&self) -> String {
        let mut counts: BTreeMap<&'static str, usize> = BTreeMap::new();
        for event in &self.events {
            *counts.entry(event.fact.word()).or_default() += 1;
        }
        let words: Vec<String> =
            counts.iter().map(|(word, count)| format!("{count} {word}")).collect();
        words.join(", ")
    }

    /// One line for each fact, with the seconds since the first.
    pub fn text(&self) -> String {
        let events = self.sorted();
        let Some(first) = events.first().map(|event| event.at) else { return String::new() };
        events.iter().fold(String::new(), |mut text, event| {
            let since = event.at.duration_since(first).as_secs_f64();
            let _ = writeln!(text, "{since:>9.3} {:?}", event.fact);
            text
        })
    }

    /// How many facts are `such`.
    pub fn count(&self, such: impl Fn(&Fact) -> bool) -> usize {
        self.events.iter().filter(|event| such(&event.fact)).count()
    }
}

impl Fact {
    fn word(&self) -> &'static str {
        match self {
            Self::TaskMade { .. } => "tasks",
            Self::Assigned { .. } => "assignments",
            Self::Started { .. } => "container starts",
            Self::Opened { .. } => "open gates",
            Self::Reported { .. } => "reports",
            Self::Ended { .. } => "container ends",
            Self::Recorded { .. } => "run status writes",
            Self::Contradicted { .. } => "contradicted reports",
            Self::TaskRecorded { .. } => "task status writes",
            Self::TaskGone { .. } => "deleted tasks",
            Self::RunGone { .. } => "deleted runs",
            Self::Fenced { .. } => "fences",
            Self::Trusted { .. } => "lifted fences",
            Self::Published { .. } => "published commits",
            Self::PullRequest { .. } => "pull requests",
            Self::Row { .. } => "log rows",
            Self::Gap { .. } => "gaps",
            Self::Read { .. } => "logs read",
            Self::Quiet { .. } => "quiet times",
            Self::Wrote { .. } => "writes",
            Self::Left { .. } => "leftovers",
            Self::Leaked { .. } => "leaks",
            Self::Died { .. } => "dead processes",
            Self::Note { .. } => "notes",
        }
    }
}

/// Every broken promise of a history.
pub fn check(history: &History, rules: &Rules) -> Vec<Violation> {
    let events = history.sorted();
    let runs = attempts::runs(&events);
    let mut found = attempts::check(&events, &runs, rules);
    found.extend(outcomes::check(&events, &runs, rules));
    found.extend(effects::check(&events, &runs, rules));
    found.extend(ends::check(&events));
    found.sort_by_key(|violation| violation.invariant);
    found
}

/// The latest end of a container after its deadline and grace, if any was that late.
pub fn latest_end(history: &History, rules: &Rules) -> Option<Duration> {
    let events = history.sorted();
    outcomes::lateness(&attempts::runs(&events), rules).into_iter().map(|(_, late)| late).max()
}

fn violation(invariant: Invariant, what: impl Into<String>) -> Violation {
    Violation { invariant, what: what.into() }
}
