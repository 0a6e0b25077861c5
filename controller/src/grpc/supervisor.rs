//! `SupervisorService`: sessions and bulk streams of nodes.

use std::pin::Pin;

use agent_operator::{domain::NodeName, proto::v1};
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};
use v1::supervisor_service_server::SupervisorService;

use super::{auth::Caller, session, stream};

/// Answers that wait for a node's connection; behind them stands the session's own queue.
const ANSWERS_MAX: usize = 64;

/// The service. Every call is a task of `tasks`, ended by the contexts' token.
pub(super) struct Supervisors {
    pub(super) sessions: session::Context,
    pub(super) streams: stream::Context,
    pub(super) tasks: TaskTracker,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl SupervisorService for Supervisors {
    type SessionStream = Answers<v1::ControllerMessage>;
    type StreamStream = Answers<v1::Ack>;

    async fn session(
        &self,
        request: Request<Streaming<v1::SupervisorMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let node = node(&request)?;
        let (answers, stream) = mpsc::channel(ANSWERS_MAX);
        let context = self.sessions.clone();
        self.tasks.spawn(session::serve(context, node, request.into_inner(), answers));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn stream(
        &self,
        request: Request<Streaming<v1::Chunk>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let node = node(&request)?;
        let (acks, stream) = mpsc::channel(ANSWERS_MAX);
        let context = self.streams.clone();
        self.tasks.spawn(stream::serve(context, node, request.into_inner(), acks));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// The calling supervisor's node, as the layer found it.
fn node<T>(request: &Request<T>) -> Result<NodeName, Status> {
    match request.extensions().get::<Caller>() {
        Some(Caller::Supervisor { node }) => Ok(node.clone()),
        // The table and the layer make sure of it; without them nobody gets in.
        _ => Err(Status::unauthenticated("no supervisor")),
    }
}
