//! Bounded text: everything from a sandbox is cut by one stated rule before it is kept.

/// Cuts `text` to at most `max` bytes: the first quarter and the last three quarters stay, with a
/// mark between that counts what is missing. Failures stand at the end of an output, the command
/// and its set-up at the start.
pub fn head_and_tail(text: &str, max: usize) -> String {
    // Room for the mark: "\n[... 18446744073709551615 bytes left out ...]\n".
    const MARK_BYTES: usize = 48;
    if text.len() <= max {
        return text.to_owned();
    }
    let room = max.saturating_sub(MARK_BYTES);
    let head = text.floor_char_boundary(room / 4);
    let tail = text.ceil_char_boundary(text.len() - (room - room / 4));
    let left_out = tail - head;
    format!("{}\n[... {left_out} bytes left out ...]\n{}", &text[..head], &text[tail..])
}

/// The last `max` bytes of `text`, from a line start where one is near.
pub fn tail(text: &str, max: usize) -> &str {
    if text.len() <= max {
        return text;
    }
    let start = text.ceil_char_boundary(text.len() - max);
    let rest = &text[start..];
    rest.find('\n').filter(|at| *at < max / 4).map_or(rest, |at| &rest[at + 1..])
}

/// Cuts `text` to at most `max` bytes at a character boundary.
pub fn truncate(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

/// Replaces control characters other than newline and tab, and characters that make text read other
/// than it is, so that text from a sandbox can neither steer a terminal, break a Kubernetes message
/// nor show one thing and mean another.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if is_unprintable(c) && c != '\n' && c != '\t' { '\u{fffd}' } else { c })
        .collect()
}

/// [`printable`] on one line: line ends and tabs become spaces too.
pub fn one_line(text: &str) -> String {
    printable(text).replace(['\n', '\t'], " ")
}

/// Control characters, line ends of Unicode, characters that turn the direction of text, and the
/// invisible copies of ASCII.
pub fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        || matches!(c, '\u{e0000}'..='\u{e007f}')
}

/// An error with its causes, for a log line or a message: `Display` of ours never repeats a source.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_text_keeps_head_and_tail_and_stays_within_its_limit() {
        let text = format!("start{}end", "ä".repeat(50_000));
        let cut = head_and_tail(&text, 1024);
        assert!(cut.len() <= 1024);
        assert!(cut.starts_with("start") && cut.ends_with("end"));
        assert!(cut.contains("bytes left out"));
    }

    #[test]
    fn a_short_text_is_left_alone() {
        assert_eq!(head_and_tail("abc", 3), "abc");
        assert_eq!(tail("abc", 3), "abc");
    }

    #[test]
    fn control_characters_do_not_reach_a_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\r\n\tc"), "a\u{fffd}[2Jb\u{fffd}\n\tc");
        assert_eq!(one_line("a\nb\tc\u{7}"), "a b c\u{fffd}");
    }

    #[test]
    fn characters_that_show_another_text_than_they_hold_are_replaced() {
        for c in ['\u{202e}', '\u{2066}', '\u{200f}', '\u{2028}', '\u{e0041}', '\u{9b}'] {
            assert_eq!(printable(&format!("a{c}b")), "a\u{fffd}b", "{c:?}");
        }
        assert_eq!(printable("äöü 漢字 עברית 👩\u{200d}🔧"), "äöü 漢字 עברית 👩\u{200d}🔧");
    }
}
