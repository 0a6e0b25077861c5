//! Checks the invariants of docs/reliability.md against a history, after the fact. Its own tests plant
//! a violation of each.

use std::collections::{BTreeMap, BTreeSet};

use super::history::{Attempt, Event, History, What};

/// What a history is held to.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Retries that failures of the application may cost a task.
    pub application: i64,
    /// The same for the infrastructure.
    pub infrastructure: i64,
}

/// A broken invariant: its number and what was seen.
pub type Violation = (&'static str, String);

/// All violations in `history`.
pub fn check(history: &History, tasks: &[String], limits: Limits) -> Vec<Violation> {
    let events = &history.0;
    let mut found = Vec::new();
    found.extend(one_pod_an_attempt(events));
    found.extend(one_live_attempt_a_task(events));
    found.extend(one_outcome_a_run(events));
    found.extend(exit_codes_are_the_runtimes(events));
    found.extend(no_writes_when_converged(events));
    found.extend(one_pull_request_a_task(events));
    found.extend(retries_within_budget(events, limits));
    found.extend(every_task_ends(events, tasks));
    found.extend(given_up_attempts_publish_nothing(events));
    found
}

fn is_terminal(phase: &str) -> bool {
    matches!(phase, "Succeeded" | "Failed")
}

fn one_pod_an_attempt(events: &[Event]) -> Vec<Violation> {
    let mut pods: BTreeMap<&Attempt, BTreeSet<&String>> = BTreeMap::new();
    for event in events {
        if let What::PodStarted { run, pod, .. } = &event.what {
            pods.entry(run).or_default().insert(pod);
        }
    }
    let several = pods.into_iter().filter(|(_, pods)| pods.len() > 1);
    several.map(|(run, pods)| ("I1", format!("{run:?} had the pods {pods:?}"))).collect()
}

fn one_live_attempt_a_task(events: &[Event]) -> Vec<Violation> {
    let mut live: BTreeMap<&String, BTreeMap<&String, &Attempt>> = BTreeMap::new();
    let mut found = Vec::new();
    for event in events {
        match &event.what {
            What::PodStarted { task, run, pod, .. } => {
                let of_task = live.entry(task).or_default();
                of_task.insert(pod, run);
                if of_task.len() > 1 {
                    found.push(("I1", format!("at {} ms {task} had live {of_task:?}", event.at)));
                }
            }
            What::PodEnded { pod, .. } => {
                for of_task in live.values_mut() {
                    of_task.remove(pod);
                }
            }
            _ => {}
        }
    }
    found
}

fn one_outcome_a_run(events: &[Event]) -> Vec<Violation> {
    let mut ended: BTreeMap<&String, (&String, &String, Option<i32>)> = BTreeMap::new();
    let mut found = Vec::new();
    for event in events {
        let What::RunRecorded { run, phase, reason, code } = &event.what else { continue };
        let now = (phase, reason, *code);
        match ended.get(run) {
            Some(first) if *first != now => {
                found.push(("I2", format!("{run} ended as {first:?}, then as {now:?}")));
            }
            None if is_terminal(phase) => {
                ended.insert(run, now);
            }
            _ => {}
        }
    }
    found
}

/// A runner that has reported may be killed before it exits: its report decides, and the other code is
/// shown as a contradiction.
fn exit_codes_are_the_runtimes(events: &[Event]) -> Vec<Violation> {
    let mut codes: BTreeMap<&String, Option<i32>> = BTreeMap::new();
    let mut reported: BTreeMap<&String, i32> = BTreeMap::new();
    let mut found = Vec::new();
    for event in events {
        match &event.what {
            What::PodEnded { run, code, .. } => {
                codes.insert(&run.0, *code);
            }
            What::Reported { run, code } => {
                reported.insert(&run.0, *code);
            }
            What::RunRecorded { run, code, .. }
                if code.is_some() && *code == reported.get(run).copied() => {}
            What::RunRecorded { run, phase, reason, code } if is_terminal(phase) => {
                let real = codes.get(run).copied().flatten();
                let success = phase == "Succeeded";
                if success && (real != Some(0) || *code != Some(0)) {
                    found.push(("I3", format!("{run} succeeded with {code:?}, really {real:?}")));
                } else if code.is_some() && reason == "ExitCodeUnknown" {
                    found.push(("I3", format!("{run} has an unknown code {code:?}")));
                } else if code.is_some() && real.is_some() && *code != real {
                    found.push(("I3", format!("{run} recorded {code:?}, really {real:?}")));
                }
            }
            _ => {}
        }
    }
    found
}

fn no_writes_when_converged(events: &[Event]) -> Vec<Violation> {
    let late = events.iter().skip_while(|event| event.what != What::Converged);
    let writes = late.filter(|event| matches!(event.what, What::Written { .. }));
    writes.map(|event| ("I6", format!("when all was done: {:?}", event.what))).collect()
}

fn one_pull_request_a_task(events: &[Event]) -> Vec<Violation> {
    let mut opened: BTreeMap<&String, BTreeSet<i64>> = BTreeMap::new();
    for event in events {
        if let What::PullRequest { task, number } = &event.what {
            opened.entry(task).or_default().insert(*number);
        }
    }
    let several = opened.into_iter().filter(|(_, numbers)| numbers.len() > 1);
    several.map(|(task, numbers)| ("I7", format!("{task} has {numbers:?}"))).collect()
}

fn retries_within_budget(events: &[Event], limits: Limits) -> Vec<Violation> {
    let mut found = Vec::new();
    for event in events {
        if let What::Retries { task, application, infrastructure } = &event.what
            && (*application > limits.application || *infrastructure > limits.infrastructure)
        {
            found.push(("I8", format!("{task}: {application} and {infrastructure} retries")));
        }
    }
    found
}

fn every_task_ends(events: &[Event], tasks: &[String]) -> Vec<Violation> {
    let ended = |task: &&String| {
        events.iter().any(|event| match &event.what {
            What::TaskRecorded { task: of, phase } => {
                of == *task && matches!(phase.as_str(), "Complete" | "Failed")
            }
            What::TaskGone { task: of } => of == *task,
            _ => false,
        })
    };
    let open = tasks.iter().filter(|task| !ended(task));
    open.map(|task| ("I12", format!("{task} never ended"))).collect()
}

/// Fencing: what was given up must not move the work branch afterwards.
fn given_up_attempts_publish_nothing(events: &[Event]) -> Vec<Violation> {
    let mut given_up = BTreeSet::new();
    let mut found = Vec::new();
    for event in events {
        match &event.what {
            What::RunRecorded { run, phase, .. } if phase == "Failed" => {
                given_up.insert(run);
            }
            What::Published { run, .. } if given_up.contains(&run.0) => {
                found.push(("I7", format!("{run:?} published at {} ms after its end", event.at)));
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { application: 3, infrastructure: 3 };

    fn run() -> Attempt {
        ("r".to_owned(), 1)
    }

    fn started(pod: &str, run: Attempt) -> What {
        let (task, step, node) = ("t".to_owned(), "plan".to_owned(), "a".to_owned());
        What::PodStarted { task, step, run, pod: pod.to_owned(), node }
    }

    fn ended(pod: &str, code: Option<i32>) -> What {
        What::PodEnded { pod: pod.to_owned(), run: run(), code }
    }

    fn recorded(phase: &str, reason: &str, code: Option<i32>) -> What {
        let (phase, reason) = (phase.to_owned(), reason.to_owned());
        What::RunRecorded { run: run().0, phase, reason, code }
    }

    fn task(phase: &str) -> What {
        What::TaskRecorded { task: "t".to_owned(), phase: phase.to_owned() }
    }

    fn violations(events: Vec<What>) -> Vec<&'static str> {
        let events = events.into_iter().map(|what| Event { at: 0, what }).collect();
        let found = check(&History(events), &["t".to_owned()], LIMITS);
        found.into_iter().map(|(invariant, _)| invariant).collect()
    }

    /// A history in which all is well.
    fn sound() -> Vec<What> {
        vec![
            started("p", run()),
            ended("p", Some(0)),
            recorded("Succeeded", "Completed", Some(0)),
            recorded("Succeeded", "Completed", Some(0)),
            What::PullRequest { task: "t".to_owned(), number: 1 },
            task("Complete"),
            What::Converged,
        ]
    }

    /// The sound one with `more` before its end.
    fn with(more: What) -> Vec<What> {
        let mut events = sound();
        events.insert(4, more);
        events
    }

    #[test]
    fn a_sound_history_has_no_violation() {
        assert_eq!(violations(sound()), Vec::<&str>::new());
    }

    #[test]
    fn i1_a_second_pod_of_an_attempt_is_found() {
        let mut events = with(started("q", run()));
        events.insert(5, ended("q", Some(0)));
        assert_eq!(violations(events), ["I1"]);
    }

    #[test]
    fn i1_two_live_attempts_of_a_task_are_found() {
        let mut events = sound();
        events.insert(1, started("q", ("r2".to_owned(), 1)));
        assert_eq!(violations(events), ["I1"]);
    }

    #[test]
    fn i2_a_changed_outcome_is_found() {
        assert_eq!(violations(with(recorded("Failed", "AgentFailed", None))), ["I2"]);
    }

    #[test]
    fn i3_a_success_that_the_runtime_did_not_see_is_found() {
        let mut events = sound();
        events[1] = ended("p", Some(137));
        assert_eq!(violations(events), ["I3", "I3"]);
        let mut events = sound();
        events[1] = ended("p", None);
        assert_eq!(violations(events), ["I3", "I3"]);
    }

    #[test]
    fn i3_what_the_runner_reported_decides_although_it_was_killed_afterwards() {
        let mut events = sound();
        events[1] = ended("p", Some(137));
        events.insert(1, What::Reported { run: run(), code: 0 });
        assert_eq!(violations(events), Vec::<&str>::new());
    }

    #[test]
    fn i3_a_guessed_code_is_found() {
        let events =
            vec![ended("p", None), recorded("Failed", "ExitCodeUnknown", Some(1)), task("Failed")];
        assert_eq!(violations(events), ["I3"]);
        let events =
            vec![ended("p", Some(2)), recorded("Failed", "AgentFailed", Some(1)), task("Failed")];
        assert_eq!(violations(events), ["I3"]);
    }

    #[test]
    fn i6_a_write_of_a_converged_system_is_found() {
        let mut events = sound();
        let text = || "x".to_owned();
        events.push(What::Written { by: text(), verb: text(), object: text() });
        assert_eq!(violations(events), ["I6"]);
    }

    #[test]
    fn i7_a_second_pull_request_is_found() {
        let second = What::PullRequest { task: "t".to_owned(), number: 2 };
        assert_eq!(violations(with(second)), ["I7"]);
    }

    #[test]
    fn i7_a_commit_of_an_attempt_that_was_given_up_is_found() {
        let events = vec![
            recorded("Failed", "Disrupted", None),
            What::Published { task: "t".to_owned(), run: run() },
            task("Failed"),
        ];
        assert_eq!(violations(events), ["I7"]);
    }

    #[test]
    fn i8_a_retry_beyond_the_budget_is_found() {
        let retries = |application, infrastructure| What::Retries {
            task: "t".to_owned(),
            application,
            infrastructure,
        };
        assert_eq!(violations(with(retries(4, 0))), ["I8"]);
        assert_eq!(violations(with(retries(0, 4))), ["I8"]);
        assert_eq!(violations(with(retries(3, 3))), Vec::<&str>::new());
    }

    #[test]
    fn i12_a_task_without_an_end_is_found() {
        assert_eq!(violations(vec![started("p", run()), task("Planning")]), ["I12"]);
    }
}
