//! The parts of Kubernetes beside the API server: scheduler, kubelets, garbage collector; and a scribe
//! who writes what becomes of tasks and runs into the history.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use agent_operator::{
    crd::{AgentRun, AgentRunSpec, CodingTaskStatus},
    domain::{GoDuration, ids::PodUid},
};
use agent_operator_doubles::history::{Fact, Retries};
use agent_operator_supervisor::pod::{cgroup::Containers, client::run_key};
use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{
    api::{Key, kinds::kind, store::Deletion},
    clock::{self, Whose},
    director::place_of,
    sandbox,
    world::{NAMESPACE, Outage, World},
};

/// What becomes of a pod's container.
enum Life {
    Starting,
    /// A true says that the kubelet wants it to end.
    Running(watch::Sender<bool>),
    /// With the runtime's exit code, unless it is lost.
    Ended(Option<i32>),
}

/// One node: its power, its boots, its containers.
pub struct Node {
    name: String,
    world: Arc<World>,
    power: watch::Sender<bool>,
    pods: Mutex<BTreeMap<String, Life>>,
}

impl Node {
    /// A node that runs its kubelet.
    pub fn start(world: &Arc<World>, name: &str) -> Arc<Self> {
        let (power, _) = watch::channel(true);
        let node = Arc::new(Self {
            name: name.to_owned(),
            world: Arc::clone(world),
            power,
            pods: Mutex::default(),
        });
        tokio::spawn(Arc::clone(&node).kubelet());
        node
    }

    pub fn has_power(&self) -> bool {
        *self.power.borrow()
    }

    /// Power goes: whatever runs ends without a record.
    pub fn power_off(&self) {
        self.power.send_replace(false);
        let mut pods = self.pods.lock().unwrap();
        for life in pods.values_mut() {
            *life = Life::Ended(None);
        }
    }

    pub fn power_on(&self) {
        self.power.send_replace(true);
    }

    fn reaches_api(&self) -> bool {
        let faults = self.world.faults();
        self.has_power() && faults.outage == Outage::None && !faults.cut_api.contains(&self.name)
    }

    async fn kubelet(self: Arc<Self>) {
        let mut changed = self.world.api().changed();
        loop {
            if self.reaches_api() {
                let pods: Vec<Value> = self.world.api().with(|store| {
                    store.all(kind("pods")).filter(|pod| self.is_mine(pod)).cloned().collect()
                });
                for pod in &pods {
                    self.sync(pod);
                }
            }
            tokio::select! {
                _ = changed.changed() => self.world.pause(10, 40).await,
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
    }

    fn is_mine(&self, pod: &Value) -> bool {
        let terms = &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
            ["nodeSelectorTerms"];
        terms[0]["matchFields"][0]["values"][0] == *self.name
    }

    /// Takes one pod a step further.
    fn sync(self: &Arc<Self>, pod: &Value) {
        let meta = &pod["metadata"];
        let uid = meta["uid"].as_str().unwrap().to_owned();
        let deleting = meta["deletionTimestamp"].is_string();
        let over = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        let place = key(pod);
        if !pod["spec"]["nodeName"].is_string() {
            if !deleting {
                self.set(&place, &json!({"spec": {"nodeName": self.name}}), false);
            }
            return;
        }
        let mut pods = self.pods.lock().unwrap();
        match pods.get(&uid) {
            None if over || deleting => {
                drop(pods);
                if !over {
                    // A pod that is deleted before it was started fails first; only then the kubelet lets go of it
                    // (since Kubernetes 1.27, KEP 3329).
                    self.set(&place, &json!({"status": {"phase": "Failed"}}), true);
                }
                if deleting {
                    self.finish(&place, &uid);
                }
            }
            None => {
                // After a loss of power the kubelet finds a pod that it had started before.
                let known = pod["status"]["containerStatuses"].is_array();
                pods.insert(uid, if known { Life::Ended(None) } else { Life::Starting });
                if !known {
                    tokio::spawn(Arc::clone(self).run(pod.clone()));
                }
            }
            Some(Life::Starting) => {}
            Some(Life::Running(stop)) => {
                if deleting {
                    stop.send_if_modified(|stopped| !std::mem::replace(stopped, true));
                }
            }
            Some(Life::Ended(code)) => {
                let code = *code;
                drop(pods);
                if !over {
                    self.set(&place, &self.ended(pod, code), true);
                } else if deleting {
                    self.finish(&place, &uid);
                }
            }
        }
    }

    fn set(&self, place: &Key, patch: &Value, status: bool) {
        let _ = self.world.api().with(|store| store.merge(kind("pods"), place, patch, status));
    }

    fn finish(&self, place: &Key, uid: &str) {
        let deletion =
            Deletion { uid: Some(uid.to_owned()), grace: Some(0), ..Deletion::default() };
        let _ = self.world.api().with(|store| store.delete(kind("pods"), place, &deletion));
    }

    /// Runs a pod from its start to its end.
    async fn run(self: Arc<Self>, pod: Value) {
        let uid = pod["metadata"]["uid"].as_str().unwrap().to_owned();
        self.world.pause(50, 800).await;
        let (stop, stopped) = watch::channel(false);
        {
            let mut pods = self.pods.lock().unwrap();
            if !matches!(pods.get(&uid), Some(Life::Starting)) {
                return;
            }
            pods.insert(uid.clone(), Life::Running(stop));
        }
        let typed: Pod = serde_json::from_value(pod.clone()).unwrap();
        let run = run_key(&typed).unwrap().uid.to_string();
        let (of_run, of_pod) = (run.clone(), uid.clone());
        self.world.tell(Fact::Started { run: of_run, pod: of_pod, node: self.name.clone() });
        let number =
            uid.rsplit('-').next().and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap();
        let ip = format!("10.244.{}.{}", number / 200 % 250, number % 200 + 2);
        self.set(&key(&pod), &self.started(&ip, &uid), true);
        let mut power = self.power.subscribe();
        let code = tokio::select! {
            code = sandbox::run(&self.world, &self.name, &pod, &ip, stopped) => Some(code),
            _ = power.wait_for(|on| !on) => None,
        };
        self.world.tell(Fact::Ended { run, pod: uid.clone(), exit_code: code });
        if code.is_some() {
            self.pods.lock().unwrap().insert(uid.clone(), Life::Ended(code));
            // What the kubelet writes comes later than the runtime's own signs.
            self.world.pause(300, 2000).await;
            if self.reaches_api() {
                self.set(&key(&pod), &self.ended(&pod, code), true);
            }
        }
    }

    /// The node's clock, as the kubelet writes it.
    fn now(&self) -> String {
        clock::wall(Whose::Node(place_of(&self.name))).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }

    /// What the kubelet writes of a pod that runs.
    fn started(&self, ip: &str, uid: &str) -> Value {
        let statuses = container(uid, &json!({"running": {"startedAt": self.now()}}));
        json!({"status": {"phase": "Running", "podIP": ip, "containerStatuses": statuses}})
    }

    /// What the kubelet writes of a pod's end.
    fn ended(&self, pod: &Value, code: Option<i32>) -> Value {
        let uid = pod["metadata"]["uid"].as_str().unwrap();
        let exit = code.unwrap_or(255);
        let reason = match code {
            Some(0) => "Completed",
            Some(_) => "Error",
            None => "Unknown",
        };
        let state = json!({"running": null, "terminated": {"exitCode": exit, "reason": reason,
            "finishedAt": self.now()}});
        let phase = if exit == 0 { "Succeeded" } else { "Failed" };
        json!({"status": {"phase": phase, "containerStatuses": container(uid, &state)}})
    }
}

#[async_trait]
impl Containers for Node {
    async fn wait_until_empty(&self, pod: &PodUid, id: Option<&str>, missing_is_empty: bool) {
        loop {
            match self.pods.lock().unwrap().get(pod.as_str()) {
                Some(Life::Ended(_)) if id.is_some() || missing_is_empty => return,
                None if missing_is_empty => return,
                _ => {}
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn pids_limit(&self, _: &PodUid) -> Option<i64> {
        None
    }
}

pub fn key(object: &Value) -> Key {
    let meta = &object["metadata"];
    let text = |field: &str| meta[field].as_str().unwrap_or_default().to_owned();
    let plural = match object["kind"].as_str() {
        Some("Pod") => "pods",
        Some("AgentRun") => "agentruns",
        _ => "codingtasks",
    };
    (plural, text("namespace"), text("name"))
}

fn container(uid: &str, state: &Value) -> Value {
    json!([{"name": "agent", "image": "", "imageID": "", "ready": false, "restartCount": 0,
        "containerID": format!("containerd://c-{uid}"), "state": state}])
}

/// Deletes what has lost its owner.
pub async fn collect_garbage(world: Arc<World>) {
    let mut changed = world.api().changed();
    while changed.changed().await.is_ok() {
        world.pause(50, 500).await;
        world.api().with(|store| {
            let owners: BTreeSet<String> = ["codingtasks", "agentruns"]
                .iter()
                .flat_map(|plural| store.all(kind(plural)))
                .filter_map(|object| object["metadata"]["uid"].as_str().map(str::to_owned))
                .collect();
            let lost: Vec<Value> = ["agentruns", "pods"]
                .iter()
                .flat_map(|plural| store.all(kind(plural)))
                .filter(|object| {
                    let owner = object["metadata"]["ownerReferences"][0]["uid"].as_str();
                    let marked = object["metadata"]["deletionTimestamp"].is_string();
                    !marked && owner.is_some_and(|uid| !owners.contains(uid))
                })
                .cloned()
                .collect();
            for object in lost {
                let place = key(&object);
                let deletion = Deletion::default();
                let _ = store.delete(kind(place.0), &place, &deletion);
            }
        });
    }
}

/// Writes the fate of tasks and runs into the history.
pub async fn scribe(world: Arc<World>) {
    let mut changed = world.api().changed();
    let mut seen = 0;
    loop {
        let news = world.api().with(|store| {
            let news = store.since(seen).to_vec();
            seen = store.version();
            news
        });
        for change in news {
            let (plural, _, name) = change.key;
            match (plural, change.after) {
                ("codingtasks", None) => world.tell(Fact::TaskGone { task: name }),
                ("codingtasks", Some(after)) => {
                    tell_task(&world, name, change.before.as_ref(), &after);
                }
                ("agentruns", None) => tell_end_of_run(&world, change.before.as_ref()),
                ("agentruns", Some(after)) => tell_run(&world, change.before.as_ref(), &after),
                _ => {}
            }
        }
        if changed.changed().await.is_err() {
            return;
        }
    }
}

/// Whether the status differs from an earlier one.
fn is_news(before: Option<&Value>, after: &Value) -> bool {
    let was = before.map_or(&Value::Null, |before| &before["status"]);
    after["status"]["phase"].is_string() && *was != after["status"]
}

fn tell_task(world: &World, task: String, before: Option<&Value>, after: &Value) {
    if !is_news(before, after) {
        return;
    }
    let status: CodingTaskStatus = serde_json::from_value(after["status"].clone()).unwrap();
    let counts = status.retries.unwrap_or_default();
    let [application, infrastructure, provider] =
        [counts.application, counts.infrastructure, counts.provider]
            .map(|count| u32::try_from(count).unwrap());
    let retries = Retries { application, infrastructure, provider };
    world.tell(Fact::TaskRecorded { task, phase: status.phase.unwrap_or_default(), retries });
}

/// A run that is deleted takes its outcome with it, if it has one.
fn tell_end_of_run(world: &World, before: Option<&Value>) {
    let uid = before.and_then(|run| run["metadata"]["uid"].as_str()).unwrap_or_default();
    world.tell(Fact::RunGone { run: uid.to_owned() });
}

/// Runs go by their uid: it is what their sandboxes know.
fn tell_run(world: &World, before: Option<&Value>, after: &Value) {
    let run: AgentRun = serde_json::from_value(after.clone()).unwrap();
    let uid = run.metadata.uid.unwrap();
    if before.is_none() {
        let AgentRunSpec { task_ref, node_name, timeout, epoch, prepared, .. } = run.spec;
        let timeout = timeout.parse::<GoDuration>().unwrap().get();
        let (run, task, node) = (uid.clone(), task_ref.name, node_name);
        world.tell(Fact::Assigned { run, task, node, timeout, epoch, prepared });
    }
    if is_news(before, after) {
        let status = run.status.unwrap();
        world.tell(Fact::Recorded {
            run: uid,
            phase: status.phase.unwrap_or_default(),
            reason: status.reason,
            exit_code: status.exit_code,
            // By the clock of a node, which may be wrong; the sandbox says when it was.
            opened: None,
            began: status.start_time.is_some(),
        });
    }
}

/// All objects of a resource in the namespace of the tasks.
pub fn all(world: &World, plural: &str) -> Vec<Value> {
    world.api().with(|store| {
        let here = |object: &&Value| object["metadata"]["namespace"] == NAMESPACE;
        store.all(kind(plural)).filter(here).cloned().collect()
    })
}
