//! The table of the module, row by row.

use std::{net::SocketAddr, time::Duration};

use agent_operator::domain::{RunUid, Secret, Usage};
use k8s_openapi::{
    api::core::v1::{ContainerState, ContainerStateRunning, ContainerStatus, PodStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::*;
use crate::{
    ledger::Delivery,
    pod::build::{self, NodeSettings},
    testing::{assignment, at, boot_id, redemption},
};

/// The look is at this second after the boot.
const NOW: i64 = 100;

fn server(phase: RunPhase) -> RunOnServer {
    let assignment = assignment();
    RunOnServer {
        uid: assignment.run.uid.clone(),
        attempt: assignment.attempt,
        node: assignment.node.clone(),
        epoch: assignment.epoch,
        timeout: Some(assignment.timeout()),
        phase,
        started_at: None,
    }
}

/// The pod that `made` makes, with a container that was started at second 80.
fn pod_of(made: &Assignment) -> Pod {
    let gateway: SocketAddr = "10.96.0.9:8080".parse().unwrap();
    let (runner_image, delivery) = ("runner:1".to_owned(), Delivery::ImageVolume);
    let settings = NodeSettings { gateway, runner_image, delivery, priority_class: None };
    let mut pod = build::pod(made, &settings, &Secret::new("token"));
    pod.metadata.uid = Some("pod-uid".into());
    let running = ContainerStateRunning { started_at: Some(Time(at(80).wall)) };
    let state = ContainerState { running: Some(running), ..ContainerState::default() };
    let name = agent_operator::attempt::CONTAINER_NAME.to_owned();
    let status = ContainerStatus { name, state: Some(state), ..ContainerStatus::default() };
    let container_statuses = Some(vec![status]);
    pod.status = Some(PodStatus { container_statuses, ..PodStatus::default() });
    pod
}

fn seen(run: Option<RunOnServer>, pod: Option<Pod>) -> Stranger {
    Stranger { look: Some(Box::new(Look { run, pod })), ..Stranger::default() }
}

fn running_with_pod() -> Stranger {
    seen(Some(server(RunPhase::Running)), Some(pod_of(&assignment())))
}

impl Stranger {
    fn ordered(self) -> Self {
        self.ordered_as(assignment())
    }

    fn ordered_as(self, assignment: Assignment) -> Self {
        let order = Order { assignment, credentials: Vec::new(), refused: false };
        Self { order: Some(order), ..self }
    }

    /// The controller was told that the pod is not adopted.
    fn refused(mut self) -> Self {
        self.order = self.order.map(|order| Order { refused: true, ..order });
        self
    }

    fn survived(self, left: Option<Duration>) -> Self {
        let survivor = Survivor {
            assignment: assignment(),
            redemption: Some(redemption()),
            open_remaining_millis: left.map(|left| u64::try_from(left.as_millis()).unwrap()),
            usage: Usage { turns: 5, ..Usage::default() },
            refusals: Vec::new(),
        };
        Self { survivor: Some(Box::new(survivor)), ..self }
    }

    fn that_ends(self) -> Self {
        let (reason, message) = (Reason::Cancelled, "it is no longer wanted".to_owned());
        Self { end: Some(End { reason, message, grace: None }), ..self }
    }

    fn settled(&self, gateway: GatewayMemory) -> Settled {
        let (run, node, boot_id) = (assignment().key(), assignment().node, boot_id());
        self.settle(&run, &Here { node: &node, boot_id: &boot_id, gateway, now: at(NOW) })
    }
}

fn adopted(settled: Settled) -> TakenUp {
    match settled {
        Settled::Adopted(taken) => taken,
        other => panic!("{other:?}"),
    }
}

fn guarded(settled: Settled) -> Guarded {
    match settled {
        Settled::Guarded(Some(guarded)) => guarded,
        other => panic!("{other:?}"),
    }
}

fn stops(taken: &TakenUp) -> Vec<Reason> {
    let stops = taken.then.iter().filter_map(|record| match record {
        Record::Stopping(stop) => Some(stop.reason),
        _ => None,
    });
    stops.collect()
}

fn opened(taken: &TakenUp) -> Option<Moment> {
    taken.then.iter().find_map(|record| match record {
        Record::GateOpened { at } => Some(at.clone()),
        _ => None,
    })
}

#[test]
fn nothing_is_settled_before_run_and_pod_were_looked_at() {
    let settled = Stranger::default().ordered().settled(GatewayMemory::Nothing);
    assert!(matches!(settled, Settled::Unseen), "{settled:?}");
}

#[test]
fn what_survived_with_its_tokens_is_adopted_by_the_gateways_own_clock() {
    let stranger = running_with_pod().survived(Some(Duration::from_secs(33)));
    let taken = adopted(stranger.settled(GatewayMemory::Keeps));
    // 27 of its 60 s are over.
    let since = Moment::new(at(NOW - 27), &boot_id());
    assert_eq!(opened(&taken), Some(since.clone()));
    assert_eq!(taken.accepted, since);
    assert_eq!(stops(&taken), []);
    assert!(!taken.tokens_lost);
    assert!(taken.then.contains(&Record::Redeemed(redemption())));
    let usage = Usage { turns: 5, ..Usage::default() };
    assert!(taken.then.contains(&Record::Counters { usage, refusals: Vec::new() }));
}

#[test]
fn what_had_started_without_its_tokens_is_disrupted_also_after_its_time() {
    for timeout_seconds in [60, 5] {
        let order = Assignment { timeout_seconds, ..assignment() };
        let pod = Some(pod_of(&order));
        let stranger = seen(Some(server(RunPhase::Running)), pod).ordered_as(order);
        let taken = adopted(stranger.settled(GatewayMemory::Nothing));
        assert!(taken.tokens_lost);
        assert_eq!(stops(&taken), [Reason::Disrupted]);
        assert_eq!(opened(&taken), Some(Moment::new(at(80), &boot_id())));
    }
}

#[test]
fn without_an_order_the_deadline_is_guarded_from_the_start_of_the_container() {
    let guarded = guarded(running_with_pod().settled(GatewayMemory::Nothing));
    assert_eq!(guarded.at, at(80 + 60).boot);
    assert_eq!(guarded.uid, PodUid::from("pod-uid"));
    assert_eq!(guarded.order.reason, Reason::TimedOut);
}

#[test]
fn an_order_waits_for_what_the_gateway_knows_of_the_tokens() {
    let stranger = running_with_pod().ordered();
    for untold in [GatewayMemory::Unknown, GatewayMemory::Keeps] {
        guarded(stranger.settled(untold));
    }
    adopted(stranger.settled(GatewayMemory::Nothing));
    adopted(running_with_pod().ordered().survived(None).settled(GatewayMemory::Keeps));
}

#[test]
fn what_the_gateway_has_kept_closed_has_no_deadline_yet() {
    let pod = Some(pod_of(&assignment()));
    let stranger = seen(Some(server(RunPhase::Pending)), pod).survived(None);
    let settled = stranger.settled(GatewayMemory::Unknown);
    assert!(matches!(settled, Settled::Guarded(None)), "{settled:?}");
    assert_eq!(opened(&adopted(stranger.settled(GatewayMemory::Keeps))), None);
}

#[test]
fn an_order_to_hold_does_not_close_what_is_open() {
    let held = Assignment { held: true, ..assignment() };
    let taken = |phase| {
        let stranger = seen(Some(server(phase)), Some(pod_of(&held))).ordered_as(held.clone());
        adopted(stranger.settled(GatewayMemory::Nothing)).assignment.held
    };
    assert!(!taken(RunPhase::Running));
    assert!(taken(RunPhase::Pending));
}

#[test]
fn a_pod_that_the_order_would_not_make_is_guarded_and_not_adopted() {
    let mut other = assignment();
    other.pod.image = "another:1".into();
    let stranger = running_with_pod().ordered_as(other);
    let settled = stranger.settled(GatewayMemory::Nothing);
    let Settled::Foreign { difference, guarded: Some(guarded) } = settled else {
        panic!("{settled:?}")
    };
    assert_eq!(difference, "its spec differs");
    assert_eq!(guarded.at, at(80 + 60).boot);
}

#[test]
fn a_pod_that_was_refused_is_guarded_from_its_start_and_ended_when_its_run_is() {
    let mut other = assignment();
    other.pod.image = "another:1".into();
    let refused = || {
        let pod = Some(pod_of(&assignment()));
        seen(Some(server(RunPhase::Pending)), pod).ordered_as(other.clone()).refused()
    };
    let settled = refused().settled(GatewayMemory::Nothing);
    let Settled::Foreign { guarded: Some(guarded), .. } = settled else { panic!("{settled:?}") };
    assert_eq!(guarded.at, at(80 + 60).boot, "its gate may have opened under another order");
    let taken = adopted(refused().that_ends().settled(GatewayMemory::Nothing));
    assert_eq!(stops(&taken), [], "its end is the order's");
}

#[test]
fn to_be_ended_a_pod_need_only_be_the_runs_and_the_gateways_word_is_not_waited_for() {
    let mut other = assignment();
    other.pod.image = "another:1".into();
    let stranger = running_with_pod().ordered_as(other).that_ends();
    let taken = adopted(stranger.settled(GatewayMemory::Unknown));
    assert_eq!(stops(&taken), [], "its end is the order's");
    assert!(taken.tokens_lost);
}

#[test]
fn a_pod_whose_run_is_gone_or_done_or_anothers_is_taken_away() {
    let another = RunOnServer { uid: RunUid::from("another"), ..server(RunPhase::Running) };
    for run in [None, Some(server(RunPhase::Succeeded)), Some(another)] {
        let stranger = seen(run, Some(pod_of(&assignment()))).ordered();
        let settled = stranger.settled(GatewayMemory::Nothing);
        let Settled::Unwanted(Some(leftover)) = settled else { panic!("{settled:?}") };
        assert_eq!(leftover.run, assignment().run);
        assert_eq!(leftover.uid, PodUid::from("pod-uid"));
        assert_eq!(leftover.task.as_deref(), Some("add-healthcheck"));
    }
}

#[test]
fn a_run_of_another_node_is_left_alone() {
    let elsewhere = RunOnServer { node: "node-b".into(), ..server(RunPhase::Running) };
    let stranger = seen(Some(elsewhere), Some(pod_of(&assignment()))).ordered();
    let settled = stranger.settled(GatewayMemory::Nothing);
    assert!(matches!(&settled, Settled::Misplaced(node) if node.as_str() == "node-b"));
}

#[test]
fn without_a_pod_only_what_never_began_is_an_ordinary_assignment() {
    let pending = || seen(Some(server(RunPhase::Pending)), None);
    let settled = pending().ordered().settled(GatewayMemory::Nothing);
    assert!(matches!(settled, Settled::Assigned(_)), "{settled:?}");
    let began = [
        seen(Some(server(RunPhase::Running)), None).ordered(),
        pending().ordered().survived(None),
        seen(Some(server(RunPhase::Running)), None).survived(None).that_ends(),
    ];
    for stranger in began {
        let settled = stranger.settled(GatewayMemory::Keeps);
        let vanished = matches!(settled, Settled::Podless { failure: CreateFailure::Vanished, .. });
        assert!(vanished, "{settled:?}");
    }
}

#[test]
fn without_a_pod_nothing_is_made_for_what_is_that_ends() {
    let stranger = seen(Some(server(RunPhase::Pending)), None).ordered().that_ends();
    let settled = stranger.settled(GatewayMemory::Nothing);
    let aborted = matches!(settled, Settled::Podless { failure: CreateFailure::Aborted, .. });
    assert!(aborted, "{settled:?}");
}

#[test]
fn without_a_pod_and_an_order_there_is_nothing_to_do() {
    for stranger in [
        seen(Some(server(RunPhase::Running)), None),
        seen(Some(server(RunPhase::Running)), None).survived(None),
    ] {
        let settled = stranger.settled(GatewayMemory::Keeps);
        assert!(matches!(settled, Settled::Nothing), "{settled:?}");
    }
}
