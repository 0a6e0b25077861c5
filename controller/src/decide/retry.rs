//! Which budget a failure uses, how much of it is left, and how long to wait.

use std::time::Duration;

use agent_operator::domain::{Budget, Reason};
use jiff::Timestamp;

/// First wait after an infrastructure failure; doubles.
const INFRASTRUCTURE_BACKOFF: Duration = Duration::from_secs(5);
/// Longest wait after an infrastructure failure: there are only a few of them.
const INFRASTRUCTURE_BACKOFF_MAX: Duration = Duration::from_mins(1);
/// First wait for an unavailable provider; doubles. Its own client has retried before.
const PROVIDER_BACKOFF: Duration = Duration::from_secs(30);
/// Longest wait for an unavailable provider: rate limits are counted in minutes.
const PROVIDER_BACKOFF_MAX: Duration = Duration::from_mins(10);
/// First wait before a run that never started is placed again; doubles.
const REPLACE_BACKOFF: Duration = Duration::from_secs(2);
/// Longest such wait: a missing quota or image is noticed within it once it is put right.
pub(super) const REPLACE_BACKOFF_MAX: Duration = Duration::from_mins(5);

/// Retries that were granted so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Of the implement-and-test loop and of single steps: the agent's or the code's own failures.
    pub application: u32,
    /// After lost nodes, evictions and the like.
    pub infrastructure: u32,
    /// After an unavailable model provider or forge.
    pub provider: u32,
}

/// The limits that they are held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `maxRetries`.
    pub application: u32,
    /// The chart's.
    pub infrastructure: u32,
    /// Longest unbroken wait for a provider.
    pub provider: Duration,
}

/// Failures of one step in a row that use the same budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The budget.
    pub budget: Budget,
    /// How many, this one included.
    pub length: u32,
    /// When the first of them ended; none when that is not known.
    pub since: Option<Timestamp>,
}

impl Chain {
    /// The chain after one more failure.
    pub fn extended(before: Option<Self>, budget: Budget, ended: Option<Timestamp>) -> Self {
        match before.filter(|chain| chain.budget == budget) {
            Some(chain) => Self { length: chain.length.saturating_add(1), ..chain },
            None => Self { budget, length: 1, since: ended },
        }
    }
}

/// What follows a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// One more attempt, after a wait from the end of this one.
    Again(Duration),
    /// The budget is used up, or there is none.
    GiveUp,
}

/// What follows a failure for `reason`, by the budget it uses. `granted` says that the next attempt
/// already exists: a retry that was once granted stays granted, also when a limit is lowered later.
pub fn judge(
    reason: Reason,
    counts: &mut Counts,
    limits: Limits,
    chain: Chain,
    ended: Option<Timestamp>,
    granted: bool,
) -> Verdict {
    match reason.budget() {
        Budget::Application => {
            charge(&mut counts.application, limits.application, granted, Duration::ZERO)
        }
        Budget::Infrastructure => charge(
            &mut counts.infrastructure,
            limits.infrastructure,
            granted,
            doubled(INFRASTRUCTURE_BACKOFF, chain.length, INFRASTRUCTURE_BACKOFF_MAX),
        ),
        Budget::Provider => {
            if !granted && waited(chain.since, ended) >= limits.provider {
                return Verdict::GiveUp;
            }
            counts.provider = counts.provider.saturating_add(1);
            Verdict::Again(doubled(PROVIDER_BACKOFF, chain.length, PROVIDER_BACKOFF_MAX))
        }
        Budget::Replace => {
            Verdict::Again(doubled(REPLACE_BACKOFF, chain.length, REPLACE_BACKOFF_MAX))
        }
        Budget::None if granted => Verdict::Again(Duration::ZERO),
        Budget::None => Verdict::GiveUp,
    }
}

fn charge(count: &mut u32, limit: u32, granted: bool, wait: Duration) -> Verdict {
    if !granted && *count >= limit {
        return Verdict::GiveUp;
    }
    *count = count.saturating_add(1);
    Verdict::Again(wait)
}

fn waited(since: Option<Timestamp>, until: Option<Timestamp>) -> Duration {
    since
        .zip(until)
        .and_then(|(since, until)| Duration::try_from(until.duration_since(since)).ok())
        .unwrap_or_default()
}

/// `first`, doubled with each failure after the first, at most `max`.
fn doubled(first: Duration, length: u32, max: Duration) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(length.saturating_sub(1))).min(max)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits =
        Limits { application: 2, infrastructure: 1, provider: Duration::from_hours(2) };

    fn at(second: i64) -> Option<Timestamp> {
        Timestamp::from_second(second).ok()
    }

    fn first(budget: Budget) -> Chain {
        Chain::extended(None, budget, at(0))
    }

    #[test]
    fn each_reason_uses_exactly_its_own_budget() {
        for &reason in Reason::ALL {
            let mut counts = Counts::default();
            judge(reason, &mut counts, LIMITS, first(reason.budget()), at(0), false);
            let used = (counts.application, counts.infrastructure, counts.provider);
            let expected = match reason.budget() {
                Budget::Application => (1, 0, 0),
                Budget::Infrastructure => (0, 1, 0),
                Budget::Provider => (0, 0, 1),
                Budget::Replace | Budget::None => (0, 0, 0),
            };
            assert_eq!(used, expected, "{reason}");
        }
    }

    #[test]
    fn a_used_up_budget_gives_up_but_a_granted_retry_stays_granted() {
        let mut counts = Counts { application: 2, infrastructure: 1, provider: 0 };
        let chain = first(Budget::Application);
        let verdict = judge(Reason::VerifyFailed, &mut counts, LIMITS, chain, at(0), false);
        assert_eq!(verdict, Verdict::GiveUp);
        let verdict = judge(Reason::VerifyFailed, &mut counts, LIMITS, chain, at(0), true);
        assert_eq!(verdict, Verdict::Again(Duration::ZERO));
        assert_eq!(counts.application, 3);
    }

    #[test]
    fn waits_double_up_to_their_cap_and_restart_with_another_budget() {
        let mut chain = None;
        let mut waits = Vec::new();
        for _ in 0..10 {
            let next = Chain::extended(chain, Budget::Replace, at(0));
            match judge(Reason::Unstarted, &mut Counts::default(), LIMITS, next, at(0), false) {
                Verdict::Again(wait) => waits.push(wait.as_secs()),
                Verdict::GiveUp => unreachable!("a run that never started is placed again"),
            }
            chain = Some(next);
        }
        assert_eq!(waits, [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(Chain::extended(chain, Budget::Provider, at(9)).length, 1);
    }

    #[test]
    fn a_provider_is_waited_for_by_time_and_not_by_count() {
        let mut counts = Counts { provider: 500, ..Counts::default() };
        let chain = Chain { budget: Budget::Provider, length: 400, since: at(0) };
        let reason = Reason::ProviderUnavailable;
        assert_eq!(
            judge(reason, &mut counts, LIMITS, chain, at(7199), false),
            Verdict::Again(Duration::from_mins(10))
        );
        assert_eq!(judge(reason, &mut counts, LIMITS, chain, at(7200), false), Verdict::GiveUp);
    }
}
