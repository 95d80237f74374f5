//! Runs a helper program to its end and keeps its words for the error.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Runs `command`; returns what it printed.
///
/// # Errors
/// When it cannot be started, with the hint to run `ci/prepare`; when it fails, with what it said.
pub fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {program} (ci/prepare installs what the lab needs)"))?;
    if !output.status.success() {
        bail!(
            "{} ({}): {}",
            line(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ")
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The command as a person would type it.
#[must_use]
pub fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| quote(&word.to_string_lossy()))
        .collect::<Vec<_>>()
        .join(" ")
}

/// One word, quoted for a POSIX shell where it must be.
#[must_use]
pub fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_was_run_and_what_it_said() {
        let error = run(Command::new("sh").args(["-c", "echo no room >&2; exit 3"]))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("no room") && error.contains("exit status: 3"),
            "{error}"
        );
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(quote("a b"), "'a b'");
        assert_eq!(quote("it's"), r"'it'\''s'");
        assert_eq!(quote("file=/x,y"), "file=/x,y");
    }
}
