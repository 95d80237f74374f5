//! The image's own word on whether it works on this PC: its health command, tried until it succeeds. Must not touch services.

use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::processes::{Program, end_all, spawn};

/// So long the command may fail before the image is taken for unhealthy: services need a moment, and a PC under test is slow.
pub(crate) const BOUND: Duration = Duration::from_secs(60);
/// Between two attempts.
const PAUSE: Duration = Duration::from_secs(1);
/// For the rest of what it said, once everything that could say more has been ended.
const LAST_WORDS: Duration = Duration::from_secs(1);
const CONTROL_GROUP: &str = "/sys/fs/cgroup/cid-health";
/// Longest line of it that is told, in bytes.
const MAX_LINE: usize = 160;

/// Runs `command` in the root until it ends with status 0. `says` hears why it did not yet.
///
/// # Errors
/// It did not within [`BOUND`]: how its last attempt ended, and its last line.
pub(crate) async fn wait(command: &[String], says: impl Fn(&str)) -> Result<(), String> {
    let until = Instant::now() + BOUND;
    loop {
        let Err(why) = once(command, until).await else {
            return Ok(());
        };
        if Instant::now() + PAUSE >= until {
            return Err(why);
        }
        says(&why);
        sleep(PAUSE).await;
    }
}

async fn once(command: &[String], until: Instant) -> Result<(), String> {
    let name = command.first().cloned().unwrap_or_default();
    let group = Path::new(CONTROL_GROUP);
    end_all(group);
    let program = Program {
        command: command.to_vec(),
        user: "root".to_owned(),
        environment: Vec::new(),
        control_group: Some(group.to_owned()),
    };
    let (mut child, output) = spawn(program).map_err(|error| format!("{name} does not start: {error:#}"))?;
    let words = tokio::spawn(last_line(output));
    let status = tokio::task::spawn_blocking(move || child.wait());
    let status = timeout_at(until, status).await;
    // Its children, too; and itself when it is late, so that the thread which waits for it comes to an end.
    end_all(group);
    let words = timeout(LAST_WORDS, words).await;
    let words = words.ok().and_then(Result::ok).unwrap_or_default();
    let how = match status {
        Ok(Ok(Ok(status))) if status.success() => return Ok(()),
        Ok(Ok(Ok(status))) => format!("ended with {status}"),
        Ok(_) => "is lost".to_owned(),
        Err(_) => format!("has not ended within {} s", BOUND.as_secs()),
    };
    Err(match words.is_empty() {
        true => format!("{name} {how}"),
        false => format!("{name} {how}: {words}"),
    })
}

/// The last line that is not empty, as a person can read it.
async fn last_line(mut output: pipe::Receiver) -> String {
    let (mut line, mut last, mut buffer) = (Vec::new(), Vec::new(), [0_u8; 1024]);
    while let Ok(length @ 1..) = output.read(&mut buffer).await {
        for byte in buffer.get(..length).unwrap_or_default() {
            match byte {
                b'\n' if line.is_empty() => {}
                b'\n' => last = std::mem::take(&mut line),
                byte if line.len() < MAX_LINE => line.push(*byte),
                _ => {}
            }
        }
    }
    let line = if line.is_empty() { last } else { line };
    let text = String::from_utf8_lossy(&line).replace(|letter: char| letter.is_control(), " ");
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[tokio::test]
    async fn the_last_line_is_told() {
        for (said, wanted) in [
            ("", ""),
            ("one\ntwo\n\n", "two"),
            ("one\nno end", "no end"),
            ("a\tb\x1b[1m\n", "a b [1m"),
            (&"x".repeat(500), &"x".repeat(MAX_LINE)),
        ] {
            let (reader, mut writer) = std::io::pipe().unwrap();
            writer.write_all(said.as_bytes()).unwrap();
            drop(writer);
            let reader = pipe::Receiver::from_owned_fd(reader.into()).unwrap();
            assert_eq!(last_line(reader).await, wanted);
        }
    }
}
