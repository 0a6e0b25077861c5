//! Tasks and runs as people ask about them: what `Follow`, `GetRun`, `ListRuns`, retention and the
//! metrics need, kept by watches of its own, so that a replica that does not lead serves it too.
//! Only the few fields that are shown are kept; plans and outputs are not.

mod book;
mod phases;
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

use agent_operator::{
    domain::{RunUid, TaskUid},
    telemetry::Tracer,
};
use jiff::Timestamp;
use tokio::sync::watch as changes;

use self::{book::Book, phases::Phases};
use crate::metrics::Metrics;

/// (namespace, name) of an object.
type Name = (String, String);

#[derive(Debug, Default)]
struct Tables {
    tasks: HashMap<Name, Arc<TaskView>>,
    /// Of `tasks`.
    phases: Phases,
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
    book: Book,
}

/// The tasks and runs of the cluster. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Catalog(Arc<Inner>);

impl Catalog {
    /// An empty catalogue; [`run`] fills it. What it sees end is counted in `metrics` while this
    /// process leads.
    pub fn new(metrics: Metrics) -> Self {
        Self::traced(metrics, Tracer::off())
    }

    /// The same; what ends is told to `tracer` too.
    pub fn traced(metrics: Metrics, tracer: Tracer) -> Self {
        let (version, _) = changes::channel(0);
        let book = Book { metrics, tracer };
        Self(Arc::new(Inner { tables: RwLock::default(), version, book }))
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
        let (before, after) = self.change(|tables| {
            let listed = std::mem::replace(&mut tables.tasks_listed, true);
            let before = std::mem::take(&mut tables.tasks);
            tables.phases = Phases::default();
            for task in tasks {
                tables.put_task(Arc::new(task));
            }
            let after = tables.tasks.clone();
            (listed.then_some(before), after)
        });
        // Of the first list nobody knows when it came about.
        if let Some(before) = before {
            for (key, task) in &after {
                self.0.book.task(before.get(key).map(Arc::as_ref), task);
            }
        }
        self.count_tasks();
    }

    /// Adds or replaces a task.
    pub fn put_task(&self, task: TaskView) {
        let task = Arc::new(task);
        let before = self.change(|tables| tables.put_task(Arc::clone(&task)));
        self.0.book.task(before.as_deref(), &task);
        self.count_tasks();
    }

    /// Takes a task out.
    pub fn drop_task(&self, task: &TaskView) {
        self.change(|tables| tables.drop_task(task));
        self.count_tasks();
    }

    /// Replaces all runs.
    pub fn set_runs(&self, runs: Vec<RunView>) {
        let before = self.change(|tables| {
            let before = std::mem::take(&mut tables.runs);
            tables.run_names.clear();
            tables.runs_of_task.clear();
            for run in runs {
                tables.insert(run);
            }
            std::mem::replace(&mut tables.runs_listed, true).then_some(before)
        });
        // Of the first list nobody knows when it came about.
        let Some(before) = before else { return };
        let tables = self.read();
        for (uid, run) in &tables.runs {
            let before = before.get(uid).map(Arc::as_ref);
            self.0.book.run(before, run, tables.end_before(run));
        }
    }

    /// Adds or replaces a run, and counts its start and its end if this process sees them happen.
    pub fn put_run(&self, run: RunView) {
        let uid = run.uid.clone();
        let before = self.change(|tables| tables.insert(run));
        let tables = self.read();
        // Unless another change has taken it out meanwhile.
        if let Some(run) = tables.runs.get(&uid) {
            self.0.book.run(before.as_deref(), run, tables.end_before(run));
        }
    }

    /// Takes a run out.
    pub fn drop_run(&self, run: &RunView) {
        self.change(|tables| tables.remove(run));
    }

    fn count_tasks(&self) {
        self.0.book.tasks(self.read().phases.counts());
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
    fn put_task(&mut self, task: Arc<TaskView>) -> Option<Arc<TaskView>> {
        self.phases.add(&task.phase);
        let before = self.tasks.insert(key(&task.namespace, &task.name), task);
        if let Some(before) = &before {
            self.phases.take(&before.phase);
        }
        before
    }

    fn drop_task(&mut self, task: &TaskView) {
        if let Some(known) = self.tasks.remove(&key(&task.namespace, &task.name)) {
            self.phases.take(&known.phase);
        }
    }

    fn insert(&mut self, run: RunView) -> Option<Arc<RunView>> {
        // A name that is used again belongs to the newer run.
        self.run_names.insert(key(&run.namespace, &run.name), run.uid.clone());
        self.runs_of_task.entry(run.task_uid.clone()).or_default().insert(run.uid.clone());
        self.runs.insert(run.uid.clone(), Arc::new(run))
    }

    /// When the run that was before `run` in its task ended.
    fn end_before(&self, run: &RunView) -> Option<Timestamp> {
        let uids = self.runs_of_task.get(&run.task_uid).into_iter().flatten();
        let others = uids.filter(|uid| **uid != run.uid).filter_map(|uid| self.runs.get(uid));
        let ends = others.filter_map(|other| other.completed_at);
        // One that ended later than this one began is of a step that came after it.
        ends.filter(|end| run.started_at.or(run.completed_at).is_none_or(|at| *end <= at)).max()
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
        let metrics = leading();
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
        assert!(shows(&metrics, "steps_total{step=\"plan\",reason=\"TimedOut\"} 1"));
    }

    #[test]
    fn an_end_that_only_a_new_list_shows_is_counted_too() {
        let metrics = leading();
        let catalog = Catalog::new(metrics.clone());
        let ended =
            RunView { phase: "Succeeded".into(), reason: "Completed".into(), ..run("a", 1, 1, 1) };
        let finished = TaskView {
            phase: "Complete".into(),
            finished: true,
            created_at: jiff::Timestamp::from_second(1).ok(),
            completed_at: jiff::Timestamp::from_second(4).ok(),
            ..TaskView::sample("t")
        };
        catalog.set_runs(vec![run("a", 1, 1, 1)]);
        catalog.set_tasks(vec![TaskView::sample("t")]);
        for _ in 0..2 {
            catalog.set_runs(vec![ended.clone()]);
            catalog.set_tasks(vec![finished.clone()]);
        }
        assert!(shows(&metrics, "steps_total{step=\"plan\",reason=\"Completed\"} 1"));
        assert!(shows(&metrics, "task_seconds_sum{phase=\"Complete\"} 3.0"));
        assert!(shows(&metrics, "task_seconds_count{phase=\"Complete\"} 1"));
    }

    #[test]
    fn a_hand_over_counts_from_the_end_of_the_run_before() {
        let metrics = leading();
        let catalog = Catalog::new(metrics.clone());
        let second = |second| jiff::Timestamp::from_second(second).ok();
        let first = RunView {
            phase: "Succeeded".into(),
            started_at: second(10),
            completed_at: second(20),
            ..run("a", 1, 1, 5)
        };
        let next = RunView { step: "test".into(), ..run("b", 3, 1, 20) };
        catalog.set_runs(vec![]);
        catalog.put_run(first.clone());
        catalog.put_run(next.clone());
        let next = RunView { started_at: second(23), phase: "Running".into(), ..next };
        catalog.put_run(next.clone());
        catalog.put_run(next);
        assert!(shows(&metrics, "step_handover_seconds_sum{step=\"test\"} 3.0"));
        assert!(shows(&metrics, "step_handover_seconds_count{step=\"test\"} 1"));
        assert!(shows(&metrics, "step_handover_seconds_count{step=\"plan\"} 0"));
    }

    #[test]
    fn a_replica_that_does_not_lead_counts_nothing_twice() {
        let metrics = Metrics::new();
        let catalog = Catalog::new(metrics.clone());
        catalog.set_runs(vec![run("a", 1, 1, 1)]);
        catalog.put_run(RunView {
            phase: "Failed".into(),
            reason: "TimedOut".into(),
            ..run("a", 1, 1, 1)
        });
        assert!(shows(&metrics, "steps_total{step=\"plan\",reason=\"TimedOut\"} 0"));
    }

    fn leading() -> Metrics {
        let metrics = Metrics::new();
        metrics.set_leading(true);
        metrics
    }

    fn shows(metrics: &Metrics, line: &str) -> bool {
        let text = metrics.render().unwrap();
        text.lines().any(|known| known.strip_prefix("agent_operator_") == Some(line))
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
