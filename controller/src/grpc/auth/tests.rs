use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use prost::Message as _;
use prost_types::FileDescriptorSet;

use super::*;

/// Knows three tokens and counts how often it is asked.
#[derive(Default)]
pub(crate) struct FakeReviewer {
    pub(crate) asked: Arc<AtomicUsize>,
    /// Nobody may read any more.
    pub(crate) withdrawn: Arc<AtomicBool>,
}

pub(crate) const SUPERVISOR: &str = "system:serviceaccount:system:supervisor";

#[async_trait]
impl Reviewer for FakeReviewer {
    async fn review_token(&self, token: &str) -> Result<Option<Reviewed>, ReviewError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let user = |username: &str| Reviewed { username: username.into(), ..Reviewed::default() };
        Ok(match token.split_once(':') {
            Some(("node", node)) => Some(Reviewed {
                extra: BTreeMap::from([(NODE_EXTRA.to_owned(), vec![node.to_owned()])]),
                ..user(SUPERVISOR)
            }),
            Some(("user", name)) => Some(user(name)),
            Some(("down", _)) => {
                return Err(ReviewError { what: "token", problem: "no route".into() });
            }
            _ if token == "unbound" => Some(user(SUPERVISOR)),
            _ => None,
        })
    }

    async fn may_read_logs(&self, user: &Reviewed, namespace: &str) -> Result<bool, ReviewError> {
        let withdrawn = self.withdrawn.load(Ordering::SeqCst);
        Ok(user.username == "reader" && namespace == "ns" && !withdrawn)
    }
}

fn authority() -> (Arc<Authority>, Arc<AtomicUsize>) {
    let reviewer = FakeReviewer::default();
    let asked = reviewer.asked.clone();
    (Authority::new(reviewer, SUPERVISOR.into()), asked)
}

async fn code(rule: Rule, token: &str) -> Option<tonic::Code> {
    authority().0.authenticate(rule, token).await.err().map(|status| status.code())
}

#[test]
fn every_rpc_of_the_port_has_a_rule_and_every_rule_an_rpc() {
    let mut paths = Vec::new();
    for set in [
        agent_operator::proto::DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ] {
        for file in FileDescriptorSet::decode(set).unwrap().file {
            for service in &file.service {
                for method in &service.method {
                    let (package, service) = (file.package(), service.name());
                    paths.push(format!("/{package}.{service}/{}", method.name()));
                }
            }
        }
    }
    for path in &paths {
        assert!(rule(path).is_some(), "{path} has no rule");
        let own = path.starts_with("/agentoperator.");
        assert!(!own || rule(path) != Some(Rule::Public), "{path} is public");
    }
    for (path, _) in RULES {
        assert!(paths.iter().any(|known| known == path), "{path} does not exist");
    }
}

#[tokio::test]
async fn callers_get_what_their_token_is_good_for() {
    use tonic::Code::{PermissionDenied, Unauthenticated, Unavailable};
    let cases = [
        (Rule::Public, "", None),
        (Rule::Supervisor, "node:n1", None),
        (Rule::Supervisor, "unbound", Some(PermissionDenied)),
        (Rule::Supervisor, "user:reader", Some(PermissionDenied)),
        (Rule::Supervisor, "wrong", Some(Unauthenticated)),
        (Rule::Supervisor, "", Some(Unauthenticated)),
        (Rule::Supervisor, "down:", Some(Unavailable)),
        (Rule::Reader, "user:reader", None),
        (Rule::Reader, "wrong", Some(Unauthenticated)),
        (Rule::Reader, "down:", Some(Unavailable)),
    ];
    for (rule, token, expected) in cases {
        assert_eq!(code(rule, token).await, expected, "{rule:?} {token}");
    }
    assert_eq!(code(Rule::Reader, &"x".repeat(20_000)).await, Some(Unauthenticated));
}

#[tokio::test]
async fn a_reader_reads_in_its_own_namespace_only() {
    let (authority, _) = authority();
    let user = |username: &str| Reviewed { username: username.into(), ..Reviewed::default() };
    assert!(authority.permit_reader(&user("reader"), "ns").await.is_ok());
    for (name, namespace) in [("reader", "other"), ("stranger", "ns")] {
        let refused = authority.permit_reader(&user(name), namespace).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    }
}

#[tokio::test(start_paused = true)]
async fn a_good_token_is_asked_about_once_a_minute_and_a_bad_one_always() {
    let (authority, asked) = authority();
    for _ in 0..3 {
        authority.supervisor_node("node:n1").await.unwrap();
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    tokio::time::advance(CACHE_TTL).await;
    authority.supervisor_node("node:n1").await.unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    for _ in 0..2 {
        assert!(authority.supervisor_node("wrong").await.is_err());
    }
    assert_eq!(asked.load(Ordering::SeqCst), 4);
}
