//! QEMU's control socket (QMP), as much of it as a person at a PC can do: power, reset, cables, keys, a look at the screen.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// QEMU answers at once; this is for a machine under load.
const ANSWER_TIME: Duration = Duration::from_secs(20);

/// A connection to one QEMU.
#[derive(Debug)]
pub struct Qmp {
    reader: BufReader<UnixStream>,
    guest_resets: Vec<SystemTime>,
}

impl Qmp {
    /// Connects, waiting for QEMU to come up.
    ///
    /// # Errors
    /// When the socket does not answer until `deadline`.
    pub fn connect(path: &Path, deadline: Instant) -> Result<Self> {
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() >= deadline => {
                    return Err(error).with_context(|| format!("connecting to QEMU at {}", path.display()));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        stream.set_read_timeout(Some(ANSWER_TIME))?;
        let mut this = Self {
            reader: BufReader::new(stream),
            guest_resets: Vec::new(),
        };
        this.message()?;
        this.execute("qmp_capabilities", &json!({}))?;
        Ok(this)
    }

    /// When the machine reset itself (not by our button) since we are connected.
    ///
    /// # Errors
    /// When QEMU is gone.
    pub fn guest_resets(&mut self) -> Result<&[SystemTime]> {
        // Events come in order with answers: behind this one nothing older is on its way.
        self.execute("query-status", &json!({}))?;
        Ok(&self.guest_resets)
    }

    /// Runs a command; returns its answer. Of the events that arrive before it only resets are kept.
    ///
    /// # Errors
    /// When QEMU refuses or is gone.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let line = format!("{}\n", json!({"execute": command, "arguments": arguments}));
        self.reader
            .get_mut()
            .write_all(line.as_bytes())
            .with_context(|| format!("sending {command} to QEMU"))?;
        loop {
            let message = self
                .message()
                .with_context(|| format!("waiting for QEMU's answer to {command}"))?;
            if let Some(error) = message.get("error") {
                bail!(
                    "QEMU refused {command}: {}",
                    error["desc"].as_str().unwrap_or("no reason given")
                );
            }
            if let Some(answer) = message.get("return") {
                return Ok(answer.clone());
            }
            if message["event"] == "RESET" && message["data"]["guest"] == true {
                let stamp = &message["timestamp"];
                let micros = stamp["seconds"].as_u64().unwrap_or(0) * 1_000_000
                    + stamp["microseconds"].as_u64().unwrap_or(0);
                self.guest_resets.push(UNIX_EPOCH + Duration::from_micros(micros));
            }
        }
    }

    fn message(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            bail!("QEMU closed its control socket");
        }
        serde_json::from_str(&line).context("QEMU sent something that is not JSON")
    }
}
