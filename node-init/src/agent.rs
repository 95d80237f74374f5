//! The agent as a process: how it is started, spoken to and ended.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use cid_protocol::supervision::{AGENT_FD, FromAgent, FromInit, MAX_LINE};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::console;

const PROGRAM: &str = "/sbin/cid-agent";

/// A running agent.
pub(crate) struct Agent {
    pid: Pid,
    socket: UnixStream,
    lines: Lines,
}

impl Agent {
    /// Starts it in a process group of its own, with its end of the socket pair as descriptor 3.
    pub(crate) fn start() -> std::io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let output = || console::log_handle().map_or_else(Stdio::null, |file: File| Stdio::from(file));
        let mut command = Command::new(PROGRAM);
        command
            .stdin(Stdio::null())
            .stdout(output())
            .stderr(output())
            .process_group(0)
            .env_clear();
        command.env("PATH", "/sbin:/bin:/usr/sbin:/usr/bin");
        cid_sys::descriptors::hand_on(&mut command, theirs.into(), AGENT_FD);
        cid_sys::signals::unblock_all(&mut command);
        // Not waited for here: the one reaper is in `run`.
        let child = command.spawn()?;
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
        Ok(Self {
            pid,
            socket: ours,
            lines: Lines::default(),
        })
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What it said since the last call.
    pub(crate) fn read(&mut self) -> Vec<FromAgent> {
        let mut buffer = [0_u8; 2048];
        let mut messages = Vec::new();
        loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => messages.extend(self.lines.take(buffer.get(..length).unwrap_or_default())),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        messages
    }

    /// Tells it something; an agent that does not listen is found by its silence.
    pub(crate) fn tell(&mut self, message: &FromInit) {
        let _ = self
            .socket
            .write_all(format!("{}\n", message.to_line()).as_bytes());
    }

    /// Ends it and what it started.
    pub(crate) fn kill(&self) {
        let _ = killpg(self.pid, Signal::SIGKILL);
    }
}

/// Cuts a stream into lines; one above [`MAX_LINE`] is dropped whole.
#[derive(Default)]
struct Lines {
    line: Vec<u8>,
    overlong: bool,
}

impl Lines {
    fn take(&mut self, bytes: &[u8]) -> Vec<FromAgent> {
        let mut messages = Vec::new();
        for byte in bytes {
            if *byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                if !std::mem::take(&mut self.overlong) {
                    messages.extend(std::str::from_utf8(&line).ok().and_then(FromAgent::parse));
                }
            } else if self.line.len() + 1 < MAX_LINE {
                self.line.push(*byte);
            } else {
                self.overlong = true;
            }
        }
        messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_in_pieces_and_overlong_ones_are_dropped() {
        let mut lines = Lines::default();
        assert_eq!(lines.take(b"ali"), []);
        assert_eq!(
            lines.take(b"ve\nup lab-a01\nnoise\n"),
            [FromAgent::Alive, FromAgent::Up("lab-a01".into())]
        );
        let long = [b"home ".to_vec(), vec![b'x'; 2000], b"\nalive\n".to_vec()].concat();
        assert_eq!(lines.take(&long), [FromAgent::Alive]);
        assert_eq!(lines.take(b"status \xff\n"), []);
    }
}
