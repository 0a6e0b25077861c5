//! `helm`, as a person uses it.

use tokio::process::Command;

/// What `helm` prints; an error when it fails, with both outputs.
pub(crate) async fn helm(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("helm").args(arguments).kill_on_drop(true).output().await;
    let output = output.expect("helm runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    Err(format!("{text}{}", String::from_utf8_lossy(&output.stderr)))
}
