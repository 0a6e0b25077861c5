//! Tasks and runs as people ask about them: what `Follow`, `GetRun`, `ListRuns`, retention and the
//! metrics need, kept by watches of its own, so that a replica that does not lead serves it too.
//! Only the few fields that are shown are kept; plans and outputs are not.

mod view;
mod watch;

pub use self::{
    view::{RunView, TaskView},
    watch::run,
};

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use agent_operator::domain::{RunUid, TaskUid};
use tokio::sync::watch as changes;

use crate::metrics::Metrics;

/// (namespace, name) of an object.
type Name = (String, String);

#[derive(Debug, Default)]
struct Tables {
    tasks: HashMap<Name, Arc<TaskView>>,
    runs: HashMap<RunUid, Arc<RunView>>,
    run_names: BTreeMap<Name, RunUid>,
    runs_of_task: HashMap<TaskUid, BTreeSet<RunUid>>,
    tasks_listed: bool,
    runs_listed: bool,
}

#[derive(Debug)]
struct Inner {
    tables: RwLock<Tables>,
    version: changes::Sender<u64>,
    metrics: Metrics,
}

/// The tasks and runs of the cluster. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Catalog(Arc<Inner>);

impl Catalog {
    /// An empty catalogue; [`run`] fills it.
    pub fn new(metrics: Metrics) -> Self {
        let (version, _) = changes::channel(0);
        Self(Arc::new(Inner { tables: RwLock::default(), version, metrics }))
    }

    /// Wakes at each change of any task or run.
    pub fn changes(&self) -> changes::Receiver<u64> {
        self.0.version.subscribe()
    }

    /// Whether both lists have been read once: before that, absence means nothing.
    pub fn synced(&self) -> bool {
        let tables = self.read();
        tables.tasks_listed && tables.runs_listed
    }

    /// A task by name.
    pub fn task(&self, namespace: &str, name: &str) -> Option<Arc<TaskView>> {
        self.read().tasks.get(&key(namespace, name)).cloned()
    }

    /// A run by name.
    pub fn run_named(&self, namespace: &str, name: &str) -> Option<Arc<RunView>> {
        let tables = self.read();
        let uid = tables.run_names.get(&key(namespace, name))?;
        tables.runs.get(uid).cloned()
    }

    /// A run by uid.
    pub fn run(&self, uid: &RunUid) -> Option<Arc<RunView>> {
        self.read().runs.get(uid).cloned()
    }

    /// The runs of a task in the order in which they were made.
    pub fn runs_of(&self, task: &TaskView) -> Vec<Arc<RunView>> {
        let tables = self.read();
        let uids = tables.runs_of_task.get(&task.uid).into_iter().flatten();
        let mut runs: Vec<_> = uids.filter_map(|uid| tables.runs.get(uid)).cloned().collect();
        // The task's own list is in order; a run that is not in it yet is newer than all of it.
        let listed = |run: &RunView| {
            task.runs.iter().position(|name| *name == run.name).unwrap_or(usize::MAX)
        };
        runs.sort_by_key(|run| (listed(run), run.created_at, run.step_number, run.attempt));
        runs
    }

    /// Runs of a namespace by name, behind `after`, at most `count`; of one task if it is given.
    pub fn page(
        &self,
        namespace: &str,
        task: Option<&str>,
        after: &str,
        count: usize,
    ) -> Vec<Arc<RunView>> {
        let tables = self.read();
        let from = (namespace.to_owned(), after.to_owned());
        tables
            .run_names
            .range((std::ops::Bound::Excluded(from), std::ops::Bound::Unbounded))
            .take_while(|((of, _), _)| of == namespace)
            .filter_map(|(_, uid)| tables.runs.get(uid))
            .filter(|run| task.is_none_or(|task| run.task == task))
            .take(count)
            .cloned()
            .collect()
    }

    /// Replaces all tasks.
    pub fn set_tasks(&self, tasks: Vec<TaskView>) {
        self.change(|tables| {
            tables.tasks = tasks
                .into_iter()
                .map(|task| (key(&task.namespace, &task.name), Arc::new(task)))
                .collect();
            tables.tasks_listed = true;
        });
        self.count_tasks();
    }

    /// Adds or replaces a task.
    pub fn put_task(&self, task: TaskView) {
        self.change(|tables| {
            tables.tasks.insert(key(&task.namespace, &task.name), Arc::new(task));
        });
        self.count_tasks();
    }

    /// Takes a task out.
    pub fn drop_task(&self, task: &TaskView) {
        self.change(|tables| tables.tasks.remove(&key(&task.namespace, &task.name)).map(drop));
        self.count_tasks();
    }

    /// Replaces all runs.
    pub fn set_runs(&self, runs: Vec<RunView>) {
        self.change(|tables| {
            tables.runs.clear();
            tables.run_names.clear();
            tables.runs_of_task.clear();
            for run in runs {
                tables.insert(run);
            }
            tables.runs_listed = true;
        });
    }

    /// Adds or replaces a run, and counts its end if this process sees it happen.
    pub fn put_run(&self, run: RunView) {
        let ended = run.is_terminal().then(|| (run.step.clone(), run.reason.clone()));
        let before = self.change(|tables| tables.insert(run));
        if let Some((step, reason)) = ended
            && before.is_some_and(|before| !before.is_terminal())
        {
            self.0.metrics.step_finished(&step, &reason);
        }
    }

    /// Takes a run out.
    pub fn drop_run(&self, run: &RunView) {
        self.change(|tables| tables.remove(run));
    }

    fn count_tasks(&self) {
        let tables = self.read();
        let mut phases: BTreeMap<&str, i64> = BTreeMap::new();
        for task in tables.tasks.values() {
            *phases.entry(&task.phase).or_default() += 1;
        }
        self.0.metrics.set_tasks(phases);
    }

    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.0.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Tables) -> T) -> T {
        let mut tables: RwLockWriteGuard<'_, Tables> =
            self.0.tables.write().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut tables);
        drop(tables);
        self.0.version.send_modify(|version| *version += 1);
        result
    }
}

impl Tables {
    fn insert(&mut self, run: RunView) -> Option<Arc<RunView>> {
        // A name that is used again belongs to the newer run.
        self.run_names.insert(key(&run.namespace, &run.name), run.uid.clone());
        self.runs_of_task.entry(run.task_uid.clone()).or_default().insert(run.uid.clone());
        self.runs.insert(run.uid.clone(), Arc::new(run))
    }

    fn remove(&mut self, run: &RunView) {
        self.runs.remove(&run.uid);
        let name = key(&run.namespace, &run.name);
        if self.run_names.get(&name) == Some(&run.uid) {
            self.run_names.remove(&name);
        }
        if let Some(uids) = self.runs_of_task.get_mut(&run.task_uid) {
            uids.remove(&run.uid);
            if uids.is_empty() {
                self.runs_of_task.remove(&run.task_uid);
            }
        }
    }
}

fn key(namespace: &str, name: &str) -> Name {
    (namespace.to_owned(), name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(name: &str, step_number: i32, attempt: u32, second: i64) -> RunView {
        RunView {
            created_at: jiff::Timestamp::from_second(second).ok(),
            step_number,
            ..RunView::sample(name, "t", attempt)
        }
    }

    fn names(runs: &[Arc<RunView>]) -> Vec<&str> {
        runs.iter().map(|run| run.name.as_str()).collect()
    }

    #[test]
    fn runs_come_in_the_order_of_the_task_and_new_ones_behind() {
        let catalog = Catalog::new(Metrics::new());
        catalog.set_runs(vec![
            run("impl-2", 2, 2, 9),
            run("test-1", 3, 1, 9),
            run("impl-1", 2, 1, 9),
            run("plan-1", 1, 1, 1),
        ]);
        let task = TaskView {
            runs: vec!["plan-1".into(), "impl-1".into(), "test-1".into()],
            ..TaskView::sample("t")
        };
        assert_eq!(names(&catalog.runs_of(&task)), ["plan-1", "impl-1", "test-1", "impl-2"]);
    }

    #[test]
    fn pages_go_through_a_namespace_by_name() {
        let catalog = Catalog::new(Metrics::new());
        catalog.set_runs(["a", "b", "c"].map(|name| run(name, 1, 1, 1)).to_vec());
        let mut other = run("b2", 1, 1, 1);
        other.namespace = "elsewhere".into();
        catalog.put_run(other);
        assert_eq!(names(&catalog.page("ns", None, "", 2)), ["a", "b"]);
        assert_eq!(names(&catalog.page("ns", None, "b", 2)), ["c"]);
        assert_eq!(names(&catalog.page("ns", Some("other"), "", 2)), Vec::<&str>::new());
    }

    #[test]
    fn the_end_of_a_run_is_counted_once_and_only_when_seen() {
        let metrics = Metrics::new();
        let catalog = Catalog::new(metrics.clone());
        let ended = |name| RunView {
            phase: "Failed".into(),
            reason: "TimedOut".into(),
            ..run(name, 1, 1, 1)
        };
        catalog.set_runs(vec![ended("old"), run("live", 1, 1, 1)]);
        catalog.put_run(ended("old"));
        catalog.put_run(ended("live"));
        catalog.put_run(ended("live"));
        assert!(metrics.render().unwrap().contains("reason=\"TimedOut\"} 1"));
    }

    #[test]
    fn a_run_that_is_gone_leaves_nothing_behind() {
        let catalog = Catalog::new(Metrics::new());
        catalog.put_run(run("a", 1, 1, 1));
        catalog.drop_run(&run("a", 1, 1, 1));
        assert!(catalog.run_named("ns", "a").is_none());
        assert!(catalog.runs_of(&TaskView::sample("t")).is_empty());
    }
}
