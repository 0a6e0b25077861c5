//! Decisions under any order of events: the invariants hold at every pass (the model checks them),
//! deciding again writes nothing, what has ended stays ended, and every task ends.

// Helpers of tests fail by panicking, as the tests themselves do.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "decide/anything.rs"]
mod anything;
#[path = "decide/mod.rs"]
mod decide;
#[path = "schema/mod.rs"]
mod schema;

use agent_operator::domain::{
    Budget, Reason, RunPhase, StepName,
    preflight::{Finding, Problem},
};
use agent_operator_controller::decide::{CredentialState, Delivery, PreflightView, RunView};
use decide::Model;
use proptest::prelude::*;

/// Something that happens to a task.
#[derive(Clone, Debug)]
enum Happening {
    Wait(u64),
    Start,
    End(Reason, bool),
    Disconnect(usize),
    Connect(usize),
    Fence(usize),
    Unfence(usize),
    Crowd(usize, u32),
    Suspend(bool),
    /// Next pods are to be made ahead, or no more.
    Prepare(bool),
    /// What was made ahead ends before its turn.
    LosePrepared(Reason),
    MaxRetries(Option<i32>),
    Secret(bool),
    /// What stands in the way of a task that has not started.
    Preflight(Option<Problem>),
    /// The controller restarts: what it sent is not known any more.
    Restart,
    /// A supervisor without its ledger says hello.
    LoseLedger(usize),
    /// Somebody ends the task.
    Cancel,
    /// The live run's object is deleted by somebody.
    LoseLive,
    /// An ended run's object is deleted by somebody.
    LoseEnded(usize),
}

fn happening() -> impl Strategy<Value = Happening> {
    let reason = prop::sample::select(Reason::ALL.to_vec());
    let lost = prop::sample::select(vec![Reason::Unstarted, Reason::Disrupted, Reason::Deleted]);
    let problem = prop::sample::select(Problem::ALL.to_vec());
    prop_oneof![
        4 => (1_u64..2000).prop_map(Happening::Wait),
        4 => Just(Happening::Start),
        3 => Just(Happening::End(Reason::Completed, true)),
        6 => (reason, any::<bool>()).prop_map(|(reason, output)| Happening::End(reason, output)),
        1 => (0_usize..2).prop_map(Happening::Disconnect),
        2 => (0_usize..2).prop_map(Happening::Connect),
        1 => (0_usize..2).prop_map(Happening::Fence),
        1 => (0_usize..2).prop_map(Happening::Unfence),
        1 => (0_usize..2, 0_u32..3).prop_map(|(node, slots)| Happening::Crowd(node, slots)),
        1 => any::<bool>().prop_map(Happening::Suspend),
        2 => any::<bool>().prop_map(Happening::Prepare),
        1 => lost.prop_map(Happening::LosePrepared),
        1 => prop::option::of(0_i32..5).prop_map(Happening::MaxRetries),
        1 => any::<bool>().prop_map(Happening::Secret),
        1 => prop::option::of(problem).prop_map(Happening::Preflight),
        1 => Just(Happening::Restart),
        1 => (0_usize..2).prop_map(Happening::LoseLedger),
        1 => Just(Happening::Cancel),
        1 => Just(Happening::LoseLive),
        1 => (0_usize..8).prop_map(Happening::LoseEnded),
    ]
}

fn happen(model: &mut Model, happening: &Happening) {
    match happening {
        Happening::Wait(seconds) => model.advance(*seconds),
        Happening::Start => model.start_live(),
        Happening::End(reason, output) => {
            let connected = model.live().is_some_and(|run| {
                let node = run.node();
                model.nodes.iter().any(|facts| facts.name == node && facts.session.is_some())
            });
            if connected {
                model.end_live(*reason, output.then_some("some output\nlast line"));
            }
        }
        Happening::Disconnect(index) => model.disconnect(*index),
        Happening::Connect(index) => model.connect(*index),
        Happening::Fence(index) => model.nodes[*index].fenced = Some("gone".to_owned()),
        Happening::Unfence(index) => model.nodes[*index].fenced = None,
        Happening::Crowd(index, slots) => model.nodes[*index].used.slots = *slots,
        Happening::Prepare(prepare) => model.task.spec.prepare_next_step = Some(*prepare),
        Happening::LosePrepared(reason) => {
            let (now, told) = (model.now, model.told.clone());
            let waits = |run: &&mut RunView| run.is_live() && !told.contains(&run.run.name);
            for run in model.runs.iter_mut().filter(waits) {
                (run.phase, run.reason) = (RunPhase::Failed, Some(*reason));
                run.status.phase = Some("Failed".to_owned());
                run.status.reason = Some(reason.as_str().to_owned());
                run.status.completion_time = Some(now);
            }
        }
        Happening::Suspend(suspend) => model.task.spec.suspend = Some(*suspend),
        Happening::MaxRetries(max) => model.task.spec.max_retries = *max,
        Happening::Secret(there) => {
            model.credentials = if *there {
                CredentialState::Ready
            } else {
                let message = "Secret agent-secrets does not exist".to_owned();
                CredentialState::Refused { reason: "SecretMissing", message }
            };
        }
        Happening::Preflight(problem) => {
            let finding = |problem| Finding { problem, message: "said so".to_owned() };
            model.findings = problem.map(finding).into_iter().collect();
        }
        Happening::Restart => {
            model.preflight = PreflightView::default();
            for run in &mut model.runs {
                run.delivery = if run.is_live() { Delivery::Known } else { Delivery::Unsent };
            }
        }
        Happening::LoseLedger(index) => {
            let node = model.nodes[*index].name.clone();
            for run in model.runs.iter_mut().filter(|run| run.node() == node) {
                run.delivery = Delivery::Unsent;
            }
        }
        Happening::Cancel => model.task.cancel = Some(String::new()),
        Happening::LoseLive => {
            let told = model.told.clone();
            model.runs.retain(|run| !run.is_live() || !told.contains(&run.run.name));
        }
        Happening::LoseEnded(index) => {
            if model.runs.get(*index).is_some_and(|run| !run.is_live()) {
                let lost = model.runs.remove(*index);
                // Made ahead and gone before its turn it is on no record, and its number comes back (ADR 0004).
                if !model.told.contains(&lost.run.name) {
                    model.created.remove(&(lost.step, lost.attempt));
                }
            }
        }
    }
}

/// All reasons but the one after which a task waits for a person, which has no clock.
fn clocked() -> Vec<Reason> {
    Reason::ALL.iter().copied().filter(|reason| *reason != Reason::BudgetExceeded).collect()
}

/// What may never change again once the task has ended.
fn ending(model: &Model) -> Option<String> {
    model.finished().then(|| {
        let status = &model.task.status;
        format!("{:?} {:?} {:?}", status.phase, status.completion_time, status.pull_request)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_events_keeps_the_invariants(
        happenings in prop::collection::vec(happening(), 1..60),
    ) {
        let mut model = Model::new();
        model.settle();
        for happening in &happenings {
            let before = ending(&model);
            let ended: Vec<_> = model
                .runs
                .iter()
                .filter(|run| !run.is_live())
                .map(|run| (run.run.name.clone(), run.status.clone()))
                .collect();
            happen(&mut model, happening);
            model.settle();
            if let Some(before) = before {
                prop_assert_eq!(Some(before), ending(&model), "after {:?}", happening);
            }
            for (name, status) in ended {
                if let Some(run) = model.runs.iter().find(|run| run.run.name == name) {
                    prop_assert_eq!(&run.status, &status, "{} after {:?}", name, happening);
                }
            }
            let live = model.runs.iter().filter(|run| model.is_under_way(run)).count();
            prop_assert!(live <= 1, "{} live runs after {:?}", live, happening);
            let all = model.runs.iter().filter(|run| run.is_live()).count();
            prop_assert!(all <= live + 1, "{} runs wait after {:?}", all - live, happening);
            let pulls = model.created.keys().filter(|(step, _)| *step == StepName::PullRequest);
            prop_assert!(pulls.count() == 0 || model.task.status.plan.is_some()
                || model.task.status.agent_runs.iter().any(|run| run.step == "test"));
        }
    }

    #[test]
    fn every_task_ends_whatever_its_runs_end_with(
        reasons in prop::collection::vec(prop::sample::select(clocked()), 1..40),
        max_retries in 0_i32..6,
    ) {
        let mut model = Model::new();
        model.task.spec.max_retries = Some(max_retries);
        model.settle();
        for reason in reasons.iter().cycle().take(500) {
            if model.live().is_some() {
                model.through(*reason, None);
            }
            // Longer than any backoff, so that each round makes progress.
            model.advance(700);
            model.settle();
        }
        prop_assert!(model.finished(), "no end in sight: {}", model.message());
        let failures = |budget: Budget| {
            let charged = |run: &&agent_operator_controller::decide::RunView| {
                run.reason.is_some_and(|reason| reason != Reason::Completed && reason.budget() == budget)
            };
            model.runs.iter().filter(charged).count()
        };
        let most = usize::try_from(max_retries).unwrap() + 1;
        prop_assert!(failures(Budget::Application) <= most);
        prop_assert!(failures(Budget::Infrastructure) <= 4);
        prop_assert!(model.task.status.retry_count <= Some(max_retries));
    }
}
