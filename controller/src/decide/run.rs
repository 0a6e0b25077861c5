//! What one live run needs: to be handed out, to be ended, or to be given up with its node.

use std::time::Duration;

use agent_operator::domain::{Reason, RunPhase};
use jiff::Timestamp;

use super::{Delivery, NodeFacts, Observed, RunView, deadline, progress::budget_left};
use crate::plan::{EventNote, NodeCommand, Order, Plan, RunUpdate};
use crate::settings::OVERRUN_SLACK;

/// How a live run stands with its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contact {
    /// The node's supervisor is connected.
    Connected,
    /// It is away, but not for long enough to say so.
    Brief(Timestamp),
    /// It is silent: visible, waiting, not replaced.
    Silent,
    /// It is silent and can surely do nothing any more.
    Fenced,
}

/// How `run` stands with its node at `now`.
pub fn contact(observed: &Observed, run: &RunView, now: Timestamp) -> Contact {
    contact_with(observed.node(&run.node()), observed.settings.node_lease.get(), now)
}

/// How this process stands with a node at `now`.
pub fn contact_with(node: Option<&NodeFacts>, node_lease: Duration, now: Timestamp) -> Contact {
    let Some(node) = node else {
        // Neither Kubernetes nor any supervisor knows the node: `observe` lists each node of a live
        // run, so this is only a gap in what it could read.
        return Contact::Silent;
    };
    if node.session.is_some() {
        return Contact::Connected;
    }
    let since = node.absent_since.unwrap_or(now);
    let lost_at = deadline::after(since, node_lease);
    if now < lost_at {
        return Contact::Brief(lost_at);
    }
    if node.fenced.is_some() { Contact::Fenced } else { Contact::Silent }
}

/// Adds what a live run of an unfinished task needs.
pub fn tend(observed: &Observed, run: &RunView, now: Timestamp, plan: &mut Plan) {
    match contact(observed, run, now) {
        Contact::Connected => assign(observed, run, now, plan),
        Contact::Brief(lost_at) => requeue(plan, deadline::until(now, lost_at)),
        Contact::Silent => mark_unknown(run, plan),
        Contact::Fenced => give_up(observed, run, plan),
    }
}

/// Adds what ends a run whose task is over or gone.
pub fn end(
    observed: &Observed,
    run: &RunView,
    (reason, message): (Reason, &str),
    now: Timestamp,
    plan: &mut Plan,
) {
    match contact(observed, run, now) {
        Contact::Connected => match run.delivery {
            Delivery::Known | Delivery::Held | Delivery::Sent => plan
                .commands
                .push(command(run, Order::Cancel { reason, message: message.to_owned() })),
            Delivery::CancelSent | Delivery::Forgotten => {}
            // The node's supervisor has said hello without naming the run, which it may have all the same:
            // its ledger may be lost. It compares the order with what is there, and ends that.
            Delivery::Unsent if holds(observed, run) => {
                plan.commands.push(command(run, Order::Hold));
                plan.commands
                    .push(command(run, Order::Cancel { reason, message: message.to_owned() }));
            }
            // One of before would begin it.
            Delivery::Unsent => plan.run_updates.push(RunUpdate {
                run: run.run.clone(),
                phase: RunPhase::Failed,
                reason: Some(reason),
                message: message.to_owned(),
            }),
        },
        Contact::Brief(lost_at) => requeue(plan, deadline::until(now, lost_at)),
        Contact::Silent => mark_unknown(run, plan),
        Contact::Fenced => give_up(observed, run, plan),
    }
}

/// Whether the node's supervisor is of a version that can hold a run at its gate.
pub fn holds(observed: &Observed, run: &RunView) -> bool {
    let session = observed.node(&run.node()).and_then(|node| node.session.as_ref());
    session.is_some_and(|session| session.holds)
}

/// The earlier of the plan's own time and `after`.
pub fn requeue(plan: &mut Plan, after: Duration) {
    plan.requeue_after = Some(plan.requeue_after.map_or(after, |before| before.min(after)));
}

fn assign(observed: &Observed, run: &RunView, now: Timestamp, plan: &mut Plan) {
    let overdue_at = deadline::overdue_at(observed, run);
    let left = budget_left(observed);
    if run.delivery == Delivery::Sent && run.told_budget != left {
        plan.commands.push(command(run, Order::Budget { left }));
    }
    match run.delivery {
        // To one that was made ahead, this is the word to begin. After a restart nobody knows whether its
        // node has it; said again it does no harm.
        Delivery::Unsent | Delivery::Held => plan.commands.push(command(run, Order::Assign)),
        Delivery::Known if run.spec.prepared && run.phase == RunPhase::Pending => {
            plan.commands.push(command(run, Order::Assign));
        }
        Delivery::Known => plan.commands.push(command(run, Order::Confirm)),
        Delivery::Sent | Delivery::CancelSent | Delivery::Forgotten if now >= overdue_at => {
            plan.events.push(EventNote {
                run: Some(run.run.clone()),
                warning: true,
                reason: "Overdue".to_owned(),
                action: "CheckDeadline".to_owned(),
                note: format!(
                    "node {} has reported neither end nor start of step {} in time; see its supervisor's log",
                    run.spec.node_name, run.step
                ),
            });
        }
        Delivery::Sent | Delivery::CancelSent | Delivery::Forgotten => {}
    }
    let next = deadline::until(now, overdue_at);
    requeue(plan, if next.is_zero() { OVERRUN_SLACK } else { next });
}

fn mark_unknown(run: &RunView, plan: &mut Plan) {
    if run.phase != RunPhase::Unknown {
        plan.run_updates.push(RunUpdate {
            run: run.run.clone(),
            phase: RunPhase::Unknown,
            reason: None,
            message: silent(run),
        });
    }
}

/// Records a run on a fenced node as lost.
pub fn give_up(observed: &Observed, run: &RunView, plan: &mut Plan) {
    let why = observed
        .node(&run.node())
        .and_then(|node: &NodeFacts| node.fenced.clone())
        .unwrap_or_default();
    plan.run_updates.push(RunUpdate {
        run: run.run.clone(),
        phase: RunPhase::Failed,
        reason: Some(Reason::Disrupted),
        message: format!("node {} is fenced: {why}", run.spec.node_name),
    });
}

/// What is said of a run on a silent node, with the way out.
pub fn silent(run: &RunView) -> String {
    format!(
        "node {0} is silent; its step is not replaced until the node is back or fenced (delete the Node object, taint it node.kubernetes.io/out-of-service, or annotate it agents.wearn.dev/fence=<node uid>)",
        run.spec.node_name
    )
}

/// An order about `run` to its node.
pub fn command(run: &RunView, order: Order) -> NodeCommand {
    NodeCommand { node: run.node(), run: run.run.clone(), attempt: run.attempt, order }
}
