//! What a pushed commit would bring upstream, looked at before it goes there: size, every changed
//! path of the step and of each of its commits, links, messages, and secrets. Nothing is checked out, and no
//! model is asked.
//!
//! The difference to the start alone would not do: what one commit adds and the next one takes away
//! goes upstream too. The commits alone would not do either: a merge of an old branch can undo a
//! protected file without any commit that changes it.

use std::{collections::BTreeMap, ops::ControlFlow, time::Duration};

use agent_operator::domain::text;

use super::{
    GitLimits, RepositoryGrant,
    command::{At, Git, Run},
    error::GitError,
    mirror,
    names::CommitId,
    paths::{self, ProtectedPaths},
    quarantine::{Quarantine, State},
};
use crate::scrub::Watchlist;

/// Longest listing of objects or changed paths: 100,000 lines of 65 bytes, or 10,000 long paths. A
/// tree that unfolds to more is refused, however small it is packed.
pub(super) const LISTING_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Time for a look at all objects of [`GitLimits::unpacked_bytes_max`].
const CONTENT_TIMEOUT: Duration = Duration::from_mins(5);
/// Most new symbolic links: each is read.
const LINKS_MAX: u64 = 1000;
/// Longest target of a link, as Linux has it.
const TARGET_BYTES_MAX: usize = 4096;
/// How much of a path goes into a message.
const SHOWN_BYTES_MAX: usize = 200;

const MODE_ABSENT: &str = "000000";
const MODE_LINK: &str = "120000";
const MODE_SUBMODULE: &str = "160000";

/// One look at one pushed commit.
pub(super) struct Inspection<'a> {
    /// Runs git.
    pub(super) git: &'a Git,
    /// Where the commit is.
    pub(super) quarantine: &'a Quarantine,
    /// Whose it is.
    pub(super) grant: &'a RepositoryGrant,
    /// Where the step started.
    pub(super) state: &'a State,
    /// Limits.
    pub(super) limits: GitLimits,
    /// What only people change.
    pub(super) protected: &'a ProtectedPaths,
    /// The task's secrets.
    pub(super) secrets: &'a Watchlist,
}

/// Symbolic links by the object that holds their target, with one path each is at.
type Links = BTreeMap<String, Vec<String>>;

impl Inspection<'_> {
    /// Whether `commit` may go upstream.
    pub(super) async fn check(&self, commit: &CommitId) -> Result<(), GitError> {
        let start = self.check_lineage(commit).await?;
        self.check_size(&start, commit).await?;
        self.check_paths(&start, commit).await?;
        self.check_messages(&start, commit).await?;
        self.check_content(&start, commit).await
    }

    async fn run(&self, args: &[&str]) -> Result<super::finished::Finished, GitError> {
        self.git.run(Run::hostile(self.quarantine.path(), args)).await
    }

    /// A marked change on top of the start; the start.
    async fn check_lineage(&self, commit: &CommitId) -> Result<CommitId, GitError> {
        let at = At::Quarantine(self.quarantine.path());
        let shown = || commit.to_string();
        if !mirror::contains(self.git, at, commit).await? {
            return Err(GitError::FindPushed { commit: shown() });
        }
        let start = CommitId::parse(&self.state.start.commit)?;
        if !mirror::descends(self.git, at, commit, &start).await? {
            return Err(GitError::CheckDescent { commit: shown(), start: start.to_string() });
        }
        let args = ["diff-tree", "--quiet", start.as_str(), commit.as_str(), "--"];
        let diff = self.run(&args).await?;
        match diff.code {
            Some(0) => return Err(GitError::CheckDiff { commit: shown() }),
            Some(1) => {}
            _ => diff.success().map(drop)?,
        }
        let uid = self.grant.task.uid.as_str();
        if !mirror::tip_carries_trailer(self.git, at, commit, uid).await? {
            return Err(GitError::CheckTrailer { commit: shown() });
        }
        Ok(start)
    }

    async fn check_size(&self, start: &CommitId, commit: &CommitId) -> Result<(), GitError> {
        let without = format!("^{start}");
        let measure = async |what: &str| {
            let args = ["rev-list", "--objects", what, commit.as_str(), &without, "--"];
            let text = self.run(&args).await?.success()?;
            // A number always; anything else counts as over the limit.
            Ok::<u64, GitError>(text.trim().parse().unwrap_or(u64::MAX))
        };
        within(measure("--count").await?, self.limits.objects_max, "objects")?;
        within(measure("--disk-usage").await?, self.limits.push_bytes_max, "bytes")
    }

    /// The step's difference, then each commit's. Renames are not looked for: both paths count.
    async fn check_paths(&self, start: &CommitId, commit: &CommitId) -> Result<(), GitError> {
        let raw = ["--raw", "-r", "-z", "--no-renames", "--no-abbrev"];
        let (from, to) = (start.as_str(), commit.as_str());
        let range = format!("{from}..{to}");
        let difference = [&["diff-tree"], &raw[..], &[from, to, "--"]].concat();
        let each = ["log", "--format=", "--root", "--diff-merges=first-parent", "--no-ext-diff"];
        let each = [&each[..], &raw[..], &[&range, "--"]].concat();
        let mut links = Links::new();
        let changed = self.judge(&difference, &mut links).await?;
        within(changed, self.limits.files_max, "changed files")?;
        self.judge(&each, &mut links).await?;
        within(links.len() as u64, LINKS_MAX, "symbolic links")?;
        self.check_links(links).await
    }

    /// Judges every entry of a raw listing and collects its links; how many entries there are.
    async fn judge(&self, args: &[&str], links: &mut Links) -> Result<u64, GitError> {
        let run = Run {
            output_bytes_max: LISTING_BYTES_MAX,
            ..Run::hostile(self.quarantine.path(), args)
        };
        let too_many = || within(u64::MAX, self.limits.files_max, "changed files").map(|()| 0);
        let listing = match self.git.run(run).await {
            // It collects a difference before it prints it, and a tree of a few kilobytes can unfold
            // to thousands of millions of paths.
            Err(
                GitError::BoundOutput { .. }
                | GitError::AwaitGit { .. }
                | GitError::ExhaustMemory { .. },
            ) => return too_many(),
            listed => listed?.whole()?,
        };
        let mut count = 0;
        for entry in entries(&listing) {
            let entry = entry.ok_or_else(|| GitError::RunGit {
                operation: "diff-tree".to_owned(),
                detail: "a line of its listing is not understood".to_owned(),
            })?;
            self.judge_entry(&entry, links)?;
            count += 1;
        }
        Ok(count)
    }

    fn judge_entry(&self, entry: &Entry<'_>, links: &mut Links) -> Result<(), GitError> {
        let shown = || shown(entry.path);
        let refuse = |what| GitError::CheckEntry { path: shown(), what };
        let gone = entry.mode == MODE_ABSENT;
        // Whatever is odd may be taken away.
        if let Some(what) = paths::odd_name(entry.path).filter(|_| !gone) {
            return Err(refuse(what));
        }
        let path = String::from_utf8_lossy(entry.path);
        if self.protected.cover(&path) {
            return Err(GitError::ProtectPath { path: shown() });
        }
        match entry.mode {
            MODE_SUBMODULE => Err(refuse("a submodule")),
            MODE_LINK => {
                links.entry(entry.object.to_owned()).or_default().push(path.into_owned());
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn check_links(&self, links: Links) -> Result<(), GitError> {
        for (object, paths) in links {
            let args = ["cat-file", "blob", &object];
            let run = Run {
                output_bytes_max: TARGET_BYTES_MAX,
                ..Run::hostile(self.quarantine.path(), &args)
            };
            let target = match self.git.run(run).await {
                Err(GitError::BoundOutput { .. }) => None,
                read => String::from_utf8(read?.whole()?).ok(),
            };
            let leads_out = |path: &&String| {
                target.as_deref().is_none_or(|target| !paths::link_stays_inside(path, target))
            };
            if let Some(path) = paths.iter().find(leads_out) {
                let what = "a symbolic link that leads out of the repository";
                return Err(GitError::CheckEntry { path: shown(path.as_bytes()), what });
            }
        }
        Ok(())
    }

    /// Reads every new object, commits and trees too, and looks for the task's secrets.
    async fn check_content(&self, start: &CommitId, commit: &CommitId) -> Result<(), GitError> {
        let without = format!("^{start}");
        let args = ["rev-list", "--objects", "--no-object-names", commit.as_str(), &without, "--"];
        let run = Run {
            output_bytes_max: LISTING_BYTES_MAX,
            ..Run::hostile(self.quarantine.path(), &args)
        };
        let objects = self.git.run(run).await?.whole()?;
        let args = ["cat-file", "--batch", "--buffer"];
        let run = Run { timeout: CONTENT_TIMEOUT, ..Run::hostile(self.quarantine.path(), &args) };
        let mut look = Look::new(self.secrets, self.limits.unpacked_bytes_max);
        self.git.pass_through(run, objects, |piece| look.at(piece)).await?;
        match look.verdict {
            None => Ok(()),
            Some(refusal) => Err(refusal),
        }
    }
}

/// A look at a stream of objects, piece by piece.
struct Look<'a> {
    secrets: &'a Watchlist,
    left: u64,
    limit: u64,
    /// The end of what was looked at: a secret may be cut by the pieces.
    tail: Vec<u8>,
    verdict: Option<GitError>,
}

impl<'a> Look<'a> {
    fn new(secrets: &'a Watchlist, limit: u64) -> Self {
        Self { secrets, left: limit, limit, tail: Vec::new(), verdict: None }
    }

    fn at(&mut self, piece: &[u8]) -> ControlFlow<()> {
        let Some(left) = self.left.checked_sub(piece.len() as u64) else {
            let (found, limit) = (self.limit.saturating_add(1), self.limit);
            self.verdict = Some(GitError::CheckSize { found, limit, unit: "bytes unpacked" });
            return ControlFlow::Break(());
        };
        self.left = left;
        self.tail.extend_from_slice(piece);
        if let Some(found) = self.secrets.find(&self.tail, 0) {
            let credential = found.credential.to_string();
            self.verdict = Some(GitError::FindSecret { credential });
            return ControlFlow::Break(());
        }
        let keep = self.secrets.longest().saturating_sub(1).min(self.tail.len());
        self.tail.drain(..self.tail.len() - keep);
        ControlFlow::Continue(())
    }
}

fn within(found: u64, limit: u64, unit: &'static str) -> Result<(), GitError> {
    if found > limit { Err(GitError::CheckSize { found, limit, unit }) } else { Ok(()) }
}

fn shown(path: &[u8]) -> String {
    let path = text::printable(&String::from_utf8_lossy(path));
    text::truncate(&path, SHOWN_BYTES_MAX).to_owned()
}

/// A changed path.
#[derive(Debug, PartialEq, Eq)]
struct Entry<'a> {
    /// Mode after the change.
    mode: &'a str,
    /// Object after the change.
    object: &'a str,
    path: &'a [u8],
}

/// The entries of a raw listing whose fields end with NUL; none for what is not understood.
fn entries(listing: &[u8]) -> impl Iterator<Item = Option<Entry<'_>>> {
    let mut fields = listing.split(|byte| *byte == 0);
    std::iter::from_fn(move || {
        // Between commits stand empty fields and line ends.
        let head = fields.find_map(|field| {
            let field = field.trim_ascii_start();
            (!field.is_empty()).then_some(field)
        })?;
        Some(entry(head, fields.next()))
    })
}

/// `:<mode before> <mode after> <object before> <object after> <letter>` and the path.
fn entry<'a>(head: &'a [u8], path: Option<&'a [u8]>) -> Option<Entry<'a>> {
    let head = std::str::from_utf8(head).ok()?.strip_prefix(':')?;
    let mut words = head.split(' ');
    let (_, mode, _, object, letter) =
        (words.next()?, words.next()?, words.next()?, words.next()?, words.next()?);
    let plain = words.next().is_none() && letter.len() == 1 && mode.len() == MODE_ABSENT.len();
    let path = path.filter(|path| !path.is_empty())?;
    plain.then_some(Entry { mode, object, path })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_raw_listing_is_read_whatever_paths_look_like() {
        let listing = b"\n:100644 100644 a1 b2 M\0src/a b\0:000000 120000 0 c3 A\0:100644 x\0\0\n:160000 000000 d 0 D\0sub\0";
        let read: Vec<_> = entries(listing).collect::<Option<_>>().unwrap();
        let paths: Vec<&[u8]> = read.iter().map(|entry| entry.path).collect();
        assert_eq!(paths, [&b"src/a b"[..], b":100644 x", b"sub"]);
        assert_eq!((read[1].mode, read[1].object), (MODE_LINK, "c3"));
    }

    #[test]
    fn a_listing_that_is_not_understood_is_no_empty_one() {
        for listing in [
            &b"::100644 100644 100644 a b c MM\0x\0"[..],
            b":100644 100644 a b M\0",
            b":100644 100644 a b R100\0x\0y\0",
            b"something else\0",
        ] {
            assert!(entries(listing).any(|entry| entry.is_none()), "{listing:?}");
        }
    }

    #[test]
    fn a_secret_that_the_pieces_cut_is_found_and_too_much_ends_the_look() {
        let secrets = Watchlist::of(&[crate::testing::git_credential("0123456789abcdef")]);
        let mut look = Look::new(&secrets, 1000);
        assert!(look.at(b"xx 01234567").is_continue());
        assert!(look.at(b"8").is_continue());
        assert!(look.at(b"9abcdef yy").is_break());
        assert!(matches!(look.verdict, Some(GitError::FindSecret { .. })));
        let mut look = Look::new(&secrets, 10);
        assert!(look.at(b"0123456789").is_continue() && look.at(b"x").is_break());
        assert!(matches!(look.verdict, Some(GitError::CheckSize { .. })));
    }
}
