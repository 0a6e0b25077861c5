//! What the decision where an attempt starts looks at, collected from upstream and mirror.

use std::sync::Arc;

use agent_operator::domain::names::disambiguated_branch;

use super::{
    RepositoryGrant,
    error::GitError,
    listing::Listing,
    login::Login,
    mirror::Mirror,
    names::{Branch, CommitId},
    start::{Facts, Found},
};

/// The branch names of a grant, checked.
#[derive(Debug)]
pub(super) struct GrantNames {
    /// The base branch.
    pub(super) base: Branch,
    /// The work branch as the task knows it.
    pub(super) work: Branch,
    /// The name with suffix.
    pub(super) own: Branch,
}

impl GrantNames {
    /// The names of `grant`.
    pub(super) fn of(grant: &RepositoryGrant) -> Result<Self, GitError> {
        let repository = &grant.repository;
        let own = disambiguated_branch(&repository.work_branch, &grant.task.uid);
        Ok(Self {
            base: Branch::parse(&repository.base_branch)?,
            work: Branch::parse(&repository.work_branch)?,
            own: Branch::parse(&own)?,
        })
    }

    /// All of them.
    pub(super) fn all(&self) -> [&Branch; 3] {
        [&self.base, &self.work, &self.own]
    }
}

/// Collects what [`decide`](super::start::decide) looks at; the mirror holds everything afterwards.
pub(super) async fn gather(
    grant: &RepositoryGrant,
    names: &GrantNames,
    mirror: &Mirror,
    login: Option<Arc<Login>>,
    listing: &Listing,
) -> Result<Facts, GitError> {
    let tips = &listing.tips;
    let Some(base_tip) = tips.get(&names.base) else {
        let (branch, url) = (names.base.to_string(), mirror.url().to_owned());
        return Err(GitError::FindBranch { branch, url });
    };
    let recorded = |id: &Option<String>| id.as_deref().map(CommitId::parse).transpose();
    let base_commit = recorded(&grant.repository.base_commit)?.unwrap_or_else(|| base_tip.clone());
    mirror.require(login.clone(), &base_commit).await?;
    let head_commit = recorded(&grant.repository.head_commit)?;
    if let Some(head) = &head_commit {
        mirror.require(login, head).await?;
    }
    let look = async |branch: &Branch| match tips.get(branch) {
        None => Ok(None),
        Some(tip) => {
            look_at(grant, mirror, &base_commit, head_commit.as_ref(), tip).await.map(Some)
        }
    };
    Ok(Facts {
        work: look(&names.work).await?,
        own: look(&names.own).await?,
        work_blocked: listing.in_the_way(&names.work),
        own_blocked: listing.in_the_way(&names.own),
        work_branch: names.work.clone(),
        own_branch: names.own.clone(),
        is_base: names.work == names.base,
        base_commit: base_commit.clone(),
        head_commit: head_commit.clone(),
        may_push: grant.may_push,
    })
}

async fn look_at(
    grant: &RepositoryGrant,
    mirror: &Mirror,
    base: &CommitId,
    head: Option<&CommitId>,
    tip: &CommitId,
) -> Result<Found, GitError> {
    let uid = grant.task.uid.as_str();
    Ok(Found {
        tip: tip.clone(),
        tip_ours: mirror.tip_carries_trailer(tip, uid).await?,
        ours: mirror.carries_trailer(base, tip, uid).await?,
        contains_head: match head {
            Some(head) => mirror.descends(tip, head).await?,
            None => false,
        },
    })
}
