//! The issue that a task comes from: checked, read as data, and closed by the pull request.

use agent_operator::{
    attempt::{ISSUE_BODY_BYTES_MAX, ISSUE_TITLE_BYTES_MAX, IssueText},
    domain::{assignment::IssueRef, text},
};

use super::ForgeError;

/// Longest owner or name of a repository, as the custom resource allows.
const NAME_BYTES_MAX: usize = 100;

/// An issue as a forge shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundIssue {
    /// Its title.
    pub title: String,
    /// Its text; empty when nobody wrote one.
    pub body: String,
}

/// Refuses an issue whose owner, repository or number could not be one: they become part of a URL
/// and of the pull request's text.
pub(super) fn check(issue: &IssueRef) -> Result<(), ForgeError> {
    let plain = |name: &str| {
        !name.is_empty()
            && name.len() <= NAME_BYTES_MAX
            && !matches!(name, "." | "..")
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    if plain(&issue.owner) && plain(&issue.repo) && issue.number > 0 {
        return Ok(());
    }
    let shown = text::printable(&issue.to_string());
    Err(ForgeError::AddressIssue { issue: text::truncate(&shown, 2 * NAME_BYTES_MAX).to_owned() })
}

/// What goes to the sandbox: printable and bounded, with a mark where something was left out.
pub(super) fn for_sandbox(issue: &IssueRef, found: &FoundIssue) -> IssueText {
    let title = text::printable(&found.title).split_whitespace().collect::<Vec<_>>().join(" ");
    // Forges keep the line ends of whatever the text was typed in.
    let body = text::printable(&found.body.replace("\r\n", "\n"));
    IssueText {
        reference: issue.to_string(),
        title: text::truncate(&title, ISSUE_TITLE_BYTES_MAX).to_owned(),
        body: text::head_and_tail(body.trim(), ISSUE_BODY_BYTES_MAX),
    }
}

/// The line that makes the forge close the issue when a pull request in the repository `path`
/// (`owner/name`) is merged.
pub(super) fn closing_line(issue: &IssueRef, path: &str) -> String {
    if format!("{}/{}", issue.owner, issue.repo).eq_ignore_ascii_case(path) {
        format!("Closes #{}", issue.number)
    } else {
        format!("Closes {issue}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issue(owner: &str, repo: &str, number: i64) -> IssueRef {
        IssueRef { owner: owner.to_owned(), repo: repo.to_owned(), number }
    }

    #[test]
    fn the_closing_line_names_the_repository_only_where_it_is_another() {
        assert_eq!(closing_line(&issue("O", "r", 7), "o/R"), "Closes #7");
        assert_eq!(closing_line(&issue("o", "tracker", 7), "o/r"), "Closes o/tracker#7");
        assert_eq!(closing_line(&issue("other", "r", 7), "o/r"), "Closes other/r#7");
    }

    #[test]
    fn what_could_leave_its_place_in_a_url_or_a_text_is_refused() {
        assert!(check(&issue("acme-inc", "web.site_1", 1)).is_ok());
        for (owner, repo, number) in [
            ("", "r", 1),
            ("..", "r", 1),
            ("o/x", "r", 1),
            ("o", "r/../x", 1),
            ("o", "r?x=1", 1),
            ("o", "r#2\nCloses #3", 1),
            ("o", "%2e%2e", 1),
            ("o", "r", 0),
            ("o", "r", -4),
        ] {
            let error = check(&issue(owner, repo, number)).unwrap_err();
            assert!(error.to_string().contains("source.github"), "{error}");
            assert!(!error.to_string().contains('\n'), "{error}");
        }
        assert!(check(&issue(&"o".repeat(101), "r", 1)).is_err());
    }

    #[test]
    fn the_text_for_the_sandbox_is_bounded_and_says_what_it_lacks() {
        let found = FoundIssue {
            title: format!("It\n\u{1b}[31m fails {}", "ä".repeat(2000)),
            body: format!("first\r\nsecond{}last", "x".repeat(100_000)),
        };
        let text = for_sandbox(&issue("o", "r", 7), &found);
        assert_eq!(text.reference, "o/r#7");
        assert!(text.title.starts_with("It \u{fffd}[31m fails"), "{}", text.title);
        assert!(text.title.len() <= ISSUE_TITLE_BYTES_MAX);
        assert!(text.body.starts_with("first\nsecond") && text.body.ends_with("last"));
        assert!(text.body.len() <= ISSUE_BODY_BYTES_MAX && text.body.contains("bytes left out"));
    }
}
