//! Pages of the documentation, run: their shell blocks as they stand, but for a table of what stands for
//! what, and the output that they show, held to what the commands really print.

use std::{fs, path::PathBuf, process::Stdio, time::Duration};

use regex::Regex;
use tokio::process::Command;

use super::eventually;

/// Longest time of a page's command, a whole task included, on a busy machine.
const BLOCK_LIMIT: Duration = Duration::from_mins(10);
/// Events and statuses follow what they tell of within seconds.
const SETTLE_LIMIT: Duration = Duration::from_mins(1);
/// Languages of blocks that are run; a page with any other shell language is refused.
const RUN: [&str; 2] = ["sh", "console"];
/// Languages of blocks that are only read.
const READ: [&str; 2] = ["text", "yaml"];

/// What differs from run to run, and a word for it.
const MASKS: [(&str, &str); 10] = [
    (r"\d{4}-\d\d-\d\dT[0-9:.]+Z", "TIME"),
    (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UID"),
    (r"\b[0-9a-f]{40,64}\b", "HASH"),
    // Names that the controller makes: of runs and of their pods.
    (r"-[0-9a-f]{8}\b", "-HASH"),
    // A work branch that was there already gets five more characters.
    (r"\b(ai/[a-z-]+?)-[0-9a-f]{5}\b", "$1"),
    (r"\bnode-[a-z]\b", "NODE"),
    (r"\b([0-9]+[dhms])+\b", "AGE"),
    // An event that came more than once.
    (r" \(x[0-9]+ over AGE\)", ""),
    (r"\b[0-9]+\b", "N"),
    // Columns are as wide as their longest word.
    (r"[ \t]+", " "),
];

/// A shell block, and what the page shows of its output.
pub(crate) struct Block {
    /// As it stands on the page.
    pub(crate) written: String,
    /// The `text` block behind it.
    pub(crate) shown: Option<String>,
}

/// A page below the root of the repository.
pub(crate) struct Page {
    path: PathBuf,
    text: String,
    /// Its shell blocks, in order.
    pub(crate) blocks: Vec<Block>,
}

impl Page {
    /// Reads a page. Fails when it has a block of a language that is neither run nor known as text.
    pub(crate) fn read(path: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path);
        let text = fs::read_to_string(&path).expect("the page");
        let blocks = blocks(&text);
        assert!(!blocks.is_empty(), "{} has no commands", path.display());
        Self { path, text, blocks }
    }

    /// Fails unless each text of the table is on the page; gives the block with the texts replaced.
    pub(crate) fn scripts(&self, stands_for: &[(&str, &str)]) -> Vec<String> {
        let replaced = |text: &str| {
            stands_for.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
        };
        let all: String = self.blocks.iter().map(|block| block.written.as_str()).collect();
        for (from, _) in stands_for {
            assert!(all.contains(from), "{} does not say {from:?}", self.path.display());
        }
        self.blocks.iter().map(|block| replaced(&block.written)).collect()
    }

    /// Holds what the page shows to `printed`. With `AO_WRITE` set, writes it into the page instead.
    pub(crate) fn hold(&mut self, index: usize, printed: &str) -> Result<(), String> {
        let Some(shown) = &self.blocks[index].shown else { return Ok(()) };
        let (wanted, found) = (masked(shown), masked(printed));
        if found.contains(&wanted) {
            return Ok(());
        }
        if std::env::var_os("AO_WRITE").is_none() {
            return Err(format!(
                "{} shows under\n{}\n{wanted}\n\nbut it prints (AO_WRITE=1 accepts it)\n\n{found}",
                self.path.display(),
                self.blocks[index].written
            ));
        }
        let lines: Vec<_> = printed.trim_end().lines().map(str::trim_end).collect();
        let printed = format!("{}\n", lines.join("\n"));
        self.text = self.text.replace(shown.as_str(), &printed);
        fs::write(&self.path, &self.text).expect("the page is written");
        self.blocks[index].shown = Some(printed);
        Ok(())
    }
}

/// Shell blocks with the text block, if any, that is the next block.
fn blocks(page: &str) -> Vec<Block> {
    let mut found: Vec<Block> = Vec::new();
    let mut behind_a_command = false;
    let mut rest = page;
    while let Some((_, block)) = rest.split_once("```") {
        let (language, block) = block.split_once('\n').expect("a line behind the fence");
        let (text, behind) = block.split_once("```").expect("the end of the block");
        rest = behind;
        if RUN.contains(&language) {
            found.push(Block { written: text.to_owned(), shown: None });
        } else {
            assert!(READ.contains(&language), "a block of {language:?} is not run:\n{text}");
            if language == "text" && behind_a_command {
                found.last_mut().expect("a command").shown = Some(text.to_owned());
            }
        }
        behind_a_command = RUN.contains(&language);
    }
    found
}

/// Output without what differs from run to run.
pub(crate) fn masked(text: &str) -> String {
    let text = MASKS.iter().fold(text.to_owned(), |text, (pattern, word)| {
        Regex::new(pattern).expect("a pattern").replace_all(&text, *word).into_owned()
    });
    let mut lines: Vec<&str> = text.trim_end().lines().map(str::trim_end).collect();
    // Events of one second come in any order.
    if let Some(events) = lines.iter().position(|line| *line == "Events:") {
        lines[events..].sort_unstable();
    }
    lines.join("\n")
}

/// Runs a script with bash, which ends at the first failure; what it printed on standard output.
pub(crate) async fn bash(script: &str, environment: &[(&str, &str)]) -> Result<String, String> {
    let whole = format!("trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{script}");
    let run = Command::new("bash")
        .args(["-euo", "pipefail", "-c", &whole])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(BLOCK_LIMIT, run).await;
    let output = output.map_err(|_| format!("does not end: {script}"))?.expect("bash runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(said) } else { Err(format!("{script}\n{said}\n{errors}")) }
}

/// Runs each block of the page by itself; what it prints has a moment to become what the page shows.
pub(crate) async fn run_each(
    path: &str,
    stands_for: &[(&str, &str)],
    environment: &[(&str, &str)],
) {
    let mut page = Page::read(path);
    for (index, script) in page.scripts(stands_for).into_iter().enumerate() {
        if page.blocks[index].shown.is_none() {
            bash(&script, environment).await.unwrap_or_else(|error| panic!("{path}: {error}"));
            continue;
        }
        let page = tokio::sync::Mutex::new(&mut page);
        eventually(&format!("{path} shows what is printed"), SETTLE_LIMIT, || async {
            let printed = bash(&script, environment).await?;
            page.lock().await.hold(index, &printed)
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::{blocks, masked};

    #[test]
    fn a_shell_block_knows_the_output_that_follows_it() {
        let page = "a\n```sh\nkubectl get x\n```\nprose\n```text\nNAME\n```\n```yaml\na: b\n```\n\
                    ```console\nls\n```\n```yaml\na: b\n```\n```text\nno output\n```\n";
        let found = blocks(page);
        let found: Vec<_> =
            found.iter().map(|b| (b.written.as_str(), b.shown.as_deref())).collect();
        assert_eq!(found, [("kubectl get x\n", Some("NAME\n")), ("ls\n", None)]);
    }

    #[test]
    #[should_panic(expected = "is not run")]
    fn a_block_that_nobody_runs_is_refused() {
        blocks("```bash\nrm -rf /\n```\n");
    }

    #[test]
    fn what_differs_from_run_to_run_is_masked_and_nothing_else() {
        let one = "NAME   AGE\nx-plan-1-22b00551  7m3s node-a ai/add-login-0a1b2 2026-11-22T22:25:37.168Z";
        let two = "NAME AGE\nx-plan-1-5ffa0123 11s   node-b ai/add-login 2027-01-02T03:04:05Z  ";
        assert_eq!(masked(one), masked(two));
        assert_ne!(masked(one), masked(&two.replace("plan", "test")));
        assert_eq!(masked("Events:\n b 3s (x2 over 9s)\n a 1s"), masked("Events:\n a 2s\n b 1s"));
        assert_ne!(masked("Events:\n a 1s"), masked("Events:\n a 1s\n b 1s"));
    }
}
