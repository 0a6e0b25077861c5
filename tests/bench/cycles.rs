//! Tasks whose steps end at once, one after the other, as many at a time as are wanted; and the same writes by a client
//! that does nothing else.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use agent_operator::crd::{AgentRun, CodingTask};
use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::Event;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::{Value, json};
use tokio::{sync::mpsc, task::JoinSet, time::Instant};

use crate::{
    measure::eventually,
    scripted::CYCLE,
    site::{SYSTEM, TASKS, from_json, task},
};

/// Requests at once, where it does not matter how many.
const AT_ONCE: usize = 16;
/// Limit of one wait.
const LIMIT: Duration = Duration::from_mins(1);
/// Names begin so.
const PREFIX: &str = "cycle-";

/// Tasks of a bench that come and go.
pub struct Cycles {
    client: Client,
    wanted: Arc<AtomicUsize>,
    live: Arc<AtomicUsize>,
    start: mpsc::UnboundedSender<()>,
    _around: JoinSet<()>,
}

fn tasks(client: &Client) -> Api<CodingTask> {
    Api::namespaced(client.clone(), TASKS)
}

fn has_ended(task: &CodingTask) -> bool {
    let phase = task.status.as_ref().and_then(|status| status.phase.as_deref());
    assert_ne!(phase, Some("Failed"), "a task of the bench ends well: {:?}", task.status);
    task.name_any().starts_with(PREFIX) && phase == Some("Complete")
}

impl Cycles {
    pub fn new(client: &Client) -> Self {
        let (start, mut starts) = mpsc::unbounded_channel();
        let cycles = Self {
            client: client.clone(),
            wanted: Arc::default(),
            live: Arc::default(),
            start,
            _around: JoinSet::new(),
        };
        let mut around = JoinSet::new();
        let api = tasks(client);
        around.spawn(async move {
            for number in 0_u64.. {
                if starts.recv().await.is_none() {
                    return;
                }
                let api = api.clone();
                tokio::spawn(async move {
                    let made = from_json(task(&format!("{PREFIX}{number}"), CYCLE));
                    api.create(&PostParams::default(), &made).await.unwrap();
                });
            }
        });
        let (wanted, live, start) =
            (Arc::clone(&cycles.wanted), Arc::clone(&cycles.live), cycles.start.clone());
        let mut events = Box::pin(
            watcher(tasks(client), watcher::Config::default()).default_backoff().applied_objects(),
        );
        around.spawn(async move {
            let mut ended = BTreeSet::new();
            while let Some(event) = events.next().await {
                let Ok(task) = event else { continue };
                if !has_ended(&task) || !ended.insert(task.uid()) {
                    continue;
                }
                if live.load(Ordering::SeqCst) > wanted.load(Ordering::SeqCst) {
                    live.fetch_sub(1, Ordering::SeqCst);
                } else {
                    let _ = start.send(());
                }
            }
        });
        Self { _around: around, ..cycles }
    }

    /// Has so many tasks at work from now on.
    pub fn set(&self, count: usize) {
        self.wanted.store(count, Ordering::SeqCst);
        for _ in self.live.load(Ordering::SeqCst)..count {
            self.live.fetch_add(1, Ordering::SeqCst);
            let _ = self.start.send(());
        }
    }

    /// Waits for the end of all, and removes them: what has ended must not be weighed with what lives. Nothing collects
    /// garbage here, so the runs are removed as well.
    pub async fn none(&self) {
        self.set(0);
        eventually("the tasks at work end", LIMIT, async || {
            (self.live.load(Ordering::SeqCst) == 0).then_some(())
        })
        .await;
        let api = tasks(&self.client);
        let all = api.list(&ListParams::default()).await.unwrap().items;
        let ended: Vec<_> =
            all.iter().filter(|task| has_ended(task)).map(ResourceExt::name_any).collect();
        let gone = stream::iter(ended).map(|name| {
            let api = &api;
            async move { api.delete(&name, &DeleteParams::default()).await.unwrap() }
        });
        gone.buffer_unordered(AT_ONCE).count().await;
        let runs: Api<AgentRun> = Api::namespaced(self.client.clone(), TASKS);
        let ended = ListParams::default().fields("status.phase=Succeeded");
        runs.delete_collection(&DeleteParams::default(), &ended).await.unwrap();
        eventually("the ended tasks are gone", LIMIT, async || {
            let all = api.list(&ListParams::default()).await.ok()?;
            (!all.items.iter().any(has_ended)).then_some(())
        })
        .await;
    }
}

/// What a bare client writes: a run and a task as they really were, and as many events.
pub struct Bare {
    client: Client,
    run: AgentRun,
    task: CodingTask,
    events: usize,
}

impl Bare {
    /// After the example of a task, once one has ended.
    pub async fn new(client: &Client) -> Self {
        let task = eventually("a task has ended", LIMIT, async || {
            let all = tasks(client).list(&ListParams::default()).await.ok()?.items;
            all.into_iter().find(has_ended)
        })
        .await;
        let runs: Api<AgentRun> = Api::namespaced(client.clone(), TASKS);
        let of = ListParams::default().fields(&format!("spec.taskRef.name={}", task.name_any()));
        let run = runs.list(&of).await.unwrap().items.swap_remove(0);
        Self { client: client.clone(), run, task, events: 0 }
    }

    /// With so many events a step.
    pub fn with_events(self, events: usize) -> Self {
        Self { events, ..self }
    }

    /// Steps a second that so many writers get through.
    pub async fn rate(&self, writers: usize, window: Duration) -> f64 {
        let (began, until) = (Instant::now(), Instant::now() + window);
        let written = stream::iter(0..writers).map(|writer| self.write(writer, until));
        let steps: u32 =
            written.buffer_unordered(writers).fold(0, async |sum, steps| sum + steps).await;
        let rate = f64::from(steps) / began.elapsed().as_secs_f64();
        let (runs, all) = (self.runs(), ListParams::default());
        runs.delete_collection(&DeleteParams::default(), &all).await.unwrap();
        let tasks: Api<CodingTask> = Api::namespaced(self.client.clone(), SYSTEM);
        tasks.delete_collection(&DeleteParams::default(), &all).await.unwrap();
        self.told().delete_collection(&DeleteParams::default(), &all).await.unwrap();
        rate
    }

    fn runs(&self) -> Api<AgentRun> {
        Api::namespaced(self.client.clone(), SYSTEM)
    }

    fn told(&self) -> Api<Event> {
        Api::namespaced(self.client.clone(), SYSTEM)
    }

    /// Each write needs the answer to the one before, as ours do.
    async fn write(&self, writer: usize, until: Instant) -> u32 {
        let (runs, events) = (self.runs(), self.told());
        let tasks: Api<CodingTask> = Api::namespaced(self.client.clone(), SYSTEM);
        let of_task = format!("bare-{writer}");
        let made = from_json(task(&of_task, CYCLE));
        tasks.create(&PostParams::default(), &made).await.unwrap();
        let mut status = serde_json::to_value(&self.task.status).unwrap();
        status["phase"] = json!("Running");
        let ended = serde_json::to_value(&self.run.status).unwrap();
        let running = json!({"phase": "Running", "podName": ended["podName"], "startTime": ended["startTime"]});
        let mut steps = 0;
        while Instant::now() < until {
            let name = format!("bare-{writer}-{steps}");
            let run = json!({"apiVersion": "agents.wearn.dev/v1alpha1", "kind": "AgentRun",
                "metadata": {"name": name}, "spec": self.run.spec});
            runs.create(&PostParams::default(), &from_json(run)).await.unwrap();
            apply(&runs, "AgentRun", &name, &running).await;
            apply(&runs, "AgentRun", &name, &ended).await;
            status["message"] = json!(format!("step {steps}"));
            apply(&tasks, "CodingTask", &of_task, &status).await;
            for number in 0..self.events {
                let event = json!({
                    "metadata": {"name": format!("{name}-{number}")}, "type": "Normal", "reason": "Bench",
                    "message": "a step of a task went on", "involvedObject": {"name": name, "namespace": SYSTEM},
                });
                events.create(&PostParams::default(), &from_json(event)).await.unwrap();
            }
            steps += 1;
        }
        steps
    }
}

async fn apply<K>(api: &Api<K>, kind: &str, name: &str, status: &Value)
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let object = json!({"apiVersion": "agents.wearn.dev/v1alpha1", "kind": kind,
        "metadata": {"name": name}, "status": status});
    let params = PatchParams::apply("bench").force();
    api.patch_status(name, &params, &Patch::Apply(object)).await.unwrap();
}
