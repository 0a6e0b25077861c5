//! What the agent's own commits say, byte by byte, and whether the gateway will take it.

use agent_operator::domain::commit_text;

use super::Workspace;
use crate::{context::Context, process::Sink, result::Failure};

/// Names and message of a commit, and a byte that stands in neither.
const FORMAT: &str = "--format=%an <%ae>%n%cn <%ce>%n%B%x00";
/// Most of it that is looked at: far more than anybody reads.
const BYTES_MAX: usize = 1024 * 1024;

/// A child's first bytes as they are.
#[derive(Default)]
struct Raw {
    bytes: Vec<u8>,
    /// Whether there were more.
    cut: bool,
}

impl Sink for Raw {
    fn take(&mut self, bytes: &[u8]) {
        let room = BYTES_MAX - self.bytes.len();
        self.cut |= bytes.len() > room;
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

impl Workspace {
    /// Why the gateway would not take the messages of the agent's commits; none when it will, as far
    /// as can be told here. Commits that came from the forge are not the agent's.
    pub(super) fn objection(&self, context: &Context<'_>) -> Result<Option<&'static str>, Failure> {
        let range = format!("{}..HEAD", context.spec.repository.start_commit);
        let arguments = ["log", FORMAT, &range, "--not", "--remotes"];
        let mut raw = Raw::default();
        let (exit_code, _) = self.git_into(context, &arguments, b"", &mut raw, &|| false)?;
        if exit_code != 0 || raw.cut {
            return Ok(Some("messages that git cannot show"));
        }
        let objection = |message: &[u8]| match std::str::from_utf8(message) {
            Ok(message) => commit_text::objection(message),
            Err(_) => Some("a message that is not UTF-8"),
        };
        Ok(raw.bytes.split(|byte| *byte == 0).find_map(objection))
    }
}
