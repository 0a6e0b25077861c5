//! Reports and outcomes.

use crate::{
    domain::{
        StartTrouble, Usage,
        report::{
            LogSummary, Outcome, PullRequest, Refusal, Report, RunState, SandboxStatus, Started,
            StepFacts,
        },
    },
    proto::v1,
};

use super::{
    ConvertError, attempt, epoch, list, name, optional, required, text, timestamp, wire_timestamp,
};

impl TryFrom<v1::RunReport> for Report {
    type Error = ConvertError;

    fn try_from(wire: v1::RunReport) -> Result<Self, Self::Error> {
        use v1::run_report::State;
        let state = match wire.state {
            Some(State::Running(started)) => RunState::Running(required("running", Some(started))?),
            Some(State::Finished(outcome)) => {
                RunState::Finished(Box::new(required("finished", Some(outcome))?))
            }
            Some(State::Waiting(waiting)) => RunState::Waiting(StartTrouble {
                fault: name("waiting.start_fault", &waiting.start_fault)?,
                message: waiting.message,
            }),
            Some(State::ExitMismatch(mismatch)) => {
                RunState::ExitMismatch { reported: mismatch.reported, recorded: mismatch.recorded }
            }
            Some(State::Unknown(unknown)) => RunState::Unknown { message: unknown.message },
            None => return Err(ConvertError::missing("state")),
        };
        Ok(Self {
            run: required("run", wire.run)?,
            attempt: attempt("attempt", wire.attempt)?,
            epoch: epoch("epoch", wire.epoch)?,
            sequence: wire.sequence,
            state,
        })
    }
}

impl From<&Report> for v1::RunReport {
    fn from(report: &Report) -> Self {
        use v1::run_report::State;
        let state = match &report.state {
            RunState::Running(started) => State::Running(started.into()),
            RunState::Finished(outcome) => State::Finished(outcome.as_ref().into()),
            RunState::Waiting(trouble) => State::Waiting(v1::WaitingState {
                start_fault: trouble.fault.as_str().to_owned(),
                message: trouble.message.clone(),
            }),
            RunState::ExitMismatch { reported, recorded } => {
                let (reported, recorded) = (*reported, *recorded);
                State::ExitMismatch(v1::ExitMismatchState { reported, recorded })
            }
            RunState::Unknown { message } => {
                State::Unknown(v1::UnknownState { message: message.clone() })
            }
        };
        Self {
            run: Some((&report.run).into()),
            attempt: report.attempt.0,
            epoch: report.epoch.0,
            sequence: report.sequence,
            state: Some(state),
            // Known to whoever sends it.
            sent_at: None,
        }
    }
}

impl TryFrom<v1::Started> for Started {
    type Error = ConvertError;

    fn try_from(wire: v1::Started) -> Result<Self, Self::Error> {
        Ok(Self {
            pod_name: text("pod_name", wire.pod_name)?,
            pod_uid: text("pod_uid", wire.pod_uid)?.into(),
            started_at: timestamp("started_at", wire.started_at)?,
            sandbox: sandbox("sandbox", wire.sandbox)?,
        })
    }
}

impl From<&Started> for v1::Started {
    fn from(started: &Started) -> Self {
        Self {
            pod_name: started.pod_name.clone(),
            pod_uid: started.pod_uid.as_str().to_owned(),
            started_at: Some(wire_timestamp(started.started_at)),
            sandbox: Some((&started.sandbox).into()),
        }
    }
}

impl TryFrom<v1::Outcome> for Outcome {
    type Error = ConvertError;

    fn try_from(wire: v1::Outcome) -> Result<Self, Self::Error> {
        let started_at = wire.started_at.map(|at| timestamp("started_at", Some(at))).transpose()?;
        Ok(Self {
            reason: name("reason", &wire.reason)?,
            message: wire.message,
            start_fault: (!wire.start_fault.is_empty())
                .then(|| name("start_fault", &wire.start_fault))
                .transpose()?,
            exit_code: wire.exit_code,
            pod_name: wire.pod_name,
            started_at,
            completed_at: timestamp("completed_at", wire.completed_at)?,
            result: required("result", wire.result)?,
            usage: required("usage", wire.usage)?,
            sandbox: sandbox("sandbox", wire.sandbox)?,
            log: LogSummary { bytes: wire.log_bytes, gaps: wire.log_gaps },
            refusals: list("refusals", wire.refusals)?,
        })
    }
}

impl From<&Outcome> for v1::Outcome {
    fn from(outcome: &Outcome) -> Self {
        Self {
            reason: outcome.reason.as_str().to_owned(),
            message: outcome.message.clone(),
            exit_code: outcome.exit_code,
            pod_name: outcome.pod_name.clone(),
            started_at: outcome.started_at.map(wire_timestamp),
            completed_at: Some(wire_timestamp(outcome.completed_at)),
            result: Some((&outcome.result).into()),
            usage: Some((&outcome.usage).into()),
            sandbox: Some((&outcome.sandbox).into()),
            log_bytes: outcome.log.bytes,
            log_gaps: outcome.log.gaps,
            refusals: outcome.refusals.iter().map(Into::into).collect(),
            start_fault: outcome.start_fault.map_or_else(String::new, |fault| fault.to_string()),
        }
    }
}

impl TryFrom<v1::StepFacts> for StepFacts {
    type Error = ConvertError;

    fn try_from(wire: v1::StepFacts) -> Result<Self, Self::Error> {
        Ok(Self {
            output: wire.output,
            command: (!wire.command.is_empty()).then_some(wire.command),
            base_commit: wire.base_commit,
            head_commit: wire.head_commit,
            work_branch: wire.work_branch,
            pull_request: optional("pull_request", wire.pull_request)?,
        })
    }
}

impl From<&StepFacts> for v1::StepFacts {
    fn from(facts: &StepFacts) -> Self {
        Self {
            output: facts.output.clone(),
            command: facts.command.clone().unwrap_or_default(),
            base_commit: facts.base_commit.clone(),
            head_commit: facts.head_commit.clone(),
            work_branch: facts.work_branch.clone(),
            pull_request: facts.pull_request.as_ref().map(Into::into),
        }
    }
}

impl TryFrom<v1::PullRequest> for PullRequest {
    type Error = ConvertError;

    fn try_from(wire: v1::PullRequest) -> Result<Self, Self::Error> {
        if wire.number <= 0 {
            return Err(ConvertError::out_of_range("number", wire.number.to_string()));
        }
        Ok(Self { url: text("url", wire.url)?, number: wire.number })
    }
}

impl From<&PullRequest> for v1::PullRequest {
    fn from(pull_request: &PullRequest) -> Self {
        Self { url: pull_request.url.clone(), number: pull_request.number }
    }
}

/// Isolation, which must be reported, if only as unknown in every part.
fn sandbox(field: &str, wire: Option<v1::SandboxStatus>) -> Result<SandboxStatus, ConvertError> {
    wire.map(SandboxStatus::from).ok_or_else(|| ConvertError::missing(field))
}

impl From<v1::SandboxStatus> for SandboxStatus {
    fn from(wire: v1::SandboxStatus) -> Self {
        Self {
            runtime_class: wire.runtime_class,
            egress: wire.egress,
            pids_limit: wire.pids_limit,
            user_namespace: wire.user_namespace,
            landlock: wire.landlock,
            seccomp_filter: wire.seccomp_filter,
        }
    }
}

impl From<&SandboxStatus> for v1::SandboxStatus {
    fn from(sandbox: &SandboxStatus) -> Self {
        Self {
            runtime_class: sandbox.runtime_class.clone(),
            egress: sandbox.egress.clone(),
            pids_limit: sandbox.pids_limit,
            user_namespace: sandbox.user_namespace,
            landlock: sandbox.landlock,
            seccomp_filter: sandbox.seccomp_filter,
        }
    }
}

impl TryFrom<v1::Refusal> for Refusal {
    type Error = ConvertError;

    fn try_from(wire: v1::Refusal) -> Result<Self, Self::Error> {
        Ok(Self { kind: text("kind", wire.kind)?, target: wire.target, count: wire.count })
    }
}

impl From<&Refusal> for v1::Refusal {
    fn from(refusal: &Refusal) -> Self {
        Self { kind: refusal.kind.clone(), target: refusal.target.clone(), count: refusal.count }
    }
}

// Counters start at zero, and a missing one is a zero on the wire: nothing can go wrong, but the
// trait keeps `required` usable for the message around them.
impl TryFrom<v1::Usage> for Usage {
    type Error = ConvertError;

    fn try_from(wire: v1::Usage) -> Result<Self, Self::Error> {
        Ok(Self {
            turns: wire.turns,
            input_tokens: wire.input_tokens,
            output_tokens: wire.output_tokens,
            cache_read_tokens: wire.cache_read_tokens,
            cache_write_tokens: wire.cache_write_tokens,
            cost_micro_usd: wire.cost_micro_usd,
        })
    }
}

impl From<&Usage> for v1::Usage {
    fn from(usage: &Usage) -> Self {
        Self {
            turns: usage.turns,
            input_tokens: usage.input_tokens,
            output_tokens: usage.output_tokens,
            cache_read_tokens: usage.cache_read_tokens,
            cache_write_tokens: usage.cache_write_tokens,
            cost_micro_usd: usage.cost_micro_usd,
        }
    }
}
