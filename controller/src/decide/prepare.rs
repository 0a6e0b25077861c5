//! The run that is made ahead: while plan and implement run, the next step's pod may wait at its gate
//! (docs/adr/0004-next-pod-held-at-the-gate.md).

use agent_operator::{
    crd::AgentRunSpec,
    domain::{Reason, RunPhase, StepName, names},
};
use jiff::Timestamp;

use super::{
    Delivery, Observed, RunView, placement,
    progress::{self, Stand, Start},
    resolve,
    run::{self, Contact},
};
use crate::plan::{Order, Plan, RunCreate};

/// Whether a run has to wait behind its gate: it was made ahead, and its step's turn has not come.
pub fn is_held(observed: &Observed, run: &RunView) -> bool {
    run.spec.prepared && run.is_live() && !has_turn(run, &progress::replay(observed).stand)
}

fn has_turn(run: &RunView, stand: &Stand<'_>) -> bool {
    matches!(stand, Stand::Live(live) if live.run == run.run)
}

/// Adds what a run that is held beside `stand` needs, and the run that is to be made ahead.
pub fn look_after(observed: &Observed, stand: &Stand<'_>, now: Timestamp, plan: &mut Plan) {
    let held = |run: &&RunView| run.spec.prepared && run.is_live() && !has_turn(run, stand);
    for run in observed.runs.iter().filter(held) {
        let told = matches!(run.delivery, Delivery::Held | Delivery::CancelSent);
        match run::contact(observed, run, now) {
            Contact::Connected if told => {}
            Contact::Connected if run::holds(observed, run) => {
                plan.commands.push(run::command(run, Order::Hold));
            }
            // A supervisor of before would begin it.
            Contact::Connected => {
                let why =
                    (Reason::Unstarted, "made ahead, and its node's supervisor cannot hold it");
                run::end(observed, run, why, now, plan);
            }
            Contact::Fenced => run::give_up(observed, run, plan),
            // The step before is on the same node, and says how that is.
            Contact::Brief(_) | Contact::Silent => {}
        }
    }
    if let Stand::Live(present) = stand {
        plan.run_creates.extend(next(observed, present));
    }
}

/// Whether a run waits at its gate for its turn or for the word, as far as this process knows.
pub fn waits(run: &RunView) -> bool {
    run.is_live() && run.never_began() && run.delivery != Delivery::Sent
}

/// Ends what waits: the task waits for somebody, and its node is not to wait with it. Should one have
/// begun all the same, it is placed again.
pub fn end(observed: &Observed, now: Timestamp, plan: &mut Plan) {
    for run in observed.runs.iter().filter(|run| waits(run)) {
        let why = (Reason::Unstarted, "made ahead, and the task does not go on");
        run::end(observed, run, why, now, plan);
    }
}

/// The run to make ahead beside `present`: on the same node, if there is room, and once for each
/// attempt at the present step.
fn next(observed: &Observed, present: &RunView) -> Option<RunCreate> {
    let task = &observed.task;
    let wanted = task.spec.prepare_next_step == Some(true) && task.spec.suspend != Some(true);
    let runs = present.phase == RunPhase::Running && present.delivery == Delivery::Sent;
    if !wanted || !runs || !matches!(present.step, StepName::Plan | StepName::Implement) {
        return None;
    }
    let step = present.step.next()?;
    let made = |run: &&RunView| run.step == step && run.spec.prepared;
    let mut made = observed.runs.iter().filter(made);
    if made.any(|run| run.is_live() || run.created >= present.created) {
        return None;
    }
    let node = observed.node(&present.node())?;
    if !run::holds(observed, present) || !placement::has_room(observed, node) {
        return None;
    }
    let attempt = progress::next_attempt(observed, step);
    let start = Start { attempt, ..Start::first(step) };
    let spec = resolve::run_spec(observed, &start, &node.name);
    let name = names::run_name(&task.name, &task.uid, step, attempt);
    Some(RunCreate { name, spec: AgentRunSpec { prepared: true, ..spec } })
}
