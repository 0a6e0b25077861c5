//! `StepService` as callers meet it: a replica that does not lead passes it on to the one that does,
//! because only that one has the streams. While nobody is known to lead, each replica answers with
//! what it has.

use std::{pin::Pin, sync::Arc};

use agent_operator::proto::v1;
use futures::StreamExt as _;
use tokio::sync::Semaphore;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, metadata::MetadataMap};
use v1::{step_service_client::StepServiceClient, step_service_server::StepService};

use super::{
    peers::{self, Peers},
    step::{FOLLOWERS_MAX, Steps},
};
use crate::{clock, lease::Leadership};

/// The service.
pub(super) struct Front {
    own: Steps,
    leadership: Leadership,
    peers: Peers,
    stop: CancellationToken,
    /// Each passed-on Follow holds a connection.
    passed: Arc<Semaphore>,
}

type Leader = StepServiceClient<tonic::transport::Channel>;
type Events = Pin<Box<dyn Stream<Item = Result<v1::StepEvent, Status>> + Send>>;

impl Front {
    pub(super) fn new(
        own: Steps,
        leadership: Leadership,
        peers: Peers,
        stop: CancellationToken,
    ) -> Self {
        let passed = Arc::new(Semaphore::new(FOLLOWERS_MAX));
        Self { own, leadership, peers, stop, passed }
    }

    /// The replica that has to answer; none: this one.
    async fn leader(&self, metadata: &MetadataMap) -> Result<Option<Leader>, Status> {
        if self.leadership.term(clock::instant()).is_some() {
            return Ok(None);
        }
        let Some(other) = self.leadership.other() else { return Ok(None) };
        let address = other.address.filter(|_| metadata.get(peers::PASSED).is_none());
        // A second hop would only chase a leader that is changing right now.
        let address =
            address.ok_or_else(|| Status::unavailable("another replica leads; try again"))?;
        self.peers.connect(&address).await.map(Some)
    }

    /// As [`Front::leader`], for what this replica knows from its own watches as well.
    async fn leader_if_there(&self, metadata: &MetadataMap) -> Result<Option<Leader>, Status> {
        match self.leader(metadata).await {
            Err(status) if status.code() == Code::Unavailable => Ok(None),
            leader => leader,
        }
    }
}

#[tonic::async_trait]
impl StepService for Front {
    type FollowStream = Events;

    async fn follow(
        &self,
        request: Request<v1::FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let Some(mut leader) = self.leader(request.metadata()).await? else {
            return self.own.follow(request).await;
        };
        let slot = Arc::clone(&self.passed)
            .try_acquire_owned()
            .map_err(|_| Status::resource_exhausted("too many followers; try again later"))?;
        let (metadata, _, wanted) = request.into_parts();
        let events =
            leader.follow(peers::passed_on(&metadata, wanted)).await.map_err(peers::said)?;
        let stop = self.stop.clone();
        let live = events
            .into_inner()
            .map(|event| event.map_err(peers::said))
            .take_until(stop.clone().cancelled_owned());
        let farewell = futures::stream::once(async move {
            drop(slot);
            let why = "shutting down; go on from the last cursor";
            stop.is_cancelled().then(|| Err(Status::unavailable(why)))
        });
        Ok(Response::new(Box::pin(live.chain(farewell.filter_map(std::future::ready)))))
    }

    async fn get_run(
        &self,
        request: Request<v1::GetRunRequest>,
    ) -> Result<Response<v1::GetRunResponse>, Status> {
        let Some(mut leader) = self.leader_if_there(request.metadata()).await? else {
            return self.own.get_run(request).await;
        };
        let (metadata, _, wanted) = request.into_parts();
        peers::answered(leader.get_run(peers::passed_on(&metadata, wanted))).await
    }

    async fn list_runs(
        &self,
        request: Request<v1::ListRunsRequest>,
    ) -> Result<Response<v1::ListRunsResponse>, Status> {
        let Some(mut leader) = self.leader_if_there(request.metadata()).await? else {
            return self.own.list_runs(request).await;
        };
        let (metadata, _, wanted) = request.into_parts();
        peers::answered(leader.list_runs(peers::passed_on(&metadata, wanted))).await
    }
}
