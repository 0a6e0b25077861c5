//! Refused requests of one attempt, counted by kind and target in a bounded table.

use std::collections::BTreeMap;

use agent_operator::domain::{report::Refusal, text};

/// Distinct (kind, target) pairs kept an attempt: the list goes into the run's status.
const TARGETS_MAX: usize = 32;
/// Longest target: the length of a DNS name.
const TARGET_BYTES_MAX: usize = 253;
/// Where further targets are counted.
const OTHER: &str = "other";

/// Kind of a refused request; the names are part of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RefusalKind {
    /// A host that is not allowed.
    Egress,
    /// A call of the model API that is not allowed.
    Model,
    /// A git or forge operation that is not allowed.
    Git,
    /// A token that does not fit.
    Auth,
    /// A limit was reached.
    Limit,
    /// What is no request, or could be read in more than one way.
    Protocol,
}

impl RefusalKind {
    /// All kinds.
    pub const ALL: [Self; 6] =
        [Self::Egress, Self::Model, Self::Git, Self::Auth, Self::Limit, Self::Protocol];

    /// The name in status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Model => "model",
            Self::Git => "git",
            Self::Auth => "auth",
            Self::Limit => "limit",
            Self::Protocol => "protocol",
        }
    }
}

/// The counts.
#[derive(Clone, Debug, Default)]
pub struct RefusalCounts {
    counts: BTreeMap<(String, String), u64>,
}

impl RefusalCounts {
    /// Goes on from counts of before a restart.
    pub fn restore(earlier: &[Refusal]) -> Self {
        let counts = earlier
            .iter()
            .take(TARGETS_MAX)
            .map(|refusal| ((refusal.kind.clone(), refusal.target.clone()), refusal.count))
            .collect();
        Self { counts }
    }

    /// Counts one refused request. `target` comes from the sandbox and is cut and cleaned. Gives back
    /// what it is counted under when that is new.
    pub fn add(&mut self, kind: RefusalKind, target: &str) -> Option<String> {
        let target = text::one_line(text::truncate(target, TARGET_BYTES_MAX));
        let mut key =
            (kind.as_str().to_owned(), text::truncate(&target, TARGET_BYTES_MAX).to_owned());
        if !self.counts.contains_key(&key) && self.counts.len() >= TARGETS_MAX {
            OTHER.clone_into(&mut key.1);
        }
        let news = (!self.counts.contains_key(&key)).then(|| key.1.clone());
        let count = self.counts.entry(key).or_insert(0);
        *count = count.saturating_add(1);
        news
    }

    /// The counts as they are reported.
    pub fn list(&self) -> Vec<Refusal> {
        self.counts
            .iter()
            .map(|((kind, target), count)| Refusal {
                kind: kind.clone(),
                target: target.clone(),
                count: *count,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_stays_bounded_whatever_targets_are_tried() {
        let mut counts = RefusalCounts::default();
        for n in 0..10_000 {
            let _ = counts.add(RefusalKind::Egress, &format!("host-{n}\u{1b}{}", "x".repeat(400)));
        }
        let list = counts.list();
        assert!(list.len() <= TARGETS_MAX + RefusalKind::ALL.len());
        assert_eq!(list.iter().map(|refusal| refusal.count).sum::<u64>(), 10_000);
        assert!(list.iter().all(|refusal| refusal.target.len() <= TARGET_BYTES_MAX));
        assert!(list.iter().all(|refusal| !refusal.target.contains('\u{1b}')));
    }

    #[test]
    fn counts_go_on_after_a_restart() {
        let mut counts = RefusalCounts::default();
        assert_eq!(counts.add(RefusalKind::Model, "/v1/files").as_deref(), Some("/v1/files"));
        let mut counts = RefusalCounts::restore(&counts.list());
        assert_eq!(counts.add(RefusalKind::Model, "/v1/files"), None, "known from before");
        assert_eq!(counts.list()[0].count, 2);
    }
}
