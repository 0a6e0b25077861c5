//! Session messages <> inputs and outgoing. The only file of the daemon, beside the upload, that knows
//! wire types.

use std::time::Duration;

use agent_operator::{
    convert::{self, ConvertError},
    domain::RunKey,
    proto::{
        PROTOCOL_MAJOR, PROTOCOL_MINOR,
        v1::{self, controller_message::Message as Order, supervisor_message::Message as Said},
    },
};

use super::Settings;
use crate::{
    clock,
    ledger::Delivery,
    steps::runner::{Input, Outgoing, Snapshot},
};

/// Reason of an answer to an assignment that this version cannot read.
const REFUSED_INVALID: &str = "Invalid";
/// Mode of a cancel that leaves the runner no time.
const MODE_IMMEDIATE: &str = "Immediate";

/// An order that cannot be carried out.
#[derive(Debug)]
pub struct Unusable {
    /// What is wrong.
    pub error: ConvertError,
    /// What to say to the controller, if there is somebody waiting.
    pub answer: Option<Box<Said>>,
}

impl From<ConvertError> for Unusable {
    fn from(error: ConvertError) -> Self {
        Self { error, answer: None }
    }
}

/// The opening message.
pub fn hello(settings: &Settings, snapshot: Snapshot) -> v1::Hello {
    let known = snapshot.known.into_iter().map(|known| v1::KnownAttempt {
        run: Some((&known.key).into()),
        r#ref: Some((&known.run).into()),
        epoch: known.epoch.0,
        phase: known.phase.as_str().to_owned(),
    });
    v1::Hello {
        node_name: settings.node.as_str().to_owned(),
        boot_id: settings.boot_id.as_str().to_owned(),
        instance_id: settings.instance.as_str().to_owned(),
        protocol_version: Some(v1::ProtocolVersion {
            major: PROTOCOL_MAJOR,
            minor: PROTOCOL_MINOR,
        }),
        build_version: env!("CARGO_PKG_VERSION").to_owned(),
        capacity: Some(v1::Capacity { slots: settings.slots }),
        known_attempts: known.collect(),
        highest_epoch: snapshot.highest_epoch.0,
        runner_delivery: snapshot.delivery.map_or("auto", Delivery::as_str).to_owned(),
    }
}

/// What the runner says, as a message.
pub fn outgoing(outgoing: &Outgoing) -> Said {
    match outgoing {
        Outgoing::AssignmentAck { run, epoch, refused } => {
            let (refused, message) = refused.clone().unwrap_or_default();
            let run = Some(run.into());
            Said::AssignmentAck(v1::AssignmentAck { run, epoch: epoch.0, refused, message })
        }
        Outgoing::Report(report) => Said::Report(v1::RunReport {
            sent_at: Some(convert::wire_timestamp(clock::now().wall)),
            ..report.as_ref().into()
        }),
        Outgoing::NeedCredentials(runs) => {
            let runs = runs.iter().map(Into::into).collect();
            Said::NeedCredentials(v1::NeedCredentials { runs })
        }
        Outgoing::Preflight(report) => Said::PreflightReport(report.as_ref().into()),
    }
}

/// A message of the controller as an input of the runner.
pub fn order(order: Order) -> Result<Input, Unusable> {
    match order {
        Order::Assignment(order) => assignment(order),
        Order::Cancel(cancel) => Ok(self::cancel(cancel)?),
        Order::ReportAck(ack) => {
            let run = convert::required("run", ack.run)?;
            Ok(Input::ReportAck { run, sequence: ack.sequence })
        }
        Order::Credentials(grant) => Ok(Input::Credentials {
            run: convert::required("run", grant.run)?,
            epoch: convert::epoch("epoch", grant.epoch)?,
            credentials: convert::list("credentials", grant.credentials)?,
        }),
        Order::Budget(update) => Ok(Input::Budget {
            run: convert::required("run", update.run)?,
            epoch: convert::epoch("epoch", update.epoch)?,
            budget: update.budget.map(Into::into),
        }),
        Order::WritePermit(permit) => Ok(Input::Permit {
            epoch: convert::epoch("epoch", permit.epoch)?,
            valid: convert::duration("valid_for", permit.valid_for)?,
        }),
        Order::Preflight(mut order) => Ok(Input::Preflight {
            credentials: convert::list("credentials", std::mem::take(&mut order.credentials))?,
            order: Box::new(convert::required("preflight", Some(order))?),
        }),
        Order::Forget(forget) => Ok(Input::Forget(convert::required("run", forget.run)?)),
        Order::Accepted(_) => Err(ConvertError::unknown("message", "accepted").into()),
        Order::Rejected(_) => Err(ConvertError::unknown("message", "rejected").into()),
    }
}

fn assignment(order: v1::AssignmentOrder) -> Result<Input, Unusable> {
    let wire = order.assignment.as_ref();
    let key = wire.and_then(|wire| {
        let uid = wire.run.as_ref()?.uid.clone();
        Some((v1::RunKey { uid, attempt: wire.attempt }, wire.epoch))
    });
    let read = || -> Result<Input, ConvertError> {
        Ok(Input::Assign {
            assignment: Box::new(convert::required("assignment", order.assignment)?),
            credentials: convert::list("credentials", order.credentials)?,
            first: order.first,
        })
    };
    read().map_err(|error| {
        let answer = key.map(|(run, epoch)| {
            Box::new(Said::AssignmentAck(v1::AssignmentAck {
                run: Some(run),
                epoch,
                refused: REFUSED_INVALID.to_owned(),
                message: error.to_string(),
            }))
        });
        Unusable { error, answer }
    })
}

fn cancel(cancel: v1::Cancel) -> Result<Input, ConvertError> {
    let run: RunKey = convert::required("run", cancel.run)?;
    let grace = match cancel.grace {
        _ if cancel.mode == MODE_IMMEDIATE => Some(Duration::ZERO),
        Some(grace) => Some(convert::duration("grace", Some(grace))?),
        None => None,
    };
    Ok(Input::Cancel {
        run,
        epoch: convert::epoch("epoch", cancel.epoch)?,
        reason: convert::name("reason", &cancel.reason)?,
        message: cancel.message,
        grace,
    })
}
