//! The disk under a supervisor and its gateway is full while steps run (class 22).

use serde_json::json;

use super::{
    harm::{
        disk::SmallDisk,
        victim::{Node, Victim},
    },
    trial::{SOON, Trial, on},
};
use crate::support::{
    cluster::{NAMESPACE, phase},
    eventually,
};

const NODE: Node = Node::B;
/// Room for the ledger's reserve, a mirror and the streams of some steps.
const MEBIBYTES: u32 = 48;

/// Rows of the step that runs when the disk becomes full, and wants to push before it is emptied.
const ROWS: u64 = 40;

fn processes() -> [Option<i32>; 2] {
    [Victim::Supervisor(NODE).pid(), Victim::Gateway(NODE).pid()]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the local cluster: tests/run faults"]
async fn f22_a_full_disk_refuses_new_steps_and_keeps_deadlines_and_outcomes_of_live_ones() {
    holds_beside_a_full_disk("full", SmallDisk::fill).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the local cluster: tests/run faults"]
async fn f22_a_disk_without_inodes_refuses_new_steps_and_keeps_deadlines_and_outcomes_of_live_ones()
{
    holds_beside_a_full_disk("inodes", SmallDisk::fill_inodes).await;
}

async fn holds_beside_a_full_disk(name: &str, fill: fn(&SmallDisk)) {
    let trial = Trial::begin(name).await;
    let disk = SmallDisk::mount(NODE, MEBIBYTES);
    eventually("both processes run on the small disk", SOON, || async {
        if processes().iter().all(Option::is_some) { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    let (ticking, sleeping) = trial.two_on(NODE, ROWS).await;
    let before = processes();
    fill(&disk);

    assert_eq!(phase(&trial.end_of(&sleeping).await), "Failed", "its deadline holds");
    let other = trial.ticking(1, &json!({})).await;
    assert_eq!(phase(&trial.end_of(&other).await), "Complete", "another node takes its steps");
    let tied = trial.ticking(1, &on(NODE)).await;
    eventually("the node refuses steps and says why", SOON, || async {
        let told = trial.cluster.describe(NAMESPACE, &tied).await;
        if told.contains("DiskFull") { Ok(()) } else { Err(told) }
    })
    .await;
    assert_eq!(before, processes(), "a full disk ends no process");
    disk.empty();
    trial.end_of(&ticking).await;
    trial.end_of(&tied).await;
    drop(disk);

    let ended = trial.judge(false).await;
    for task in [&ticking, &tied] {
        let status = ended[task].status.clone().expect("a status");
        assert_eq!(status.phase.as_deref(), Some("Complete"), "{status:#?}");
        let retries = status.retries.unwrap_or_default();
        assert_eq!(retries.application, 0, "nobody's agent is charged for the disk: {status:#?}");
    }
}
