//! Sandboxes that begin an exchange and leave it at that.

use axum::{body::Body, response::Response};
use futures::{StreamExt as _, stream};
use http::{Request, StatusCode};
use tokio::time::{pause, sleep, timeout};

use super::*;

/// Streams that one attempt may have.
const STREAMS: usize = 4;

async fn ask(world: &World, grant: &RepositoryGrant, body: Body) -> Response {
    let request = Request::post("/git/main.git/git-upload-pack").body(body).unwrap();
    world.git.serve(grant, Some(&credential(TOKEN)), request).await
}

/// A request that begins and never goes on.
fn begun() -> Body {
    let first = bytes::Bytes::from_static(b"0032want");
    let first = stream::iter([Ok::<_, std::io::Error>(first)]);
    Body::from_stream(first.chain(stream::pending()))
}

/// Until no stream of the attempt is open.
async fn closed(world: &World, grant: &RepositoryGrant) {
    let slot = world.git.slot(&grant.run);
    let closed = async {
        while !slot.is_idle() {
            sleep(Duration::from_secs(1)).await;
        }
    };
    timeout(Duration::from_hours(1), closed).await.expect("its streams end");
}

#[tokio::test]
async fn idle_exchanges_of_one_attempt_hold_up_no_other_and_end_after_a_minute() {
    let world = World::new().await;
    let greedy = grant("a");
    world.git.prepare(&greedy, Some(&credential(TOKEN))).await.unwrap();
    let held = ask(&world, &greedy, begun()).await;
    assert_eq!(held.status(), StatusCode::OK);
    let more = stream::repeat(()).take(STREAMS - 1).map(|()| ask(&world, &greedy, begun()));
    let mut more = more.buffer_unordered(STREAMS);
    assert!(futures::poll!(more.next()).is_pending(), "one has git, the others wait");
    let refused = ask(&world, &greedy, Body::empty()).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);

    world.sandbox(&grant("b")).await.change("feature").await;

    drop(more);
    pause();
    let ended = axum::body::to_bytes(held.into_body(), usize::MAX).await.unwrap_err();
    assert!(format!("{ended:?}").contains("moved too little"), "{ended:?}");
    closed(&world, &greedy).await;
}

#[tokio::test]
async fn an_answer_that_nobody_takes_ends_git_and_never_looks_whole() {
    let world = World::new().await;
    let work = world.upstream.root.join("work");
    let set_up = "head -c 4000000 /dev/urandom > noise; git add .; git commit -qm noise
        git push -q ../o/r.git main";
    run(&work, "sh", &["-ec", set_up]);
    let grant = grant("a");
    let step = world.git.prepare(&grant, Some(&credential(TOKEN))).await.unwrap();
    let want = format!("want {} ofs-delta\n", step.start_commit);
    let request = format!("{:04x}{want}00000009done\n", want.len() + 4);
    let mut answer = ask(&world, &grant, Body::from(request)).await.into_body().into_data_stream();
    answer.next().await.unwrap().unwrap();
    pause();
    closed(&world, &grant).await;
    let rest: Vec<_> = answer.collect().await;
    assert!(rest.last().unwrap().is_err());
}
