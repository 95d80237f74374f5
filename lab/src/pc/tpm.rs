//! The software TPM of a PC, and what it had measured when Windows was booted. Must not write to the TPM: the stand-in
//! Windows reads its registers and says them on the verdict port.

use std::fs;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Pc;

const START_LIMIT: Duration = Duration::from_secs(20);
/// Answer of `TPM2_PCR_Read` for four SHA-256 registers (TPM 2.0 Library, part 3, 22.4): header, update counter, one
/// selection, four digests with their lengths.
const ANSWER_BYTES: usize = 10 + 4 + 10 + 4 + 4 * (2 + 32);

/// SHA-256 registers 0 (firmware), 2 (option ROMs), 4 (boot managers) and 7 (Secure Boot policy) when Windows was booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pcrs([String; 4]);

/// Number of each register in [`Pcrs`].
const NUMBERS: [u8; 4] = [0, 2, 4, 7];

impl Pcrs {
    /// Numbers of the registers that differ.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<u8> {
        let pairs = self.0.iter().zip(&other.0).zip(NUMBERS);
        pairs
            .filter(|((one, two), _)| one != two)
            .map(|(_, number)| number)
            .collect()
    }

    /// Reads the hex of a TPM's answer.
    fn parse(hex: &str) -> Result<Self> {
        ensure!(
            hex.is_ascii() && hex.len() == 2 * ANSWER_BYTES,
            "the TPM answered {hex}"
        );
        ensure!(
            hex.get(..4) == Some("8001") && hex.get(12..20) == Some("00000000"),
            "the TPM refused: {hex}"
        );
        let digest = |number: usize| {
            let start = 2 * (28 + number * 34);
            hex.get(start + 4..start + 68).unwrap_or_default().to_owned()
        };
        Ok(Self([digest(0), digest(1), digest(2), digest(3)]))
    }
}

impl std::fmt::Display for Pcrs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (digest, number) in self.0.iter().zip(NUMBERS) {
            write!(f, "PCR {number} {}..  ", &digest[..16])?;
        }
        Ok(())
    }
}

impl Pc {
    /// What the TPM had measured when Windows was booted last.
    ///
    /// # Errors
    /// When Windows did not report it: no TPM, or not booted yet.
    pub fn pcrs(&self) -> Result<Pcrs> {
        let verdict = fs::read_to_string(self.files.verdict())?;
        let line = verdict.lines().rfind(|line| line.starts_with("pcrs "));
        Pcrs::parse(line.context("Windows saw no TPM")?.trim_start_matches("pcrs "))
    }

    pub(super) fn start_tpm(&mut self) -> Result<()> {
        if !self.machine.tpm {
            return Ok(());
        }
        let socket = self.files.tpm_socket();
        let _ = fs::remove_file(&socket);
        fs::create_dir_all(self.files.tpm())?;
        let child = self
            .room
            .command("swtpm")
            .args(["socket", "--tpm2", "--terminate", "--tpmstate"])
            .arg(format!("dir={}", self.files.tpm().display()))
            .arg("--ctrl")
            .arg(format!("type=unixio,path={}", socket.display()))
            .stdin(Stdio::null())
            .spawn()
            .context("starting swtpm (ci/prepare installs what the lab needs)")?;
        self.tpm = Some(child);
        let deadline = Instant::now() + START_LIMIT;
        // Not connected to: it ends with its first connection.
        while !socket.exists() {
            ensure!(Instant::now() < deadline, "swtpm made no socket");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// It ends by itself when QEMU hangs up; one that was never spoken to is ended.
    pub(super) fn end_tpm(&mut self) -> Result<()> {
        if let Some(mut child) = self.tpm.take() {
            drop(UnixStream::connect(self.files.tpm_socket()));
            child.wait().context("waiting for swtpm")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_found_in_the_answer() {
        let digests = ["11", "22", "33", "44"].map(|byte| format!("0020{}", byte.repeat(32)));
        let answer = format!(
            "8001000000a400000000{}{}{}",
            "00".repeat(4),
            "00000001000b03950000",
            "00000004"
        );
        let pcrs = Pcrs::parse(&format!("{answer}{}", digests.concat())).unwrap();
        assert_eq!(pcrs.0[2], "33".repeat(32));
        let mut other = pcrs.clone();
        other.0[3] = "00".repeat(32);
        assert_eq!(pcrs.differences(&other), [7]);
        assert!(Pcrs::parse("80010000000a00000100").is_err());
    }
}
