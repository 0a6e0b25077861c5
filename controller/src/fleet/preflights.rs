//! Which node was asked for which preflight, and what it answered. In memory only: after a restart,
//! or when a session ends, the question is simply put again.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use agent_operator::domain::{Epoch, NodeName, PreflightKey, PreflightReport, TaskUid};
use jiff::Timestamp;

use crate::decide::{PreflightAnswer, PreflightAsked, PreflightView};

/// Tasks remembered at most: beyond it all are dropped, and their preflights are repeated.
const TASKS_MAX: usize = 20_000;

/// The preflights of all tasks.
#[derive(Default)]
pub struct Preflights(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    serial: u64,
    tasks: HashMap<TaskUid, Entry>,
}

struct Entry {
    /// Namespace and name.
    task: (String, String),
    generation: i64,
    asked: Option<(PreflightKey, PreflightAsked)>,
    answer: Option<PreflightAnswer>,
}

impl Preflights {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere leaves at worst a question that is put twice.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key for an order to `node`. The same question to the same node keeps its key, so that a
    /// repetition does not do the work twice.
    pub fn ask(
        &self,
        (namespace, name): (&str, &str),
        (uid, generation): (&TaskUid, i64),
        (node, epoch): (&NodeName, Epoch),
        now: Timestamp,
    ) -> PreflightKey {
        let mut inner = self.lock();
        if inner.tasks.len() >= TASKS_MAX && !inner.tasks.contains_key(uid) {
            inner.tasks.clear();
        }
        inner.serial = inner.serial.wrapping_add(1);
        let serial = inner.serial;
        let entry = inner.tasks.entry(uid.clone()).or_insert_with(|| Entry {
            task: (namespace.to_owned(), name.to_owned()),
            generation,
            asked: None,
            answer: None,
        });
        if entry.generation != generation {
            (entry.generation, entry.asked, entry.answer) = (generation, None, None);
        }
        let same = entry.asked.take().filter(|(key, asked)| {
            asked.node == *node && key.generation == generation && key.epoch == epoch
        });
        let (key, since) = match same {
            Some((key, asked)) => (key, asked.since),
            None => (PreflightKey { task: uid.clone(), generation, epoch, serial }, now),
        };
        entry.asked = Some((key.clone(), PreflightAsked { node: node.clone(), since, last: now }));
        key
    }

    /// Takes an answer. Gives the task that it concerns, unless it is late news.
    pub fn answered(
        &self,
        node: &NodeName,
        report: PreflightReport,
        now: Timestamp,
    ) -> Option<(String, String)> {
        let mut inner = self.lock();
        let entry = inner.tasks.get_mut(&report.key.task)?;
        let (key, asked) = entry.asked.as_ref()?;
        if *key != report.key || asked.node != *node {
            return None;
        }
        let before = entry.answer.as_ref().map_or(0, |answer| answer.tries);
        entry.asked = None;
        entry.answer = Some(PreflightAnswer { report, at: now, tries: before.saturating_add(1) });
        Some(entry.task.clone())
    }

    /// A session has begun or ended: what its node was asked is asked again.
    pub fn lost(&self, node: &NodeName) {
        for entry in self.lock().tasks.values_mut() {
            entry.asked.take_if(|(_, asked)| asked.node == *node);
        }
    }

    /// How the preflight of a task stands; nothing for another generation of its spec.
    pub fn view(&self, uid: &TaskUid, generation: i64) -> PreflightView {
        let inner = self.lock();
        let entry = inner.tasks.get(uid).filter(|entry| entry.generation == generation);
        entry.map_or_else(PreflightView::default, |entry| PreflightView {
            asked: entry.asked.as_ref().map(|(_, asked)| asked.clone()),
            answer: entry.answer.clone(),
        })
    }

    /// The task is past its preflight, or gone.
    pub fn done(&self, uid: &TaskUid) {
        self.lock().tasks.remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn ask(preflights: &Preflights, generation: i64, node: &str) -> PreflightKey {
        let (uid, node) = (TaskUid::from("uid"), NodeName::from(node));
        preflights.ask(("space", "task"), (&uid, generation), (&node, Epoch(1)), NOW)
    }

    fn report(key: PreflightKey) -> PreflightReport {
        PreflightReport { key, findings: Vec::new(), notes: Vec::new() }
    }

    #[test]
    fn only_the_newest_question_is_answered_and_only_by_the_node_that_was_asked() {
        let preflights = Preflights::default();
        let old = ask(&preflights, 1, "node-a");
        assert_eq!(ask(&preflights, 1, "node-a"), old, "a repetition keeps its key");
        let new = ask(&preflights, 1, "node-b");
        let (a, b) = (NodeName::from("node-a"), NodeName::from("node-b"));
        assert_eq!(preflights.answered(&a, report(old), NOW), None);
        assert_eq!(preflights.answered(&a, report(new.clone()), NOW), None);
        let task = Some(("space".to_owned(), "task".to_owned()));
        assert_eq!(preflights.answered(&b, report(new.clone()), NOW), task);
        assert_eq!(preflights.answered(&b, report(new), NOW), None, "once");
        assert_eq!(preflights.view(&TaskUid::from("uid"), 1).answer.unwrap().tries, 1);
    }

    #[test]
    fn a_changed_spec_and_a_lost_session_start_the_question_anew() {
        let preflights = Preflights::default();
        let uid = TaskUid::from("uid");
        let key = ask(&preflights, 1, "node-a");
        preflights.answered(&NodeName::from("node-a"), report(key), NOW);
        assert_eq!(preflights.view(&uid, 2), PreflightView::default());
        ask(&preflights, 2, "node-a");
        assert_eq!(preflights.view(&uid, 2).answer, None);
        preflights.lost(&NodeName::from("node-b"));
        assert!(preflights.view(&uid, 2).asked.is_some());
        preflights.lost(&NodeName::from("node-a"));
        assert_eq!(preflights.view(&uid, 2).asked, None);
    }
}
