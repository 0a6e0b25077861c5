//! A bad link between supervisor and controller: slow, lossy, and it breaks every few seconds (class 16).

use k8s_openapi::api::core::v1::Service;
use kube::Api;

use super::{
    harm::{
        slow::{SlowLink, service_address},
        victim::{Node, Victim},
    },
    trial::{SOON, Trial, assert_untouched, on},
};
use crate::support::{cluster::SYSTEM, eventually};

const NODE: Node = Node::B;
/// Any number: it decides where pieces are lost and connections break.
const SEED: u64 = 16;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the local cluster: tests/run faults"]
async fn f16_a_link_that_is_slow_lossy_and_breaks_costs_no_attempt_and_no_row() {
    let trial = Trial::begin("slow").await;
    let services: Api<Service> = Api::namespaced(trial.cluster.client.clone(), SYSTEM);
    let service = services.get("agent-operator-controller").await.expect("the Service");
    let ip = service.spec.and_then(|spec| spec.cluster_ip).expect("an address");
    let link = SlowLink::new(NODE, service_address(&ip), SEED);
    // The old connection would go on as it was.
    drop(Victim::Supervisor(NODE).kill());
    eventually("the supervisor comes back by the bad link", SOON, || async {
        match link.connections() {
            0 => Err("no connection".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    let first = trial.ticking(120, &on(NODE)).await;
    let second = trial.ticking(120, &on(NODE)).await;
    trial.end_of(&first).await;
    trial.end_of(&second).await;
    let connections = link.connections();
    println!("{connections} connections went through the bad link");
    drop(link);
    let ended = trial.judge(false).await;
    assert!(connections > 2, "{connections} connections: it broke too seldom to show anything");
    assert_untouched(&ended[&first]);
    assert_untouched(&ended[&second]);
}
