//! Credentials are passed on and not kept; what is kept masks them in the log.

use super::*;

fn folder(dir: &Path, pods: &FakePods) -> std::path::PathBuf {
    let name = pods.only().unwrap().metadata.name.unwrap();
    let folder = dir.join(format!("logs/agents_{name}_pod-uid/agent"));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn stored(streams: &crate::streams::AttemptStreams) -> String {
    match streams.log.read(0, 1 << 20).unwrap() {
        crate::streams::spool::Piece::Data(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        _ => String::new(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credential_in_the_log_is_masked_before_it_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    let mut life = Life::start(dir.path(), &pods).await;
    life.assign(assignment()).await;
    life.open_gate(&pods).await;
    let written = "2027-01-15T10:00:00Z stdout F the key is CREDENTIAL-CANARY today\n";
    std::fs::write(folder(dir.path(), &pods).join("0.log"), written).unwrap();
    let streams = life.streams.attempt(&assignment().run, assignment().attempt).unwrap();
    let expected = "the key is ***************** today\n";
    wait_until(|| streams.log.extent().end == expected.len() as u64).await;
    assert_eq!(stored(&streams), expected);
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_supervisor_asks_for_what_it_masks_with() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    let mut life = Life::start(dir.path(), &pods).await;
    life.assign(assignment()).await;
    life.open_gate(&pods).await;
    life.kill().await;
    let mut life = Life::start(dir.path(), &pods).await;
    loop {
        if let Outgoing::NeedCredentials(runs) = life.said().await {
            assert_eq!(runs, [assignment().key()]);
            break;
        }
    }
    let (run, epoch) = (assignment().key(), assignment().epoch);
    life.send(Input::Credentials { run, epoch, credentials: vec![credential()] }).await;
    life.told(|message| matches!(message, ToGateway::Credentials { .. })).await;
    let streams = life.streams.attempt(&assignment().run, assignment().attempt).unwrap();
    assert!(!streams.secrets().is_empty());
    life.kill().await;
}
