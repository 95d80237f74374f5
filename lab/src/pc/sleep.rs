//! A PC that sleeps: switched off, but its network card listens on the cable for a magic packet, as in a soft-off PC with
//! Wake-on-LAN. Must not be told by anybody that it is to wake up: only the packet does that.

use std::io::Read;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{LOOK, Pc};
use crate::machine::Files;

impl Pc {
    /// Waits until the running system has switched the PC off.
    ///
    /// # Errors
    /// When it does not until the deadline.
    pub fn wait_off(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while self.is_on() {
            ensure!(
                Instant::now() < deadline,
                "{} did not go off within {limit:?}",
                self.name()
            );
            std::thread::sleep(LOOK);
        }
        self.power_off()
    }

    /// Lets the network card of the PC, which is off, listen on its own tap.
    ///
    /// # Errors
    /// When the PC is on, or the tap cannot be opened.
    pub fn sleep(&mut self) -> Result<()> {
        ensure!(self.power.is_none(), "{} is on", self.name());
        let tap = self.taps.first().context("a PC has a NIC")?;
        let frames = std::fs::File::create(self.files.heard_asleep())?;
        let child = self
            .room
            .command("socat")
            .args([
                "-u",
                &format!("TUN,tun-type=tap,tun-name={tap},iff-no-pi,iff-up"),
                "STDOUT",
            ])
            .stdin(Stdio::null())
            .stdout(frames)
            .spawn()
            .context("starting socat (ci/prepare installs what the lab needs)")?;
        self.listener = Some(child);
        Ok(())
    }

    /// Waits for a magic packet for this PC, then switches it on, as its power supply would.
    ///
    /// # Errors
    /// When none comes until the deadline, or the PC does not start.
    pub fn wait_woken(&mut self, limit: Duration) -> Result<()> {
        ensure!(self.listener.is_some(), "{} does not sleep", self.name());
        let magic = magic_packet(self.macs[0]);
        let deadline = Instant::now() + limit;
        while !heard(&self.files, &magic)? {
            ensure!(
                Instant::now() < deadline,
                "{}: no magic packet within {limit:?}",
                self.name()
            );
            std::thread::sleep(LOOK);
        }
        self.power_on()
    }

    pub(super) fn stop_listening(&mut self) -> Result<()> {
        if let Some(mut child) = self.listener.take() {
            child.kill().context("ending socat")?;
            child.wait()?;
        }
        Ok(())
    }
}

/// What wakes a card: six bytes of ones, then its address sixteen times, anywhere in a frame (AMD, Magic Packet Technology).
fn magic_packet(mac: [u8; 6]) -> Vec<u8> {
    [0xff; 6].into_iter().chain(mac.repeat(16)).collect()
}

fn heard(files: &Files, magic: &[u8]) -> Result<bool> {
    let mut frames = Vec::new();
    std::fs::File::open(files.heard_asleep())?.read_to_end(&mut frames)?;
    Ok(frames.windows(magic.len()).any(|window| window == magic))
}
