//! A supervisor that starts again with the facts of its journal.

use super::*;

fn again(machine: &Machine, seconds: i64) -> (Machine, Vec<Effect>) {
    let mut facts = Facts::accepted(
        machine.facts.assignment.clone(),
        machine.facts.one_time_hash.clone(),
        machine.facts.accepted.clone(),
    );
    machine.facts.to_records().iter().for_each(|record| facts.apply(record));
    assert_eq!(facts, machine.facts, "replay gives the same facts");
    let mut machine = Machine::new(facts);
    let one_time_hash = "fresh".to_owned();
    let effects = take(&mut machine, seconds, Event::Restarted { one_time_hash });
    (machine, effects)
}

#[test]
fn without_a_pod_a_fresh_token_is_made_and_the_pod_created() {
    let mut machine = Machine::new(facts());
    take(&mut machine, 0, Event::Accepted);
    let (mut machine, effects) = again(&machine, 5);
    assert_eq!(effects[1..3], [Effect::RegisterGrant, Effect::CreatePod]);
    assert_eq!(machine.facts.one_time_hash, "fresh");
    // The pod was there after all, with the token of the process before.
    let adopted = Event::PodCreated { uid: uid(), one_time_hash: "token-hash".into() };
    let effects = take(&mut machine, 6, adopted);
    assert!(effects.contains(&Effect::RegisterGrant));
    assert_eq!(machine.facts.one_time_hash, "token-hash");
}

#[test]
fn a_running_step_keeps_its_deadline_and_gets_no_second_pod() {
    let (_, effects) = again(&running(), 40);
    assert!(effects.contains(&Effect::ArmTimer { timer: Timer::Deadline, at: at(62).boot }));
    assert!(effects.contains(&Effect::ObservePod) && !effects.contains(&Effect::CreatePod));
}

#[test]
fn a_deadline_that_passed_meanwhile_is_the_reason_whatever_the_container_says() {
    for word in [Event::NothingPending, Event::Timer(Timer::Hearing)] {
        let (mut machine, _) = again(&running(), 100);
        take(&mut machine, 100, ended(exited(1, "Error")));
        assert!(!machine.finished(), "its gateway may hold a result");
        take(&mut machine, 101, word);
        assert_eq!(outcome(&machine).0, Reason::TimedOut);
    }
}

fn ended_at(seconds: i64, exit: Exit) -> Event {
    ended(Exit { finished_at: Some(at(seconds).wall), ..exit })
}

#[test]
fn a_container_that_ended_before_the_deadline_is_judged_by_its_record_though_nobody_saw_it() {
    let evicted = Exit { disruption: Some("TerminationByKubelet".into()), ..exited(137, "Error") };
    let seen = || ended_at(50, evicted.clone());
    for words in [[seen(), Event::NothingPending], [Event::NothingPending, seen()]] {
        let (mut machine, _) = again(&running(), 100);
        let [first, last] = words;
        take(&mut machine, 100, first);
        assert!(!machine.finished(), "both are heard first");
        take(&mut machine, 100, last);
        assert_eq!(outcome(&machine), (Reason::Disrupted, Some(137)));
    }
    let (mut machine, _) = again(&running(), 100);
    take(&mut machine, 100, seen());
    take(&mut machine, 102, Event::Timer(Timer::Hearing));
    assert_eq!(outcome(&machine).0, Reason::Disrupted, "without a gateway, too");
}

#[test]
fn a_container_that_may_have_ended_at_the_deadline_timed_out() {
    // The kubelet's clock has whole seconds: this may have been the runner's own deadline.
    for seconds in [62, 63] {
        let (mut machine, _) = again(&running(), 100);
        take(&mut machine, 100, ended_at(seconds, exited(124, "Error")));
        take(&mut machine, 100, Event::NothingPending);
        assert_eq!(outcome(&machine).0, Reason::TimedOut);
    }
}

#[test]
fn a_result_from_before_the_deadline_is_heard_though_its_supervisor_was_away_until_after_it() {
    let (mut machine, effects) = again(&running(), 100);
    let end = at(100).boot.plus(HEARING);
    assert!(effects.contains(&Effect::ArmTimer { timer: Timer::Hearing, at: end }));
    take(&mut machine, 100, Event::Timer(Timer::Deadline));
    take(&mut machine, 100, ended(exited(0, "Completed")));
    take(&mut machine, 100, result(completed()));
    assert_eq!(outcome(&machine), (Reason::Completed, Some(0)));
}

#[test]
fn a_deadline_that_passed_meanwhile_is_guarded_while_the_gateway_is_waited_for() {
    let (machine, effects) = again(&running(), 100);
    assert!(effects.contains(&Effect::ArmTimer { timer: Timer::Deadline, at: at(62).boot }));
    let guarded = machine.guarded().expect("an order and a deletion that wait for nobody");
    assert_eq!(guarded.at, at(62).boot);
}

#[test]
fn a_gateway_that_does_not_answer_leaves_a_late_step_timed_out() {
    let (mut machine, _) = again(&running(), 100);
    let effects = take(&mut machine, 102, Event::Timer(Timer::Hearing));
    let orders =
        |e: &Effect| matches!(e, Effect::StopRunner(order) if order.reason == Reason::TimedOut);
    assert!(effects.iter().any(orders), "{effects:?}");
    take(&mut machine, 102, result(completed()));
    take(&mut machine, 103, ended(exited(137, "Error")));
    assert_eq!(outcome(&machine).0, Reason::TimedOut);
}

#[test]
fn whoever_ends_a_late_step_is_heard_before_its_gateway() {
    let (mut machine, _) = again(&running(), 100);
    take(&mut machine, 100, ended(exited(143, "Error")));
    take(&mut machine, 100, Event::Forget);
    assert_eq!(outcome(&machine).0, Reason::Deleted);
}

#[test]
fn a_step_that_ran_when_its_node_restarted_is_not_charged_to_its_agent() {
    let mut before = running();
    let facts = &mut before.facts;
    facts.opened = facts.opened.take().map(|at| Moment { boot_id: "another".into(), ..at });
    let (mut machine, effects) = again(&before, 100);
    let orders =
        |e: &Effect| matches!(e, Effect::StopRunner(order) if order.reason == Reason::Disrupted);
    assert!(effects.iter().any(orders), "{effects:?}");
    take(&mut machine, 100, ended(exited(255, "Unknown")));
    assert_eq!(outcome(&machine).0, Reason::Disrupted);
}

#[test]
fn a_result_on_record_is_concluded() {
    let mut machine = running();
    take(&mut machine, 9, result(completed()));
    let (mut machine, effects) = again(&machine, 100);
    assert!(effects.iter().any(|e| matches!(e, Effect::WatchCgroup { .. })));
    let effects = take(&mut machine, 101, observed(running_pod()));
    let id = Some("c0ffee".to_owned());
    let watch = Effect::WatchCgroup { uid: uid(), container_id: id, missing_is_empty: false };
    assert!(effects.contains(&watch), "looked for again once the container is known");
    take(&mut machine, 101, Event::CgroupEmpty);
    assert_eq!(outcome(&machine).0, Reason::Completed);
}

#[test]
fn an_unacknowledged_outcome_is_reported_again_and_never_changed() {
    let mut machine = running();
    take(&mut machine, 9, ended(exited(9, "Error")));
    let before = machine.facts.outcome.clone();
    let (machine, effects) = again(&machine, 100);
    assert_eq!(machine.facts.outcome, before);
    assert!(effects.iter().any(|e| matches!(e, Effect::Report { sequence: 3, .. })));
    assert_eq!(machine.unacked().len(), 1);
}

#[test]
fn a_step_whose_end_the_kubelet_has_not_recorded_is_looked_at_for_its_log() {
    let mut machine = running();
    take(&mut machine, 9, result(completed()));
    take(&mut machine, 9, Event::CgroupEmpty);
    let (mut machine, effects) = again(&machine, 30);
    assert!(effects.contains(&Effect::CloseStreams) && effects.contains(&Effect::ObservePod));
    take(&mut machine, 30, ended(exited(0, "Completed")));
    let (_, effects) = again(&machine, 40);
    assert!(effects.contains(&Effect::CloseStreams) && !effects.contains(&Effect::ObservePod));
}
