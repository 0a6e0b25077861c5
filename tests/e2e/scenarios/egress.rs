//! The network of an agent is closed before it starts: it reaches its gateway and nothing else, its task
//! completes all the same, and the status says so.

use serde_json::json;

use super::start_faults::assert_no_harm;
use crate::support::{
    cluster::{Cluster, NAMESPACE},
    egress,
    task::{command_agent, merge, task, unique},
};

/// Installs a package whose install script calls home by the proxy that the sandbox names, and says how that went.
const BEACON: &str = r#"[ "$AGENT_STEP" = implement ] || { echo step $AGENT_STEP; exit 0; }
set -e; home=$(mktemp -d); mkdir $home/pkg; tree=$PWD
cat > $home/pkg/beacon.sh <<'END'
curl --silent --show-error --max-time 20 https://beacon.example/ > $HOME/beacon.out 2>&1; echo "ended with $?" >> $HOME/beacon.out
END
echo '{"name": "worm", "version": "1.0.0", "scripts": {"postinstall": "sh beacon.sh"}}' > $home/pkg/package.json
cd $home && npm pack --silent ./pkg && npm init --yes > /dev/null
HOME=$home npm install --no-audit --no-fund --offline ./worm-1.0.0.tgz
echo "the beacon: $(cat $home/beacon.out)"; cd $tree; date +%N > done.txt"#;

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn an_agent_reaches_nothing_but_its_gateway_and_its_task_completes() {
    let cluster = Cluster::connect().await;
    let name = unique("egress");
    let targets = egress::targets(&cluster).await;
    assert!(targets.len() > 15, "{targets:?}");
    let script = format!(
        "{}[ \"$AGENT_STEP\" = implement ] && date +%N > done.txt; echo step $AGENT_STEP",
        egress::scan(&targets)
    );
    cluster.create(NAMESPACE, &task(&name, "Reach out.", &command_agent(&script))).await;
    cluster.complete(NAMESPACE, &name).await;
    let runs = cluster.runs(NAMESPACE, &name).await;
    assert_eq!(runs.len(), 4, "{runs:#?}");
    for run in runs {
        let status = run.status.expect("a status");
        let level = status.sandbox.and_then(|sandbox| sandbox.egress);
        assert_eq!(level.as_deref(), Some("Enforced"), "{}", run.spec.step);
        // Only the test step runs no agent.
        if run.spec.step != "test" {
            let log = cluster.log(NAMESPACE, &status.pod_name.expect("a pod")).await;
            assert_eq!(egress::reached(&log, targets.len()), Vec::<String>::new(), "{log}");
        }
    }
    assert_no_harm(&cluster, NAMESPACE, &name).await;
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn an_install_script_that_calls_home_sends_nothing_and_is_counted() {
    let cluster = Cluster::connect().await;
    let name = unique("beacon");
    let mut spec = command_agent(BEACON);
    merge(&mut spec, &json!({"test": {"command": ["test", "-s", "done.txt"]}}));
    cluster.create(NAMESPACE, &task(&name, "Install a package.", &spec)).await;
    cluster.complete(NAMESPACE, &name).await;
    let runs = cluster.runs(NAMESPACE, &name).await;
    let run = runs.iter().find(|run| run.spec.step == "implement").expect("an implement run");
    let status = run.status.clone().expect("a status");
    let log = cluster.log(NAMESPACE, &status.pod_name.expect("a pod")).await;
    // It did run, and the gateway would not have it: curl's 56 is a proxy that refuses.
    assert!(log.contains("the beacon: ") && log.contains("ended with 56"), "{log}");
    let counted = |run: &agent_operator::crd::AgentRun| {
        let refusals = run.status.iter().flat_map(|status| &status.refusals);
        refusals
            .filter(|one| one.target.contains("beacon.example"))
            .map(|one| one.count)
            .sum::<i64>()
    };
    assert_eq!(counted(run), 1, "{:?}", status.refusals);
    assert_eq!(runs.iter().map(counted).sum::<i64>(), 1, "no other run is blamed");
}
