//! A lab PC that is plugged in: power switch, cable, keyboard, and what can be seen of it from outside.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::firmware_variables::{Difference, FirmwareVariables};
use crate::head::Control;
use crate::machine::{Files, Machine, NETWORK_ENTRY, hex};
use crate::qmp::Qmp;
use crate::room::Room;
use crate::run::line;
use crate::windows::{Windows, sha256};

/// How long firmware may take to reach a disk that is first in its order, under software emulation with company.
const SETTLE_TIME: Duration = Duration::from_secs(120);
/// How often facts are looked at.
const LOOK: Duration = Duration::from_millis(200);

/// A PC. It is switched off when the value is dropped.
#[derive(Debug)]
pub struct Pc {
    machine: Machine,
    files: Files,
    macs: Vec<[u8; 6]>,
    taps: Vec<String>,
    room: Arc<Room>,
    power: Option<(Child, Qmp)>,
    powered_on: SystemTime,
    windows_seen: usize,
    disk_before: String,
    variables_before: Option<FirmwareVariables>,
    pub(crate) control: Option<Control>,
}

impl Pc {
    /// Builds the PC with its disk and firmware settings; it is off.
    ///
    /// # Errors
    /// When a file cannot be made; for a settled PC also when its first boot fails.
    pub fn build(room: &Arc<Room>, windows: &Windows, machine: Machine, number: u8) -> Result<Self> {
        let name = machine.name.clone().unwrap_or_else(|| format!("pc{number}"));
        let files = Files {
            dir: room.dir().to_owned(),
            name,
        };
        let count = u8::try_from(machine.nic_count())?;
        let macs: Vec<[u8; 6]> = (0..count)
            .map(|nic| [0x52, 0x54, 0x00, 0xc1, nic, number])
            .collect();
        let partition = windows.write_disk(&files.disk(), u64::from(number))?;
        if machine.has_variables() {
            machine.write_variables(&files.variables(), windows, &partition, macs[0])?;
        }
        let taps = (0..count).map(|_| room.tap()).collect::<Result<_>>()?;
        let mut this = Self {
            disk_before: sha256(&files.disk())?,
            room: Arc::clone(room),
            machine,
            files,
            macs,
            taps,
            power: None,
            powered_on: SystemTime::now(),
            windows_seen: 0,
            variables_before: None,
            control: None,
        };
        if this.machine.settled && this.machine.has_variables() {
            this.settle()?;
        }
        this.remember()?;
        Ok(this)
    }

    /// Lets firmware list its devices, then puts the network first in its order, as a person in setup would.
    fn settle(&mut self) -> Result<()> {
        self.power_on()?;
        self.wait_windows(SETTLE_TIME).context("settling the firmware")?;
        self.power_off()?;
        let mut variables = FirmwareVariables::read(&self.files.variables())?;
        let others = variables.boot_order().into_iter().filter(|number| *number > 1);
        let order: Vec<u16> = [0, 1].into_iter().chain(others).collect();
        variables.set_boot_order(&order)?;
        let entries = variables.boot_entries();
        ensure!(
            entries.first().is_some_and(|first| first == NETWORK_ENTRY),
            "firmware changed our boot entries: {entries:?}"
        );
        variables.write(&self.files.variables())?;
        Ok(())
    }

    fn remember(&mut self) -> Result<()> {
        if self.machine.has_variables() {
            self.variables_before = Some(FirmwareVariables::read(&self.files.variables())?);
        }
        Ok(())
    }

    /// Its name in the room.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.files.name
    }

    /// What it is made of.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Its files.
    #[must_use]
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// MAC of the NIC it boots from, as the head writes it.
    #[must_use]
    pub fn mac(&self) -> String {
        hex(&self.macs[0], ":")
    }

    /// MAC of NIC `number`, as the head writes it.
    #[must_use]
    pub fn mac_of(&self, number: usize) -> String {
        self.macs.get(number).map(|mac| hex(mac, ":")).unwrap_or_default()
    }

    /// Whether its firmware had been run before boot order was set ([`Machine::settled`]).
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.machine.settled
    }

    /// When it was last switched on.
    #[must_use]
    pub fn powered_on(&self) -> SystemTime {
        self.powered_on
    }

    /// Presses the power switch of a PC that is off.
    ///
    /// # Errors
    /// When it is on, or QEMU does not start; QEMU's words are in the error.
    pub fn power_on(&mut self) -> Result<()> {
        ensure!(self.power.is_none(), "{} is on already", self.name());
        let mut command = self.room.command("qemu-system-x86_64");
        self.machine
            .arguments(&mut command, &self.files, &self.taps, &self.macs)?;
        if !self.room.is_captured() {
            let dump = format!(
                "filter-dump,id=dump0,netdev=net0,file={}",
                self.files.capture().display()
            );
            command.args(["-object", &dump]);
        }
        fs::write(self.files.command_line(), self.pasteable(&line(&command)))?;
        // A socket of an earlier life would let us talk to nobody.
        let _ = fs::remove_file(self.files.qmp());
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.files.qemu_log())?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting QEMU (ci/prepare installs what the lab needs)")?;
        self.powered_on = SystemTime::now();
        match Qmp::connect(&self.files.qmp(), Instant::now() + Duration::from_secs(20)) {
            Ok(qmp) => {
                self.power = Some((child, qmp));
                Ok(())
            }
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                let said = fs::read_to_string(self.files.qemu_log()).unwrap_or_default();
                Err(error.context(format!("{}: QEMU said: {}", self.name(), said.trim())))
            }
        }
    }

    /// The command line for a shell outside of the room: QEMU's own network in place of the room's, which dies with it.
    fn pasteable(&self, line: &str) -> String {
        let program = line.find("qemu-system").unwrap_or(0);
        let mut text = line[program..].to_owned();
        for (number, tap) in self.taps.iter().enumerate() {
            let room = format!("tap,id=net{number},ifname={tap},script=no,downscript=no");
            text = text.replace(&room, &format!("user,id=net{number}"));
        }
        format!("{text}\n")
    }

    /// Pulls the plug.
    ///
    /// # Errors
    /// When QEMU cannot be ended.
    pub fn power_off(&mut self) -> Result<()> {
        let Some((mut child, mut qmp)) = self.power.take() else {
            return Ok(());
        };
        // Asked to quit, QEMU flushes what the guest wrote; a kill would too (page cache), this is for order's sake.
        if qmp.execute("quit", &json!({})).is_err() {
            child.kill().context("ending QEMU")?;
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                child.kill().context("ending QEMU")?;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Whether it is on.
    pub fn is_on(&mut self) -> bool {
        match &mut self.power {
            Some((child, _)) => matches!(child.try_wait(), Ok(None)),
            None => false,
        }
    }

    /// Presses the reset button.
    ///
    /// # Errors
    /// When the PC is off.
    pub fn reset(&mut self) -> Result<()> {
        self.powered_on = SystemTime::now();
        self.qmp("system_reset", &json!({})).map(drop)
    }

    /// Presses the power button of a running PC (ACPI).
    ///
    /// # Errors
    /// When the PC is off.
    pub fn power_button(&mut self) -> Result<()> {
        self.qmp("system_powerdown", &json!({})).map(drop)
    }

    /// Presses a key by QEMU's name for it (`spc`, `ret`, `a`).
    ///
    /// # Errors
    /// When the PC is off.
    pub fn press(&mut self, key: &str) -> Result<()> {
        self.qmp("send-key", &json!({"keys": [{"type": "qcode", "data": key}]}))
            .map(drop)
    }

    /// Plugs the cable of NIC `number` in or out.
    ///
    /// # Errors
    /// When the PC is off.
    pub fn cable(&mut self, number: usize, cable: Cable) -> Result<()> {
        let up = cable == Cable::In;
        self.qmp("set_link", &json!({"name": format!("nic{number}"), "up": up}))
            .map(drop)
    }

    /// Saves what is on the screen (PPM). The machine must have been built with a screen.
    ///
    /// # Errors
    /// When it has none or is off.
    pub fn screenshot(&mut self, path: &std::path::Path) -> Result<()> {
        self.qmp("screendump", &json!({"filename": path})).map(drop)
    }

    /// Freezes the processor, as a PC whose hardware hangs.
    ///
    /// # Errors
    /// When the PC is off.
    pub fn freeze(&mut self) -> Result<()> {
        self.qmp("stop", &json!({})).map(drop)
    }

    /// Sends BREAK on the serial line and a letter: the kernel's magic SysRq (`c` crashes it).
    ///
    /// # Errors
    /// When the PC is off.
    pub fn sysrq(&mut self, letter: char) -> Result<()> {
        let mut line =
            UnixStream::connect(self.files.serial_socket()).context("connecting to the serial port")?;
        self.qmp("chardev-send-break", &json!({"id": "serial0"}))?;
        line.write_all(letter.to_string().as_bytes())
            .context("writing to the serial port")
    }

    /// The hardware clock as QEMU sees it, minus UTC, in seconds.
    ///
    /// # Errors
    /// When the PC is off.
    pub fn clock_offset(&mut self) -> Result<i64> {
        let time = self.qmp("qom-get", &json!({"path": "/machine", "property": "rtc-time"}))?;
        let field = |name: &str| {
            time[name]
                .as_i64()
                .with_context(|| format!("no {name} in QEMU's clock"))
        };
        let days = days_since_1970(field("tm_year")? + 1900, field("tm_mon")? + 1, field("tm_mday")?);
        let seconds = ((days * 24 + field("tm_hour")?) * 60 + field("tm_min")?) * 60 + field("tm_sec")?;
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)?
            .as_secs();
        Ok(seconds - i64::try_from(now)?)
    }

    /// Runs any QMP command.
    ///
    /// # Errors
    /// When the PC is off or QEMU refuses.
    pub fn qmp(&mut self, command: &str, arguments: &serde_json::Value) -> Result<serde_json::Value> {
        let name = self.files.name.clone();
        match &mut self.power {
            Some((_, qmp)) => qmp.execute(command, arguments).with_context(|| name),
            None => bail!("{name} is off"),
        }
    }

    /// How often its Windows has been booted since the PC was built.
    #[must_use]
    pub fn windows_boots(&self) -> usize {
        fs::read_to_string(self.files.verdict())
            .unwrap_or_default()
            .matches("windows\n")
            .count()
    }

    /// Whether Windows was booted since the last [`Pc::wait_windows`].
    #[must_use]
    pub fn in_windows(&self) -> bool {
        self.windows_boots() > self.windows_seen
    }

    /// Whether it has firmware variables (UEFI).
    #[must_use]
    pub fn has_variables(&self) -> bool {
        self.machine.has_variables()
    }

    /// Waits until Windows is booted once more than at the last call. Returns the time of it.
    ///
    /// # Errors
    /// At the deadline, with the end of the serial log.
    pub fn wait_windows(&mut self, limit: Duration) -> Result<SystemTime> {
        let wanted = self.windows_seen + 1;
        self.wait("its Windows", limit, |this| Ok(this.windows_boots() >= wanted))?;
        self.windows_seen = self.windows_boots();
        Ok(fs::metadata(self.files.verdict())?.modified()?)
    }

    /// Waits until the machine resets itself, counted from `since`; returns how long after `since` that was.
    ///
    /// # Errors
    /// When it does not within `bound` of `since`; with the end of the serial log.
    pub fn wait_reset(&mut self, since: SystemTime, bound: Duration) -> Result<Duration> {
        let limit = bound.saturating_sub(since.elapsed().unwrap_or_default());
        let deadline = Instant::now() + limit;
        loop {
            let Some((_, qmp)) = &mut self.power else {
                bail!("{} is off", self.name())
            };
            if let Some(reset) = qmp.guest_resets()?.iter().find(|reset| **reset >= since) {
                return Ok(reset.duration_since(since)?);
            }
            if Instant::now() >= deadline {
                let tail = self.serial_tail();
                bail!(
                    "{}: no reset within {} s; serial log ends with: {tail}",
                    self.name(),
                    bound.as_secs()
                );
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until the serial log has this text after byte `from`. For moments that nobody reports as data
    /// (GRUB's or the kernel's lines); what a node is, `cidctl nodes` says.
    ///
    /// # Errors
    /// At the deadline.
    pub fn wait_serial(&mut self, text: &str, from: usize, limit: Duration) -> Result<()> {
        self.wait(&format!("{text:?} on the serial line"), limit, |this| {
            Ok(this.serial().get(from..).is_some_and(|new| new.contains(text)))
        })
    }

    /// The serial log so far.
    #[must_use]
    pub fn serial(&self) -> String {
        fs::read(self.files.serial_log())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Waits for a fact.
    ///
    /// # Errors
    /// At the deadline, when QEMU has ended, and when looking fails; with the end of the serial log.
    pub fn wait(
        &mut self,
        what: &str,
        limit: Duration,
        mut fact: impl FnMut(&Self) -> Result<bool>,
    ) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            if fact(self)? {
                return Ok(());
            }
            ensure!(self.is_on(), "{} went off while waiting for {what}", self.name());
            if Instant::now() >= deadline {
                let tail = self.serial_tail();
                bail!(
                    "{}: no {what} within {} s; serial log ends with: {tail}",
                    self.name(),
                    limit.as_secs()
                );
            }
            std::thread::sleep(LOOK);
        }
    }

    fn serial_tail(&self) -> String {
        let printable: String = self
            .serial()
            .chars()
            .filter(|c| !c.is_control() || *c == '\n')
            .collect();
        let lines: Vec<&str> = printable.lines().filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(12)..].join("\n    ")
    }

    /// Checks that no byte of the disk changed since the PC was built.
    ///
    /// # Errors
    /// When one did.
    pub fn assert_disk_untouched(&self) -> Result<()> {
        let now = sha256(&self.files.disk())?;
        ensure!(
            now == self.disk_before,
            "{}: the disk changed: SHA-256 {} before, {now} after",
            self.name(),
            self.disk_before
        );
        Ok(())
    }

    /// SHA-256 of the disk when the PC was built.
    #[must_use]
    pub fn disk_digest(&self) -> &str {
        &self.disk_before
    }

    /// What changed in the firmware's variables since the PC was built. Empty for BIOS. The PC should be off.
    ///
    /// # Errors
    /// When the flash cannot be read.
    pub fn variable_differences(&self) -> Result<Vec<Difference>> {
        let Some(before) = &self.variables_before else {
            return Ok(Vec::new());
        };
        Ok(before.differences(&FirmwareVariables::read(&self.files.variables())?))
    }
}

impl Drop for Pc {
    fn drop(&mut self) {
        if let Some((mut child, _)) = self.power.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Whether a network cable is plugged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cable {
    /// Plugged in.
    In,
    /// Pulled out.
    Out,
}

/// Days from 1970-01-01 in the Gregorian calendar (month and day from 1).
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    // Years that begin in March put the leap day last.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    365 * year + year.div_euclid(4) - year.div_euclid(100)
        + year.div_euclid(400)
        + (153 * month + 2) / 5
        + day
        - 719_469
}

#[cfg(test)]
mod tests {
    use super::days_since_1970;

    #[test]
    fn days_are_counted_as_the_calendar_does() {
        assert_eq!(days_since_1970(1970, 1, 1), 0);
        assert_eq!(days_since_1970(2000, 3, 1), 11_017);
        assert_eq!(days_since_1970(2026, 11, 21), 20_778);
    }
}
