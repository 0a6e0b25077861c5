//! What a report makes of a run's status. Pure: a terminal status never changes, and every text from
//! a sandbox is cut to what the schema takes, so that no report is refused for ever.

use agent_operator::{
    crd::{
        AgentRunStatus,
        agent_run::{LogStatus, RefusalStatus, SandboxReached},
        conditions,
        shared::{Condition, PullRequestStatus, UsageStatus},
    },
    domain::{
        RunPhase, StartTrouble,
        limits::{MESSAGE_BYTES_MAX, OUTPUT_BYTES_MAX},
        report::{Outcome, Refusal, RunState, SandboxStatus, Started},
        text::{head_and_tail, printable, truncate},
    },
};
use jiff::Timestamp;

/// Limits of the schema, in the unit of the schema or below.
const COMMAND_WORDS_MAX: usize = 64;
const COMMAND_WORD_BYTES_MAX: usize = 1024;
const NAME_BYTES_MAX: usize = 253;
const COMMIT_BYTES_MAX: usize = 64;
const REFUSALS_MAX: usize = 64;
const REFUSAL_KIND_BYTES_MAX: usize = 32;
const REFUSAL_TARGET_BYTES_MAX: usize = 253;
const EGRESS_BYTES_MAX: usize = 32;
const URL_BYTES_MAX: usize = 2048;

/// The status after `state` was reported at `now`; none when it changes nothing. A node's clock may be
/// ahead of ours, and waits count from these times, so none of them is taken to lie in the future.
pub(super) fn recorded(
    before: &AgentRunStatus,
    state: &RunState,
    now: Timestamp,
) -> Option<AgentRunStatus> {
    let ended = before.has_ended();
    let after = match state {
        RunState::ExitMismatch { reported, recorded } => {
            mismatch(before, *reported, *recorded, now)
        }
        _ if ended => return None,
        RunState::Waiting(trouble) => waiting(before, trouble, now),
        RunState::Running(started) => running(before, started, now),
        RunState::Finished(outcome) => finished(before, outcome, now),
        RunState::Unknown { message } => {
            let mut after = before.clone();
            after.phase = Some(RunPhase::Unknown.as_str().to_owned());
            after.message = Some(line(message));
            after
        }
    };
    (after != *before).then_some(after)
}

/// The least of a status, for an API server that refuses the whole: texts of any length are left out,
/// and what decides how the task goes on stays, each field of it short.
pub(super) fn minimal(status: &AgentRunStatus) -> AgentRunStatus {
    let wordless =
        |condition: &Condition| Condition { message: String::new(), ..condition.clone() };
    AgentRunStatus {
        message: Some("the full record was refused by the API server".to_owned()),
        output: None,
        // 64 KiB at most, and what a sandbox named.
        command: Vec::new(),
        refusals: Vec::new(),
        conditions: status.conditions.iter().map(wordless).collect(),
        ..status.clone()
    }
}

/// Sets a condition; its time changes only with its status.
fn set(
    status: &mut AgentRunStatus,
    type_: &str,
    holds: bool,
    (reason, message): (&str, &str),
    now: Timestamp,
) {
    let value = if holds { "True" } else { "False" };
    let old = status.conditions.iter().position(|condition| condition.type_ == type_);
    let old = old.map(|at| status.conditions.remove(at));
    let at = old.filter(|old| old.status == value).map_or(now, |old| old.last_transition_time);
    status.conditions.push(Condition {
        type_: type_.to_owned(),
        status: value.to_owned(),
        // A run's spec never changes.
        observed_generation: None,
        last_transition_time: at,
        reason: reason.to_owned(),
        message: line(message),
    });
}

fn waiting(before: &AgentRunStatus, trouble: &StartTrouble, now: Timestamp) -> AgentRunStatus {
    let mut after = before.clone();
    // A run that once was started waits for nothing any more: this report is older.
    if !matches!(before.phase.as_deref(), None | Some("Pending")) {
        return after;
    }
    after.phase = Some(RunPhase::Pending.as_str().to_owned());
    after.message = Some(line(&trouble.message));
    let why = (trouble.fault.as_str(), trouble.message.as_str());
    set(&mut after, conditions::STARTED, false, why, now);
    after
}

fn mismatch(
    before: &AgentRunStatus,
    reported: i32,
    recorded: i32,
    now: Timestamp,
) -> AgentRunStatus {
    let mut after = before.clone();
    let message = format!(
        "the runner reported exit code {reported}, the kubelet recorded {recorded}; the outcome stays as first recorded"
    );
    set(&mut after, conditions::EXIT_MISMATCH, true, ("CodesDiffer", &message), now);
    after
}

fn running(before: &AgentRunStatus, started: &Started, now: Timestamp) -> AgentRunStatus {
    let mut after = before.clone();
    after.phase = Some(RunPhase::Running.as_str().to_owned());
    after.message = None;
    after.pod_name = Some(cut(&started.pod_name, NAME_BYTES_MAX));
    // The first report of a start stands: a repetition must not move it.
    after.start_time.get_or_insert_with(|| started.started_at.min(now));
    after.sandbox = Some(sandbox(&started.sandbox));
    if before.conditions.iter().any(|condition| condition.type_ == conditions::STARTED) {
        set(&mut after, conditions::STARTED, true, ("Started", ""), now);
    }
    after
}

fn finished(before: &AgentRunStatus, outcome: &Outcome, now: Timestamp) -> AgentRunStatus {
    let mut after = before.clone();
    let facts = &outcome.result;
    let commit = |text: &Option<String>| text.as_deref().map(|text| cut(text, COMMIT_BYTES_MAX));
    after.phase = Some(outcome.phase().as_str().to_owned());
    after.reason = Some(outcome.reason.as_str().to_owned());
    after.message = Some(line(&outcome.message));
    if let Some(fault) = outcome.start_fault {
        let why = (fault.as_str(), outcome.message.as_str());
        set(&mut after, conditions::STARTED, false, why, now);
    }
    after.pod_name = outcome
        .pod_name
        .as_deref()
        .map(|name| cut(name, NAME_BYTES_MAX))
        .or_else(|| before.pod_name.clone());
    after.start_time = before.start_time.or_else(|| outcome.started_at.map(|at| at.min(now)));
    after.completion_time = Some(outcome.completed_at.min(now));
    // The kernel gives 0 to 255; anything else is no exit code.
    after.exit_code = outcome.exit_code.filter(|code| (0..=255).contains(code));
    after.output = facts.output.as_deref().map(|output| {
        // Replacing control characters may lengthen the text, so it is cut afterwards.
        head_and_tail(&printable(output), OUTPUT_BYTES_MAX)
    });
    after.command = facts
        .command
        .iter()
        .flatten()
        .take(COMMAND_WORDS_MAX)
        .map(|word| cut(word, COMMAND_WORD_BYTES_MAX))
        .collect();
    after.base_commit = commit(&facts.base_commit);
    after.head_commit = commit(&facts.head_commit);
    after.work_branch = facts.work_branch.as_deref().map(|name| cut(name, NAME_BYTES_MAX));
    after.pull_request = facts.pull_request.as_ref().map(|pull| PullRequestStatus {
        url: cut(&pull.url, URL_BYTES_MAX),
        number: pull.number.max(0),
    });
    after.usage = Some(UsageStatus::from(outcome.usage));
    after.sandbox = Some(sandbox(&outcome.sandbox));
    after.log = Some(LogStatus {
        bytes: i64::try_from(outcome.log.bytes).unwrap_or(i64::MAX),
        gaps: i32::try_from(outcome.log.gaps).unwrap_or(i32::MAX),
    });
    after.refusals = outcome.refusals.iter().take(REFUSALS_MAX).map(refusal).collect();
    after
}

fn refusal(refusal: &Refusal) -> RefusalStatus {
    RefusalStatus {
        kind: cut(&refusal.kind, REFUSAL_KIND_BYTES_MAX),
        target: cut(&refusal.target, REFUSAL_TARGET_BYTES_MAX),
        count: i64::try_from(refusal.count).unwrap_or(i64::MAX),
    }
}

fn sandbox(status: &SandboxStatus) -> SandboxReached {
    SandboxReached {
        runtime_class: status.runtime_class.as_deref().map(|name| cut(name, NAME_BYTES_MAX)),
        egress: status.egress.as_deref().map(|level| cut(level, EGRESS_BYTES_MAX)),
        pids_limit: status.pids_limit.filter(|limit| *limit >= 0),
        user_namespace: status.user_namespace,
        landlock: status.landlock.filter(|abi| *abi >= 0),
        seccomp_filter: status.seccomp_filter,
    }
}

fn cut(text: &str, max: usize) -> String {
    truncate(&printable(text), max).to_owned()
}

fn line(text: &str) -> String {
    cut(text, MESSAGE_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_operator::domain::{
        Reason, StartFault, Usage,
        report::{LogSummary, PullRequest, StepFacts},
    };

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn outcome(reason: Reason) -> RunState {
        RunState::Finished(Box::new(Outcome {
            reason,
            message: "done\u{1b}[2J".to_owned(),
            start_fault: (reason == Reason::Unstarted).then_some(StartFault::ImageNotPullable),
            exit_code: Some(1),
            pod_name: Some("pod".to_owned()),
            started_at: Some(Timestamp::UNIX_EPOCH),
            completed_at: Timestamp::UNIX_EPOCH,
            result: StepFacts {
                output: Some("\u{1}".repeat(3 * OUTPUT_BYTES_MAX)),
                command: Some(vec!["x".repeat(100_000); 100]),
                ..StepFacts::default()
            },
            usage: Usage::default(),
            sandbox: SandboxStatus::default(),
            log: LogSummary::default(),
            refusals: vec![Refusal { kind: "k".repeat(99), target: "t".into(), count: 1 }; 99],
        }))
    }

    #[test]
    fn a_terminal_status_never_changes() {
        let first = recorded(&AgentRunStatus::default(), &outcome(Reason::TimedOut), NOW).unwrap();
        assert_eq!(first.reason.as_deref(), Some("TimedOut"));
        assert_eq!(recorded(&first, &outcome(Reason::Completed), NOW), None);
        assert_eq!(recorded(&first, &RunState::Unknown { message: "?".into() }, NOW), None);
    }

    fn started(status: &AgentRunStatus) -> Option<(&str, &str)> {
        let found = conditions::find(&status.conditions, conditions::STARTED)?;
        Some((found.status.as_str(), found.reason.as_str()))
    }

    #[test]
    fn what_keeps_a_run_from_starting_is_a_condition_until_it_runs() {
        let trouble = StartTrouble::new(StartFault::QuotaExceeded, "exceeded quota: q");
        let waiting = RunState::Waiting(trouble);
        let pending = recorded(&AgentRunStatus::default(), &waiting, NOW).unwrap();
        assert_eq!(started(&pending), Some(("False", "QuotaExceeded")));
        assert!(pending.message.as_deref().unwrap().contains("exceeded quota: q"));
        assert_eq!(recorded(&pending, &waiting, NOW), None, "said once");

        let running = RunState::Running(Started {
            pod_name: "pod".into(),
            pod_uid: "uid".into(),
            started_at: Timestamp::UNIX_EPOCH,
            sandbox: SandboxStatus::default(),
        });
        let running = recorded(&pending, &running, NOW).unwrap();
        assert_eq!(started(&running), Some(("True", "Started")));
        assert_eq!(recorded(&running, &waiting, NOW), None, "a late word changes nothing");

        let ended = recorded(&pending, &outcome(Reason::Unstarted), NOW).unwrap();
        assert_eq!(started(&ended), Some(("False", "ImageNotPullable")));
    }

    #[test]
    fn a_contradiction_of_the_exit_records_is_shown_and_changes_no_outcome() {
        let ended = recorded(&AgentRunStatus::default(), &outcome(Reason::Completed), NOW).unwrap();
        let differs = RunState::ExitMismatch { reported: 0, recorded: 137 };
        let shown = recorded(&ended, &differs, NOW).unwrap();
        let found = conditions::find(&shown.conditions, conditions::EXIT_MISMATCH).unwrap();
        assert_eq!(found.status, "True");
        assert!(found.message.contains("137"), "{}", found.message);
        let without = AgentRunStatus { conditions: vec![], ..shown.clone() };
        assert_eq!(without, AgentRunStatus { conditions: vec![], ..ended });
        assert_eq!(recorded(&shown, &differs, NOW), None, "said once");
        // The order of the two reports makes no difference.
        let early = recorded(&AgentRunStatus::default(), &differs, NOW).unwrap();
        let late = recorded(&early, &outcome(Reason::Completed), NOW).unwrap();
        assert_eq!(late.conditions, shown.conditions);
    }

    #[test]
    fn a_repeated_report_changes_nothing() {
        let started = RunState::Running(Started {
            pod_name: "pod".into(),
            pod_uid: "uid".into(),
            started_at: Timestamp::UNIX_EPOCH,
            sandbox: SandboxStatus::default(),
        });
        let running = recorded(&AgentRunStatus::default(), &started, NOW).unwrap();
        assert_eq!(running.phase.as_deref(), Some("Running"));
        assert_eq!(recorded(&running, &started, NOW), None);
    }

    #[test]
    fn the_least_of_a_status_has_all_that_the_task_goes_on_by_and_no_long_text() {
        let RunState::Finished(mut outcome) = outcome(Reason::Completed) else { unreachable!() };
        let facts = &mut outcome.result;
        facts.base_commit = Some("b".repeat(40));
        facts.head_commit = Some("c".repeat(40));
        facts.work_branch = Some("ai/sample".to_owned());
        facts.pull_request = Some(PullRequest { url: "https://forge.test/7".into(), number: 7 });
        outcome.usage = Usage { turns: 3, input_tokens: 100, ..Usage::default() };
        let trouble = StartTrouble::new(StartFault::QuotaExceeded, "exceeded quota: q");
        let waited = recorded(&AgentRunStatus::default(), &RunState::Waiting(trouble), NOW);
        let whole = recorded(&waited.unwrap(), &RunState::Finished(outcome), NOW).unwrap();
        let least = minimal(&whole);

        assert_eq!(least.message.as_deref(), Some("the full record was refused by the API server"));
        assert_eq!((&least.output, least.command.len(), least.refusals.len()), (&None, 0, 0));
        assert_eq!(started(&least), started(&whole));
        assert!(least.conditions.iter().all(|condition| condition.message.is_empty()));
        // With the texts back it is the whole, so no other field was left out.
        let AgentRunStatus { message, output, command, refusals, conditions, .. } = whole.clone();
        let back = AgentRunStatus { message, output, command, refusals, conditions, ..least };
        assert_eq!(back, whole);
        assert!(back.pull_request.is_some() && back.usage.is_some_and(|usage| usage.turns == 3));
    }

    #[test]
    fn what_a_sandbox_says_is_cut_to_what_the_schema_takes() {
        let status =
            recorded(&AgentRunStatus::default(), &outcome(Reason::AgentFailed), NOW).unwrap();
        assert!(status.output.unwrap().len() <= OUTPUT_BYTES_MAX);
        assert_eq!(status.command.len(), COMMAND_WORDS_MAX);
        assert_eq!(status.refusals.len(), REFUSALS_MAX);
        assert!(!status.message.unwrap().contains('\u{1b}'));
    }
}
