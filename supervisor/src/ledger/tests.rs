use agent_operator::domain::{Attempt, RunUid};

use super::*;
use crate::testing;

fn entries() -> Vec<Entry> {
    let facts = testing::facts();
    let run = facts.assignment.key();
    let attempt = |fact: Record| Entry::Attempt { run: run.clone(), fact: Box::new(fact) };
    let mut entries = vec![Entry::HighestEpoch { epoch: Epoch(4) }];
    entries.extend(facts.to_records().into_iter().map(attempt));
    entries.push(attempt(Record::PodCreated { uid: "pod-uid".into() }));
    entries.push(attempt(Record::Redeemed(testing::redemption())));
    entries.push(attempt(Record::GateOpened { at: facts.accepted.clone() }));
    entries.push(attempt(testing::result_record(testing::completed())));
    entries.push(attempt(Record::Acked));
    entries
}

fn fold(entries: &[Entry]) -> Memory {
    let mut memory = Memory::default();
    for entry in entries {
        memory.apply(entry);
    }
    memory
}

#[test]
fn what_was_appended_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let (mut ledger, memory, _) = Ledger::open(dir.path()).unwrap();
    assert_eq!(memory, Memory::default());
    ledger.append(&entries(), true).unwrap();
    drop(ledger);
    let (_, memory, oddities) = Ledger::open(dir.path()).unwrap();
    assert_eq!(memory, fold(&entries()));
    assert_eq!(oddities, Oddities::default());
}

#[test]
fn a_cut_at_any_byte_leaves_a_prefix_of_the_facts_and_a_usable_file() {
    let dir = tempfile::tempdir().unwrap();
    let (mut ledger, _, _) = Ledger::open(dir.path()).unwrap();
    let all = entries();
    ledger.append(&all, true).unwrap();
    drop(ledger);
    let whole = std::fs::read(dir.path().join(FILE)).unwrap();
    for cut in 0..whole.len() {
        let (memory, _, bytes) = replay(&whole[..cut], Path::new("x")).unwrap();
        let lines = whole[..cut].split(|byte| *byte == b'\n').count() - 1;
        assert_eq!(memory, fold(&all[..lines.saturating_sub(1)]), "cut at {cut}");
        assert!(bytes <= cut as u64);
    }
    for cut in [0, 10, HEADER.len() + 1, whole.len() / 2, whole.len() - 1] {
        std::fs::write(dir.path().join(FILE), &whole[..cut]).unwrap();
        let (mut ledger, _, _) = Ledger::open(dir.path()).unwrap();
        ledger.append(&[Entry::HighestEpoch { epoch: Epoch(99) }], true).unwrap();
        drop(ledger);
        let (_, memory, oddities) = Ledger::open(dir.path()).unwrap();
        assert_eq!(memory.highest_epoch, Epoch(99), "cut at {cut}");
        assert_eq!(oddities, Oddities::default(), "cut at {cut}");
    }
}

#[test]
fn a_flipped_byte_costs_its_line_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let (mut ledger, _, _) = Ledger::open(dir.path()).unwrap();
    let lines: Vec<_> = (1..=3).map(|n| Entry::HighestEpoch { epoch: Epoch(n) }).collect();
    ledger.append(&lines, true).unwrap();
    drop(ledger);
    let mut bytes = std::fs::read(dir.path().join(FILE)).unwrap();
    let at = bytes.len() - 3;
    bytes[at] ^= 1;
    std::fs::write(dir.path().join(FILE), bytes).unwrap();
    let (_, memory, oddities) = Ledger::open(dir.path()).unwrap();
    assert_eq!(memory.highest_epoch, Epoch(2));
    assert_eq!(oddities.damaged_lines, 1);
}

#[test]
fn a_compacted_ledger_says_the_same_with_fewer_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (mut ledger, _, _) = Ledger::open(dir.path()).unwrap();
    for _ in 0..50 {
        ledger.append(&entries(), false).unwrap();
    }
    let before = ledger.bytes;
    let memory = fold(&entries());
    let entries = snapshot(memory.attempts.iter(), memory.highest_epoch, memory.delivery);
    ledger.compact(&entries).unwrap();
    assert!(ledger.bytes * 5 < before);
    ledger.append(&[Entry::Delivery { delivery: Delivery::InitContainer }], true).unwrap();
    drop(ledger);
    let (_, reread, _) = Ledger::open(dir.path()).unwrap();
    assert_eq!(reread, Memory { delivery: Some(Delivery::InitContainer), ..memory });
}

#[test]
fn a_dropped_attempt_is_gone_and_a_fact_without_acceptance_makes_none() {
    let run = RunKey { uid: RunUid::from("other"), attempt: Attempt(1) };
    let mut memory = fold(&entries());
    memory.apply(&Entry::Attempt { run, fact: Box::new(Record::Acked) });
    assert_eq!(memory.attempts.len(), 1);
    memory.apply(&Entry::Dropped { run: testing::facts().assignment.key() });
    assert_eq!(memory.attempts.len(), 0);
}

#[test]
fn another_version_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(FILE), "agent-operator-ledger 2\nabc\n").unwrap();
    assert!(matches!(Ledger::open(dir.path()), Err(LedgerError::Version { .. })));
    let left = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
    assert_eq!(left, "agent-operator-ledger 2\nabc\n");
}
