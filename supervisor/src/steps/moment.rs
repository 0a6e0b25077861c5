//! Points in time that survive a restart of the supervisor and of the node.

use std::time::Duration;

use agent_operator::domain::ids::BootId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Reading of the boot-time clock in nanoseconds. Negative for moments before the present boot.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct BootTime(pub i64);

impl BootTime {
    /// This reading moved into the future, saturating.
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(by.as_nanos()).unwrap_or(i64::MAX)))
    }

    /// Time from `earlier` to this reading; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        let nanos = self.0.saturating_sub(earlier.0);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
    }
}

/// The present, read once for each step of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// For deadlines.
    pub boot: BootTime,
    /// For people, and for deadlines across a reboot.
    pub wall: Timestamp,
}

/// A moment as the journal keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Moment {
    /// Wall-clock time.
    pub wall: Timestamp,
    /// Boot-time clock.
    pub boot: BootTime,
    /// The boot in which it was.
    pub boot_id: BootId,
}

impl Moment {
    /// The moment `now` of the boot `boot_id`.
    pub fn new(now: Now, boot_id: &BootId) -> Self {
        Self { wall: now.wall, boot: now.boot, boot_id: boot_id.clone() }
    }

    /// The moment `before` now.
    pub fn ago(now: Now, before: Duration, boot_id: &BootId) -> Self {
        let nanos = i64::try_from(before.as_nanos()).unwrap_or(i64::MAX);
        let wall = now.wall.checked_sub(before).unwrap_or(Timestamp::UNIX_EPOCH);
        let boot = BootTime(now.boot.0.saturating_sub(nanos));
        Self { wall, boot, boot_id: boot_id.clone() }
    }

    /// The moment that the wall clock showed as `wall`; one in the future counts as now.
    pub fn at_wall(wall: Timestamp, now: Now, boot_id: &BootId) -> Self {
        let ago = Duration::try_from(now.wall.duration_since(wall)).unwrap_or_default();
        Self { wall, ..Self::ago(now, ago, boot_id) }
    }

    /// Makes a moment of an earlier boot comparable with `now`, by the wall clock. A moment that
    /// would lie in the future (the wall clock was set back) counts as now. It stays known as one of
    /// that boot.
    pub fn rebase(&mut self, now: Now, boot_id: &BootId) {
        if self.boot_id == *boot_id {
            return;
        }
        let ago = now.wall.duration_since(self.wall).as_nanos().max(0);
        let ago = i64::try_from(ago).unwrap_or(i64::MAX);
        self.boot = BootTime(now.boot.0.saturating_sub(ago));
    }

    /// Whether it was in this boot: what ran in another one runs no more.
    pub fn is_of(&self, boot_id: &BootId) -> bool {
        self.boot_id == *boot_id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn a_moment_of_this_boot_keeps_its_reading_whatever_the_wall_clock_says() {
        let boot = BootId::from("a");
        let mut moment = Moment { wall: at(1000), boot: BootTime(5), boot_id: boot.clone() };
        moment.rebase(Now { boot: BootTime(9), wall: at(5000) }, &boot);
        assert_eq!(moment.boot, BootTime(5));
    }

    #[test]
    fn a_moment_of_another_boot_is_placed_by_the_wall_clock() {
        let mut moment =
            Moment { wall: at(1000), boot: BootTime(77), boot_id: BootId::from("before") };
        let now = Now { boot: BootTime(1_000_000_000), wall: at(1010) };
        moment.rebase(now, &BootId::from("after"));
        assert_eq!(moment.boot, BootTime(-9_000_000_000));
        assert_eq!(now.boot.since(moment.boot), Duration::from_secs(10));
        assert!(!moment.is_of(&BootId::from("after")));
    }

    #[test]
    fn a_wall_clock_that_was_set_back_gives_no_moment_in_the_future() {
        let mut moment = Moment { wall: at(2000), boot: BootTime(1), boot_id: BootId::from("b") };
        let now = Now { boot: BootTime(50), wall: at(1000) };
        moment.rebase(now, &BootId::from("c"));
        assert_eq!(moment.boot, now.boot);
    }
}
