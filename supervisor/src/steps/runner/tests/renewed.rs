//! The rules of a running step's pod are made again by a supervisor that starts again, and missed where they were gone.

use agent_operator::domain::assignment::EgressPolicy;

use super::*;
use crate::enforcer::{
    client::ClientError,
    contract::{Answer, CloseOrder},
};

/// A node's rules, which outlive supervisors.
#[derive(Default)]
struct Rules {
    orders: Mutex<Vec<CloseOrder>>,
    in_place: AtomicBool,
}

#[async_trait]
impl Enforcer for Rules {
    async fn close(&self, order: &CloseOrder) -> Result<Answer, ClientError> {
        self.orders.lock().unwrap().push(order.clone());
        let anew = !self.in_place.swap(true, Ordering::SeqCst);
        Ok(Answer::Closed { device: "veth7".to_owned(), index: Some(7), anew })
    }
}

/// A node with a running step; the supervisor that started it is gone.
async fn left_running(dir: &Path, policy: EgressPolicy) -> (Arc<FakePods>, Arc<Rules>) {
    let (pods, rules) = (Arc::new(FakePods::default()), Arc::new(Rules::default()));
    *pods.enforcer.lock().unwrap() = Some(Arc::clone(&rules) as Arc<dyn Enforcer>);
    *pods.own_gateway.lock().unwrap() = Some("10.244.0.3:8080".parse().unwrap());
    let mut life = Life::start(dir, &pods).await;
    let mut order = assignment();
    order.sandbox.egress = policy;
    life.assign(order).await;
    life.open_probed_gate(&pods).await;
    life.kill().await;
    assert_eq!(rules.orders.lock().unwrap().len(), 1, "the gate's");
    (pods, rules)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_upgrade_a_running_steps_rules_name_the_gateway_of_the_new_pod() {
    let dir = tempfile::tempdir().unwrap();
    let (pods, rules) = left_running(dir.path(), EgressPolicy::Required).await;
    let moved: SocketAddr = "10.244.0.33:8080".parse().unwrap();
    *pods.own_gateway.lock().unwrap() = Some(moved);
    let life = Life::start(dir.path(), &pods).await;
    wait_until(|| rules.orders.lock().unwrap().len() > 1).await;
    let orders = rules.orders.lock().unwrap().clone();
    let (first, again) = (&orders[0], &orders[1]);
    assert_eq!((&again.pod_uid, again.pod_ip), (&first.pod_uid, first.pod_ip));
    assert_eq!(again.iflink, Some(7), "the device of the rules, whoever has the address now");
    assert!(again.gateways.contains(&moved) && !first.gateways.contains(&moved), "{again:?}");
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_that_requires_a_closed_network_ends_when_its_rules_were_gone() {
    let dir = tempfile::tempdir().unwrap();
    container_cgroup(dir.path());
    let (pods, rules) = left_running(dir.path(), EgressPolicy::Required).await;
    rules.in_place.store(false, Ordering::SeqCst);
    let mut life = Life::start(dir.path(), &pods).await;
    let stop = life.told(|message| matches!(message, ToGateway::Stop { .. })).await;
    let ToGateway::Stop { order, .. } = stop else { unreachable!() };
    assert_eq!(order.reason, Reason::Disrupted);
    life.see(&pods.set_status(terminated(137))).await;
    let outcome = life.outcome().await;
    assert_eq!(outcome.reason, Reason::Disrupted);
    assert!(outcome.message.contains("rules of its pod were gone"), "{}", outcome.message);
    assert!(rules.in_place.load(Ordering::SeqCst), "they were made again meanwhile");
    life.kill().await;
}
