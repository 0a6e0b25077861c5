//! How many tasks there are in each phase, kept as they come and go: each change of a task asks for it, and there may be
//! thousands of them.

use std::collections::BTreeMap;

/// Tasks by phase; phases without any are not named.
#[derive(Debug, Default)]
pub(super) struct Phases(BTreeMap<String, i64>);

impl Phases {
    /// One more task is in `phase`.
    pub(super) fn add(&mut self, phase: &str) {
        match self.0.get_mut(phase) {
            Some(count) => *count += 1,
            None => drop(self.0.insert(phase.to_owned(), 1)),
        }
    }

    /// A task is in `phase` no more.
    pub(super) fn take(&mut self, phase: &str) {
        let Some(count) = self.0.get_mut(phase) else { return };
        *count -= 1;
        if *count == 0 {
            self.0.remove(phase);
        }
    }

    /// Each phase and its tasks.
    pub(super) fn counts(&self) -> impl Iterator<Item = (&str, i64)> {
        self.0.iter().map(|(phase, count)| (phase.as_str(), *count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_count_who_came_and_forget_who_went() {
        let mut phases = Phases::default();
        for phase in ["Planning", "Testing", "Planning"] {
            phases.add(phase);
        }
        phases.take("Planning");
        phases.take("Testing");
        phases.take("Unknown");
        assert_eq!(phases.counts().collect::<Vec<_>>(), [("Planning", 1)]);
    }
}
