use agent_operator::proto::v1;
use tonic::{Code, Request, client::Grpc};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use super::support::{Port, soon, with_token};
use crate::catalog::RunView;

fn list(namespace: &str) -> v1::ListRunsRequest {
    v1::ListRunsRequest { namespace: namespace.into(), ..Default::default() }
}

#[tokio::test]
async fn who_has_no_right_learns_nothing() {
    let port = Port::start().await;
    port.catalog.put_run(RunView::sample("r", "t", 1));
    let mut steps = port.steps().await;
    let bare = steps.list_runs(Request::new(list("ns"))).await.unwrap_err();
    assert_eq!(bare.code(), Code::Unauthenticated);
    for (token, namespace, code) in [
        ("wrong", "ns", Code::Unauthenticated),
        ("user:stranger", "ns", Code::PermissionDenied),
        ("user:reader", "other", Code::PermissionDenied),
        ("node:n1", "ns", Code::PermissionDenied),
        ("down:", "ns", Code::Unavailable),
        ("user:reader", "", Code::InvalidArgument),
    ] {
        let refused = steps.list_runs(with_token(list(namespace), token)).await.unwrap_err();
        assert_eq!(refused.code(), code, "list {token} {namespace}");
        let get = v1::GetRunRequest { namespace: namespace.into(), name: "r".into() };
        let refused = steps.get_run(with_token(get, token)).await.unwrap_err();
        assert_eq!(refused.code(), code, "get {token} {namespace}");
        let follow = v1::FollowRequest { namespace: namespace.into(), ..Default::default() };
        let refused = steps.follow(with_token(follow, token)).await.unwrap_err();
        assert_eq!(refused.code(), code, "follow {token} {namespace}");
    }
    for token in ["user:reader", "unbound", "wrong"] {
        assert!(port.session(token).await.is_err(), "session {token}");
        assert!(port.uploads(token).await.is_err(), "uploads {token}");
    }
}

#[tokio::test]
async fn runs_are_read_one_by_one_and_in_pages() {
    let port = Port::start().await;
    for name in ["a", "b", "c"] {
        port.catalog.put_run(RunView::sample(name, "t", 1));
    }
    let mut steps = port.steps().await;
    let get = v1::GetRunRequest { namespace: "ns".into(), name: "b".into() };
    let run = steps.get_run(with_token(get.clone(), "user:reader")).await.unwrap().into_inner();
    assert_eq!(run.run.unwrap().r#ref.unwrap().uid, "uid-b");
    let absent = v1::GetRunRequest { name: "z".into(), ..get };
    let status = steps.get_run(with_token(absent, "user:reader")).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);

    let mut names = Vec::new();
    let mut request = v1::ListRunsRequest { page_size: 2, ..list("ns") };
    loop {
        let asked = with_token(request.clone(), "user:reader");
        let page = steps.list_runs(asked).await.unwrap().into_inner();
        names.push(page.runs.iter().map(|run| run.r#ref.clone().unwrap().name).collect::<Vec<_>>());
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(names, [vec!["a", "b"], vec!["c"]]);
    let huge = v1::ListRunsRequest { page_size: 9999, ..list("ns") };
    let status = steps.list_runs(with_token(huge, "user:reader")).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn health_and_reflection_are_open_and_unknown_methods_are_not_there() {
    let port = Port::start().await;
    let mut health = HealthClient::new(port.connect().await);
    let request = HealthCheckRequest { service: "agentoperator.v1.StepService".into() };
    let status = soon(health.check(request)).await.unwrap().into_inner().status;
    assert_eq!(status, 1);

    let mut reflection = ServerReflectionClient::new(port.connect().await);
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let answers = soon(reflection.server_reflection_info(tokio_stream::iter([ask]))).await;
    let answer = soon(answers.unwrap().into_inner().message()).await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!()
    };
    let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    for name in ["agentoperator.v1.StepService", "agentoperator.v1.SupervisorService"] {
        assert!(names.iter().any(|known| known == name), "{names:?}");
    }

    let mut raw = Grpc::new(port.connect().await);
    raw.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<v1::GetRunRequest, v1::GetRunResponse>::default();
    let path = "/agentoperator.v1.StepService/Delete".parse().unwrap();
    let call = raw.unary(with_token(v1::GetRunRequest::default(), "user:reader"), path, codec);
    assert_eq!(call.await.unwrap_err().code(), Code::Unimplemented);
}
