//! A credential as it is presented.

use agent_operator::domain::{Credential, Secret};
use zeroize::Zeroizing;

use super::error::GitError;

/// How a credential is presented to git and to a forge's API.
pub(in super::super) struct Login {
    user: Option<String>,
    password: Secret,
}

impl Login {
    /// Reads `credential`: `user:password` for the scheme `basic`, otherwise a bare token.
    pub(in super::super) fn of(credential: &Credential) -> Result<Self, GitError> {
        let value = credential.value.expose().trim_end_matches(['\r', '\n']);
        if value.is_empty() || value.contains(['\r', '\n', '\0']) {
            return Err(GitError::ReadCredential);
        }
        let (user, password) = match value.split_once(':') {
            Some((user, password)) if credential.scheme == "basic" => (Some(user), password),
            _ => (None, value),
        };
        Ok(Self { user: user.map(str::to_owned), password: Secret::new(password) })
    }

    /// The user name; none for a bare token.
    pub(in super::super) fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The password or token.
    pub(in super::super) fn password(&self) -> &Secret {
        &self.password
    }

    /// What a credential helper prints.
    pub(super) fn helper_answer(&self) -> Zeroizing<String> {
        // GitHub wants this user name beside its tokens; Gitea takes any.
        let user = self.user().unwrap_or("x-access-token");
        Zeroizing::new(format!("username={user}\npassword={}\n", self.password.expose()))
    }
}
