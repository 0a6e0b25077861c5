//! F1: the controller killed before and after each write of a whole task. The simulation does the same
//! with real supervisors; here the API server is real.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use http::{Method, Request, Response};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, Client, Config,
    api::{Patch, PatchParams},
    client::{Body, ClientBuilder},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;
use tokio::sync::Notify;
use tower::{Service, layer::layer_fn};

use super::support::{Controller, Fleet, Ground, all_well, ground};

/// Writes that a kill may cost beyond those of a run without one.
const EXTRA_MAX: usize = 3;
/// Longest wait for the write at which the controller dies.
const LIMIT: Duration = Duration::from_mins(1);

/// Before or after which write the controller dies.
#[derive(Clone, Copy, Debug)]
struct Kill {
    write: usize,
    applied: bool,
}

#[derive(Default)]
struct Writes {
    kill: Option<Kill>,
    count: AtomicUsize,
    reached: Notify,
}

/// Counts the writes that carry decisions; the one of the kill is never answered.
#[derive(Clone)]
struct Gate<S> {
    inner: S,
    writes: Arc<Writes>,
}

impl<S, B> Service<Request<Body>> for Gate<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let decides = request.method() != Method::GET
            && !path.contains("/leases")
            && !path.contains("/events");
        let number = decides.then(|| self.writes.count.fetch_add(1, Ordering::SeqCst));
        let Some(kill) = self.writes.kill.filter(|kill| number == Some(kill.write)) else {
            return Box::pin(self.inner.call(request));
        };
        let sent = kill.applied.then(|| self.inner.call(request));
        let writes = Arc::clone(&self.writes);
        Box::pin(async move {
            if let Some(sent) = sent {
                let _ = sent.await;
            }
            writes.reached.notify_one();
            std::future::pending().await
        })
    }
}

async fn gated(writes: &Arc<Writes>) -> Client {
    let path = PathBuf::from(std::env::var_os("KUBECONFIG").unwrap());
    let file = Kubeconfig::read_from(path).unwrap();
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(file, &options).await.unwrap();
    let writes = Arc::clone(writes);
    let layer = layer_fn(move |inner| Gate { inner, writes: Arc::clone(&writes) });
    ClientBuilder::try_from(config).unwrap().with_layer(&layer).build()
}

async fn controller(ground: &mut Ground, fleet: &Arc<Fleet>, writes: &Arc<Writes>) -> Controller {
    let own = std::mem::replace(&mut ground.client, gated(writes).await);
    let controller = Controller::start(ground, Arc::clone(fleet)).await;
    ground.client = own;
    controller
}

/// As if the Lease had run out, which would only take time here.
async fn let_go(ground: &Ground) {
    let leases: Api<Lease> = Api::namespaced(ground.client.clone(), &ground.namespace);
    let free = Patch::Merge(json!({"spec": {"holderIdentity": null}}));
    leases.patch("controller", &PatchParams::default(), &free).await.unwrap();
}

/// Takes a task to its end; the number of writes, and each run with its end.
async fn run(ground: &mut Ground, task: &str, kill: Option<Kill>) -> (usize, Vec<String>) {
    let writes = Arc::new(Writes { kill, ..Writes::default() });
    let fleet = Fleet::new(&["node-a"], all_well());
    let mut present = controller(ground, &fleet, &writes).await;
    present.epoch().await;
    ground.task(task, json!({})).await;
    if kill.is_some() {
        let reached = tokio::time::timeout(LIMIT, writes.reached.notified()).await;
        reached.unwrap_or_else(|_| panic!("{task}: there was no such write"));
        present.kill().await;
        let_go(ground).await;
        present = controller(ground, &fleet, &writes).await;
    }
    let done = ground.phase(task, "Complete").await;
    assert_eq!(done.status.unwrap().pull_request.unwrap().number, 7);
    present.stop().await;
    let mut runs: Vec<_> = ground
        .all_runs()
        .await
        .into_iter()
        .filter(|run| run.spec.task_ref.name == task)
        .map(|run| {
            let status = run.status.clone().unwrap_or_default();
            let end = (status.phase, status.reason, status.exit_code);
            format!("{} {} {end:?}", run.spec.step, run.spec.attempt)
        })
        .collect();
    runs.sort();
    (writes.count.load(Ordering::SeqCst), runs)
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn f1_a_controller_killed_at_any_write_finds_the_real_servers_state_and_goes_on() {
    let Some(mut ground) = ground().await else { return };
    ground.node("node-a").await;
    ground.secret().await;
    let (calm, wanted) = run(&mut ground, "calm", None).await;
    assert_eq!(wanted.len(), 4, "{wanted:?}");
    assert!(calm >= 8, "a task of four steps has {calm} writes");
    let mut most = 0;
    for write in 0..calm {
        for applied in [false, true] {
            let kill = Kill { write, applied };
            let name = format!("killed-{}-{write}", if applied { "after" } else { "before" });
            let (count, runs) = run(&mut ground, &name, Some(kill)).await;
            assert_eq!(runs, wanted, "{name}");
            let extra = count.saturating_sub(calm);
            assert!(extra <= EXTRA_MAX, "{name}: {extra} writes more");
            most = most.max(extra);
        }
    }
    eprintln!("{calm} writes, at most {most} more after a kill");
}
