//! Two replicas: whoever asks the one that does not lead gets what the leader says.

use std::sync::atomic::Ordering;

use agent_operator::{domain::stream::Channel as StreamChannel, proto::v1};
use tonic::{Code, Request, Status, Streaming};
use v1::{follow_request::Target, step_event::Event};

use super::support::{Port, soon, with_token};
use crate::{catalog::RunView, clock, streams::StreamKey};

const READER: &str = "user:reader";

fn list() -> v1::ListRunsRequest {
    v1::ListRunsRequest { namespace: "ns".into(), ..Default::default() }
}

fn get(name: &str) -> v1::GetRunRequest {
    v1::GetRunRequest { namespace: "ns".into(), name: name.into() }
}

fn follow(run: &str) -> v1::FollowRequest {
    v1::FollowRequest {
        namespace: "ns".into(),
        target: Some(Target::Run(run.into())),
        follow: true,
        ..Default::default()
    }
}

fn write(port: &Port, text: &str) {
    let key = StreamKey { run: "uid-live".into(), channel: StreamChannel::Log };
    let at = port.store.position(&key).map_or(0, |position| position.offset);
    port.store.append(&key, at, text.as_bytes(), clock::instant()).unwrap();
}

/// A leader with a live run, and its standby, which has never heard of it.
async fn pair() -> (Port, Port) {
    let leader = Port::start().await;
    leader.catalog.put_run(RunView { phase: "Running".into(), ..RunView::sample("live", "t", 1) });
    let standby = Port::standby_of(&leader).await;
    (leader, standby)
}

async fn names(port: &Port) -> Result<Vec<String>, Status> {
    let listed = port.steps().await.list_runs(with_token(list(), READER)).await?.into_inner();
    Ok(listed.runs.into_iter().map(|run| run.r#ref.unwrap().name).collect())
}

async fn open(port: &Port) -> Result<Streaming<v1::StepEvent>, Status> {
    let mut steps = port.steps().await;
    Ok(soon(steps.follow(with_token(follow("live"), READER))).await?.into_inner())
}

/// The next line of the log.
async fn line(events: &mut Streaming<v1::StepEvent>) -> Result<String, Status> {
    loop {
        let event = soon(events.message()).await?.expect("the stream goes on").event;
        if let Some(Event::Log(line)) = event {
            return Ok(line.text);
        }
    }
}

#[tokio::test]
async fn a_standby_answers_with_what_the_leader_has() {
    let (leader, standby) = pair().await;
    assert_eq!(names(&standby).await.unwrap(), ["live"]);
    let mut steps = standby.steps().await;
    let run = steps.get_run(with_token(get("live"), READER)).await.unwrap().into_inner();
    assert_eq!(run.run.unwrap().r#ref.unwrap().uid, "uid-live");
    let absent = steps.get_run(with_token(get("none"), READER)).await.unwrap_err();
    assert_eq!((absent.code(), absent.message()), (Code::NotFound, "no run none in namespace ns"));

    let mut events = open(&standby).await.unwrap();
    write(&leader, "one\n");
    assert_eq!(line(&mut events).await.unwrap(), "one");
    write(&leader, "two\n");
    assert_eq!(line(&mut events).await.unwrap(), "two", "live, line by line");
}

#[tokio::test]
async fn the_leader_permits_the_caller_itself_and_without_a_token_nothing_is_passed_on() {
    let (leader, standby) = pair().await;
    let mut steps = standby.steps().await;
    let bare = steps.list_runs(Request::new(list())).await.unwrap_err();
    assert_eq!(bare.code(), Code::Unauthenticated);
    for (token, code) in
        [("wrong", Code::Unauthenticated), ("user:stranger", Code::PermissionDenied)]
    {
        let refused = steps.list_runs(with_token(list(), token)).await.unwrap_err();
        assert_eq!(refused.code(), code, "{token}");
        let refused = steps.follow(with_token(follow("live"), token)).await.unwrap_err();
        assert_eq!(refused.code(), code, "{token}");
    }
    // Only the leader's reviewer knows that the right was taken back.
    leader.withdrawn.store(true, Ordering::SeqCst);
    assert_eq!(names(&standby).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_call_is_passed_on_once_and_no_replica_sends_it_in_circles() {
    let (leader, standby) = pair().await;
    // The leader has lost its term to a third one that is not there.
    leader.terms.send_replace(None);
    leader.leader.send_replace(Some(standby.as_leader()));
    let refused = open(&standby).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("another replica leads"), "{}", refused.message());
}

#[tokio::test]
async fn while_nobody_is_known_to_lead_each_replica_answers_with_what_it_has() {
    let (_leader, standby) = pair().await;
    standby.leader.send_replace(None);
    assert_eq!(names(&standby).await.unwrap(), Vec::<String>::new());
    standby.catalog.put_run(RunView::sample("own", "t", 1));
    assert_eq!(names(&standby).await.unwrap(), ["own"]);
}

#[tokio::test]
async fn a_leader_that_does_not_answer_costs_a_follow_but_no_list() {
    let (leader, standby) = pair().await;
    standby.catalog.put_run(RunView::sample("live", "t", 1));
    leader.stop().await;
    assert_eq!(names(&standby).await.unwrap(), ["live"], "from its own watch");
    let refused = open(&standby).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("try again"), "{}", refused.message());
}

#[tokio::test]
async fn a_follow_ends_with_a_way_to_go_on_when_another_replica_takes_over() {
    let (leader, standby) = pair().await;
    let mut own = open(&leader).await.unwrap();
    let mut passed = open(&standby).await.unwrap();
    write(&leader, "one\n");
    assert_eq!(line(&mut own).await.unwrap(), "one");
    assert_eq!(line(&mut passed).await.unwrap(), "one");
    // A term that is merely lost ends nothing: the streams are still here.
    leader.terms.send_replace(None);
    write(&leader, "two\n");
    assert_eq!(line(&mut own).await.unwrap(), "two");
    assert_eq!(line(&mut passed).await.unwrap(), "two");
    leader.leader.send_replace(Some(standby.as_leader()));
    for events in [&mut own, &mut passed] {
        let ended = line(events).await.unwrap_err();
        assert_eq!(ended.code(), Code::Unavailable);
        assert!(ended.message().contains("go on from the last cursor"), "{}", ended.message());
    }
}

#[tokio::test]
async fn a_standby_that_shuts_down_tells_those_whom_it_passed_on() {
    let (_leader, standby) = pair().await;
    let mut passed = open(&standby).await.unwrap();
    standby.cancel();
    let ended = line(&mut passed).await.unwrap_err();
    assert_eq!(ended.code(), Code::Unavailable);
    assert!(ended.message().contains("shutting down"), "{}", ended.message());
}
