//! What can be said about a repository before the first step: the credential may read and write it,
//! the base branch exists, a work branch is free, and something says how to test it.

use std::{collections::BTreeMap, sync::Arc};

use agent_operator::domain::{
    Credential,
    detect::{self, PROJECT_FILE_BYTES_MAX, READ_FILES},
    names::short_hash,
    preflight::{Finding, Problem},
};

use super::{
    GitError, GitService, GrantNames, Login, RepositoryGrant, gather, login, mirror::Mirror,
    names::CommitId, start,
};

/// Prefix of the branch that is named when the upstream is asked for the right to push. It is never
/// created.
const TRIAL_BRANCH: &str = "agent-operator/preflight-";

/// What was found out about a repository.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// What stands in the way, most fundamental first.
    pub findings: Vec<Finding>,
    /// What was seen besides.
    pub notes: Vec<String>,
}

impl GitService {
    /// Asks the upstream, with `credential`, for everything that a task needs of its repository.
    /// Fills the mirror, which the first step needs anyway; writes nothing upstream.
    pub async fn preflight(
        &self,
        grant: &RepositoryGrant,
        credential: &Credential,
        needs_test_command: bool,
    ) -> Checked {
        let mut checked = Checked::default();
        let (mirror, login, base) = match self.reach(grant, credential).await {
            Ok(reached) => reached,
            Err(error) => {
                checked.findings.push(finding(&error));
                return checked;
            }
        };
        checked.notes.push(format!("{} is at {:.12}", grant.repository.base_branch, base.as_str()));
        let trial = format!("{TRIAL_BRANCH}{}", short_hash(&[grant.task.uid.as_str()]));
        match mirror.try_push(login.as_deref(), &base, &trial).await {
            Ok(()) => checked.notes.push("the offer of a push is taken".to_owned()),
            Err(error) => checked.findings.push(finding(&error)),
        }
        match test_commands(&mirror, &base).await {
            Ok(Some(commands)) => {
                let shown = commands.iter().map(|command| command.join(" "));
                let shown = shown.collect::<Vec<_>>().join(" && ");
                checked.notes.push(format!("`{shown}` would test it"));
            }
            Ok(None) if needs_test_command => checked.findings.push(Finding {
                problem: Problem::TestCommandMissing,
                message: format!(
                    "nothing at the root of branch {} of {} says how it is tested",
                    grant.repository.base_branch,
                    mirror.url()
                ),
            }),
            Ok(None) => {}
            Err(error) => checked.findings.push(finding(&error)),
        }
        checked
    }

    /// Everything up to an up-to-date mirror and a decided work branch.
    async fn reach(
        &self,
        grant: &RepositoryGrant,
        credential: &Credential,
    ) -> Result<(Mirror, Option<Arc<Login>>, CommitId), GitError> {
        let names = GrantNames::of(grant)?;
        let remote = self.inner.upstreams.resolve(&grant.repository.url)?;
        let login = login(&remote, Some(credential))?;
        let mirror = self.inner.mirrors.get(&grant.namespace, remote.clone_url());
        let listing = mirror.list(login.as_deref(), &names.all()).await?;
        mirror.refresh(login.clone(), &listing.tips).await?;
        let facts = gather(grant, &names, &mirror, login.clone(), &listing).await?;
        start::decide(&facts)?;
        Ok((mirror, login, facts.base_commit))
    }
}

/// The root of a commit, read as far as detection may ask.
struct CommitRoot {
    names: Vec<String>,
    texts: BTreeMap<&'static str, String>,
}

impl detect::Root for CommitRoot {
    fn has(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
    }

    fn read(&self, name: &str) -> Option<String> {
        self.texts.get(name).cloned()
    }
}

async fn test_commands(
    mirror: &Mirror,
    commit: &CommitId,
) -> Result<Option<detect::Commands>, GitError> {
    let names = mirror.root_names(commit).await?;
    let bytes_max = usize::try_from(PROJECT_FILE_BYTES_MAX).unwrap_or(usize::MAX);
    let mut texts = BTreeMap::new();
    for name in READ_FILES {
        if !names.iter().any(|known| known == name) {
            continue;
        }
        if let Some(text) = mirror.root_file(commit, name, bytes_max).await? {
            texts.insert(name, text);
        }
    }
    Ok(detect::test_commands(&CommitRoot { names, texts }))
}

/// What a failure means for the task; the remedy belongs to the problem.
fn finding(error: &GitError) -> Finding {
    let (problem, message) = match error {
        GitError::Authenticate { url, operation, detail } => {
            // Whoever is not known at all gets no answer about rights.
            let detail_lower = detail.to_lowercase();
            let unknown = ["returned error: 401", "authentication failed"]
                .iter()
                .any(|words| detail_lower.contains(words));
            let writing = *operation == "write to" && !unknown;
            let problem =
                if writing { Problem::PushNotAllowed } else { Problem::GitCredentialsRejected };
            (problem, format!("the git credential may not {operation} {url}: {detail}"))
        }
        GitError::FindRepository { url, detail } => (
            Problem::RepositoryMissing,
            format!("{url} does not exist or is hidden from the git credential: {detail}"),
        ),
        GitError::FollowRedirect { url } => {
            (Problem::RepositoryMoved, format!("{url} redirects to another address"))
        }
        GitError::FindBranch { branch, url } => {
            (Problem::BaseBranchMissing, format!("branch {branch} does not exist in {url}"))
        }
        GitError::ChooseBranch { branch, own } => (
            Problem::WorkBranchTaken,
            format!("branches {branch} and {own} both exist and are not this task's"),
        ),
        GitError::BlockBranch { branch, other } => (
            Problem::WorkBranchTaken,
            format!("branch {other} leaves no room for {branch}: git cannot hold both"),
        ),
        GitError::ReachUpstream { url, detail } => {
            (Problem::ProviderUnavailable, format!("{url} is not available: {detail}"))
        }
        GitError::ResolveUrl(_) | GitError::CheckBranchName { .. } => {
            (Problem::RepositoryInvalid, error.to_string())
        }
        GitError::MatchCredential { .. } | GitError::ReadCredential => {
            (Problem::GitCredentialsRejected, error.to_string())
        }
        _ => (Problem::NodeTrouble, error.to_string()),
    };
    Finding { problem, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_in_the_address_is_no_answer_of_the_server() {
        let refused = |detail: &str| {
            let url = "http://forge.example:40109/o/r.git".to_owned();
            let detail = format!("unable to access '{url}/': The requested URL {detail}");
            finding(&GitError::Authenticate { url, operation: "write to", detail }).problem
        };
        assert_eq!(refused("returned error: 403"), Problem::PushNotAllowed);
        assert_eq!(refused("returned error: 401"), Problem::GitCredentialsRejected);
    }
}
