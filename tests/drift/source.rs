//! Rust source as text: what is left without comments, strings and tests.

use std::path::Path;

use super::tree::read;

/// The code of a file without its tests, comments and the contents of its string literals. Line
/// breaks stay, so that line numbers hold.
pub(crate) fn code(path: &Path) -> String {
    let text = read(path);
    let text = text.find("#[cfg(test)]\nmod ").map_or(text.as_str(), |start| &text[..start]);
    plain(text)
}

/// Whether a file holds tests only.
pub(crate) fn is_test(path: &Path) -> bool {
    let named =
        |name: &std::ffi::OsStr| name == "tests" || name == "tests.rs" || name == "testing.rs";
    path.components().any(|part| named(part.as_os_str()))
}

/// Blanks comments and the contents of literals.
fn plain(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = match skipped(&text[at..]) {
            0 => {
                let next = text[at..].chars().next().expect("at is within the text");
                out.push(next);
                at += next.len_utf8();
                continue;
            }
            length => at + length,
        };
        out.extend(text[at..end].chars().filter(|c| *c == '\n'));
        out.push(' ');
        at = end;
    }
    out
}

/// Length of the comment or literal that `text` begins with; 0: of neither.
fn skipped(text: &str) -> usize {
    let until = |start: usize, end: &str| {
        text[start..].find(end).map_or(text.len(), |found| start + found + end.len())
    };
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return until(2, "*/");
    }
    if text.starts_with('"') {
        return quoted(text, '"');
    }
    if text.starts_with('\'') {
        // A lifetime has no closing quote right after its first character.
        let mut chars = text.chars().skip(1);
        let first = chars.next();
        return if first == Some('\\') || chars.next() == Some('\'') {
            quoted(text, '\'')
        } else {
            0
        };
    }
    let hashes =
        text.strip_prefix('r').map_or(0, |rest| rest.len() - rest.trim_start_matches('#').len());
    if hashes > 0 && text[1 + hashes..].starts_with('"') {
        return until(2 + hashes, &format!("\"{}", "#".repeat(hashes)));
    }
    if text.starts_with("r\"") { until(2, "\"") } else { 0 }
}

/// Length of a literal with escapes.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

/// Name, first line and number of lines of every function with a body.
pub(crate) fn functions(code: &str) -> Vec<(String, usize, usize)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let starts_word = code[..at].ends_with([' ', '\n', '(']) || at == 0;
        let name: String =
            code[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if !starts_word || name.is_empty() {
            continue;
        }
        let Some(length) = body_end(&code[at..]) else { continue };
        let line = code[..at].matches('\n').count() + 1;
        found.push((name, line, code[at..at + length].matches('\n').count() + 1));
    }
    found
}

/// Where the body ends of the function that `code` begins with; none: it has no body.
fn body_end(code: &str) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, c) in code.char_indices() {
        match c {
            ';' if depth == 0
                && !code[..at].ends_with(|c: char| c.is_ascii_digit() || c == '8') =>
            {
                return None;
            }
            '{' => depth += 1,
            '}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
    }
    None
}

#[test]
fn scanner_sees_code_and_nothing_else() {
    let text = "fn a<'x>(b: &'x str) -> char {\n    // fn c() {\n    let _ = \"}\\\"{\"; let _ = r#\"}\"{\"#;\n    '{'\n}\nfn d(e: [u8; 3]);\nfn f() {}\n";
    let found = functions(&plain(text));
    assert_eq!(found, [("a".into(), 1, 5), ("f".into(), 7, 1)]);
}
