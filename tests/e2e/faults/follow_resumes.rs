//! A Follow is cut by the death of the controller and goes on from its cursor: each line once.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    cluster::{Cluster, NAMESPACE},
    eventually, grpcurl, logs, processes,
    task::{command_agent, task, unique},
};

const ROWS: usize = 60;

#[tokio::test]
#[ignore = "needs the local cluster: tests/run faults"]
async fn a_follow_goes_on_from_its_cursor_after_the_controller_was_killed() {
    let cluster = Cluster::connect().await;
    let token = logs::viewer_token(&cluster, &unique("resumer")).await;
    let name = unique("resumed");
    let script = format!(
        "[ \"$AGENT_STEP\" = plan ] || {{ echo change > change.txt; exit 0; }}; \
         i=0; while [ $i -lt {ROWS} ]; do echo \"row $i \"; i=$((i+1)); sleep 0.3; done"
    );
    cluster.create(NAMESPACE, &task(&name, "Talk.", &command_agent(&script))).await;
    let plan = cluster.run_in_phase(NAMESPACE, &name, "plan", "Running").await;
    let run = plan.metadata.name.expect("a name");

    // What is there now, without waiting for more: the cursor of its last event is where to go on.
    let first = eventually("some rows are there", Duration::from_mins(1), || async {
        let request = json!({"namespace": NAMESPACE, "run": run});
        let events = grpcurl::call(Some(&token), logs::FOLLOW, &request).await?;
        let rows = logs::Rows::of(&events).rows.len();
        if rows >= 5 { Ok(events) } else { Err(format!("{rows} rows")) }
    })
    .await;
    let cursor =
        first.last().and_then(|event| event["cursor"].as_str()).expect("a cursor").to_owned();
    let killed = processes::kill_program(
        &cluster,
        "app.kubernetes.io/component=controller",
        None,
        "controller",
    )
    .await;
    assert_eq!(killed, 1, "one controller was killed");

    let rest =
        eventually("the rest comes from the new process", Duration::from_mins(2), || async {
            let request =
                json!({"namespace": NAMESPACE, "run": run, "cursor": cursor, "follow": true});
            grpcurl::call(Some(&token), logs::FOLLOW, &request).await
        })
        .await;
    let all: Vec<Value> = first.into_iter().chain(rest).collect();
    let told = logs::Rows::of(&all);
    println!(
        "controller killed while followed: {ROWS} rows written, {} told, {} doubled, {} gaps",
        told.rows.len(),
        told.disordered(),
        told.gaps.len()
    );
    assert_eq!(told.gaps, Vec::<String>::new());
    assert_eq!(told.rows, (0..ROWS as u64).collect::<Vec<_>>(), "each row once and in order");
    cluster.complete(NAMESPACE, &name).await;
}
