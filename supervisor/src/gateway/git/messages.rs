//! What the commits of a step say: messages and authors are data of the sandbox. A message that acts at
//! a forge (it closes somebody's issue, calls people, keeps checks from running) is refused, for the
//! gateway changes no commit: another message would be another commit than the one that was tested.
//! agent-runner words its own so that nothing acts, and makes one commit of those that do.
//!
//! Who wrote a commit is what the sandbox says; only a signature would prove it.

use std::ops::ControlFlow;

use agent_operator::domain::{commit_text, names::TRAILER_TASK_UID};

use super::{
    command::Run,
    error::GitError,
    inspect::{Inspection, LISTING_BYTES_MAX},
    names::CommitId,
};

/// Longest commit: message, names, parents and a signature.
const COMMIT_BYTES_MAX: usize = commit_text::MESSAGE_BYTES_MAX + 16 * 1024;

impl Inspection<'_> {
    /// Judges the texts of every commit of the step. Those that are upstream already are not its.
    pub(super) async fn check_messages(
        &self,
        start: &CommitId,
        commit: &CommitId,
    ) -> Result<(), GitError> {
        let (without, work) =
            (format!("^{start}"), format!("--exclude={}", self.state.start.work_branch));
        let args = ["rev-list", commit.as_str(), &without, "--not", &work, "--branches", "--"];
        let run = Run {
            output_bytes_max: LISTING_BYTES_MAX,
            ..Run::hostile(self.quarantine.path(), &args)
        };
        let commits = self.git.run(run).await?.whole()?;
        let run = Run::hostile(self.quarantine.path(), &["cat-file", "--batch", "--buffer"]);
        let mut texts = Texts::new(self.grant.task.uid.as_str());
        self.git.pass_through(run, commits, |piece| texts.take(piece)).await?;
        texts.verdict()
    }
}

/// Commits as `cat-file --batch` prints them, judged one by one.
struct Texts<'a> {
    uid: &'a str,
    kept: Vec<u8>,
    verdict: Option<GitError>,
}

impl<'a> Texts<'a> {
    fn new(uid: &'a str) -> Self {
        Self { uid, kept: Vec::new(), verdict: None }
    }

    fn take(&mut self, piece: &[u8]) -> ControlFlow<()> {
        self.kept.extend_from_slice(piece);
        let mut used = 0;
        while let Some((commit, size, head)) = heading(&self.kept[used..]) {
            if size > COMMIT_BYTES_MAX {
                return self.refuse(&commit, "a message that is too long");
            }
            // The object ends with a line end of the listing.
            let Some(object) = self.kept.get(used + head..used + head + size + 1) else { break };
            if let Some(what) = judge(&object[..size], self.uid) {
                return self.refuse(&commit, what);
            }
            used += head + size + 1;
        }
        self.kept.drain(..used);
        ControlFlow::Continue(())
    }

    fn refuse(&mut self, commit: &str, what: &'static str) -> ControlFlow<()> {
        self.verdict = Some(GitError::CheckMessage { commit: commit.to_owned(), what });
        ControlFlow::Break(())
    }

    /// What came of all. A listing that breaks off in the middle of a commit, or is none, was not judged.
    fn verdict(self) -> Result<(), GitError> {
        match self.verdict {
            Some(refused) => Err(refused),
            None if self.kept.is_empty() => Ok(()),
            None => Err(GitError::RunGit {
                operation: "cat-file".to_owned(),
                detail: "its listing of commits is not understood".to_owned(),
            }),
        }
    }
}

/// `<commit> commit <size>` and its line end: the commit, its size, and how long the line is.
fn heading(listing: &[u8]) -> Option<(String, usize, usize)> {
    let end = listing.iter().position(|byte| *byte == b'\n')?;
    let mut words = std::str::from_utf8(&listing[..end]).ok()?.split(' ');
    let (commit, kind, size) = (words.next()?, words.next()?, words.next()?);
    let size = size.parse().ok().filter(|_| kind == "commit")?;
    Some((commit.to_owned(), size, end + 1))
}

/// What is wrong with a commit; none when it says nothing but text.
fn judge(object: &[u8], uid: &str) -> Option<&'static str> {
    let Ok(text) = std::str::from_utf8(object) else {
        return Some("a message or a name that is not UTF-8");
    };
    let (headers, message) = text.split_once("\n\n").unwrap_or((text, ""));
    for line in headers.lines() {
        let (name, value) = line.split_once(' ').unwrap_or((line, ""));
        match name {
            "author" | "committer" if value.len() > commit_text::PERSON_BYTES_MAX => {
                return Some("an author whose name is too long");
            }
            // Read in another encoding, the same bytes say something else.
            "encoding" if !value.eq_ignore_ascii_case("utf-8") => {
                return Some("a message in an encoding of its own");
            }
            _ => {}
        }
    }
    if !commit_text::is_printable(headers) {
        return Some("control characters in its headers");
    }
    if names_another_task(message, uid) {
        return Some("the trailer of another task");
    }
    commit_text::objection(message)
}

/// Whether a line of the message would make the commit another task's.
fn names_another_task(message: &str, uid: &str) -> bool {
    message.lines().filter_map(|line| line.trim().split_once(':')).any(|(key, value)| {
        key.trim_end().eq_ignore_ascii_case(TRAILER_TASK_UID) && value.trim() != uid
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADERS: &str = "tree 0\nauthor A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\n";

    fn judged(headers: &str, message: &str) -> Option<&'static str> {
        judge(format!("{HEADERS}{headers}\n{message}").as_bytes(), "uid-1")
    }

    #[test]
    fn headers_and_messages_are_judged() {
        assert_eq!(judged("", "Add it\n\nAgent-Operator-Task-Uid: uid-1\n"), None);
        assert_eq!(judged("encoding UTF-8\n", "Add it"), None);
        let long = format!("author {} 1 +0000\n", "x".repeat(commit_text::PERSON_BYTES_MAX));
        for (headers, message, word) in [
            ("encoding UTF-7\n", "Add it", "encoding"),
            (long.as_str(), "Add it", "author"),
            ("author A\u{202e} <a@b> 1 +0000\n", "Add it", "headers"),
            ("", "Fixes #1", "issue"),
            ("", "a\u{1b}[31mb", "control"),
            ("", "x\n\n agent-operator-task-uid : uid-2", "another task"),
        ] {
            let what = judged(headers, message);
            assert!(what.is_some_and(|what| what.contains(word)), "{word}: {what:?}");
        }
        assert!(judge(b"tree 0\n\n\xff", "uid-1").is_some());
    }

    #[test]
    fn a_listing_is_judged_alike_in_whatever_pieces_it_comes() {
        let commit = |message: &str| {
            let object = format!("{HEADERS}\n{message}");
            format!("{} commit {}\n{object}\n", "a".repeat(40), object.len())
        };
        let good = [commit("one"), commit("two\n"), commit("")].concat();
        let bad = [commit("one"), commit("closes #1"), commit("three")].concat();
        for pieces in [1, 7, 64, 4096] {
            let verdict = |listing: &str| {
                let mut texts = Texts::new("uid-1");
                let _ = listing.as_bytes().chunks(pieces).try_for_each(|piece| texts.take(piece));
                texts.verdict()
            };
            verdict(&good).unwrap();
            assert!(matches!(verdict(&bad), Err(GitError::CheckMessage { .. })));
            for odd in [&good[..good.len() - 2], "a blob 1\nx\n", "a missing\n"] {
                assert!(verdict(odd).is_err(), "{odd}");
            }
            let long = format!("a commit {}\n", COMMIT_BYTES_MAX + 1);
            assert!(matches!(verdict(&long), Err(GitError::CheckMessage { .. })));
        }
    }
}
