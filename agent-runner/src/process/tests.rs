use std::time::Duration;

use agent_operator::domain::Reason;

use super::*;
use crate::{output::Capture, testing::shim};

fn processes() -> (Arc<Stop>, Processes) {
    let stop = Arc::<Stop>::default();
    (Arc::clone(&stop), Processes::new(shim(), Vec::new(), Ownership::Group, stop))
}

fn sh(script: &str) -> Invocation {
    Invocation {
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        directory: "/".into(),
        environment: [("PATH".to_owned(), std::env::var_os("PATH").unwrap())].into(),
        only_port: None,
    }
}

fn run(script: &str, input: &[u8]) -> (Ended, String, String) {
    let (_, processes) = processes();
    let (mut output, mut errors) = (Capture::new(4096), Capture::new(4096));
    let ended = processes.run(&sh(script), input, &mut output, Errors::Apart(&mut errors)).unwrap();
    (ended, output.finish(), errors.finish())
}

#[test]
fn exit_code_output_and_input_pass_through() {
    let (ended, output, errors) = run("cat; echo oops >&2; exit 7", b"hello");
    assert_eq!(ended, Ended { exit_code: 7, stopped: None });
    assert_eq!((output.as_str(), errors.as_str()), ("hello", "oops\n"));
}

#[test]
fn a_death_by_signal_is_128_and_its_number() {
    assert_eq!(run("kill -9 $$", b"").0.exit_code, 137);
    assert_eq!(run("kill -34 $$", b"").0.exit_code, 128 + 34);
}

#[test]
fn merged_output_keeps_its_order() {
    let (_, processes) = processes();
    let mut output = Capture::new(4096);
    let script = "echo 1; echo 2 >&2; echo 3; echo 4 >&2";
    processes.run(&sh(script), b"", &mut output, Errors::Merged).unwrap();
    assert_eq!(output.finish(), "1\n2\n3\n4\n");
}

#[test]
fn a_child_that_ignores_its_input_is_no_error() {
    assert_eq!(run("exit 0", &vec![b'x'; 1024 * 1024]).0.exit_code, 0);
}

#[test]
fn p2_output_beyond_the_limit_is_drained_and_the_exit_code_is_the_childs() {
    let (ended, output, _) = run("head -c 3000000 /dev/zero | tr '\\0' 'x'; exit 0", b"");
    assert_eq!(ended.exit_code, 0);
    assert!(output.len() <= 4096 && output.contains("bytes left out"));
}

#[test]
fn what_a_child_leaves_behind_does_not_hold_its_end() {
    let (ended, output, _) = run("sleep 600 & echo done", b"");
    assert_eq!((ended.exit_code, output.as_str()), (0, "done\n"));
}

/// Gives the order at the script's first output, so that it never overtakes its trap.
struct Ready(Arc<Stop>, Option<Stopping>);
impl Sink for Ready {
    fn take(&mut self, _: &[u8]) {
        if let Some(order) = self.1.take() {
            self.0.request(order);
        }
    }
}

fn stopped(script: &str, grace: Duration) -> (Ended, Duration) {
    let (stop, processes) = processes();
    let start = clock::boot_now();
    let order = Stopping {
        reason: Reason::TimedOut,
        message: "late".to_owned(),
        kill_at: start + Duration::from_millis(200) + grace,
    };
    let mut output = Ready(stop, Some(order));
    let ended = processes.run(&sh(script), b"", &mut output, Errors::Merged).unwrap();
    (ended, clock::boot_now().saturating_sub(start))
}

#[test]
fn a_stop_order_ends_a_child_by_sigterm() {
    let (ended, took) = stopped("echo; sleep 600", Duration::from_mins(1));
    assert_eq!(ended.stopped.unwrap().reason, Reason::TimedOut);
    assert_eq!(ended.exit_code, 143);
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn a_child_that_ignores_sigterm_is_killed_at_the_end_of_its_grace() {
    let script = "trap '' TERM; echo; while :; do sleep 1; done";
    let (ended, took) = stopped(script, Duration::from_millis(100));
    assert_eq!(ended.exit_code, 137);
    assert!(took >= Duration::from_millis(300), "{took:?}");
}

#[test]
fn a_name_with_brackets_does_not_confuse_the_parser() {
    assert_eq!(parse_stat("12 (a) Z 1 (b) S 7 3 3"), Some(('S', 7)));
    assert_eq!(parse_stat("nonsense"), None);
}
