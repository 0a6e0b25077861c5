//! Ways to hurt the system. Each gives a guard that mends the harm when it goes, also when a test fails
//! in the middle; `deploy/local/up` mends what even that could not.

pub(crate) mod cut;
pub(crate) mod disk;
pub(crate) mod slow;
pub(crate) mod victim;
pub(crate) mod wall_clock;
pub(crate) mod want;

use std::process::{Command, Stdio};

/// Runs a short program from a guard, which cannot await; its failure is told and not raised, since a
/// guard may run while a test fails already.
fn mend(program: &str, arguments: &[&str]) {
    let status = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !status.as_ref().is_ok_and(std::process::ExitStatus::success) {
        super::say(&format!("not mended by {program} {arguments:?}: {status:?}"));
    }
}

/// Runs a short program that has to go well.
fn must(program: &str, arguments: &[&str], input: &str) {
    use std::io::Write as _;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let mut stdin = child.stdin.take().expect("a pipe was asked for");
    stdin.write_all(input.as_bytes()).expect("the program reads");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
}
