//! Whatever happens, in whatever order.

use proptest::prelude::*;

use super::*;

fn any_exit() -> impl Strategy<Value = Exit> {
    let code = prop_oneof![Just(None), Just(Some(0)), Just(Some(1)), Just(Some(137))];
    let reason = prop_oneof![
        Just("Completed"),
        Just("Error"),
        Just("OOMKilled"),
        Just("ContainerStatusUnknown"),
    ];
    (code, reason, any::<bool>()).prop_map(|(exit_code, reason, deleted_outside)| Exit {
        exit_code,
        reason: reason.into(),
        deleted_outside,
        ..Exit::default()
    })
}

fn any_event() -> impl Strategy<Value = Event> {
    let words = prop_oneof![
        Just(completed()),
        Just(testing::result(Reason::Completed, 1)),
        Just(testing::result(Reason::AgentFailed, 1)),
    ];
    let timer = prop_oneof![
        Just(Timer::Start),
        Just(Timer::Unschedulable),
        Just(Timer::Deadline),
        Just(Timer::Grace),
        Just(Timer::Stuck),
        Just(Timer::Retention),
        Just(Timer::Hearing),
        Just(Timer::Egress),
    ];
    prop_oneof![
        Just(created()),
        Just(Event::PodCreateFailed(CreateFailure::Refused(refused("no")))),
        Just(observed(running_pod())),
        any::<bool>().prop_map(|deleting| observed(PodDigest { deleting, ..running_pod() })),
        any_exit().prop_map(ended),
        Just(Event::PodGone),
        Just(Event::Redeemed(redemption())),
        Just(Event::AtGate(GateRequest::default())),
        Just(at_gate(None)),
        Just(at_gate(Some(&[]))),
        Just(at_gate(Some(&["10.244.0.3:8081"]))),
        Just(not_closed()),
        Just(closed()),
        any::<bool>().prop_map(|missing| Event::EgressRenewed { missing }),
        Just(Event::Listening(Vec::new())),
        words.prop_map(result),
        Just(Event::CgroupEmpty),
        Just(Event::NothingPending),
        timer.prop_map(Event::Timer),
        Just(Event::CancelOrdered {
            reason: Reason::Cancelled,
            message: String::new(),
            grace: Duration::from_secs(1),
        }),
        (0..5_u64).prop_map(Event::Acked),
        Just(Event::Forget),
        Just(Event::EpochRaised(Epoch(9))),
        Just(Event::BudgetChanged(Some(TaskBudget { tokens: Some(7), cost_micro_usd: None }))),
        Just(Event::Restarted { one_time_hash: "fresh".into() }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_happens_there_is_one_outcome_and_no_success_by_guess(
        events in prop::collection::vec(any_event(), 0..25),
    ) {
        let mut machine = Machine::new(facts());
        take(&mut machine, 0, Event::Accepted);
        let mut replayed = facts();
        let mut finished = 0;
        let mut outcome = None;
        for (seconds, event) in (1..).zip(events) {
            let effects = take(&mut machine, seconds, event);
            for effect in &effects {
                if let Effect::Journal(record) = effect {
                    finished += u32::from(matches!(record, Record::Finished { .. }));
                    replayed.apply(record);
                }
            }
            if outcome.is_none() {
                outcome.clone_from(&machine.facts.outcome);
            }
            prop_assert_eq!(&machine.facts.outcome, &outcome);
        }
        prop_assert!(finished <= 1);
        prop_assert_eq!(&replayed, &machine.facts, "the journal alone gives the same facts");
        if let Some(outcome) = outcome.filter(|outcome| outcome.reason == Reason::Completed) {
            prop_assert_eq!(outcome.exit_code, Some(0));
            let facts = &machine.facts;
            let result = facts.result.as_ref().expect("no success without a result");
            prop_assert_eq!((result.reason, result.exit_code), (Reason::Completed, 0));
            prop_assert!(facts.opened.is_some() && facts.stop.is_none());
        }
    }
}
