//! The watches that keep the catalogue.

use std::fmt::Debug;

use agent_operator::crd::{AgentRun, CodingTask};
use futures::{StreamExt as _, TryStreamExt as _};
use kube::{
    Api, Client, Resource,
    runtime::{WatchStreamExt as _, watcher},
};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use super::{Catalog, RunView, TaskView};
use crate::observe::watch;

/// Keeps `catalog` until `stop`. Errors of a watch are logged and waited out.
pub async fn run(client: Client, catalog: Catalog, stop: CancellationToken) {
    let tasks = follow::<CodingTask, TaskView>(
        Api::all(client.clone()),
        |views| catalog.set_tasks(views),
        |view| catalog.put_task(view),
        |view| catalog.drop_task(&view),
    );
    let runs = follow::<AgentRun, RunView>(
        Api::all(client),
        |views| catalog.set_runs(views),
        |view| catalog.put_run(view),
        |view| catalog.drop_run(&view),
    );
    tokio::select! {
        () = stop.cancelled() => {}
        () = tasks => {}
        () = runs => {}
    }
}

async fn follow<K, V>(api: Api<K>, all: impl Fn(Vec<V>), put: impl Fn(V), gone: impl Fn(V))
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
    V: From<K>,
{
    let mut events = watcher(api, watcher::Config::default()).backoff(watch::backoff()).boxed();
    let mut listed = Vec::new();
    loop {
        match events.try_next().await {
            Ok(Some(watcher::Event::Init)) => listed.clear(),
            Ok(Some(watcher::Event::InitApply(object))) => listed.push(V::from(object)),
            Ok(Some(watcher::Event::InitDone)) => all(std::mem::take(&mut listed)),
            Ok(Some(watcher::Event::Apply(object))) => put(V::from(object)),
            Ok(Some(watcher::Event::Delete(object))) => gone(V::from(object)),
            Ok(None) => return,
            Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "watch failed"),
        }
    }
}
