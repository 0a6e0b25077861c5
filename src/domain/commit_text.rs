//! Texts of commits from a sandbox: what in them is more than text to a forge, and how long they may be.
//!
//! Unlike a pull request's text a commit cannot be put right on its way upstream: another message is
//! another commit. So the gateway refuses what acts, and agent-runner, whose commits the sandbox's are,
//! words its own so that nothing does.

use super::text::is_unprintable;

/// Longest message: a screenful of prose is a tenth of it.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1024;
/// Longest line with the name, address and time of an author.
pub const PERSON_BYTES_MAX: usize = 512;
/// Paths of issues and requests in web addresses of forges: an address alone tells the issue, and a
/// word such as "closes" before it closes it.
pub const REFERENCES: [&str; 6] =
    ["/issues/", "/pull/", "/pulls/", "/merge_requests/", "/discussions/", "/commit/"];

/// Zero-width space: what is split by it is read alike and acts no more.
pub const GAP: char = '\u{200b}';
/// What stands in brackets and keeps a forge from running its checks on a commit.
const SKIPS: [&str; 6] =
    ["skip ci]", "ci skip]", "no ci]", "skip actions]", "actions skip]", "skip-ci]"];
/// Lines and marks that do the same, or what GitLab takes for an order.
const ORDERS: [&str; 2] = ["skip-checks:", "/tag "];
const NO_CI: &str = "***no_ci***";

/// Why a message is not published, in words that go behind "it has"; none for one that is only text.
pub fn objection(message: &str) -> Option<&'static str> {
    if message.len() > MESSAGE_BYTES_MAX {
        return Some("a message that is too long");
    }
    if !is_printable(message) {
        return Some("control characters, or such as turn the direction of text");
    }
    let acts = acting(message).next().is_some();
    acts.then_some("a mention, a reference to an issue, or an order to the forge in its message")
}

/// Whether a text of several lines holds nothing that shows it other than it is.
pub fn is_printable(text: &str) -> bool {
    text.chars().all(|c| !is_unprintable(c) || matches!(c, '\n' | '\t'))
}

/// `text` with an invisible space wherever a forge would read more than text in a commit's message.
pub fn neutralise(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    let mut from = 0;
    for at in acting(text) {
        out.push_str(&text[from..at]);
        out.push(GAP);
        from = at;
    }
    out.push_str(&text[from..]);
    out
}

/// Where in `text` a space would undo what acts, in order.
fn acting(text: &str) -> impl Iterator<Item = usize> {
    let mut before = '\n';
    text.char_indices().filter_map(move |(at, c)| {
        let (read, rest) = text.split_at(at);
        let behind = &rest[c.len_utf8()..];
        let acts = acts(read, before, c, behind);
        before = c;
        acts.then_some(at + c.len_utf8())
    })
}

/// Whether a forge reads `c`, after `read` and before `behind`, as more than text.
fn acts(read: &str, before: char, c: char, behind: &str) -> bool {
    let next = behind.chars().next().unwrap_or('\n');
    let begins = |words: &[&str]| words.iter().any(|word| begins_with(behind, word));
    match c {
        // Within a word it is an address of mail.
        '@' => next.is_alphanumeric() && !(before.is_alphanumeric() || before == '_'),
        '#' | '!' => next.is_ascii_digit(),
        '-' => next.is_ascii_digit() && ends_with_word(read, "gh"),
        '[' => begins(&SKIPS),
        '*' => begins_with(behind, &NO_CI[1..]),
        's' | 'S' | '/' if before == '\n' => ORDERS.iter().any(|order| {
            order.starts_with(c.to_ascii_lowercase()) && begins_with(behind, &order[1..])
        }),
        '/' => {
            let ends = |path: &&str| read.ends_with(&path[..path.len() - 1]);
            next.is_ascii_hexdigit() && REFERENCES.iter().any(ends)
        }
        _ => false,
    }
}

/// Whether `text` begins with `word`, which is in lower case, in any case.
fn begins_with(text: &str, word: &str) -> bool {
    text.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word))
}

/// Whether `text` ends with `word` as a word of its own, in any case.
fn ends_with_word(text: &str, word: &str) -> bool {
    let Some(start) = text.len().checked_sub(word.len()) else { return false };
    let ends = text.get(start..).is_some_and(|end| end.eq_ignore_ascii_case(word));
    ends && !text[..start].ends_with(char::is_alphanumeric)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_that_acts_at_a_forge_is_objected_to_and_can_be_worded_so_that_it_does_not() {
        for (message, neutral) in [
            ("Fixes #12", "Fixes #\u{200b}12"),
            ("closes o/r#3", "closes o/r#\u{200b}3"),
            ("see GH-7 and !4", "see GH-\u{200b}7 and !\u{200b}4"),
            (
                "Resolves https://github.com/o/r/issues/1",
                "Resolves https://github.com/o/r/issues/\u{200b}1",
            ),
            ("cc @octocat, (@org/team)", "cc @\u{200b}octocat, (@\u{200b}org/team)"),
            ("x [Skip CI] y", "x [\u{200b}Skip CI] y"),
            ("x\n\nSkip-Checks: true", "x\n\nS\u{200b}kip-Checks: true"),
            ("***NO_CI***", "*\u{200b}**NO_CI***"),
            ("x\n/tag v1", "x\n/\u{200b}tag v1"),
        ] {
            assert!(objection(message).is_some(), "{message}");
            assert_eq!(neutralise(message), neutral);
            assert_eq!(objection(neutral), None, "{neutral}");
        }
    }

    #[test]
    fn ordinary_messages_are_left_alone() {
        for message in [
            "Add a /healthz endpoint\n\n/healthz answers 200; see docs/how-to.",
            "Bump a to 1.2\n\nCo-authored-by: Somebody <somebody@example.com>",
            "C# support, item # 3, wow! high-5 at 3 @ 4, [ci] job, *** bold ***",
            "Ä ö \u{1f600}\ttab",
            "",
        ] {
            assert_eq!(objection(message), None, "{message}");
            assert_eq!(neutralise(message), message);
        }
    }

    #[test]
    fn control_characters_and_long_messages_are_objected_to() {
        for message in ["a\u{1b}[31m", "a\rb", "a\0", "a\u{202e}b", "a\u{e0041}"] {
            assert!(objection(message).is_some_and(|why| why.contains("control")), "{message:?}");
        }
        assert_eq!(objection(&"x".repeat(MESSAGE_BYTES_MAX)), None);
        assert!(objection(&"x".repeat(MESSAGE_BYTES_MAX + 1)).is_some());
    }

    proptest! {
        #[test]
        fn nothing_acts_in_a_message_once_it_was_neutralised_and_nothing_else_is_lost(
            message in "(?i:[-a-h0-9@#!*/\\[\\] \né.]|gh-|skip ci\\]|skip-checks:|/tag|/issues/|\\*\\*\\*no_ci\\*\\*\\*){0,60}",
        ) {
            let neutral = neutralise(&message);
            prop_assert!(acting(&neutral).next().is_none(), "{neutral:?}");
            prop_assert_eq!(neutral.replace(GAP, ""), message);
        }
    }
}
