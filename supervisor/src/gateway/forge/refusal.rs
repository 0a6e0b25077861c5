//! What a forge means by an answer that is no success: told apart by status and headers, with the
//! right that is missing and the time to wait.

use std::time::Duration;

use agent_operator::domain::text;
use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;

use super::ForgeError;

/// How much of a forge's own words is shown.
pub(super) const DETAIL_BYTES_MAX: usize = 300;
/// How long GitHub asks to wait when it names no time after a limit was hit.
const LIMIT_WAIT: Duration = Duration::from_mins(1);
/// Longest wait that is believed: GitHub's limits are per hour.
const WAIT_MAX: Duration = Duration::from_hours(1);

/// What was asked, for the message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    /// Host as the user knows it.
    pub(super) host: &'a str,
    /// What was done.
    pub(super) operation: &'static str,
    /// The right that it needs, in the forge's own words.
    pub(super) right: &'static str,
    /// The issue that it was about; none: the repository.
    pub(super) issue: Option<&'a str>,
}

/// The error that an answer of `status` is; `said` is the forge's own message.
pub(super) fn refusal(
    asked: &Asked<'_>,
    status: StatusCode,
    headers: &HeaderMap,
    said: &str,
) -> ForgeError {
    let (host, operation) = (asked.host.to_owned(), asked.operation);
    let detail = shown(said);
    if let Some(wait) = limited(status, headers, said) {
        let detail =
            format!("status {status}, the request limit is used up for {} s", wait.as_secs());
        return ForgeError::ReachForge { host, operation, detail, wait: Some(wait) };
    }
    if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT {
        let wait = retry_after(headers);
        let detail = format!("status {status}");
        return ForgeError::ReachForge { host, operation, detail, wait };
    }
    let missing = || missing_right(asked, headers);
    match (status, asked.issue) {
        (StatusCode::UNAUTHORIZED, _) => ForgeError::Authenticate { host, operation, detail },
        (StatusCode::FORBIDDEN, _) => {
            ForgeError::Authorize { host, operation, detail, missing: missing() }
        }
        // GitHub answers 410 where issues are switched off, 301 where one was moved away.
        (StatusCode::NOT_FOUND | StatusCode::GONE | StatusCode::MOVED_PERMANENTLY, Some(issue)) => {
            ForgeError::FindIssue { host, issue: issue.to_owned(), missing: missing() }
        }
        (StatusCode::NOT_FOUND, None) => {
            ForgeError::FindRepository { host, operation, missing: missing() }
        }
        _ if status.is_redirection() => ForgeError::FollowRedirect { host, operation },
        _ => ForgeError::RefuseRequest { host, operation, status: status.as_u16(), detail },
    }
}

/// Printable and cut, on one line.
pub(super) fn shown(said: &str) -> String {
    let line = text::printable(said).split_whitespace().collect::<Vec<_>>().join(" ");
    let line = if line.is_empty() { "no message".to_owned() } else { line };
    text::truncate(&line, DETAIL_BYTES_MAX).to_owned()
}

/// How long to wait, when the answer means that too much was asked. GitHub says so with 429 and
/// with 403, and by three different headers or none.
fn limited(status: StatusCode, headers: &HeaderMap, said: &str) -> Option<Duration> {
    let used_up = headers.get("x-ratelimit-remaining").is_some_and(|left| left == "0");
    let limited = status == StatusCode::TOO_MANY_REQUESTS
        || (status == StatusCode::FORBIDDEN
            && (used_up
                || headers.contains_key(header::RETRY_AFTER)
                || said.to_ascii_lowercase().contains("rate limit")));
    let until_reset = || if used_up { until_reset(headers) } else { None };
    limited.then(|| {
        let wait = retry_after(headers).or_else(until_reset).unwrap_or(LIMIT_WAIT);
        wait.clamp(Duration::from_secs(1), WAIT_MAX)
    })
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = text_of(headers, header::RETRY_AFTER.as_str())?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(WAIT_MAX))
}

/// The time until `x-ratelimit-reset`, by the forge's own clock: ours may be wrong.
fn until_reset(headers: &HeaderMap) -> Option<Duration> {
    let reset: i64 = text_of(headers, "x-ratelimit-reset")?.trim().parse().ok()?;
    let date = text_of(headers, header::DATE.as_str())?;
    let now: Timestamp = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(date).ok()?;
    u64::try_from(reset.saturating_sub(now.as_second())).ok().map(Duration::from_secs)
}

/// The right that is missing: what the forge names in its headers, beside what the call is known to
/// need.
fn missing_right(asked: &Asked<'_>, headers: &HeaderMap) -> String {
    let list = |name| text_of(headers, name).map(shown).filter(|list| list != "no message");
    if text_of(headers, "x-github-sso").is_some_and(|sso| sso.starts_with("required")) {
        return "single sign-on for its organisation (\"Configure SSO\" in the token's settings)"
            .to_owned();
    }
    let mut right = asked.right.to_owned();
    if let Some(permissions) = list("x-accepted-github-permissions") {
        right = format!("{right}; {} accepts {permissions}", asked.host);
    }
    // Only classic tokens have scopes; the header of what they hold may be empty.
    if let Some(held) = text_of(headers, "x-oauth-scopes") {
        let accepted = list("x-accepted-oauth-scopes").unwrap_or_else(|| "repo".to_owned());
        let held = if held.trim().is_empty() { "none".to_owned() } else { shown(held) };
        right = format!("{right}; scopes accepted: {accepted}, scopes of this token: {held}");
    }
    right
}

fn text_of<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests {
    use agent_operator::domain::Reason;

    use super::*;

    const ASKED: Asked<'_> = Asked {
        host: "github.com",
        operation: "opening a pull request",
        right: "\"Pull requests: write\"",
        issue: None,
    };

    fn refused(status: u16, headers: &[(&str, &str)], said: &str) -> ForgeError {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect::<Vec<(header::HeaderName, header::HeaderValue)>>();
        let headers = HeaderMap::from_iter(headers);
        refusal(&ASKED, StatusCode::from_u16(status).unwrap(), &headers, said)
    }

    /// Status, headers, words, and the seconds to wait.
    type Case<'a> = (u16, &'a [(&'a str, &'a str)], &'a str, u64);

    #[test]
    fn every_form_of_a_limit_is_unavailability_with_its_time() {
        let date = ("date", "Sun, 22 Nov 2026 21:02:28 GMT");
        let cases: [Case<'_>; 7] = [
            (429, &[("retry-after", "17")], "", 17),
            (403, &[("retry-after", "30")], "secondary", 30),
            (
                403,
                &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "1795381378"), date],
                "",
                30,
            ),
            (429, &[("x-ratelimit-remaining", "0")], "", 60),
            (403, &[], "You have exceeded a secondary rate limit.", 60),
            (429, &[("retry-after", "0")], "", 1),
            (429, &[("retry-after", "999999")], "", 3600),
        ];
        for (status, headers, said, seconds) in cases {
            let error = refused(status, headers, said);
            assert_eq!(error.reason(), Some(Reason::ProviderUnavailable), "{error}");
            assert_eq!(error.wait(), Some(Duration::from_secs(seconds)), "{headers:?} {error}");
            assert!(error.to_string().contains(&format!("{seconds} s")), "{error}");
        }
        let broken = refused(502, &[], "<html>");
        assert_eq!((broken.reason(), broken.wait()), (Some(Reason::ProviderUnavailable), None));
    }

    #[test]
    fn a_short_wait_is_held_in_the_step_and_a_long_one_ends_it() {
        assert!(refused(429, &[("retry-after", "20")], "").retryable());
        assert!(!refused(429, &[("retry-after", "1800")], "").retryable());
        assert!(refused(503, &[], "").retryable());
    }

    #[test]
    fn a_forbidden_call_names_what_the_token_lacks() {
        let fine = refused(
            403,
            &[("x-accepted-github-permissions", "pull_requests=write")],
            "Resource not accessible by personal access token",
        );
        assert!(matches!(fine, ForgeError::Authorize { .. }));
        for part in ["Pull requests: write", "pull_requests=write", "not accessible"] {
            assert!(fine.to_string().contains(part), "{part}: {fine}");
        }
        let classic = refused(
            403,
            &[("x-accepted-oauth-scopes", "repo, public_repo"), ("x-oauth-scopes", "read:user")],
            "Must have admin rights",
        );
        let said = classic.to_string();
        assert!(said.contains("repo, public_repo") && said.contains("read:user"), "{said}");
        let sso = refused(403, &[("x-github-sso", "required; url=https://x")], "SAML");
        assert!(sso.to_string().contains("single sign-on"), "{sso}");
    }

    #[test]
    fn the_other_refusals_are_told_apart() {
        assert!(matches!(refused(401, &[], "Bad credentials"), ForgeError::Authenticate { .. }));
        assert!(matches!(refused(404, &[], "Not Found"), ForgeError::FindRepository { .. }));
        assert!(matches!(refused(301, &[], ""), ForgeError::FollowRedirect { .. }));
        let invalid = refused(422, &[], "Validation Failed: \u{1b}[2J base is invalid");
        assert!(matches!(invalid, ForgeError::RefuseRequest { status: 422, .. }));
        assert!(invalid.to_string().contains("base is invalid"), "{invalid}");
        assert!(!invalid.to_string().contains('\u{1b}'));
        let asked = Asked { issue: Some("o/r#7"), ..ASKED };
        for status in [StatusCode::NOT_FOUND, StatusCode::GONE, StatusCode::MOVED_PERMANENTLY] {
            let missing = refusal(&asked, status, &HeaderMap::new(), "");
            assert!(matches!(&missing, ForgeError::FindIssue { issue, .. } if issue == "o/r#7"));
            assert_eq!(missing.reason(), Some(Reason::InvalidTask));
        }
    }
}
