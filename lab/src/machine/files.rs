//! Where one PC's files are. Must not make or remove any.

use std::path::PathBuf;

/// Where one PC's files are.
#[derive(Debug, Clone)]
pub struct Files {
    pub(crate) dir: PathBuf,
    pub(crate) name: String,
}

impl Files {
    fn file(&self, suffix: &str) -> PathBuf {
        self.dir.join(format!("{}.{suffix}", self.name))
    }
    /// The whole disk.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.file("disk")
    }
    /// The firmware's flash with its variables.
    #[must_use]
    pub fn variables(&self) -> PathBuf {
        self.file("vars")
    }
    /// A line for every boot of the stand-in Windows.
    #[must_use]
    pub fn verdict(&self) -> PathBuf {
        self.file("verdict")
    }
    /// What came out of the serial port.
    #[must_use]
    pub fn serial_log(&self) -> PathBuf {
        self.file("serial")
    }
    /// The serial port itself.
    #[must_use]
    pub fn serial_socket(&self) -> PathBuf {
        self.file("tty")
    }
    /// The TPM's memory, which outlives power-off.
    #[must_use]
    pub fn tpm(&self) -> PathBuf {
        self.file("tpm")
    }
    /// The TPM's control socket.
    #[must_use]
    pub fn tpm_socket(&self) -> PathBuf {
        self.file("tpm.sock")
    }
    /// Frames that its network card heard while the PC slept.
    #[must_use]
    pub fn heard_asleep(&self) -> PathBuf {
        self.file("asleep")
    }
    /// Stem of the sockets of a cable that lies (see the module `plain_rom`).
    pub(crate) fn wire(&self) -> PathBuf {
        self.file("wire")
    }
    /// QEMU's control socket.
    #[must_use]
    pub fn qmp(&self) -> PathBuf {
        self.file("qmp")
    }
    /// Frames of its first NIC, where the room as a whole is not captured.
    #[must_use]
    pub fn capture(&self) -> PathBuf {
        self.file("pcap")
    }
    /// QEMU's own complaints.
    #[must_use]
    pub fn qemu_log(&self) -> PathBuf {
        self.file("qemu")
    }
    /// The command line that started it, for pasting.
    #[must_use]
    pub fn command_line(&self) -> PathBuf {
        self.file("sh")
    }
    /// What was on its screen at the last look.
    #[must_use]
    pub fn screen(&self, suffix: &str) -> PathBuf {
        self.file(suffix)
    }
}
