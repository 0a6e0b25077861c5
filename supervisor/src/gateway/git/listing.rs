//! What the upstream says about a task's branches: where they are, and which other branch leaves no
//! room for one. Git keeps a branch as a file, so `ai` and `ai/x` cannot both exist.

use std::collections::{BTreeSet, HashMap};

use super::{
    error::GitError,
    names::{Branch, CommitId},
};

/// Branch tips by exact name.
pub(super) type Tips = HashMap<Branch, CommitId>;

/// The answer of `ls-remote` to [`patterns`].
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// Tips of the branches that were asked for.
    pub(super) tips: Tips,
    in_the_way: HashMap<Branch, String>,
}

impl Listing {
    /// Reads the lines of `ls-remote` about `branches`.
    pub(super) fn read(lines: &str, branches: &[&Branch]) -> Result<Self, GitError> {
        let mut listing = Self::default();
        for line in lines.lines() {
            // Patterns match the end of a name, so the exact one is picked here.
            let Some((id, name)) = line.split_once('\t') else { continue };
            for branch in branches {
                let wanted = branch.full_ref();
                if wanted == name {
                    listing.tips.insert((*branch).clone(), CommitId::parse(id)?);
                } else if excludes(name, &wanted) && !listing.in_the_way.contains_key(*branch) {
                    let short = name.strip_prefix("refs/heads/").unwrap_or(name);
                    listing.in_the_way.insert((*branch).clone(), short.to_owned());
                }
            }
        }
        Ok(listing)
    }

    /// A branch beside which git cannot hold `branch`.
    pub(super) fn in_the_way(&self, branch: &Branch) -> Option<String> {
        self.in_the_way.get(branch).cloned()
    }
}

/// What `ls-remote` has to be asked for: `branches`, the folders that they lie in, and what lies below
/// them.
pub(super) fn patterns(branches: &[&Branch]) -> BTreeSet<String> {
    let mut patterns = BTreeSet::new();
    for branch in branches {
        let (name, full) = (branch.to_string(), branch.full_ref());
        let folders = name.match_indices('/').map(|(at, _)| format!("refs/heads/{}", &name[..at]));
        patterns.extend(folders);
        patterns.insert(format!("{full}/*"));
        patterns.insert(full);
    }
    patterns
}

/// Whether git could not hold both refs, one being a folder of the other.
pub(super) fn excludes(name: &str, other: &str) -> bool {
    let inside = |outer: &str, inner: &str| {
        inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'))
    };
    inside(name, other) || inside(other, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn branch(name: &str) -> Branch {
        Branch::parse(name).unwrap()
    }

    fn in_the_way(listed: &[&str], of: &str) -> Option<String> {
        let mut lines = String::new();
        for name in listed {
            lines.extend([&"a".repeat(40), "\trefs/heads/", name, "\n"]);
        }
        let of = branch(of);
        Listing::read(&lines, &[&of]).unwrap().in_the_way(&of)
    }

    #[test]
    fn a_folder_of_the_branch_and_a_branch_below_it_are_in_its_way_and_neighbours_are_not() {
        for blocking in ["a", "a/b", "a/b/c/d", "a/b/c/d/e"] {
            assert_eq!(in_the_way(&["main", blocking], "a/b/c").as_deref(), Some(blocking));
        }
        assert_eq!(in_the_way(&["a/b/c", "a/b/cc", "a/bb", "aa", "x/a/b"], "a/b/c"), None);
    }

    #[test]
    fn everything_that_can_be_in_the_way_is_asked_for() {
        let asked = patterns(&[&branch("a/b"), &branch("a/b-1")]);
        let expected = ["a", "a/b", "a/b-1", "a/b-1/*", "a/b/*"];
        assert_eq!(asked, expected.map(|name| format!("refs/heads/{name}")).into());
    }
}
