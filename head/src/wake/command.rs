//! The administrator's own program that switches a PC on: an argument vector, run without a shell, bounded in time, output and
//! number. Must never hand it more than the PC's name, MAC, address and group.

use std::fmt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::{Attempt, PowerControl, Target, WakeError};
use crate::registry::tame;

/// How long it may take.
pub const BOUND: Duration = Duration::from_secs(30);
/// How many run at once; management controllers and their networks are slow.
const AT_ONCE: usize = 8;
/// Bytes of stderr kept: the last ones.
const KEPT: usize = 4_096;
/// Longest line told of stderr.
const MAX_SAID: usize = 200;
/// How long stderr is waited for when the program has ended: it may have left a child behind that holds it.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// Longest command, in bytes.
const MAX_COMMAND: usize = 1_024;

/// Words that are filled in, and what becomes of them in the environment.
const PLACEHOLDERS: [(&str, &str); 4] = [
    ("{name}", "CID_NAME"),
    ("{mac}", "CID_MAC"),
    ("{address}", "CID_ADDRESS"),
    ("{group}", "CID_GROUP"),
];

/// Why a command of `head.toml` is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadCommand {
    /// It does not begin with `/`.
    #[error("`{0}` does not begin with an absolute path; a service has no PATH to speak of")]
    NotAbsolute(String),
    /// Somebody expects a shell.
    #[error(
        "`{0}` has no meaning here: the command is run without a shell; put what needs one into a script"
    )]
    NoShell(char),
    /// A word in braces that nobody fills in.
    #[error("`{0}` is not filled in; there are {{name}}, {{mac}}, {{address}} and {{group}}")]
    Placeholder(String),
    /// Too long.
    #[error("the command is longer than {MAX_COMMAND} bytes; put it into a script")]
    TooLong,
}

/// A command as `head.toml` has it: words with placeholders in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WakeCommand {
    words: Vec<String>,
}

impl WakeCommand {
    /// Splits at blanks.
    ///
    /// # Errors
    /// See [`BadCommand`].
    pub fn parse(text: &str) -> Result<Self, BadCommand> {
        if text.len() > MAX_COMMAND {
            return Err(BadCommand::TooLong);
        }
        let of_shells = |c: &char| "\"'\\$`|&;<>()*?~#".contains(*c) || (c.is_control() && *c != '\t');
        if let Some(found) = text.chars().find(of_shells) {
            return Err(BadCommand::NoShell(found));
        }
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        let first = words.first().cloned().unwrap_or_default();
        if !first.starts_with('/') || first.contains('{') {
            return Err(BadCommand::NotAbsolute(first));
        }
        for word in &words {
            let mut rest = word.clone();
            for (placeholder, _) in PLACEHOLDERS {
                rest = rest.replace(placeholder, "");
            }
            if let Some(start) = rest.find(['{', '}']) {
                let unknown = rest.get(start..).unwrap_or_default().to_owned();
                return Err(BadCommand::Placeholder(unknown));
            }
        }
        Ok(Self { words })
    }

    /// The program.
    pub fn program(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    /// Whether the program is there and can be run, by anybody at all.
    ///
    /// # Errors
    /// Why not, in plain words.
    pub fn look(&self) -> Result<(), String> {
        use std::os::unix::fs::PermissionsExt;
        let found = std::fs::metadata(self.program()).map_err(|error| error.to_string())?;
        match found.permissions().mode() & 0o111 {
            _ if !found.is_file() => Err("it is no file".to_owned()),
            0 => Err("it is not executable; `chmod +x` it".to_owned()),
            _ => Ok(()),
        }
    }

    fn command(&self, target: &Target) -> Command {
        let address = target.address.map(|address| address.to_string());
        let values = [
            target.name.clone(),
            target.mac.to_string(),
            address.unwrap_or_default(),
            target.group.clone(),
        ];
        let fill = |word: &String| {
            let pairs = PLACEHOLDERS.iter().zip(&values);
            pairs.fold(word.clone(), |word, ((placeholder, _), value)| {
                word.replace(placeholder, value)
            })
        };
        let mut command = Command::new(self.program());
        command.args(self.words.iter().skip(1).map(fill)).env_clear();
        command.env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        );
        for ((_, variable), value) in PLACEHOLDERS.iter().zip(&values) {
            command.env(variable, value);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // A group of its own: what it starts is ended with it.
        command.stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
        command
    }
}

impl fmt::Display for WakeCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words.join(" "))
    }
}

/// Runs the command of a PC's group.
pub struct CommandHook {
    running: Semaphore,
    bound: Duration,
}

impl Default for CommandHook {
    fn default() -> Self {
        Self {
            running: Semaphore::new(AT_ONCE),
            bound: BOUND,
        }
    }
}

impl PowerControl for CommandHook {
    fn wake<'a>(&'a self, target: &'a Target) -> Attempt<'a> {
        Box::pin(async {
            let Some(command) = &target.command else {
                return Ok(None);
            };
            // Never closed; if it were, the program would be run all the same.
            let _place = self.running.acquire().await.ok();
            run(command, target, self.bound).await
        })
    }
}

async fn run(command: &WakeCommand, target: &Target, bound: Duration) -> Result<Option<String>, WakeError> {
    let start = |source| WakeError::Start {
        program: command.program().to_owned(),
        source,
    };
    let mut child = command.command(target).spawn().map_err(start)?;
    let group = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .map(Pid::from_raw);
    let mut words = LastWords::new(child.stderr.take());
    match timeout(bound, end(&mut child, &mut words)).await {
        Ok(Ok(status)) if status.success() => {
            let said = words.said();
            Ok(Some(format!("its wake command ended with status 0{said}")))
        }
        Ok(Ok(status)) => Err(WakeError::Failed {
            how: how(status),
            said: words.said(),
        }),
        Ok(Err(source)) => Err(start(source)),
        Err(_) => {
            if let Some(group) = group {
                let _ = killpg(group, Signal::SIGKILL);
            }
            // Collects it; a killed child ends.
            let _ = child.wait().await;
            Err(WakeError::TooLong { said: words.said() })
        }
    }
}

/// Waits for the end while stderr is read: a full pipe would stop it.
async fn end(child: &mut Child, words: &mut LastWords) -> std::io::Result<ExitStatus> {
    let status = tokio::select! {
        status = child.wait() => status?,
        () = words.read() => return child.wait().await,
    };
    let _ = timeout(LAST_WORDS, words.read()).await;
    Ok(status)
}

fn how(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended in an unknown way".to_owned(),
    }
}

/// The last bytes of stderr.
struct LastWords {
    stderr: Option<ChildStderr>,
    kept: Vec<u8>,
}

impl LastWords {
    fn new(stderr: Option<ChildStderr>) -> Self {
        let kept = Vec::new();
        Self { stderr, kept }
    }

    /// Reads to the end.
    async fn read(&mut self) {
        let mut buffer = [0; 1_024];
        while let Some(stderr) = &mut self.stderr {
            match stderr.read(&mut buffer).await {
                Ok(0) | Err(_) => self.stderr = None,
                Ok(length) => {
                    self.kept
                        .extend_from_slice(buffer.get(..length).unwrap_or_default());
                    let surplus = self.kept.len().saturating_sub(KEPT);
                    self.kept.drain(..surplus);
                }
            }
        }
    }

    /// The last line behind a colon; nothing when there is none.
    fn said(&self) -> String {
        let text = String::from_utf8_lossy(&self.kept);
        let last = text.lines().rev().map(|line| tame(line, MAX_SAID));
        let line = last.into_iter().find(|line| !line.is_empty());
        line.map_or_else(String::new, |line| format!(": {line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mac::Mac;

    fn target(script: &str, folder: &std::path::Path) -> Target {
        use std::os::unix::fs::PermissionsExt;
        let path = folder.join("power-on");
        // By another name first: a file that is open for writing cannot be run.
        let unready = folder.join("unready");
        std::fs::write(&unready, format!("#!/bin/sh\n{script}\n")).expect("written");
        std::fs::set_permissions(&unready, std::fs::Permissions::from_mode(0o755)).expect("permitted");
        std::fs::rename(&unready, &path).expect("renamed");
        let command = WakeCommand::parse(&format!("{} on {{name}}/{{mac}}", path.display()));
        Target {
            mac: Mac([2, 0, 0, 0, 0, 1]),
            name: "lab-a01".to_owned(),
            group: "lab-a".to_owned(),
            address: Some([10, 77, 0, 130].into()),
            subnets: Vec::new(),
            command: Some(command.expect("a command")),
        }
    }

    async fn outcome(script: &str, bound: Duration) -> String {
        let folder = tempfile::tempdir().expect("folder");
        let target = target(script, folder.path());
        let hook = CommandHook {
            bound,
            ..CommandHook::default()
        };
        match hook.wake(&target).await {
            Ok(text) => text.unwrap_or_default(),
            Err(error) => error.to_string(),
        }
    }

    #[tokio::test]
    async fn it_gets_the_pc_and_its_end_is_told_with_its_last_line() {
        for (script, expected) in [
            ("exit 0", "its wake command ended with status 0"),
            (
                "echo first >&2; echo no such chassis >&2; echo >&2; exit 3",
                "its wake command ended with status 3: no such chassis",
            ),
            ("kill -9 $$", "its wake command was killed by signal 9"),
            (
                "echo \"$1 $2 $CID_NAME $CID_MAC $CID_ADDRESS $CID_GROUP ${HOME-none}\" >&2",
                "its wake command ended with status 0: on lab-a01/02:00:00:00:00:01 lab-a01 02:00:00:00:00:01 10.77.0.130 lab-a none",
            ),
            (
                "head -c 200000 /dev/zero | tr '\\0' 'x' >&2; echo >&2; echo much >&2",
                "its wake command ended with status 0: much",
            ),
        ] {
            assert_eq!(outcome(script, BOUND).await, expected, "{script}");
        }
    }

    #[tokio::test]
    async fn one_that_hangs_is_killed_with_all_that_it_started() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("pid");
        let script = format!("sleep 600 & echo $! >{}; echo waiting >&2; wait", file.display());
        let told = outcome(&script, Duration::from_millis(700)).await;
        assert!(told.ends_with("s: waiting"), "{told}");
        let pid = std::fs::read_to_string(&file).expect("it ran");
        let alive = || {
            let state = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
            // A zombie is dead: who reaps it is none of ours.
            !state.is_empty() && !state.contains(") Z")
        };
        for _ in 0..500 {
            if !alive() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("its child {pid} lives on");
    }

    #[tokio::test]
    async fn a_child_left_behind_that_holds_stderr_keeps_nobody_waiting() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("pid");
        let script = format!("sleep 20 & echo $! >{}; echo done >&2; exit 0", file.display());
        let begun = std::time::Instant::now();
        assert_eq!(
            outcome(&script, BOUND).await,
            "its wake command ended with status 0: done"
        );
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
        let pid: i32 = std::fs::read_to_string(&file)
            .expect("it ran")
            .trim()
            .parse()
            .expect("a number");
        let _ = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_told() {
        let folder = tempfile::tempdir().expect("folder");
        let mut target = target("exit 0", folder.path());
        assert_eq!(target.command.as_ref().map(WakeCommand::look), Some(Ok(())));
        let there = WakeCommand::parse(&folder.path().display().to_string()).expect("a command");
        assert_eq!(there.look(), Err("it is no file".to_owned()));
        target.command = Some(WakeCommand::parse("/does/not/exist {mac}").expect("a command"));
        let error = CommandHook::default().wake(&target).await.map(|_| ());
        assert!(matches!(error, Err(WakeError::Start { .. })), "{error:?}");
    }

    #[test]
    fn a_command_is_words_and_nothing_of_a_shell() {
        let good = "/usr/bin/ipmitool -H bmc-{name}.lab.example -f /etc/cid/bmc power on";
        assert_eq!(
            WakeCommand::parse(good).map(|c| c.to_string()).as_deref(),
            Ok(good)
        );
        for (text, expected) in [
            ("", BadCommand::NotAbsolute(String::new())),
            ("ipmitool on", BadCommand::NotAbsolute("ipmitool".into())),
            ("/{name}/x", BadCommand::NotAbsolute("/{name}/x".into())),
            ("/bin/x 'a b'", BadCommand::NoShell('\'')),
            ("/bin/x; rm", BadCommand::NoShell(';')),
            ("/bin/x {host}", BadCommand::Placeholder("{host}".into())),
            ("/bin/x {name", BadCommand::Placeholder("{name".into())),
        ] {
            assert_eq!(WakeCommand::parse(text), Err(expected), "{text}");
        }
        let long = format!("/bin/x {}", "a".repeat(MAX_COMMAND));
        assert_eq!(WakeCommand::parse(&long), Err(BadCommand::TooLong));
    }
}
