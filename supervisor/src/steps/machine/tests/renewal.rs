//! The rules of a running step's pod: made again and again, and missed where they were gone.

use super::*;
use crate::steps::egress;

/// A step whose gate opened at second 2 behind the enforcer's rules.
fn enforced(policy: EgressPolicy) -> Machine {
    let (mut machine, _) = closing();
    machine.facts.assignment.sandbox.egress = policy;
    take(&mut machine, 1, closed());
    let effects = take(&mut machine, 2, at_gate(Some(&[])));
    assert!(machine.facts.opened.is_some());
    assert!(effects.contains(&next(2)), "{effects:?}");
    machine
}

fn next(seconds: i64) -> Effect {
    Effect::ArmTimer { timer: Timer::Egress, at: at(seconds).boot.plus(egress::RENEWAL) }
}

fn renewal() -> Effect {
    Effect::RenewEgress { uid: uid(), pod_ip: IP.parse().unwrap(), device: 9 }
}

fn renews(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::RenewEgress { .. }))
}

/// A supervisor that replays the ledger of the one before.
fn again(machine: &Machine, seconds: i64) -> (Machine, Vec<Effect>) {
    let mut facts = facts();
    for record in machine.facts.to_records() {
        match record {
            Record::Accepted { assignment, .. } => facts.assignment = *assignment,
            record => facts.apply(&record),
        }
    }
    assert_eq!(facts, machine.facts, "compaction keeps the device");
    let mut machine = Machine::new(facts);
    let effects =
        take(&mut machine, seconds, Event::Restarted { one_time_hash: "token-hash".into() });
    (machine, effects)
}

#[test]
fn a_supervisor_that_starts_again_renews_the_rules_of_a_running_step_at_once() {
    let (machine, effects) = again(&enforced(EgressPolicy::Required), 20);
    assert!(effects.contains(&renewal()) && effects.contains(&next(20)), "{effects:?}");
    assert!(machine.facts.stop.is_none());
}

#[test]
fn rules_are_renewed_by_the_clock_for_as_long_as_the_step_runs_and_nothing_is_written() {
    let mut machine = enforced(EgressPolicy::Required);
    for seconds in [32, 62] {
        let effects = take(&mut machine, seconds, Event::Timer(Timer::Egress));
        assert_eq!(effects, [renewal(), next(seconds)]);
        let effects = take(&mut machine, seconds, Event::EgressRenewed { missing: false });
        assert_eq!(effects, []);
    }
    // Nothing of the sandbox is there any more that rules could hang on.
    take(&mut machine, 63, ended(exited(0, "Completed")));
    assert_eq!(take(&mut machine, 92, Event::Timer(Timer::Egress)), []);
    let (_, effects) = again(&machine, 93);
    assert!(!renews(&effects), "{effects:?}");
}

#[test]
fn a_step_is_held_closed_while_it_is_being_stopped() {
    let mut machine = enforced(EgressPolicy::Required);
    let cancelled = Event::CancelOrdered {
        reason: Reason::Cancelled,
        message: String::new(),
        grace: Duration::from_mins(1),
    };
    take(&mut machine, 20, cancelled);
    assert!(renews(&take(&mut machine, 32, Event::Timer(Timer::Egress))));
}

#[test]
fn rules_that_were_gone_end_a_step_that_requires_them_and_no_agent_is_charged() {
    let mut machine = enforced(EgressPolicy::Required);
    take(&mut machine, 32, Event::Timer(Timer::Egress));
    let effects = take(&mut machine, 32, Event::EgressRenewed { missing: true });
    assert!(effects.contains(&Effect::EgressReopened) && orders_delete(&effects), "{effects:?}");
    let stop = machine.facts.stop.as_ref().expect("an order");
    assert!(stop.message.contains("were gone"), "{}", stop.message);
    take(&mut machine, 33, result(completed()));
    take(&mut machine, 33, ended(exited(0, "Completed")));
    assert_eq!(outcome(&machine).0, Reason::Disrupted, "whatever it did meanwhile");
}

#[test]
fn rules_that_were_gone_are_told_of_a_step_that_does_not_require_them_and_it_goes_on() {
    let mut machine = enforced(EgressPolicy::BestEffort);
    let effects = take(&mut machine, 32, Event::EgressRenewed { missing: true });
    assert!(effects.contains(&Effect::EgressReopened) && !orders_delete(&effects), "{effects:?}");
    assert!(machine.facts.stop.is_none());
    take(&mut machine, 33, result(completed()));
    take(&mut machine, 33, Event::CgroupEmpty);
    let outcome = machine.facts.outcome.as_ref().expect("an outcome");
    assert_eq!(outcome.reason, Reason::Completed);
    assert_eq!(outcome.sandbox.egress.as_deref(), Some("Unenforced"), "the proof holds no more");
}

#[test]
fn rules_that_were_gone_while_the_supervisor_was_away_are_missed_as_well() {
    let (mut machine, _) = again(&enforced(EgressPolicy::Required), 20);
    take(&mut machine, 20, Event::EgressRenewed { missing: true });
    assert_eq!(machine.facts.stop.map(|stop| stop.reason), Some(Reason::Disrupted));
}

#[test]
fn what_was_made_ahead_has_its_rules_renewed_as_its_gate_opens() {
    let (mut machine, _) = closing();
    machine.facts.assignment.held = true;
    take(&mut machine, 1, closed());
    take(&mut machine, 2, at_gate(Some(&[])));
    let mut whole = machine.facts.assignment.clone();
    whole.held = false;
    take(&mut machine, 900, Event::Released(Box::new(whole)));
    let effects = take(&mut machine, 900, Event::MayOpen);
    assert!(effects.contains(&renewal()) && effects.contains(&next(900)), "{effects:?}");
}

#[test]
fn what_never_had_rules_of_ours_is_not_asked_for_them() {
    // The network plugin is the wall, or there is none.
    let mut machine = running();
    assert_eq!(take(&mut machine, 32, Event::Timer(Timer::Egress)), []);
    let (_, effects) = again(&machine, 33);
    assert!(!renews(&effects), "{effects:?}");
}

#[test]
fn rules_that_went_with_a_restart_of_the_node_are_not_missed() {
    let mut before = enforced(EgressPolicy::Required);
    let facts = &mut before.facts;
    facts.opened = facts.opened.take().map(|at| Moment { boot_id: "another".into(), ..at });
    let (_, effects) = again(&before, 40);
    assert!(!renews(&effects), "nothing of it runs: {effects:?}");
}
