//! I1: at most one pod per run, at most one live attempt per task, and none that nobody asked for.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;

use super::{Event, Fact, Invariant, Rules, Violation, violation};

/// The story of one run.
#[derive(Clone, Debug, Default)]
pub(super) struct Run {
    pub(super) task: String,
    pub(super) assigned: Option<Assigned>,
    pub(super) containers: Vec<Container>,
    /// When its sandbox saw the gate open.
    seen_open: Option<Timestamp>,
    /// Exit codes that its runner reported.
    pub(super) reported: Vec<i32>,
    /// Whether the kubelet's record is shown to contradict the report.
    pub(super) contradicted: bool,
    /// Status writes in order.
    pub(super) records: Vec<Record>,
}

#[derive(Clone, Debug)]
pub(super) struct Assigned {
    pub(super) at: Timestamp,
    pub(super) node: String,
    pub(super) timeout: Duration,
    prepared: bool,
}

/// One agent container.
#[derive(Clone, Debug)]
pub(super) struct Container {
    pub(super) pod: String,
    pub(super) node: String,
    pub(super) started: Timestamp,
    pub(super) ended: Option<(Timestamp, Option<i32>)>,
}

impl Container {
    /// Whether it ran at this moment, and for longer than a witness of its end may be late.
    pub(super) fn lives_at(&self, moment: Timestamp, skew: Duration) -> bool {
        let lives_on = |end: Timestamp| end.duration_since(moment).unsigned_abs() > skew;
        self.started <= moment && self.ended.is_none_or(|(end, _)| moment < end && lives_on(end))
    }
}

/// One write of a run's status.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) at: Timestamp,
    pub(super) phase: String,
    pub(super) reason: Option<String>,
    pub(super) exit_code: Option<i32>,
    pub(super) opened: Option<Timestamp>,
    began: bool,
}

impl Record {
    pub(super) fn is_terminal(&self) -> bool {
        matches!(self.phase.as_str(), "Succeeded" | "Failed")
    }
}

impl Run {
    /// The first terminal record.
    pub(super) fn outcome(&self) -> Option<&Record> {
        self.records.iter().find(|record| record.is_terminal())
    }

    /// Whether it was made ahead and ended behind its gate, as far as anybody recorded: then nothing was tried.
    pub(super) fn waited_in_vain(&self) -> bool {
        self.is_prepared() && !self.records.iter().any(|record| record.began)
    }

    fn is_prepared(&self) -> bool {
        self.assigned.as_ref().is_some_and(|assigned| assigned.prepared)
    }

    /// Since when one of its containers is a live attempt. What waits behind its gate is none.
    fn lives_since(&self, container: &Container) -> Option<Timestamp> {
        if self.is_prepared() { self.opened() } else { Some(container.started) }
    }

    /// When the gate opened: by its sandbox, else by the first record that says so.
    pub(super) fn opened(&self) -> Option<Timestamp> {
        self.seen_open.or_else(|| self.records.iter().find_map(|record| record.opened))
    }
}

/// The stories, by run.
pub(super) fn runs(events: &[Event]) -> BTreeMap<String, Run> {
    let mut runs: BTreeMap<String, Run> = BTreeMap::new();
    for event in events {
        match &event.fact {
            Fact::Assigned { run, task, node, timeout, prepared, .. } => {
                let story = runs.entry(run.clone()).or_default();
                story.task.clone_from(task);
                let (at, node, timeout, prepared) = (event.at, node.clone(), *timeout, *prepared);
                story.assigned.get_or_insert(Assigned { at, node, timeout, prepared });
            }
            Fact::Started { run, pod, node } => {
                let (pod, node, started) = (pod.clone(), node.clone(), event.at);
                let story = runs.entry(run.clone()).or_default();
                story.containers.push(Container { pod, node, started, ended: None });
            }
            Fact::Ended { run, pod, exit_code } => {
                let containers = &mut runs.entry(run.clone()).or_default().containers;
                let of_pod = containers.iter_mut().find(|c| c.pod == *pod && c.ended.is_none());
                if let Some(container) = of_pod {
                    container.ended = Some((event.at, *exit_code));
                }
            }
            Fact::Opened { run, gone } => {
                let opened = event.at.checked_sub(*gone).unwrap_or(event.at);
                runs.entry(run.clone()).or_default().seen_open.get_or_insert(opened);
            }
            Fact::Reported { run, exit_code } => {
                runs.entry(run.clone()).or_default().reported.push(*exit_code);
            }
            Fact::Contradicted { run } => {
                runs.entry(run.clone()).or_default().contradicted = true;
            }
            Fact::Recorded { run, phase, reason, exit_code, opened, began } => {
                runs.entry(run.clone()).or_default().records.push(Record {
                    at: event.at,
                    phase: phase.clone(),
                    reason: reason.clone(),
                    exit_code: *exit_code,
                    opened: *opened,
                    began: *began,
                });
            }
            _ => {}
        }
    }
    runs
}

/// When each node was fenced, and until when.
pub(super) fn fences(events: &[Event]) -> Fences<'_> {
    let mut fences = Fences::default();
    for event in events {
        match &event.fact {
            Fact::Fenced { node } => {
                let of_node = fences.0.entry(node.as_str()).or_default();
                of_node.push(Fence { since: event.at, until: None });
            }
            Fact::Trusted { node } => {
                for fence in fences.0.get_mut(node.as_str()).into_iter().flatten() {
                    fence.until.get_or_insert(event.at);
                }
            }
            _ => {}
        }
    }
    fences
}

/// The time in which a node was fenced.
#[derive(Debug)]
struct Fence {
    since: Timestamp,
    until: Option<Timestamp>,
}

/// The fences of all nodes.
#[derive(Debug, Default)]
pub(super) struct Fences<'a>(BTreeMap<&'a str, Vec<Fence>>);

impl Fences<'_> {
    /// Whether what runs in this container was cut off by `moment`. A fence speaks of all that its node
    /// has, also of what a controller gives it that has not seen the fence yet; and not of what it is
    /// given once it is trusted again.
    pub(super) fn cut_off(&self, run: &Run, container: &Container, moment: Timestamp) -> bool {
        let given = run.assigned.as_ref().map_or(container.started, |assigned| assigned.at);
        let mut of_node = self.0.get(container.node.as_str()).into_iter().flatten();
        of_node.any(|fence| fence.since <= moment && fence.until.is_none_or(|until| given <= until))
    }
}

pub(super) fn check(
    events: &[Event],
    runs: &BTreeMap<String, Run>,
    rules: &Rules,
) -> Vec<Violation> {
    let mut found = Vec::new();
    for (name, run) in runs {
        found.extend(one_pod(name, run));
        found.extend(as_assigned(name, run));
    }
    found.extend(one_live(runs, &fences(events), rules.skew));
    if rules.witnesses.prompt_writes {
        found.extend(rising_epochs(events));
    }
    found
}

fn one_pod(name: &str, run: &Run) -> Option<Violation> {
    let pods: BTreeSet<&str> = run.containers.iter().map(|c| c.pod.as_str()).collect();
    let (containers, pods) = (run.containers.len(), pods.len());
    (containers > 1).then(|| {
        violation(Invariant::I1, format!("{name} was started {containers} times in {pods} pods"))
    })
}

fn as_assigned(name: &str, run: &Run) -> Option<Violation> {
    let first = run.containers.first()?;
    let Some(assigned) = &run.assigned else {
        return Some(violation(Invariant::I1, format!("{name} runs and nobody assigned it")));
    };
    if first.started < assigned.at {
        return Some(violation(Invariant::I1, format!("{name} runs before it was assigned")));
    }
    (first.node != assigned.node).then(|| {
        let what = format!("{name} runs on {}, assigned to {}", first.node, assigned.node);
        violation(Invariant::I1, what)
    })
}

/// Two attempts of a task at once; what runs on a fenced node does not count from then on.
fn one_live(runs: &BTreeMap<String, Run>, fences: &Fences<'_>, skew: Duration) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut all: Vec<(&Run, &str, &Container, Timestamp)> = Vec::new();
    for (name, run) in runs {
        for container in &run.containers {
            all.extend(
                run.lives_since(container).map(|since| (run, name.as_str(), container, since)),
            );
        }
    }
    all.sort_by_key(|(run, _, _, since)| (run.task.as_str(), *since));
    for (index, (Run { task, .. }, name, _, since)) in all.iter().enumerate() {
        for (of, other, earlier, _) in all[..index].iter().filter(|(of, ..)| of.task == *task) {
            let cut_off = fences.cut_off(of, earlier, *since);
            if other != name && earlier.lives_at(*since, skew) && !cut_off {
                let what = format!("{name} started while {other} was running ({task})");
                found.push(violation(Invariant::I1, what));
            }
        }
    }
    found
}

/// Terms only rise: a decision of an older one after a newer one is a leader that should be gone.
fn rising_epochs(events: &[Event]) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut highest = i64::MIN;
    for event in events {
        let Fact::Assigned { run, epoch, .. } = &event.fact else { continue };
        if *epoch < highest {
            let what = format!("{run} was assigned in term {epoch}, after term {highest}");
            found.push(violation(Invariant::I1, what));
        }
        highest = highest.max(*epoch);
    }
    found
}
