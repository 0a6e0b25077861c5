//! The supervisor's ledger: any file opens, to a state that a second opening gives again, and that
//! takes further facts.

use std::fs;

use agent_operator::domain::Epoch;
use agent_operator_doubles::fuzz::fuzz;
use agent_operator_supervisor::ledger::{Delivery, Entry, Ledger, Oddities};

const FILE: &str = "ledger.jsonl";

/// Whole ledgers, as this version writes them.
fn corpus() -> Vec<Vec<u8>> {
    let entries = [
        Entry::HighestEpoch { epoch: Epoch(3) },
        Entry::Delivery { delivery: Delivery::InitContainer },
        Entry::HighestEpoch { epoch: Epoch(4) },
    ];
    (0..=entries.len())
        .map(|length| {
            let dir = tempfile::tempdir().expect("a folder");
            let (mut ledger, ..) = Ledger::open(dir.path()).expect("a new ledger");
            ledger.append(&entries[..length], true).expect("space");
            fs::read(dir.path().join(FILE)).expect("the file")
        })
        .collect()
}

#[test]
fn any_file_opens_to_a_state_that_stays_and_takes_further_facts() {
    let dir = tempfile::tempdir().expect("a folder");
    let inputs = fuzz(&corpus(), |bytes| {
        fs::write(dir.path().join(FILE), bytes).expect("space");
        let (mut ledger, memory, _) = Ledger::open(dir.path()).expect("any file opens");
        let highest = Epoch(u64::MAX);
        ledger.append(&[Entry::HighestEpoch { epoch: highest }], true).expect("space");
        drop(ledger);
        let (_, again, oddities) = Ledger::open(dir.path()).expect("what was opened opens again");
        assert_eq!(oddities.damaged_lines + oddities.torn_bytes, 0, "nothing is left damaged");
        assert_eq!(oddities.foreign, Oddities::default().foreign);
        assert_eq!((again.attempts, again.delivery), (memory.attempts, memory.delivery));
        assert_eq!(again.highest_epoch, highest);
    });
    assert!(inputs > 0);
}
