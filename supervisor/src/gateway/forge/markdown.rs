//! Makes Markdown from a sandbox safe to show at a forge.
//!
//! It stays readable, but does nothing by itself: nobody is mentioned, no image is fetched, no issue
//! is closed or told of, no bot is ordered about, and no HTML, shown or hidden, gets through. Where a
//! forge would read more than text, an invisible space is put between the characters that make it so.
//! That holds inside code too, so nothing here has to know where a forge sees code.
//!
//! Links stay links: a person decides whether to follow one.

use agent_operator::domain::commit_text::{GAP, REFERENCES};

/// `markdown` with a gap wherever it would be more than text.
pub(super) fn neutralise(markdown: &str) -> String {
    let mut out = String::with_capacity(markdown.len() + markdown.len() / 16);
    let mut before = '\n';
    let mut line_start = true;
    for (at, c) in markdown.char_indices() {
        let rest = &markdown[at + c.len_utf8()..];
        let next = rest.chars().next().unwrap_or('\n');
        if line_start && c == '/' && next.is_ascii_alphabetic() {
            // A command to a bot.
            out.push(GAP);
        }
        out.push(c);
        if acts(before, c, next) || is_reference(&markdown[..at + c.len_utf8()], next) {
            out.push(GAP);
        }
        line_start =
            c == '\n' || (line_start && (c.is_whitespace() || matches!(c, '>' | '-' | '*')));
        before = c;
    }
    out
}

/// Whether a forge reads `c` before `next` as more than text.
fn acts(before: char, c: char, next: char) -> bool {
    match c {
        // A tag, a comment, a declaration, an automatic link.
        '<' => next.is_ascii_alphabetic() || matches!(next, '/' | '!' | '?'),
        '@' => next.is_alphanumeric(),
        // An issue; a heading has a space, a colour in CSS would lose nothing.
        '#' => next.is_ascii_digit(),
        // An image, or a request at Gitea and GitLab.
        '!' => next == '[' || next.is_ascii_digit(),
        // An entity: forges look for mentions in what it becomes.
        '&' => next == '#' || next.is_ascii_alphabetic(),
        // An escape, which would hide the character behind it from here and not from a forge.
        '\\' => next.is_ascii_punctuation(),
        // `GH-12`.
        '-' => before.eq_ignore_ascii_case(&'h') && next.is_ascii_digit(),
        _ => false,
    }
}

/// Whether what has been read ends with the path of an issue, and its number follows.
fn is_reference(read: &str, next: char) -> bool {
    next.is_ascii_hexdigit() && REFERENCES.iter().any(|path| read.ends_with(path))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_would_act_at_a_forge_is_only_text() {
        for (markdown, neutral) in [
            ("cc @octocat and @org/team", "cc @\u{200b}octocat and @\u{200b}org/team"),
            ("![x](https://evil/?d=1)", "!\u{200b}[x](https://evil/?d=1)"),
            ("![x][ref]", "!\u{200b}[x][ref]"),
            ("a<!-- hidden -->b", "a<\u{200b}!-- hidden -->b"),
            ("<img src=x>", "<\u{200b}img src=x>"),
            ("</details><?x?>", "<\u{200b}/details><\u{200b}?x?>"),
            ("<https://evil/x>", "<\u{200b}https://evil/x>"),
            ("Closes #12, GH-7", "Closes #\u{200b}12, GH-\u{200b}7"),
            ("fixes o/r#3 and o/r!4", "fixes o/r#\u{200b}3 and o/r!\u{200b}4"),
            (
                "resolves https://github.com/o/r/issues/1",
                "resolves https://github.com/o/r/issues/\u{200b}1",
            ),
            (
                "&#64;octocat &commat;octocat",
                "&\u{200b}#\u{200b}64;octocat &\u{200b}commat;octocat",
            ),
            ("\\@octocat", "\\\u{200b}@\u{200b}octocat"),
            ("see /pull/9", "see /pull/\u{200b}9"),
            ("/approve\n  /lgtm\n> /merge", "\u{200b}/approve\n  \u{200b}/lgtm\n> \u{200b}/merge"),
        ] {
            assert_eq!(neutralise(markdown), neutral, "{markdown}");
        }
    }

    #[test]
    fn ordinary_markdown_is_left_alone() {
        for text in [
            "# Heading\n\nText with `code`, **bold** and a [link](https://example.com/a).",
            "- a list\n  - below\n1. first",
            "```rust\nif a < b && c > d { x != y }\n```",
            "Adds /healthz; see docs/how-to.",
            "Wow! 100% at 3 @ 4",
            "",
        ] {
            assert_eq!(neutralise(text), text);
        }
    }

    proptest! {
        #[test]
        fn nothing_that_acts_is_left_and_nothing_else_is_lost(text in "[-a-zH0-9@#!<>/\\[\\] \n&?é]{0,80}") {
            let neutral = neutralise(&text);
            let chars: Vec<char> = neutral.chars().collect();
            for pair in chars.windows(2) {
                prop_assert!(!(pair[0] == '@' && pair[1].is_alphanumeric()), "{neutral}");
                prop_assert!(!(pair[0] == '!' && pair[1] == '['), "{neutral}");
                prop_assert!(!(pair[0] == '<' && pair[1] == '!'), "{neutral}");
                prop_assert!(!(pair[0] == '#' && pair[1].is_ascii_digit()), "{neutral}");
            }
            prop_assert_eq!(neutral.replace(GAP, ""), text);
        }
    }
}
