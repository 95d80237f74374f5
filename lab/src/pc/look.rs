//! What can be seen of a PC from outside: its Windows, resets, the serial line, its disk, variables and clock.

use std::fs;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::{LOOK, Pc};
use crate::firmware_variables::{Difference, FirmwareVariables};
use crate::windows::sha256;

impl Pc {
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
