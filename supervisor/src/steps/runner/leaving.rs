//! Pods that this process has ordered away and whose attempts have left the ledger: while they go,
//! the watch still shows them, and they must not be taken for pods that nobody knows.

use std::collections::{BTreeMap, BTreeSet};

use agent_operator::domain::{RunKey, ids::PodUid};

/// Most of them: as many as a node can have pods, several times over. Beyond it, one that shows is
/// looked at, which costs requests and nothing else.
const LEAVING_MAX: usize = 4096;

/// One pod.
#[derive(Debug)]
struct Pod {
    namespace: String,
    uid: PodUid,
}

/// The pods, by attempt.
#[derive(Debug, Default)]
pub(super) struct Leaving(BTreeMap<RunKey, Pod>);

impl Leaving {
    /// The pod was ordered away.
    pub(super) fn add(&mut self, run: RunKey, namespace: String, uid: PodUid) {
        if self.0.len() < LEAVING_MAX {
            self.0.insert(run, Pod { namespace, uid });
        }
    }

    /// Whether a pod that shows is one of these.
    pub(super) fn explains(&self, run: &RunKey, uid: &PodUid) -> bool {
        self.0.get(run).is_some_and(|pod| pod.uid == *uid)
    }

    /// Whether a pod of this attempt may be there still.
    pub(super) fn holds(&self, run: &RunKey) -> bool {
        self.0.contains_key(run)
    }

    /// The pod is gone.
    pub(super) fn gone(&mut self, run: &RunKey) {
        self.0.remove(run);
    }

    /// A namespace was listed anew; what was not `seen` in it is gone.
    pub(super) fn listed(&mut self, namespace: &str, seen: &BTreeSet<RunKey>) {
        self.0.retain(|run, pod| pod.namespace != namespace || seen.contains(run));
    }
}

#[cfg(test)]
mod tests {
    use agent_operator::domain::Attempt;

    use super::*;

    fn key(uid: &str) -> RunKey {
        RunKey { uid: uid.into(), attempt: Attempt(1) }
    }

    fn leaving() -> Leaving {
        let mut leaving = Leaving::default();
        leaving.add(key("a"), "ns".to_owned(), "pod-a".into());
        leaving.add(key("b"), "ns".to_owned(), "pod-b".into());
        leaving.add(key("c"), "other".to_owned(), "pod-c".into());
        leaving
    }

    #[test]
    fn only_the_very_pod_that_was_ordered_away_is_explained() {
        let leaving = leaving();
        assert!(leaving.explains(&key("a"), &"pod-a".into()));
        assert!(!leaving.explains(&key("a"), &"pod-of-somebody-else".into()));
        assert!(!leaving.explains(&key("d"), &"pod-a".into()));
    }

    #[test]
    fn what_is_gone_or_missing_from_a_list_of_its_namespace_is_forgotten() {
        let mut leaving = leaving();
        leaving.gone(&key("a"));
        leaving.listed("ns", &BTreeSet::new());
        assert_eq!(["a", "b", "c"].map(|run| leaving.holds(&key(run))), [false, false, true]);
        leaving.listed("other", &BTreeSet::from([key("c")]));
        assert!(leaving.holds(&key("c")));
    }

    #[test]
    fn there_is_a_most_of_them() {
        let mut leaving = Leaving::default();
        for number in 0..=LEAVING_MAX {
            leaving.add(key(&number.to_string()), "ns".to_owned(), "pod".into());
        }
        assert_eq!(leaving.0.len(), LEAVING_MAX);
    }
}
