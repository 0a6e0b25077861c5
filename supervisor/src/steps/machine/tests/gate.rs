//! The start gate: what must agree before it opens, and what keeps it closed.

use super::*;

#[test]
fn the_gate_opens_after_the_network_is_closed_and_the_runner_has_reached_nothing() {
    let (mut machine, effects) = closing();
    let close = Effect::CloseEgress {
        uid: uid(),
        pod_ip: IP.parse().unwrap(),
        iflink: Some(9),
        required: true,
    };
    assert!(effects.contains(&close), "{effects:?}");
    assert_eq!(take(&mut machine, 1, observed(running_pod())), vec![], "asked once");
    let effects = take(&mut machine, 1, closed());
    assert!(matches!(effects[..], [Effect::Probe { .. }]), "{effects:?}");
    assert!(machine.facts.opened.is_none());
    take(&mut machine, 2, at_gate(Some(&[])));
    assert!(machine.facts.opened.is_some());
    let status = crate::steps::verdict::sandbox(&machine.facts);
    assert_eq!(status.egress.as_deref(), Some("Enforced"));
}

#[test]
fn an_open_network_keeps_the_gate_closed_and_says_what_to_install() {
    let (mut machine, _) = closing();
    take(&mut machine, 1, not_closed());
    let effects = take(&mut machine, 2, at_gate(Some(&["10.244.0.3:8081"])));
    assert!(machine.facts.opened.is_none() && orders_delete(&effects));
    let stop = machine.facts.stop.unwrap();
    assert_eq!((stop.reason, stop.fault), (Reason::Unstarted, Some(StartFault::EgressOpen)));
    assert!(stop.message.contains("10.244.0.3:8081"), "{}", stop.message);
}

#[test]
fn a_supervisor_that_restarts_at_the_gate_closes_again_and_keeps_what_was_probed() {
    let (mut machine, _) = closing();
    take(&mut machine, 1, closed());
    machine.facts.apply(&Record::AtGate(match at_gate(Some(&[])) {
        Event::AtGate(request) => request,
        _ => unreachable!(),
    }));
    let mut machine = Machine::new(machine.facts);
    take(&mut machine, 3, Event::Restarted { one_time_hash: "fresh".into() });
    let effects = take(&mut machine, 3, observed(running_pod()));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::CloseEgress { .. })));
    assert!(machine.facts.opened.is_none());
    take(&mut machine, 4, closed());
    assert!(machine.facts.opened.is_some());
}

#[test]
fn a_control_from_here_is_kept_with_the_probe_and_no_runner_can_say_it() {
    let silent = |probe: Option<&[&str]>| match at_gate(probe) {
        Event::AtGate(request) => {
            Event::AtGate(GateRequest { canary_before: Some(false), ..request })
        }
        _ => unreachable!(),
    };
    for (heard, level) in [(&["10.244.0.3:8081"][..], "Enforced"), (&[], "Unenforced")] {
        let mut machine = pending();
        take(&mut machine, 1, Event::Redeemed(redemption()));
        take(&mut machine, 1, observed(running_pod()));
        take(&mut machine, 1, silent(None));
        let effects = take(&mut machine, 1, closed());
        assert_eq!(effects, [Effect::TryTargets]);
        let heard = heard.iter().map(|text| text.parse().unwrap()).collect();
        let effects = take(&mut machine, 2, Event::Listening(heard));
        assert!(effects.iter().any(|effect| matches!(effect, Effect::Probe { .. })), "{effects:?}");
        take(&mut machine, 3, silent(Some(&[])));
        assert!(machine.facts.opened.is_some(), "as the task requires nothing");
        let status = crate::steps::verdict::sandbox(&machine.facts);
        assert_eq!(status.egress.as_deref(), Some(level));
    }
}

#[test]
fn an_enforcer_that_does_not_answer_is_waited_for_and_told_about() {
    let (mut machine, _) = closing();
    let delay = Hindrance { fault: StartFault::EgressOpen, words: "away".into(), lasting: false };
    let effects = take(&mut machine, 2, Event::EgressDelayed(delay.clone()));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Report { .. })), "{effects:?}");
    assert_eq!(take(&mut machine, 3, Event::EgressDelayed(delay)), vec![], "told once");
    take(&mut machine, 3, observed(running_pod()));
    take(&mut machine, 30, Event::Timer(Timer::Start));
    let stop = machine.facts.stop.unwrap();
    assert_eq!((stop.reason, stop.fault), (Reason::Unstarted, Some(StartFault::EgressOpen)));
}

#[test]
fn the_gate_opens_once_runner_and_kubelet_agree_in_whatever_order() {
    let events = [
        Event::Redeemed(redemption()),
        Event::AtGate(GateRequest::default()),
        observed(running_pod()),
    ];
    for order in [[0, 1, 2], [0, 2, 1], [2, 0, 1]] {
        let mut machine = pending();
        let all: Vec<_> =
            order.iter().flat_map(|at| take(&mut machine, 2, events[*at].clone())).collect();
        let all = [all, take(&mut machine, 2, not_closed())].concat();
        let open =
            Effect::OpenGate { pod_ip: IP.parse().unwrap(), remaining: Duration::from_mins(1) };
        assert_eq!(all.iter().filter(|effect| **effect == open).count(), 1, "{order:?}");
        let armed = Effect::ArmTimer { timer: Timer::Deadline, at: at(62).boot };
        assert!(all.contains(&armed));
        let journal =
            all.iter().position(|e| matches!(e, Effect::Journal(Record::GateOpened { .. })));
        let opened = all.iter().position(|e| *e == open);
        assert!(journal < opened, "on disk first");
        assert!(all.iter().any(|e| matches!(e, Effect::Report { sequence: 1, .. })));
    }
}

#[test]
fn a_token_redeemed_from_elsewhere_never_opens_the_gate() {
    let mut machine = pending();
    let stolen = crate::link::contract::Redemption {
        pod_ip: "10.244.0.99".parse().unwrap(),
        ..redemption()
    };
    take(&mut machine, 1, Event::Redeemed(stolen));
    take(&mut machine, 1, Event::AtGate(GateRequest::default()));
    let effects = take(&mut machine, 2, observed(running_pod()));
    assert!(machine.facts.opened.is_none() && orders_delete(&effects));
    assert_eq!(machine.facts.stop.unwrap().reason, Reason::Unstarted);
}

#[test]
fn policies_that_this_node_cannot_keep_keep_the_gate_closed() {
    for set in [
        |machine: &mut Machine| machine.facts.assignment.sandbox.require_pids_limit = true,
        |machine: &mut Machine| {
            machine.facts.assignment.sandbox.egress = EgressPolicy::Required;
        },
    ] {
        let mut machine = pending();
        set(&mut machine);
        take(&mut machine, 1, Event::Redeemed(redemption()));
        take(&mut machine, 1, Event::AtGate(GateRequest::default()));
        take(&mut machine, 2, observed(running_pod()));
        take(&mut machine, 2, not_closed());
        assert!(machine.facts.opened.is_none());
        assert_eq!(machine.facts.stop.unwrap().reason, Reason::Unstarted);
    }
}

#[test]
fn a_demanded_limit_of_processes_opens_the_gate_only_where_there_is_one() {
    for (limit, opens) in [(None, false), (Some(1024), true)] {
        let mut machine = pending();
        machine.facts.assignment.sandbox.require_pids_limit = true;
        take(&mut machine, 1, Event::Redeemed(redemption()));
        let mut request = GateRequest::default();
        request.sandbox.pids_limit = limit;
        take(&mut machine, 1, Event::AtGate(request));
        take(&mut machine, 2, observed(running_pod()));
        take(&mut machine, 2, not_closed());
        assert_eq!(machine.facts.opened.is_some(), opens, "{limit:?}");
        if let Some(stop) = machine.facts.stop {
            assert!(stop.message.contains("podPidsLimit"), "{}", stop.message);
        }
    }
}

/// An attempt that was made ahead, at its gate with everything that an ordinary one needs.
fn held() -> Machine {
    let mut machine = Machine::new(facts());
    machine.facts.assignment.held = true;
    take(&mut machine, 0, Event::Accepted);
    take(&mut machine, 0, created());
    take(&mut machine, 1, Event::Redeemed(redemption()));
    take(&mut machine, 1, Event::AtGate(GateRequest::default()));
    take(&mut machine, 2, observed(running_pod()));
    take(&mut machine, 2, not_closed());
    machine
}

fn begin() -> Event {
    let mut assignment = testing::assignment();
    assignment.work.feedback = Some("1 failing".into());
    assignment.epoch = Epoch(4);
    Event::Released(Box::new(assignment))
}

#[test]
fn what_was_made_ahead_waits_at_its_gate_until_it_is_told_to_begin() {
    let mut machine = held();
    assert!(machine.facts.opened.is_none() && machine.deadline().is_none());
    let effects = take(&mut machine, 20, begin());
    assert!(matches!(effects[..], [Effect::Journal(_), Effect::RegisterGrant]), "{effects:?}");
    assert!(machine.facts.opened.is_none(), "the credentials come first");
    let effects = take(&mut machine, 20, Event::MayOpen);
    let opens = |effect: &Effect| matches!(effect, Effect::OpenGate { .. });
    assert!(effects.iter().any(opens), "{effects:?}");
    assert_eq!(machine.deadline(), Some(at(80).boot), "its clock starts here");
    assert_eq!(machine.facts.assignment.work.feedback.as_deref(), Some("1 failing"));
    assert_eq!(machine.facts.assignment.epoch, Epoch(4));
}

#[test]
fn a_supervisor_that_dies_between_the_word_and_the_gate_opens_it_after_its_restart() {
    let mut machine = held();
    take(&mut machine, 20, begin());
    let mut facts = facts();
    for record in machine.facts.to_records() {
        match record {
            Record::Accepted { assignment, .. } => facts.assignment = *assignment,
            record => facts.apply(&record),
        }
    }
    assert_eq!(facts, machine.facts, "compaction keeps the word");
    let mut machine = Machine::new(facts);
    take(&mut machine, 21, Event::Restarted { one_time_hash: "fresh".into() });
    take(&mut machine, 21, observed(running_pod()));
    take(&mut machine, 21, not_closed());
    assert!(machine.facts.opened.is_some());
}

#[test]
fn an_attempt_that_is_held_after_a_restart_still_waits() {
    let mut machine = Machine::new(held().facts);
    take(&mut machine, 3, Event::Restarted { one_time_hash: "fresh".into() });
    take(&mut machine, 3, observed(running_pod()));
    take(&mut machine, 3, not_closed());
    assert!(machine.facts.opened.is_none());
}

#[test]
fn what_nobody_tells_to_begin_is_given_up_at_its_start_deadline() {
    let mut machine = held();
    let effects = take(&mut machine, 30, Event::Timer(Timer::Start));
    assert!(orders_delete(&effects));
    assert_eq!(machine.facts.stop.as_ref().map(|stop| stop.reason), Some(Reason::Unstarted));
    take(&mut machine, 31, begin());
    take(&mut machine, 31, Event::MayOpen);
    assert!(machine.facts.opened.is_none(), "the word comes too late");
}
