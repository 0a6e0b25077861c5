//! Messages of the session to and from what the fleet speaks.

use agent_operator::{
    convert::{self, ConvertError},
    domain::{NodeName, PreflightReport, RunKey, limits, report::Report},
    proto::{self, v1},
};
use v1::controller_message::Message as Down;

use crate::{
    clock,
    fleet::{Command, KnownAttempt, NodeEvent, NodeView},
    lease::Term,
};

/// How a node is told to end an attempt: with the grace that the runner knows.
const CANCEL_GRACEFUL: &str = "Graceful";

/// Reason of a refusal: this replica does not lead.
pub(super) const NOT_LEADER: &str = "NotLeader";
/// Reason of a refusal: another wire version.
pub(super) const VERSION_UNSUPPORTED: &str = "VersionUnsupported";
/// Reason of a refusal: the token is not this node's.
pub(super) const UNAUTHORIZED: &str = "Unauthorized";
/// Reason of an end: a newer supervisor of the node has connected.
pub(super) const DUPLICATE: &str = "Duplicate";

/// A message to a node.
pub(super) fn down(message: Down) -> v1::ControllerMessage {
    v1::ControllerMessage { message: Some(message) }
}

/// A refusal.
pub(super) fn rejected(reason: &str, message: impl Into<String>) -> v1::Rejected {
    v1::Rejected {
        reason: reason.to_owned(),
        message: message.into(),
        leader_address: String::new(),
    }
}

/// Permission to write upstream for as long as the term certainly holds; none when it does not.
pub(super) fn write_permit(term: Term, now: tokio::time::Instant) -> Option<v1::WritePermit> {
    let left = term.valid_until.saturating_duration_since(now);
    (!left.is_zero()).then(|| v1::WritePermit {
        epoch: term.epoch.0,
        valid_for: Some(convert::wire_duration(left)),
    })
}

/// A command as a message.
pub(super) fn command(command: Command) -> Down {
    match command {
        Command::Assign { assignment, credentials, first } => {
            Down::Assignment(v1::AssignmentOrder {
                assignment: Some(assignment.as_ref().into()),
                credentials: credentials.iter().map(Into::into).collect(),
                first,
            })
        }
        Command::Cancel { run, epoch, reason, message } => Down::Cancel(v1::Cancel {
            run: Some((&run).into()),
            epoch: epoch.0,
            mode: CANCEL_GRACEFUL.to_owned(),
            reason: reason.as_str().to_owned(),
            message,
            grace: Some(convert::wire_duration(limits::GRACE)),
        }),
        Command::ReportAck { run, sequence } => {
            Down::ReportAck(v1::ReportAck { run: Some((&run).into()), sequence })
        }
        Command::Credentials { run, epoch, credentials } => {
            Down::Credentials(v1::CredentialGrant {
                run: Some((&run).into()),
                epoch: epoch.0,
                credentials: credentials.iter().map(Into::into).collect(),
            })
        }
        Command::Preflight { order, credentials } => Down::Preflight(v1::PreflightOrder {
            credentials: credentials.iter().map(Into::into).collect(),
            ..order.as_ref().into()
        }),
        Command::Budget { run, epoch, budget } => Down::Budget(v1::BudgetUpdate {
            run: Some((&run).into()),
            epoch: epoch.0,
            budget: budget.as_ref().map(Into::into),
        }),
        Command::Forget { run } => Down::Forget(v1::Forget { run: Some((&run).into()) }),
    }
}

/// Why a Hello is refused for its version; none when both sides understand one another.
pub(super) fn version_problem(version: Option<v1::ProtocolVersion>) -> Option<String> {
    let ours = (proto::PROTOCOL_MAJOR, proto::PROTOCOL_MINOR);
    let Some(theirs) = version else {
        return Some(format!("no protocol version; this controller speaks {}.{}", ours.0, ours.1));
    };
    let fits = theirs.major == ours.0 && theirs.minor.abs_diff(ours.1) <= 1;
    (!fits).then(|| {
        format!(
            "the supervisor speaks {}.{}, this controller {}.{}; steps go on, upgrade the older one",
            theirs.major, theirs.minor, ours.0, ours.1
        )
    })
}

/// The node and its ledger as a Hello describes them.
pub(super) fn hello(wire: v1::Hello) -> Result<(NodeView, Vec<KnownAttempt>), ConvertError> {
    let known = wire
        .known_attempts
        .into_iter()
        .enumerate()
        .map(|(at, known)| {
            known_attempt(known).map_err(|error| error.within(&format!("known_attempts[{at}]")))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let capacity = wire.capacity.ok_or_else(|| ConvertError::missing("capacity"))?;
    let running = known.iter().filter(|attempt| !attempt.phase.is_terminal()).count();
    let minor = wire.protocol_version.map(|version| version.minor);
    let view = NodeView {
        name: convert::text("node_name", wire.node_name)?.into(),
        instance: convert::text("instance_id", wire.instance_id)?.into(),
        boot: convert::text("boot_id", wire.boot_id)?.into(),
        slots: capacity.slots,
        running: u32::try_from(running).unwrap_or(u32::MAX),
        highest_epoch: agent_operator::domain::Epoch(wire.highest_epoch),
        runner_delivery: wire.runner_delivery,
        asks_preflights: minor.is_some_and(|minor| minor >= proto::PREFLIGHT_MINOR),
        holds: minor.is_some_and(|minor| minor >= proto::HOLD_MINOR),
    };
    Ok((view, known))
}

fn known_attempt(wire: v1::KnownAttempt) -> Result<KnownAttempt, ConvertError> {
    let key: RunKey = convert::required("run", wire.run)?;
    let run: agent_operator::domain::RunRef = convert::required("ref", wire.r#ref)?;
    if run.uid != key.uid {
        return Err(ConvertError::unknown("ref.uid", run.uid.as_str()));
    }
    Ok(KnownAttempt {
        run,
        attempt: key.attempt,
        epoch: convert::epoch("epoch", wire.epoch)?,
        phase: convert::name("phase", &wire.phase)?,
    })
}

/// Answer to an assignment, as an event.
pub(super) fn assignment_ack(
    node: &NodeName,
    wire: v1::AssignmentAck,
) -> Result<NodeEvent, ConvertError> {
    let refused = (!wire.refused.is_empty()).then_some((wire.refused, wire.message));
    Ok(NodeEvent::AssignmentAck {
        node: node.clone(),
        run: convert::required("run", wire.run)?,
        refused,
    })
}

/// A report, as an event.
pub(super) fn report(node: &NodeName, wire: v1::RunReport) -> Result<NodeEvent, ConvertError> {
    let sent_at = wire.sent_at.map(|at| convert::timestamp("sent_at", Some(at))).transpose()?;
    let mut report = Report::try_from(wire)?;
    if let Some(sent_at) = sent_at {
        report = report.moved(sent_at, clock::timestamp());
    }
    Ok(NodeEvent::Report { node: node.clone(), report: Box::new(report) })
}

/// What stands in the way of a task, as an event.
pub(super) fn preflight(
    node: &NodeName,
    wire: v1::PreflightReport,
) -> Result<NodeEvent, ConvertError> {
    let report = PreflightReport::try_from(wire)?;
    Ok(NodeEvent::Preflight { node: node.clone(), report: Box::new(report) })
}

/// Lost credentials, as an event.
pub(super) fn need_credentials(
    node: &NodeName,
    wire: v1::NeedCredentials,
) -> Result<NodeEvent, ConvertError> {
    Ok(NodeEvent::NeedCredentials {
        node: node.clone(),
        runs: convert::run_keys("runs", wire.runs)?,
    })
}
