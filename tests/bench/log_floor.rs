//! The floor of `log-latency`: what nobody gets below who passes lines on by way of a file and two services. Writers of
//! bare lines, a reader that inotify wakes, and two gRPC hops over loopback without TLS, all in this process.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use agent_operator::proto::v1::{
    FollowRequest, GetRunRequest, GetRunResponse, ListRunsRequest, ListRunsResponse, LogLine,
    StepEvent,
    follow_request::Target,
    step_event::Event,
    step_service_client::StepServiceClient,
    step_service_server::{StepService, StepServiceServer},
};
use async_trait::async_trait;
use futures::{Stream, StreamExt as _, stream};
use nix::{
    sys::time::TimeSpec,
    time::{ClockId, ClockNanosleepFlags, clock_nanosleep},
};
use notify::{RecursiveMode, Watcher as _};
use tokio::{net::TcpListener, sync::mpsc, task::JoinSet, time::Instant};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{
    Request, Response, Status,
    transport::{Channel, Server},
};

use crate::{
    log_latency::{Heard, Load},
    nodes::monotonic,
};

/// Lines that wait for a reader.
const QUEUE: usize = 4096;
/// A reader looks so often whether it has a reason to go on.
const IDLE: Duration = Duration::from_secs(1);
/// What came before everything was connected is not looked at.
const SETTLE: Duration = Duration::from_millis(500);

/// The whole chain. Dropping it ends all of it.
pub struct Floor {
    client: StepServiceClient<Channel>,
    load: Load,
    over: Arc<AtomicBool>,
    _around: JoinSet<()>,
    _dir: tempfile::TempDir,
}

impl Drop for Floor {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

impl Floor {
    pub async fn start(load: Load) -> Self {
        let (dir, over, mut around) =
            (tempfile::tempdir().unwrap(), Arc::default(), JoinSet::new());
        let files: Vec<_> =
            (0..load.pods).map(|pod| dir.path().join(format!("{pod}.log"))).collect();
        for file in &files {
            File::create(file).unwrap();
        }
        let node = serve(Node(files.clone()), &mut around).await;
        let middle = Middle(StepServiceClient::connect(format!("http://{node}")).await.unwrap());
        let middle = serve(middle, &mut around).await;
        let client = StepServiceClient::connect(format!("http://{middle}")).await.unwrap();
        let until = Arc::clone(&over);
        thread::spawn(move || write(&files, load.pace, &until));
        Self { client, load, over, _around: around, _dir: dir }
    }

    /// All files for a while.
    pub async fn hear(&self, window: Duration) -> Heard {
        let mut streams = Vec::new();
        for pod in 0..self.load.pods {
            let request = FollowRequest {
                target: Some(Target::Run(pod.to_string())),
                ..FollowRequest::default()
            };
            let events = self.client.clone().follow(request).await.unwrap().into_inner();
            streams.push(events.map(move |event| (pod, event)));
        }
        let (mut all, mut heard) = (stream::select_all(streams), Heard::default());
        let from = Instant::now() + SETTLE;
        while let Ok(Some((pod, event))) = tokio::time::timeout_at(from + window, all.next()).await
        {
            if let Some(Event::Log(line)) = event.unwrap().event
                && Instant::now() >= from
            {
                heard.line(pod, &line.text);
            }
        }
        heard
    }
}

/// A line into each file at this pace.
fn write(files: &[PathBuf], pace: Duration, over: &AtomicBool) {
    let mut files: Vec<_> =
        files.iter().map(|file| File::options().append(true).open(file).unwrap()).collect();
    let start = monotonic();
    for number in 0.. {
        for file in &mut files {
            let now = monotonic();
            let line = format!("row {number} {}.{:09}\n", now.as_secs(), now.subsec_nanos());
            // The folder may go before this thread notices that it is over.
            let _ = file.write_all(line.as_bytes());
        }
        if over.load(Ordering::Relaxed) {
            return;
        }
        let due = TimeSpec::from_duration(start + pace * (number + 1));
        let absolute = ClockNanosleepFlags::TIMER_ABSTIME;
        let _ = clock_nanosleep(ClockId::CLOCK_MONOTONIC, absolute, &due);
    }
}

/// Sends a file's lines as they are written, until nobody takes them.
fn tail(path: &Path, lines: &mpsc::Sender<Result<StepEvent, Status>>) {
    let (woken, wakes) = std::sync::mpsc::channel();
    let mut watcher = notify::recommended_watcher(move |_| {
        let _ = woken.send(());
    })
    .unwrap();
    watcher.watch(path, RecursiveMode::NonRecursive).unwrap();
    let (mut file, mut rest) = (File::open(path).unwrap(), Vec::new());
    while !lines.is_closed() {
        // Once in a while even if nothing is written: nobody may be there any more.
        let _ = wakes.recv_timeout(IDLE);
        // One look answers all wakes so far.
        while wakes.try_recv().is_ok() {}
        file.read_to_end(&mut rest).unwrap();
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let text = String::from_utf8_lossy(&rest[..end]).into_owned();
            rest.drain(..=end);
            let line = Event::Log(LogLine { text, partial: false });
            let event = StepEvent { event: Some(line), ..StepEvent::default() };
            if lines.blocking_send(Ok(event)).is_err() {
                return;
            }
        }
    }
}

async fn serve(service: impl StepService, around: &mut JoinSet<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::builder().tcp_nodelay(true).add_service(StepServiceServer::new(service));
    around.spawn(async move {
        server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
    });
    address
}

/// The first hop: reads the files.
struct Node(Vec<PathBuf>);
/// The second hop: passes on what the first one sends.
struct Middle(StepServiceClient<Channel>);

type Events = Pin<Box<dyn Stream<Item = Result<StepEvent, Status>> + Send>>;

#[async_trait]
impl StepService for Node {
    type FollowStream = Events;

    async fn follow(&self, request: Request<FollowRequest>) -> Result<Response<Events>, Status> {
        let Some(Target::Run(pod)) = request.into_inner().target else {
            return Err(Status::invalid_argument("which file?"));
        };
        let path = self.0[pod.parse::<usize>().unwrap()].clone();
        let (sender, receiver) = mpsc::channel(QUEUE);
        thread::spawn(move || tail(&path, &sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn get_run(&self, _: Request<GetRunRequest>) -> Result<Response<GetRunResponse>, Status> {
        Err(Status::unimplemented("only Follow"))
    }

    async fn list_runs(
        &self,
        _: Request<ListRunsRequest>,
    ) -> Result<Response<ListRunsResponse>, Status> {
        Err(Status::unimplemented("only Follow"))
    }
}

#[async_trait]
impl StepService for Middle {
    type FollowStream = Events;

    async fn follow(&self, request: Request<FollowRequest>) -> Result<Response<Events>, Status> {
        let events = self.0.clone().follow(request.into_inner()).await?.into_inner();
        Ok(Response::new(Box::pin(events)))
    }

    async fn get_run(&self, _: Request<GetRunRequest>) -> Result<Response<GetRunResponse>, Status> {
        Err(Status::unimplemented("only Follow"))
    }

    async fn list_runs(
        &self,
        _: Request<ListRunsRequest>,
    ) -> Result<Response<ListRunsResponse>, Status> {
        Err(Status::unimplemented("only Follow"))
    }
}
