//! Which command tests a repository, and running it. Its exit code is the verdict.

use std::path::Path;

use agent_operator::domain::{
    Reason,
    detect::{PROJECT_FILE_BYTES_MAX, Root, test_commands},
    limits::OUTPUT_BYTES_MAX,
    report::StepFacts,
};

use crate::{
    confine::{EXIT_NOT_FOUND, Invocation},
    context::Context,
    output::Shown,
    process::Errors,
    result::{Failure, StepEnd},
};

/// Tests the work tree with `given`, or with what the repository looks like.
pub(crate) fn verify(
    context: &Context<'_>,
    directory: &Path,
    given: Option<&[String]>,
) -> Result<StepEnd, Failure> {
    let commands = match given {
        Some(command) if !command.is_empty() => vec![command.to_vec()],
        _ => test_commands(&WorkTree(directory)).ok_or_else(|| {
            let message = "no test command is given and none was found in the repository; \
                           set spec.test.command";
            Failure::new(Reason::Unverifiable, message)
        })?,
    };
    let mut end = None;
    for command in commands {
        let finished = run(context, directory, command)?;
        let failed = finished.reason != Reason::Completed;
        end = Some(finished);
        if failed {
            break;
        }
    }
    end.ok_or_else(|| Failure::new(Reason::Unverifiable, "the test command is empty"))
}

fn run(context: &Context<'_>, directory: &Path, command: Vec<String>) -> Result<StepEnd, Failure> {
    let shown = shell_words(&command);
    context.status(&format!("running {shown}"));
    let mut environment = context.base_environment();
    context.add_proxy(&mut environment);
    // Test runners then run once, without watching and without asking.
    environment.insert("CI".to_owned(), "true".into());
    let invocation = Invocation {
        command: command.clone(),
        directory: directory.to_owned(),
        environment,
        only_port: None,
    };
    let mut output = Shown::new(context.printer, OUTPUT_BYTES_MAX);
    let ended = context
        .run(&invocation, b"", &mut output, Errors::Merged)
        .map_err(|error| Failure::new(Reason::VerifyFailed, error.to_string()))?;
    let exit_code = ended.exit_code;
    let (reason, message) = match exit_code {
        0 => (Reason::Completed, format!("`{shown}` passed")),
        EXIT_NOT_FOUND => {
            (Reason::VerifyFailed, format!("`{shown}` exited with 127: is it in the agent image?"))
        }
        code => (Reason::VerifyFailed, format!("`{shown}` exited with {code}")),
    };
    context.status(&message);
    let facts =
        StepFacts { output: Some(output.finish()), command: Some(command), ..StepFacts::default() };
    let mut end = StepEnd::completed(message, facts);
    (end.reason, end.exit_code) = (reason, exit_code);
    // Tests that were cut off have no verdict, whatever code they left.
    Ok(match ended.stopped {
        Some(stopping) => StepEnd { facts: end.facts, ..Failure::from(stopping).into() },
        None => end,
    })
}

/// The work tree's root.
struct WorkTree<'a>(&'a Path);

impl Root for WorkTree<'_> {
    fn has(&self, name: &str) -> bool {
        self.0.join(name).exists()
    }

    fn read(&self, name: &str) -> Option<String> {
        crate::files::read_bounded(&self.0.join(name), PROJECT_FILE_BYTES_MAX).ok()
    }
}

/// The command as one would type it.
pub(crate) fn shell_words(command: &[String]) -> String {
    let quote = |word: &String| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-+=:,/@%".contains(&byte);
        if !word.is_empty() && word.bytes().all(plain) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    command.iter().map(quote).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_work_tree_says_how_it_is_tested() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(test_commands(&WorkTree(directory.path())), None);
        let package = r#"{"scripts": {"test": "node --test"}}"#;
        fs::write(directory.path().join("package.json"), package).unwrap();
        let commands = test_commands(&WorkTree(directory.path())).unwrap();
        assert_eq!(commands, [["npm", "test"]]);
    }

    #[test]
    fn commands_are_shown_as_typed() {
        let command = ["sh", "-c", "it's done"].map(str::to_owned);
        assert_eq!(shell_words(&command), r"sh -c 'it'\''s done'");
    }
}
