//! Reviews by the API server.

use std::time::Duration;

use agent_operator::domain::names::{GROUP, TOKEN_AUDIENCE};
use async_trait::async_trait;
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec},
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, Client, api::PostParams};

use super::{ReviewError, Reviewed, Reviewer};

/// Longest wait for one review: the caller gets UNAVAILABLE and tries again.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Asks through the controller's own client. Needs `create` on `tokenreviews` and
/// `subjectaccessreviews`.
pub struct KubeReviewer {
    tokens: Api<TokenReview>,
    access: Api<SubjectAccessReview>,
}

impl KubeReviewer {
    /// A reviewer over `client`.
    pub fn new(client: Client) -> Self {
        Self { tokens: Api::all(client.clone()), access: Api::all(client) }
    }
}

#[async_trait]
impl Reviewer for KubeReviewer {
    async fn review_token(&self, token: &str) -> Result<Option<Reviewed>, ReviewError> {
        let audience = vec![TOKEN_AUDIENCE.to_owned()];
        let review = TokenReview {
            spec: TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(audience) },
            ..TokenReview::default()
        };
        let parameters = PostParams::default();
        let status = ask("token", self.tokens.create(&parameters, &review))
            .await?
            .status
            .unwrap_or_default();
        // An authenticator that knows no audiences leaves the list empty: not a token for us.
        let for_us =
            status.audiences.is_some_and(|list| list.iter().any(|name| name == TOKEN_AUDIENCE));
        if status.authenticated != Some(true) || !for_us {
            return Ok(None);
        }
        let user = status.user.unwrap_or_default();
        Ok(user.username.filter(|name| !name.is_empty()).map(|username| Reviewed {
            username,
            uid: user.uid.unwrap_or_default(),
            groups: user.groups.unwrap_or_default(),
            extra: user.extra.unwrap_or_default(),
        }))
    }

    async fn may_read_logs(&self, user: &Reviewed, namespace: &str) -> Result<bool, ReviewError> {
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.username.clone()),
                uid: Some(user.uid.clone()),
                groups: Some(user.groups.clone()),
                extra: Some(user.extra.clone()),
                resource_attributes: Some(ResourceAttributes {
                    namespace: Some(namespace.to_owned()),
                    verb: Some("get".to_owned()),
                    group: Some(GROUP.to_owned()),
                    resource: Some("agentruns".to_owned()),
                    subresource: Some("log".to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let parameters = PostParams::default();
        let answer = ask("access", self.access.create(&parameters, &review)).await?;
        Ok(answer.status.is_some_and(|status| status.allowed && status.denied != Some(true)))
    }
}

async fn ask<T>(
    what: &'static str,
    call: impl Future<Output = kube::Result<T>>,
) -> Result<T, ReviewError> {
    match tokio::time::timeout(TIMEOUT, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(ReviewError { what, problem: error.to_string() }),
        Err(_) => Err(ReviewError { what, problem: format!("no answer in {TIMEOUT:?}") }),
    }
}
