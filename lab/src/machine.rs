//! What a lab PC is made of, and the QEMU command line for it. Boot order is set once, network then disk, like a
//! PC's: the harness never changes order or media to get a PC home.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::firmware_variables::{BOOT_ATTRIBUTES, FirmwareVariables, GLOBAL, hard_disk_entry, network_entry};
use crate::windows::{PartitionIdentity, Windows};

/// PCI device number of the first NIC; further ones follow. Fixed, because boot entries name it.
const FIRST_NIC_SLOT: u8 = 4;
/// Description of the entry that boots from the network.
pub(crate) const NETWORK_ENTRY: &str = "PXE over IPv4";
/// Port of the verdict.
const VERDICT_PORT: &str = "0x504";

/// What starts the PC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS; QEMU's iPXE option ROM on the NIC.
    Bios,
    /// OVMF with its own network stack, Secure Boot off.
    Uefi,
    /// OVMF with Secure Boot enforced: Microsoft's keys, and the lab's for the stand-in Windows.
    UefiSecureBoot,
}

/// How the disk is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// AHCI.
    Sata,
    /// NVMe.
    Nvme,
    /// USB mass storage on xHCI.
    Usb,
}

/// A hardware watchdog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watchdog {
    /// Intel 6300ESB on PCI.
    I6300esb,
    /// The TCO timer that every ICH9 (so every Q35) has; listed here so that a test can say what it relies on.
    Itco,
}

/// A PC to be built. Every method changes one thing and returns the rest.
#[derive(Debug, Clone)]
pub struct Machine {
    pub(crate) name: Option<String>,
    pub(crate) firmware: Firmware,
    disk: Disk,
    nics: Vec<String>,
    memory_mib: u32,
    clock_offset_secs: i64,
    watchdog: Option<Watchdog>,
    screen: bool,
    usb_keyboard: bool,
    pub(crate) settled: bool,
}

impl Machine {
    /// A PC with BIOS, an e1000 NIC, a SATA disk and 512 MiB.
    #[must_use]
    pub fn bios() -> Self {
        Self::new(Firmware::Bios, "e1000", Disk::Sata)
    }

    /// A PC with UEFI, a virtio NIC, an NVMe disk and 512 MiB.
    #[must_use]
    pub fn uefi() -> Self {
        Self::new(Firmware::Uefi, "virtio-net-pci", Disk::Nvme)
    }

    /// The same with Secure Boot enforced.
    #[must_use]
    pub fn uefi_secure_boot() -> Self {
        Self::new(Firmware::UefiSecureBoot, "virtio-net-pci", Disk::Nvme)
    }

    fn new(firmware: Firmware, nic: &str, disk: Disk) -> Self {
        Self {
            name: None,
            firmware,
            disk,
            nics: vec![nic.to_owned()],
            memory_mib: 512,
            clock_offset_secs: 0,
            watchdog: None,
            screen: false,
            usb_keyboard: false,
            settled: false,
        }
    }

    /// Name of its files in the room (`pc1`, …, if not given).
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// How the disk is attached.
    #[must_use]
    pub fn disk(mut self, disk: Disk) -> Self {
        self.disk = disk;
        self
    }

    /// QEMU's model name of the NIC it boots from.
    #[must_use]
    pub fn nic(mut self, model: &str) -> Self {
        model.clone_into(&mut self.nics[0]);
        self
    }

    /// Adds a NIC that firmware does not boot from.
    #[must_use]
    pub fn another_nic(mut self, model: &str) -> Self {
        self.nics.push(model.to_owned());
        self
    }

    /// Memory in MiB.
    #[must_use]
    pub fn memory(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// Hardware clock off from UTC by so many seconds (Windows keeps local time in it).
    #[must_use]
    pub fn clock_offset(mut self, secs: i64) -> Self {
        self.clock_offset_secs = secs;
        self
    }

    /// Adds a hardware watchdog.
    #[must_use]
    pub fn watchdog(mut self, watchdog: Watchdog) -> Self {
        self.watchdog = Some(watchdog);
        self
    }

    /// Adds a graphics card, for screenshots.
    #[must_use]
    pub fn screen(mut self) -> Self {
        self.screen = true;
        self
    }

    /// A USB keyboard in place of the PS/2 one, on a USB controller of its own.
    #[must_use]
    pub fn usb_keyboard(mut self) -> Self {
        self.usb_keyboard = true;
        self
    }

    /// UEFI: boot once with the disk first, so that firmware has listed its devices as it had long ago on a real PC,
    /// before boot order is set. Only worth its 10 s where variables are compared.
    #[must_use]
    pub fn settled(mut self) -> Self {
        self.settled = true;
        self
    }

    /// Model, memory, disk and NICs in a line for people.
    #[must_use]
    pub fn describe(&self) -> String {
        let firmware = match self.firmware {
            Firmware::Bios => "BIOS",
            Firmware::Uefi => "UEFI",
            Firmware::UefiSecureBoot => "UEFI with Secure Boot",
        };
        let disk = match self.disk {
            Disk::Sata => "SATA",
            Disk::Nvme => "NVMe",
            Disk::Usb => "USB",
        };
        format!(
            "{firmware}, {} NIC, {disk} disk, {} MiB",
            self.nics.join(" + "),
            self.memory_mib
        )
    }

    /// Number of NICs.
    pub(crate) fn nic_count(&self) -> usize {
        self.nics.len()
    }

    /// Whether its settings are in flash.
    pub(crate) fn has_variables(&self) -> bool {
        self.firmware != Firmware::Bios
    }

    /// Copies the vendor's variable store and enters what the maker of the PC and a person in setup would: the key
    /// that signed its Windows, an entry for the network, one for Windows.
    pub(crate) fn write_variables(
        &self,
        path: &Path,
        windows: &Windows,
        partition: &PartitionIdentity,
        mac: [u8; 6],
    ) -> Result<()> {
        let vendor = if self.firmware == Firmware::Uefi {
            "OVMF_VARS_4M.fd"
        } else {
            "OVMF_VARS_4M.ms.fd"
        };
        let mut variables = FirmwareVariables::read(&ovmf(vendor)?)?;
        if self.firmware == Firmware::UefiSecureBoot {
            variables.trust(&windows.certificate()?)?;
        }
        let network = network_entry(NETWORK_ENTRY, FIRST_NIC_SLOT, mac);
        let file = r"\EFI\Microsoft\Boot\bootmgfw.efi";
        let disk = hard_disk_entry("Windows Boot Manager", partition, file);
        variables.set("Boot0000", &GLOBAL, BOOT_ATTRIBUTES, &network)?;
        variables.set("Boot0001", &GLOBAL, BOOT_ATTRIBUTES, &disk)?;
        // Both are in the order at once: firmware takes an entry outside of it for free and overwrites it.
        variables.set_boot_order(if self.settled { &[1, 0] } else { &[0, 1] })?;
        variables.write(path)?;
        Ok(())
    }

    /// Adds QEMU and its arguments to `command`, which enters the room.
    pub(crate) fn arguments(
        &self,
        command: &mut Command,
        files: &Files,
        taps: &[String],
        macs: &[[u8; 6]],
    ) -> Result<()> {
        command.args(["-name", &files.name, "-accel", crate::accelerator::choice()]);
        self.board(command, files)?;
        command.args(["-cpu", "qemu64", "-smp", "1", "-m", &self.memory_mib.to_string()]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
        command.args(["-vga", if self.screen { "std" } else { "none" }]);
        command.args(["-uuid", &format!("c1d00000-0000-4000-8000-{}", hex(&macs[0], ""))]);
        command.args(["-rtc", &rtc_base(self.clock_offset_secs)?]);
        command.args([
            "-qmp",
            &format!("unix:{},server=on,wait=off", files.qmp().display()),
        ]);
        let (socket, log) = (files.serial_socket(), files.serial_log());
        command.args([
            "-chardev",
            &format!(
                "socket,id=serial0,path={},server=on,wait=off,logfile={},logappend=on",
                socket.display(),
                log.display()
            ),
        ]);
        command.args(["-serial", "chardev:serial0"]);
        command.args([
            "-chardev",
            &format!("file,id=verdict,path={},append=on", files.verdict().display()),
        ]);
        command.args([
            "-device",
            &format!("isa-debugcon,iobase={VERDICT_PORT},chardev=verdict"),
        ]);
        command.args(["-device", "virtio-rng-pci,addr=0x1d"]);
        if self.watchdog == Some(Watchdog::I6300esb) {
            command.args(["-device", "i6300esb,addr=0x1c"]);
        }
        if self.usb_keyboard {
            command.args([
                "-device",
                "qemu-xhci,id=keyboards,addr=0x19",
                "-device",
                "usb-kbd,bus=keyboards.0",
            ]);
        }
        self.disk_arguments(command, files);
        for (number, ((model, tap), mac)) in self.nics.iter().zip(taps).zip(macs).enumerate() {
            let slot = usize::from(FIRST_NIC_SLOT) + number;
            command.args([
                "-netdev",
                &format!("tap,id=net{number},ifname={tap},script=no,downscript=no"),
            ]);
            let mut device = format!(
                "{model},id=nic{number},netdev=net{number},mac={},addr={slot:#x}",
                hex(mac, ":")
            );
            match (self.firmware, number) {
                (Firmware::Bios, 0) => device.push_str(",bootindex=1"),
                // Without its own ROM a NIC of UEFI is driven by OVMF, or not at all.
                _ => device.push_str(",romfile="),
            }
            command.args(["-device", &device]);
        }
        Ok(())
    }

    fn board(&self, command: &mut Command, files: &Files) -> Result<()> {
        let mut board = if self.screen { "q35" } else { "q35,graphics=off" }.to_owned();
        if self.usb_keyboard {
            board.push_str(",i8042=off");
        }
        let code = match self.firmware {
            Firmware::Bios => {
                command.args(["-machine", &board]);
                return Ok(());
            }
            Firmware::Uefi => {
                command.args(["-machine", &board]);
                "OVMF_CODE_4M.fd"
            }
            Firmware::UefiSecureBoot => {
                command.args(["-machine", &format!("{board},smm=on")]);
                command.args(["-global", "driver=cfi.pflash01,property=secure,value=on"]);
                command.args(["-global", "ICH9-LPC.disable_s3=1"]);
                "OVMF_CODE_4M.secboot.fd"
            }
        };
        let code = ovmf(code)?;
        command.args([
            "-drive",
            &format!("if=pflash,format=raw,unit=0,readonly=on,file={}", code.display()),
        ]);
        command.args([
            "-drive",
            &format!("if=pflash,format=raw,unit=1,file={}", files.variables().display()),
        ]);
        Ok(())
    }

    fn disk_arguments(&self, command: &mut Command, files: &Files) {
        command.args([
            "-drive",
            &format!("if=none,id=disk0,format=raw,file={}", files.disk().display()),
        ]);
        let boot = if self.firmware == Firmware::Bios {
            ",bootindex=2"
        } else {
            ""
        };
        let device = match self.disk {
            Disk::Sata => "ide-hd,drive=disk0,bus=ide.0",
            Disk::Nvme => "nvme,drive=disk0,serial=cidlab,addr=0x1a",
            Disk::Usb => {
                command.args(["-device", "qemu-xhci,id=xhci,addr=0x1b"]);
                "usb-storage,drive=disk0,bus=xhci.0"
            }
        };
        command.args(["-device", &format!("{device}{boot}")]);
    }
}

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
    /// What was on its screen at the last look.
    #[must_use]
    pub fn screen(&self, suffix: &str) -> PathBuf {
        self.file(suffix)
    }
    /// The command line that started it, for pasting.
    #[must_use]
    pub fn command_line(&self) -> PathBuf {
        self.file("sh")
    }
}

/// A firmware file of Debian's `ovmf`.
///
/// # Errors
/// When it is not installed.
pub fn ovmf(name: &str) -> Result<PathBuf> {
    let path = Path::new("/usr/share/OVMF").join(name);
    path.exists()
        .then_some(path)
        .with_context(|| format!("no {name}: install the package ovmf (ci/prepare)"))
}

/// Lower-case hex of a MAC.
pub(crate) fn hex(bytes: &[u8], separator: &str) -> String {
    bytes
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<Vec<_>>()
        .join(separator)
}

/// QEMU's `-rtc` for a clock that is off from UTC.
fn rtc_base(offset_secs: i64) -> Result<String> {
    if offset_secs == 0 {
        return Ok("base=utc".to_owned());
    }
    let when = format!("{offset_secs} seconds");
    let date = crate::run::run(Command::new("date").args(["-u", "-d", &when, "+%Y-%m-%dT%H:%M:%S"]))?;
    Ok(format!("base={}", date.trim()))
}
