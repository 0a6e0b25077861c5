//! Where an attempt starts and which branch it will move: decided once, from facts alone.

use agent_operator::domain::{names::BRANCH_BYTES_MAX, text};
use serde::{Deserialize, Serialize};

use super::{
    error::GitError,
    names::{Branch, CommitId},
};

/// How much of another branch's name is shown: the upstream's may be longer than ours.
const OTHER_BYTES_MAX: usize = BRANCH_BYTES_MAX;

/// A branch that exists upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Its tip.
    pub(super) tip: CommitId,
    /// Whether its tip carries this task's trailer.
    pub(super) tip_ours: bool,
    /// Whether its tip or a commit since the base carries this task's trailer.
    pub(super) ours: bool,
    /// Whether the recorded head is in its history.
    pub(super) contains_head: bool,
}

/// Everything that the decision looks at.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// The work branch as the task knows it.
    pub(super) work_branch: Branch,
    /// The name with suffix.
    pub(super) own_branch: Branch,
    /// Whether the work branch is the base branch, which is never ours.
    pub(super) is_base: bool,
    /// Base commit, recorded or resolved now.
    pub(super) base_commit: CommitId,
    /// Tip of the work branch as the task recorded it.
    pub(super) head_commit: Option<CommitId>,
    /// The work branch upstream.
    pub(super) work: Option<Found>,
    /// The branch with suffix upstream.
    pub(super) own: Option<Found>,
    /// A branch upstream beside which git cannot hold the work branch.
    pub(super) work_blocked: Option<String>,
    /// The same of the branch with suffix.
    pub(super) own_blocked: Option<String>,
    /// Whether this step may push.
    pub(super) may_push: bool,
}

/// The decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Start {
    /// Branch that the attempt works on.
    pub(super) work_branch: String,
    /// Commit that it starts from.
    pub(super) commit: String,
    /// What the branch must point at upstream when it is moved; none: it must not exist.
    pub(super) expected: Option<String>,
}

/// Decides.
pub(super) fn decide(facts: &Facts) -> Result<Start, GitError> {
    match &facts.head_commit {
        Some(head) => continue_from_record(facts, head),
        None => first_attempt(facts),
    }
}

/// The task has published before: its record leads. An attempt whose report was lost may be ahead
/// of the record; it is ours, so a step that pushes goes on from there.
fn continue_from_record(facts: &Facts, head: &CommitId) -> Result<Start, GitError> {
    let at = |start: &CommitId| Start {
        work_branch: facts.work_branch.to_string(),
        commit: start.to_string(),
        expected: Some(start.to_string()),
    };
    match &facts.work {
        // Tests could still run on the commit, but nothing could come of them: no pull request can
        // be opened from a branch that is gone.
        None => Err(GitError::FindWorkBranch {
            branch: facts.work_branch.to_string(),
            commit: head.to_string(),
        }),
        Some(_) if !facts.may_push => Ok(at(head)),
        Some(found) if found.tip == *head => Ok(at(head)),
        Some(found) if found.contains_head && found.tip_ours => Ok(at(&found.tip)),
        // Found out now, before an agent works for an hour in vain.
        _ => Err(GitError::SwapBranch { branch: facts.work_branch.to_string() }),
    }
}

/// Nothing is recorded: the branch is new, or an earlier attempt's report was lost, or it belongs
/// to somebody else or cannot be made and we take a name of our own.
fn first_attempt(facts: &Facts) -> Result<Start, GitError> {
    match &facts.work {
        None if !facts.is_base && facts.work_blocked.is_none() => {
            Ok(new_branch(facts, &facts.work_branch))
        }
        Some(found) if !facts.is_base && found.ours => {
            Ok(existing_branch(&facts.work_branch, found))
        }
        _ => branch_of_our_own(facts),
    }
}

/// The name with suffix, unless somebody else is there first: found out now, for the push would come
/// after the work.
fn branch_of_our_own(facts: &Facts) -> Result<Start, GitError> {
    let (work, own) = (&facts.work_branch, &facts.own_branch);
    let blocked = |branch: &Branch, other: &str| {
        let other = text::printable(text::truncate(other, OTHER_BYTES_MAX));
        Err(GitError::BlockBranch { branch: branch.to_string(), other })
    };
    match (&facts.own, &facts.work_blocked, &facts.own_blocked) {
        (None, _, None) => Ok(new_branch(facts, own)),
        (Some(found), _, _) if found.ours => Ok(existing_branch(own, found)),
        (_, Some(other), _) => blocked(work, other),
        (_, None, Some(other)) => blocked(own, other),
        (Some(_), None, None) => {
            Err(GitError::ChooseBranch { branch: work.to_string(), own: own.to_string() })
        }
    }
}

fn new_branch(facts: &Facts, branch: &Branch) -> Start {
    Start { work_branch: branch.to_string(), commit: facts.base_commit.to_string(), expected: None }
}

fn existing_branch(branch: &Branch, found: &Found) -> Start {
    Start {
        work_branch: branch.to_string(),
        commit: found.tip.to_string(),
        expected: Some(found.tip.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(digit: char) -> CommitId {
        CommitId::parse(&digit.to_string().repeat(40)).unwrap()
    }

    fn facts() -> Facts {
        Facts {
            work_branch: Branch::parse("ai/x").unwrap(),
            own_branch: Branch::parse("ai/x-abcde").unwrap(),
            is_base: false,
            base_commit: id('b'),
            head_commit: None,
            work: None,
            own: None,
            work_blocked: None,
            own_blocked: None,
            may_push: true,
        }
    }

    fn found(tip: char, ours: bool) -> Found {
        Found { tip: id(tip), tip_ours: ours, ours, contains_head: false }
    }

    fn start(branch: &str, at: char, expected: Option<char>) -> Start {
        Start {
            work_branch: branch.to_owned(),
            commit: id(at).to_string(),
            expected: expected.map(|digit| id(digit).to_string()),
        }
    }

    #[test]
    fn a_first_attempt_starts_at_the_base_and_expects_no_branch() {
        assert_eq!(decide(&facts()).unwrap(), start("ai/x", 'b', None));
    }

    #[test]
    fn a_branch_with_our_trailer_is_continued() {
        let facts = Facts { work: Some(found('1', true)), ..facts() };
        assert_eq!(decide(&facts).unwrap(), start("ai/x", '1', Some('1')));
    }

    #[test]
    fn a_foreign_branch_gives_a_suffix_and_a_foreign_suffix_an_error() {
        let taken = Facts { work: Some(found('1', false)), ..facts() };
        assert_eq!(decide(&taken).unwrap(), start("ai/x-abcde", 'b', None));
        let ours = Facts { own: Some(found('2', true)), ..taken.clone() };
        assert_eq!(decide(&ours).unwrap(), start("ai/x-abcde", '2', Some('2')));
        let both = Facts { own: Some(found('2', false)), ..taken };
        assert!(matches!(decide(&both), Err(GitError::ChooseBranch { .. })));
    }

    #[test]
    fn a_branch_below_the_work_branch_gives_a_suffix_and_one_above_both_names_an_error() {
        let blocking = |other: &str| Some(other.to_owned());
        let below = Facts { work_blocked: blocking("ai/x/y"), ..facts() };
        assert_eq!(decide(&below).unwrap(), start("ai/x-abcde", 'b', None));
        let named = |facts: &Facts| match decide(facts) {
            Err(GitError::BlockBranch { branch, other }) => (branch, other),
            decided => panic!("{decided:?}"),
        };
        let pair = |branch: &str, other: &str| (branch.to_owned(), other.to_owned());
        let above = Facts {
            work_blocked: blocking("ai"),
            own_blocked: blocking("ai"),
            may_push: false,
            ..facts()
        };
        assert_eq!(named(&above), pair("ai/x", "ai"), "a plan would be made in vain too");
        let foreign_too = Facts { own: Some(found('2', false)), ..below };
        assert_eq!(named(&foreign_too), pair("ai/x", "ai/x/y"));
        let taken = Facts { work: Some(found('1', false)), ..facts() };
        let own = Facts { own_blocked: blocking("ai/x-abcde/z"), ..taken };
        assert_eq!(named(&own), pair("ai/x-abcde", "ai/x-abcde/z"));
    }

    #[test]
    fn the_base_branch_is_never_the_work_branch() {
        let facts = Facts { is_base: true, work: Some(found('1', true)), ..facts() };
        assert_eq!(decide(&facts).unwrap(), start("ai/x-abcde", 'b', None));
    }

    #[test]
    fn a_recorded_head_leads_unless_the_branch_has_gone_elsewhere() {
        let at_head = Facts { head_commit: Some(id('1')), work: Some(found('1', true)), ..facts() };
        assert_eq!(decide(&at_head).unwrap(), start("ai/x", '1', Some('1')));
        let moved = Facts { work: Some(found('2', true)), ..at_head.clone() };
        assert!(matches!(decide(&moved), Err(GitError::SwapBranch { .. })));
        for may_push in [true, false] {
            let gone = Facts { work: None, may_push, ..at_head.clone() };
            assert!(matches!(decide(&gone), Err(GitError::FindWorkBranch { .. })));
        }
        let reading = Facts { may_push: false, ..moved };
        assert_eq!(decide(&reading).unwrap(), start("ai/x", '1', Some('1')));
    }

    #[test]
    fn an_attempt_whose_report_was_lost_is_continued_but_not_a_stranger_on_top() {
        let mut facts =
            Facts { head_commit: Some(id('1')), work: Some(found('2', true)), ..facts() };
        facts.work.as_mut().unwrap().contains_head = true;
        assert_eq!(decide(&facts).unwrap(), start("ai/x", '2', Some('2')));
        facts.work.as_mut().unwrap().tip_ours = false;
        assert!(matches!(decide(&facts), Err(GitError::SwapBranch { .. })));
    }
}
