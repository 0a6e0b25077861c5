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

/// Whether `memory` is what a prefix of `all` gives. The epoch may be higher: it is taken from every
/// line that verifies.
fn is_a_prefix(memory: &Memory, all: &[Entry]) -> bool {
    let last = fold(all).highest_epoch;
    (0..=all.len()).map(|length| fold(&all[..length])).any(|prefix| {
        let epochs = prefix.highest_epoch..=last;
        let state = (&memory.attempts, memory.delivery);
        state == (&prefix.attempts, prefix.delivery) && epochs.contains(&memory.highest_epoch)
    })
}

fn written(all: &[Entry]) -> Vec<u8> {
    let mut bytes = format::header();
    for entry in all {
        bytes.extend(format::line(entry).unwrap());
    }
    bytes
}

#[test]
fn a_cut_at_any_byte_leaves_a_prefix_of_the_facts() {
    let all = entries();
    let whole = written(&all);
    for cut in 0..=whole.len() {
        let replayed = format::replay(&whole[..cut]);
        let lines = whole[..cut].split(|byte| *byte == b'\n').count() - 1;
        assert_eq!(replayed.memory, fold(&all[..lines.saturating_sub(1)]), "cut at {cut}");
        assert_eq!(replayed.whole_bytes + replayed.oddities.torn_bytes, cut as u64);
        assert_eq!(replayed.oddities.damaged_lines, 0, "cut at {cut}");
    }
}

#[test]
fn a_flipped_bit_anywhere_leaves_a_prefix_and_is_noticed() {
    let all = entries();
    let whole = written(&all);
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        let replayed = format::replay(&bytes);
        assert!(is_a_prefix(&replayed.memory, &all), "flip at {at}");
        let Oddities { torn_bytes, damaged_lines, foreign, .. } = replayed.oddities;
        assert!(torn_bytes + damaged_lines > 0 || foreign, "flip at {at}");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(64))]
    #[test]
    fn several_kinds_of_damage_at_once_leave_a_prefix(
        flips in proptest::collection::vec((proptest::prelude::any::<proptest::sample::Index>(), 1_u8..), 0..4),
        cut in proptest::prelude::any::<proptest::sample::Index>(),
        zeros in 0_usize..5000,
    ) {
        let all = entries();
        let mut bytes = written(&all);
        for (at, mask) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= mask;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        bytes.extend(std::iter::repeat_n(0, zeros));
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), &bytes).unwrap();
        let (mut ledger, memory, _) = Ledger::open(dir.path()).unwrap();
        proptest::prop_assert!(is_a_prefix(&memory, &all));
        // And it can be used: nothing odd is left, and what is appended is there.
        ledger.append(&[Entry::HighestEpoch { epoch: Epoch(99) }], true).unwrap();
        let (_, reread, oddities) = Ledger::open(dir.path()).unwrap();
        proptest::prop_assert_eq!(reread, Memory { highest_epoch: Epoch(99), ..memory });
        proptest::prop_assert_eq!(oddities, Oddities::default());
    }
}

#[test]
fn a_ledger_that_cannot_be_read_to_its_end_is_set_aside_and_its_highest_epoch_holds() {
    let dir = tempfile::tempdir().unwrap();
    let all: Vec<_> = (1..=3).map(|n| Entry::HighestEpoch { epoch: Epoch(n) }).collect();
    let mut bytes = written(&all);
    let second = format::header().len() + format::line(&all[0]).unwrap().len() + 5;
    bytes[second] ^= 1;
    std::fs::write(dir.path().join(FILE), &bytes).unwrap();
    let (_, memory, oddities) = Ledger::open(dir.path()).unwrap();
    assert_eq!(memory.highest_epoch, Epoch(3));
    assert_eq!(oddities.damaged_lines, 2);
    assert!(oddities.facts_may_be_missing());
    assert_eq!(std::fs::read(dir.path().join(FILE_SET_ASIDE)).unwrap(), bytes);
    let (_, memory, oddities) = Ledger::open(dir.path()).unwrap();
    assert_eq!((memory.highest_epoch, oddities), (Epoch(3), Oddities::default()));
}

#[test]
fn a_missing_and_an_empty_file_are_no_error_but_facts_may_be_missing() {
    for empty_file in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        if empty_file {
            std::fs::write(dir.path().join(FILE), "").unwrap();
        }
        let (_, memory, oddities) = Ledger::open(dir.path()).unwrap();
        assert_eq!(memory, Memory::default());
        assert!(oddities.fresh && oddities.facts_may_be_missing());
        let (_, _, oddities) = Ledger::open(dir.path()).unwrap();
        assert!(!oddities.facts_may_be_missing(), "only the first time");
    }
}

#[test]
fn a_record_of_a_later_version_is_left_out_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = format::header();
    bytes.extend(format::sealed(r#"{"entry":"inventedLater"}"#).into_bytes());
    bytes.extend(format::line(&Entry::HighestEpoch { epoch: Epoch(5) }).unwrap());
    std::fs::write(dir.path().join(FILE), &bytes).unwrap();
    let (_, memory, oddities) = Ledger::open(dir.path()).unwrap();
    assert_eq!(memory.highest_epoch, Epoch(5));
    assert_eq!(oddities, Oddities { unknown_lines: 1, ..Oddities::default() });
    assert!(oddities.facts_may_be_missing(), "it may have been an acceptance");
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
fn another_version_is_set_aside_whole_and_nothing_of_it_is_guessed() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = b"agent-operator-ledger 2\nabc\n".to_vec();
    bytes.extend(format::line(&Entry::HighestEpoch { epoch: Epoch(7) }).unwrap());
    bytes.extend(format::line(&Entry::Delivery { delivery: Delivery::InitContainer }).unwrap());
    std::fs::write(dir.path().join(FILE), &bytes).unwrap();
    let (_, memory, oddities) = Ledger::open(dir.path()).unwrap();
    assert_eq!(memory, Memory { highest_epoch: Epoch(7), ..Memory::default() });
    assert!(oddities.foreign && oddities.facts_may_be_missing());
    assert_eq!(std::fs::read(dir.path().join(FILE_SET_ASIDE)).unwrap(), bytes);
}

/// A disk with so many free bytes, and that can be made to fail altogether.
#[derive(Clone, Debug, Default)]
pub(crate) struct SmallDisk(std::sync::Arc<std::sync::Mutex<SmallDiskState>>);

#[derive(Debug, Default)]
struct SmallDiskState {
    free: u64,
    /// How many files can be made; none: as many as one likes.
    inodes: Option<u64>,
    broken: bool,
    /// Bytes of each file that outlast a loss of power, by device and inode.
    synced: std::collections::HashMap<(u64, u64), u64>,
    /// The power goes right behind the write with this in it: a sync of its own still counts.
    last_words: Option<String>,
    /// Whether that write was done.
    spoken: bool,
    /// Whether the power is gone: nothing counts any more, which the process does not know.
    dark: bool,
}

fn identity(file: &std::fs::Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt as _;
    (file.dev(), file.ino())
}

impl SmallDisk {
    pub(crate) fn with_free(free: u64) -> Self {
        let disk = Self::default();
        disk.set_free(free);
        disk
    }

    pub(crate) fn set_free(&self, free: u64) {
        self.0.lock().unwrap().free = free;
    }

    pub(crate) fn set_inodes(&self, inodes: Option<u64>) {
        self.0.lock().unwrap().inodes = inodes;
    }

    pub(crate) fn set_broken(&self, broken: bool) {
        self.0.lock().unwrap().broken = broken;
    }

    /// The power goes right behind the write that has `words` in it, before any other write.
    pub(crate) fn lose_power_behind(&self, words: &str) {
        let mut state = self.0.lock().unwrap();
        (state.last_words, state.spoken, state.dark) = (Some(words.to_owned()), false, false);
    }

    /// What a ledger in `dir` knows after the loss of power: only what was synced is left of it.
    pub(crate) fn after_power_loss(&self, dir: &Path) -> (Memory, Oddities) {
        let path = dir.join(FILE);
        let of_file = identity(&std::fs::metadata(&path).unwrap());
        let kept = self.0.lock().unwrap().synced.get(&of_file).copied().unwrap_or_default();
        let mut content = std::fs::read(path).unwrap();
        content.truncate(usize::try_from(kept).unwrap());
        let replayed = format::replay(&content);
        (replayed.memory, replayed.oddities)
    }

    fn note_write(&self, bytes: &[u8]) {
        let mut state = self.0.lock().unwrap();
        state.dark |= state.spoken;
        let words = state.last_words.clone();
        state.spoken |= words.is_some_and(|words| String::from_utf8_lossy(bytes).contains(&words));
    }

    fn take(&self, wanted: u64) -> Result<(), (u64, std::io::Error)> {
        let mut state = self.0.lock().unwrap();
        if state.broken {
            return Err((0, std::io::Error::from_raw_os_error(nix::libc::EIO)));
        }
        if wanted > state.free {
            let part = std::mem::take(&mut state.free);
            return Err((part, std::io::Error::from_raw_os_error(nix::libc::ENOSPC)));
        }
        state.free -= wanted;
        Ok(())
    }
}

impl Disk for SmallDisk {
    fn write(&self, file: &mut File, bytes: &[u8]) -> std::io::Result<()> {
        self.note_write(bytes);
        match self.take(bytes.len() as u64) {
            Ok(()) => RealDisk.write(file, bytes),
            Err((part, error)) => {
                // As a real one: what fits is written.
                RealDisk.write(file, &bytes[..usize::try_from(part).unwrap()])?;
                Err(error)
            }
        }
    }

    fn sync(&self, file: &File) -> std::io::Result<()> {
        self.take(0).map_err(|(_, error)| error)?;
        RealDisk.sync(file)?;
        let metadata = file.metadata()?;
        let mut state = self.0.lock().unwrap();
        if !state.dark {
            state.synced.insert(identity(&metadata), metadata.len());
        }
        Ok(())
    }

    fn reserve(&self, path: &Path, bytes: u64) -> std::io::Result<()> {
        if path.exists() {
            return Ok(());
        }
        let free_before = self.0.lock().unwrap().free;
        self.take(bytes).map_err(|(_, error)| {
            self.set_free(free_before);
            error
        })?;
        std::fs::write(path, b"reserve")
    }

    fn release(&self, path: &Path) -> std::io::Result<()> {
        self.0.lock().unwrap().free += RESERVE_BYTES;
        std::fs::remove_file(path)
    }

    fn free_inodes(&self, _dir: &Path) -> std::io::Result<u64> {
        Ok(self.0.lock().unwrap().inodes.unwrap_or(u64::MAX))
    }
}

#[test]
fn what_was_appended_with_sync_outlasts_a_loss_of_power_and_the_rest_may_not() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::with_free(2 * RESERVE_BYTES);
    let (mut ledger, _, _) = Ledger::open_on(Box::new(disk.clone()), dir.path()).unwrap();
    let kept = || {
        let (memory, oddities) = disk.after_power_loss(dir.path());
        assert_eq!(oddities, Oddities::default());
        memory.highest_epoch
    };
    ledger.append(&one_fact(1), true).unwrap();
    ledger.append(&one_fact(2), false).unwrap();
    assert_eq!(kept(), Epoch(1));
    // A sync takes along what was written before, and a compacted ledger is on disk as a whole.
    ledger.append(&one_fact(3), true).unwrap();
    assert_eq!(kept(), Epoch(3));
    ledger.compact(&one_fact(4)).unwrap();
    assert_eq!(kept(), Epoch(4));
    // What comes behind the loss does not count, whatever the process believes.
    disk.lose_power_behind("5");
    ledger.append(&one_fact(5), false).unwrap();
    ledger.append(&one_fact(6), true).unwrap();
    assert_eq!(kept(), Epoch(4));
}

fn one_fact(epoch: u64) -> [Entry; 1] {
    [Entry::HighestEpoch { epoch: Epoch(epoch) }]
}

#[test]
fn on_a_full_disk_facts_go_into_the_reserve_and_assignments_are_refused_until_there_is_space() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::with_free(RESERVE_BYTES + 200);
    let (mut ledger, _, _) = Ledger::open_on(Box::new(disk.clone()), dir.path()).unwrap();
    assert_eq!(ledger.check_room(), Ok(()));
    disk.set_free(10);
    assert_eq!(ledger.append(&one_fact(1), true).unwrap(), Stored::OnDisk);
    assert_eq!(ledger.check_room(), Err(NoRoom::DiskFull));
    assert!(!dir.path().join(FILE_RESERVE).exists());
    assert!(ledger.tend());
    assert_eq!(ledger.check_room(), Err(NoRoom::DiskFull), "still full");
    disk.set_free(RESERVE_BYTES);
    assert!(ledger.tend());
    assert_eq!(ledger.check_room(), Ok(()));
    let (_, memory, oddities) = Ledger::open(dir.path()).unwrap();
    assert_eq!((memory.highest_epoch, oddities), (Epoch(1), Oddities::default()));
}

#[test]
fn a_disk_without_inodes_takes_no_assignment_and_every_fact() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::with_free(2 * RESERVE_BYTES);
    let (mut ledger, _, _) = Ledger::open_on(Box::new(disk.clone()), dir.path()).unwrap();
    disk.set_inodes(Some(0));
    assert_eq!(ledger.check_room(), Err(NoRoom::DiskFull));
    assert_eq!(ledger.append(&one_fact(1), true).unwrap(), Stored::OnDisk);
    disk.set_inodes(None);
    assert_eq!(ledger.check_room(), Ok(()));
}

#[test]
fn facts_of_a_failing_disk_wait_in_order_and_are_written_once_it_works() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::with_free(2 * RESERVE_BYTES);
    let (mut ledger, _, _) = Ledger::open_on(Box::new(disk.clone()), dir.path()).unwrap();
    disk.set_broken(true);
    for epoch in 1..=3 {
        assert_eq!(ledger.append(&one_fact(epoch), true).unwrap(), Stored::Waiting);
    }
    assert_eq!(ledger.check_room(), Err(NoRoom::Unwritable));
    assert!(!ledger.tend());
    disk.set_broken(false);
    assert!(ledger.tend());
    assert_eq!(ledger.check_room(), Ok(()));
    let (_, memory, oddities) = Ledger::open(dir.path()).unwrap();
    assert_eq!((memory.highest_epoch, oddities), (Epoch(3), Oddities::default()));
}

#[test]
fn facts_that_waited_outlast_a_loss_of_power_once_a_later_one_is_written_though_without_sync() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::with_free(2 * RESERVE_BYTES);
    let (mut ledger, _, _) = Ledger::open_on(Box::new(disk.clone()), dir.path()).unwrap();
    disk.set_broken(true);
    assert_eq!(ledger.append(&one_fact(1), true).unwrap(), Stored::Waiting);
    disk.set_broken(false);
    assert_eq!(ledger.append(&one_fact(2), false).unwrap(), Stored::OnDisk);
    assert_eq!(disk.after_power_loss(dir.path()).0.highest_epoch, Epoch(2));
}

#[test]
fn too_many_waiting_facts_are_an_error_and_not_a_loss_in_silence() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::with_free(2 * RESERVE_BYTES);
    let (mut ledger, _, _) = Ledger::open_on(Box::new(disk.clone()), dir.path()).unwrap();
    disk.set_broken(true);
    let many: Vec<_> = (0..BACKLOG_BYTES_MAX as u64 / 50).flat_map(one_fact).collect();
    assert!(matches!(ledger.append(&many, true), Err(LedgerError::Write(_))));
}

#[test]
fn a_compaction_without_space_leaves_the_old_ledger_whole() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::with_free(RESERVE_BYTES + 400);
    let (mut ledger, _, _) = Ledger::open_on(Box::new(disk.clone()), dir.path()).unwrap();
    ledger.append(&one_fact(1), true).unwrap();
    disk.set_free(30);
    assert!(ledger.compact(&entries()).is_err());
    assert!(!dir.path().join(FILE_NEXT).exists());
    disk.set_free(1000);
    ledger.append(&one_fact(2), true).unwrap();
    let (_, memory, _) = Ledger::open(dir.path()).unwrap();
    assert_eq!(memory, fold(&one_fact(2)));
}
