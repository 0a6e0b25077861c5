//! The runs as this process knows them: what the watch has brought, own writes laid over it, and the sums that every
//! decision about a place asks for. Each pass asks, and there may be thousands of runs, so no question looks through
//! all of them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use agent_operator::{
    crd::AgentRun,
    domain::{NodeName, RunUid},
};
use kube::ResourceExt as _;
use tokio::{sync::SetOnce, time::Instant};

use super::{
    overlay::{KEEP, version},
    views,
};
use crate::{
    clock,
    decide::{Amounts, Used},
};

/// Namespace and name.
type Name = (String, String);

/// All runs. Fed by the watch and by whoever writes.
#[derive(Default)]
pub(super) struct Runs {
    tables: Mutex<Tables>,
    filled: SetOnce<()>,
}

#[derive(Default)]
struct Tables {
    entries: BTreeMap<Name, Entry>,
    by_uid: HashMap<String, Name>,
    /// By the uid of the task.
    of_task: HashMap<String, BTreeSet<Name>>,
    on_node: BTreeMap<NodeName, OnNode>,
    /// Own writes, the oldest first.
    written: VecDeque<(Instant, Name)>,
}

#[derive(Default)]
struct OnNode {
    names: BTreeSet<Name>,
    used: Used,
}

#[derive(Default)]
struct Entry {
    /// The watch's.
    seen: Option<Arc<AgentRun>>,
    /// The answer to an own write, or to a live read, that the watch has not brought yet.
    own: Option<(Instant, Arc<AgentRun>)>,
    /// Under what it stands in the other tables.
    links: Option<Links>,
}

#[derive(PartialEq, Eq)]
struct Links {
    uid: String,
    task: String,
    node: NodeName,
    /// What it uses there while it is live.
    counted: Option<Amounts>,
}

impl Entry {
    /// The newer of the two. An own write of another object of that name counts once the watch has dropped this one.
    fn newest(&self) -> Option<&Arc<AgentRun>> {
        match (&self.seen, &self.own) {
            (Some(seen), Some((_, own)))
                if same(seen, own) && version(own.as_ref()) > version(seen.as_ref()) =>
            {
                Some(own)
            }
            (Some(seen), _) => Some(seen),
            (None, own) => own.as_ref().map(|(_, own)| own),
        }
    }
}

fn same(one: &AgentRun, other: &AgentRun) -> bool {
    one.metadata.uid == other.metadata.uid
}

fn name_of(run: &AgentRun) -> Name {
    (run.namespace().unwrap_or_default(), run.name_any())
}

impl Links {
    fn of(run: &AgentRun) -> Self {
        Self {
            uid: run.uid().unwrap_or_default(),
            task: run.spec.task_ref.uid.clone(),
            node: NodeName::from(run.spec.node_name.as_str()),
            counted: (!run.has_ended()).then(|| views::amounts(&run.spec)),
        }
    }
}

impl Tables {
    /// Changes what is known under a name, and everything that follows from it.
    fn change(&mut self, name: &Name, change: impl FnOnce(&mut Entry)) {
        let mut entry = self.entries.remove(name).unwrap_or_default();
        change(&mut entry);
        let links = entry.newest().map(|run| Links::of(run));
        if links != entry.links {
            if let Some(old) = entry.links.take() {
                self.unlink(name, &old);
            }
            if let Some(new) = &links {
                self.link(name, new);
            }
            entry.links = links;
        }
        if entry.links.is_some() {
            self.entries.insert(name.clone(), entry);
        }
    }

    fn link(&mut self, name: &Name, links: &Links) {
        self.by_uid.insert(links.uid.clone(), name.clone());
        self.of_task.entry(links.task.clone()).or_default().insert(name.clone());
        let node = self.on_node.entry(links.node.clone()).or_default();
        node.names.insert(name.clone());
        if let Some(counted) = links.counted {
            node.used.add(counted);
        }
    }

    fn unlink(&mut self, name: &Name, links: &Links) {
        if self.by_uid.get(&links.uid) == Some(name) {
            self.by_uid.remove(&links.uid);
        }
        if let Some(of_task) = self.of_task.get_mut(&links.task) {
            of_task.remove(name);
            if of_task.is_empty() {
                self.of_task.remove(&links.task);
            }
        }
        if let Some(node) = self.on_node.get_mut(&links.node) {
            node.names.remove(name);
            if let Some(counted) = links.counted {
                node.used.take(counted);
            }
            if node.names.is_empty() {
                self.on_node.remove(&links.node);
            }
        }
    }

    /// Forgets own writes that the watch should have brought long ago. One that it never brings is a ghost: its answer
    /// came after the object's end.
    fn expire(&mut self, now: Instant) {
        while let Some((at, _)) = self.written.front()
            && now.duration_since(*at) >= KEEP
            && let Some((at, name)) = self.written.pop_front()
        {
            let is_of_then = |entry: &Entry| entry.own.as_ref().is_some_and(|(own, _)| *own == at);
            if self.entries.get(&name).is_some_and(is_of_then) {
                self.change(&name, |entry| entry.own = None);
            }
        }
    }

    fn get(&self, name: &Name) -> Option<Arc<AgentRun>> {
        self.entries.get(name)?.newest().cloned()
    }

    fn all(&self, names: Option<&BTreeSet<Name>>) -> Vec<Arc<AgentRun>> {
        names.into_iter().flatten().filter_map(|name| self.get(name)).collect()
    }
}

impl Runs {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        tables.expire(clock::instant());
        tables
    }

    /// The watch has brought this version.
    pub(super) fn seen(&self, run: &Arc<AgentRun>) {
        self.tables().change(&name_of(run), |entry| {
            entry.own.take_if(|(_, own)| version(own.as_ref()) <= version(run.as_ref()));
            entry.seen = Some(Arc::clone(run));
        });
    }

    /// The watch has seen the end of this object; its newest version that is known.
    pub(super) fn gone(&self, run: &Arc<AgentRun>) -> Arc<AgentRun> {
        let mut newest = Arc::clone(run);
        self.tables().change(&name_of(run), |entry| {
            entry.seen.take_if(|seen| same(seen, run));
            if let Some((_, own)) = entry.own.take_if(|(_, own)| same(own, run))
                && version(own.as_ref()) > version(run.as_ref())
            {
                newest = own;
            }
        });
        newest
    }

    /// Takes note of the answer to an own write, or to a live read.
    pub(super) fn wrote(&self, run: &Arc<AgentRun>) {
        let (name, now) = (name_of(run), clock::instant());
        let mut tables = self.tables();
        tables.change(&name, |entry| {
            let known = entry.seen.iter().chain(entry.own.as_ref().map(|(_, own)| own));
            let is_known = |known: &Arc<AgentRun>| {
                same(known, run) && version(known.as_ref()) >= version(run.as_ref())
            };
            if !known.into_iter().any(is_known) {
                entry.own = Some((now, Arc::clone(run)));
            }
        });
        tables.written.push_back((now, name));
    }

    /// The watch has brought all there was when it began.
    pub(super) fn fill(&self) {
        let _ = self.filled.set(());
    }

    /// Waits for that.
    pub(super) async fn filled(&self) {
        self.filled.wait().await;
    }

    /// A run by name.
    pub(super) fn named(&self, namespace: &str, name: &str) -> Option<Arc<AgentRun>> {
        self.tables().get(&(namespace.to_owned(), name.to_owned()))
    }

    /// A run by uid.
    pub(super) fn with_uid(&self, uid: &RunUid) -> Option<Arc<AgentRun>> {
        let tables = self.tables();
        tables.by_uid.get(uid.as_str()).and_then(|name| tables.get(name))
    }

    /// The runs of a task, by name.
    pub(super) fn of_task(&self, uid: &str) -> Vec<Arc<AgentRun>> {
        let tables = self.tables();
        tables.all(tables.of_task.get(uid))
    }

    /// The runs that were given to a node, by name; ended ones too.
    pub(super) fn on_node(&self, node: &str) -> Vec<Arc<AgentRun>> {
        let tables = self.tables();
        tables.all(tables.on_node.get(&NodeName::from(node)).map(|node| &node.names))
    }

    /// What live runs use on each node, and room that is kept there for runs that do not exist yet.
    pub(super) fn used(
        &self,
        reserved: &HashMap<Name, (NodeName, Amounts)>,
    ) -> BTreeMap<NodeName, Used> {
        let tables = self.tables();
        let nodes = tables.on_node.iter();
        let mut used: BTreeMap<_, _> =
            nodes.map(|(name, node)| (name.clone(), node.used)).collect();
        for (name, (node, amounts)) in reserved {
            if !tables.entries.contains_key(name) {
                used.entry(node.clone()).or_default().add(*amounts);
            }
        }
        used
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use agent_operator::crd::AgentRunStatus;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const NODES: u8 = 2;

    /// A run of three that an API server would know under their names.
    fn run(name: u8, uid: u32, version: u64, phase: &str) -> Arc<AgentRun> {
        let spec = json!({
            "taskRef": {"name": "t", "uid": format!("task-{}", name % 2)},
            "step": "plan", "attempt": 1, "epoch": 1, "timeout": "1m", "image": "i",
            "nodeName": format!("node-{}", uid % u32::from(NODES)),
            "resources": {"cpu": "1", "memory": "1", "storage": "1", "memoryRequest": "",
                "cpuRequest": format!("{}m", name + 1)},
            "agent": {"type": "Command"},
            "sandbox": {"egressPolicy": "Required"},
        });
        let spec = serde_json::from_value(spec).unwrap();
        let mut run = AgentRun::new(&format!("run-{name}"), spec);
        run.metadata.namespace = Some("ns".to_owned());
        run.metadata.uid = Some(format!("uid-{uid}"));
        run.metadata.resource_version = Some(version.to_string());
        run.status =
            Some(AgentRunStatus { phase: Some(phase.to_owned()), ..AgentRunStatus::default() });
        Arc::new(run)
    }

    /// What is asked by the tables, put together by looking through everything.
    fn looked_up(runs: &Runs) -> (Vec<Vec<Arc<AgentRun>>>, BTreeMap<NodeName, Used>) {
        let all: Vec<_> =
            (0..3).filter_map(|name| runs.named("ns", &format!("run-{name}"))).collect();
        let mut used: BTreeMap<NodeName, Used> = BTreeMap::new();
        for run in &all {
            let entry = used.entry(run.spec.node_name.as_str().into()).or_default();
            if !run.has_ended() {
                entry.add(views::amounts(&run.spec));
            }
        }
        let by = |wanted: &dyn Fn(&AgentRun) -> bool| {
            all.iter().filter(|run| wanted(run)).cloned().collect()
        };
        let mut found: Vec<_> =
            ["task-0", "task-1"].map(|uid| by(&|run| run.spec.task_ref.uid == uid)).into();
        found
            .extend((0..NODES).map(|node| by(&|run| run.spec.node_name == format!("node-{node}"))));
        found.extend(all.iter().map(|one| by(&|run| same(run, one))));
        (found, used)
    }

    fn asked(runs: &Runs) -> (Vec<Vec<Arc<AgentRun>>>, BTreeMap<NodeName, Used>) {
        let mut found: Vec<_> = ["task-0", "task-1"].map(|uid| runs.of_task(uid)).into();
        found.extend((0..NODES).map(|node| runs.on_node(&format!("node-{node}"))));
        let all = (0..3).filter_map(|name| runs.named("ns", &format!("run-{name}")));
        found
            .extend(all.map(|run| runs.with_uid(&run.uid().unwrap().into()).into_iter().collect()));
        (found, runs.used(&HashMap::new()))
    }

    /// An API server with a watch that is behind by some events.
    #[derive(Default)]
    struct Server {
        version: u64,
        there: BTreeMap<u8, Arc<AgentRun>>,
        late: VecDeque<(bool, Arc<AgentRun>)>,
    }

    impl Server {
        fn put(&mut self, name: u8, phase: &str) -> Arc<AgentRun> {
            self.version += 1;
            let known = self.there.get(&name).and_then(|there| there.uid()?[4..].parse().ok());
            let uid = known.unwrap_or_else(|| u32::try_from(self.version).unwrap());
            let put = run(name, uid, self.version, phase);
            self.there.insert(name, Arc::clone(&put));
            self.late.push_back((false, Arc::clone(&put)));
            put
        }

        fn delete(&mut self, name: u8) {
            if let Some(gone) = self.there.remove(&name) {
                self.late.push_back((true, gone));
            }
        }

        fn tell_one(&mut self, runs: &Runs) {
            match self.late.pop_front() {
                Some((false, run)) => runs.seen(&run),
                Some((true, run)) => drop(runs.gone(&run)),
                None => {}
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_is_written_and_told_late_the_tables_say_what_looking_through_all_would_say(
            events in proptest::collection::vec((0..6_u8, 0..3_u8), 1..60),
        ) {
            let (runs, mut server) = (Runs::default(), Server::default());
            for (kind, name) in events {
                match kind {
                    0 => runs.wrote(&server.put(name, "Pending")),
                    1 => runs.wrote(&server.put(name, "Succeeded")),
                    2 => drop(server.put(name, "Running")),
                    3 => server.delete(name),
                    _ => server.tell_one(&runs),
                }
                if kind < 2 && let Some(known) = runs.named("ns", &format!("run-{name}")) {
                    let is_older_object = known.uid() != server.there[&name].uid();
                    prop_assert!(is_older_object || known == server.there[&name], "an own write is seen at once");
                }
                prop_assert_eq!(asked(&runs), looked_up(&runs));
            }
            while !server.late.is_empty() {
                server.tell_one(&runs);
                prop_assert_eq!(asked(&runs), looked_up(&runs));
            }
            let known = (0..3).filter_map(|name| runs.named("ns", &format!("run-{name}")));
            prop_assert_eq!(known.collect::<Vec<_>>(), server.there.into_values().collect::<Vec<_>>());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_comes_after_the_end_of_its_run_is_a_ghost_for_a_minute() {
        let runs = Runs::default();
        let ended = run(1, 7, 3, "Running");
        runs.seen(&ended);
        runs.gone(&ended);
        runs.wrote(&run(1, 7, 2, "Running"));
        assert!(runs.named("ns", "run-1").is_some());
        let moment = Duration::from_secs(1);
        tokio::time::sleep(KEEP.saturating_sub(moment)).await;
        assert_eq!(runs.used(&HashMap::new()).len(), 1);
        tokio::time::sleep(moment).await;
        assert_eq!(runs.named("ns", "run-1"), None);
        assert_eq!(asked(&runs), looked_up(&Runs::default()));
    }

    #[tokio::test(start_paused = true)]
    async fn an_own_write_outranks_a_watch_that_is_dead_for_a_minute_at_most() {
        let runs = Runs::default();
        runs.seen(&run(1, 7, 3, "Running"));
        runs.wrote(&run(1, 7, 4, "Succeeded"));
        assert!(runs.named("ns", "run-1").unwrap().has_ended());
        tokio::time::sleep(KEEP).await;
        assert!(!runs.named("ns", "run-1").unwrap().has_ended());
        assert_eq!(runs.used(&HashMap::new())[&NodeName::from("node-1")].slots, 1);
    }

    #[test]
    fn room_that_is_kept_counts_until_its_run_is_known() {
        let runs = Runs::default();
        let amounts = Amounts { cpu_milli: 5, memory_milli: 6 };
        let kept = HashMap::from([(
            ("ns".to_owned(), "run-1".to_owned()),
            (NodeName::from("node-1"), amounts),
        )]);
        assert_eq!(runs.used(&kept)[&NodeName::from("node-1")], Used { slots: 1, amounts });
        runs.wrote(&run(1, 7, 3, "Pending"));
        let of_run = Amounts { cpu_milli: 2, memory_milli: 0 };
        assert_eq!(runs.used(&kept)[&NodeName::from("node-1")], Used { slots: 1, amounts: of_run });
    }
}
