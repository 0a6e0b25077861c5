use std::sync::Mutex;

use http::{Method, Request, Response};
use kube::client::Body;

use super::*;

/// A server that takes each event, and the methods by which they came.
fn server() -> (Client, Arc<Mutex<Vec<Method>>>) {
    let methods = Arc::<Mutex<Vec<Method>>>::default();
    let told = Arc::clone(&methods);
    let service = tower::service_fn(move |request: Request<Body>| {
        told.lock().unwrap().push(request.method().clone());
        async {
            Ok::<_, kube::Error>(Response::new(Body::from(
                request.into_body().collect_bytes().await?,
            )))
        }
    });
    (Client::new(service, "ns"), methods)
}

fn note(reason: &str) -> EventNote {
    let run = RunRef { namespace: "ns".into(), name: "run".into(), uid: "uid".into() };
    let [reason, action, note] = [reason, "Act", "It happened."].map(str::to_owned);
    EventNote { run: Some(run), warning: true, reason, action, note }
}

#[tokio::test(start_paused = true)]
async fn what_repeats_is_counted_and_no_more_than_the_latest_events_are_remembered() {
    let (client, methods) = server();
    let (events, mut writer) = events(client, "me");
    let mut told = async |reason: &str| {
        let note = note(reason);
        events.queue(run_reference(note.run.as_ref().unwrap()), note);
        let next = writer.next().await.unwrap();
        writer.write(next).await;
        methods.lock().unwrap().pop().expect("it is written")
    };
    assert_eq!(told("Again").await, Method::POST);
    assert_eq!(told("Again").await, Method::PATCH, "counted");
    for number in 2..REMEMBERED_MAX {
        assert_eq!(told(&format!("Other{number}")).await, Method::POST);
    }
    assert_eq!(told("Again").await, Method::POST, "forgotten");
    assert_eq!(told("Again").await, Method::PATCH, "counted anew");
}
