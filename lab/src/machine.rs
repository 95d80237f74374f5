//! What a lab PC is made of. Boot order is set once, network or stick, then disk, like a PC's: the harness never changes order
//! or media to get a PC home (but for a stick: a person pulls it out when the screen asks for it).

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::firmware_variables::{
    BOOT_ATTRIBUTES, FirmwareVariables, GLOBAL, hard_disk_entry, http_entry, network_entry, usb_entry,
};
use crate::windows::{PartitionIdentity, Windows};

mod files;
mod qemu;

pub use files::Files;
pub(crate) use qemu::STICK;

/// PCI device number of the first NIC; further ones follow. Fixed, because boot entries name it.
const FIRST_NIC_SLOT: u8 = 4;
/// PCI device number of the USB controller, which boot entries name too.
const USB_SLOT: u8 = 0x1b;
/// Port of the stick on it, counted from 0 as boot entries do.
const STICK_PORT: u8 = 1;

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

/// What stands first in the boot order; the disk is second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum First {
    /// The first NIC, by PXE over IPv4.
    Pxe,
    /// The first NIC, by HTTP over IPv4. UEFI only.
    Http,
    /// A USB stick with this content.
    Stick(PathBuf),
    /// The disk itself: a PC that nobody prepared.
    Disk,
}

impl First {
    /// Description of the boot entry.
    pub(crate) fn entry(&self) -> &'static str {
        match self {
            Self::Pxe => "PXE over IPv4",
            Self::Http => "HTTP over IPv4",
            Self::Stick(_) => "USB stick",
            Self::Disk => "Windows Boot Manager",
        }
    }
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

/// Where the cable of a NIC leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lead {
    /// To the room, where the head is.
    Room,
    /// To a switch with nobody else on it.
    Nowhere,
    /// To a network with a DHCP server of its own and no way out of it.
    Elsewhere,
}

/// A PC to be built. Every method changes one thing and returns the rest.
#[derive(Debug, Clone)]
pub struct Machine {
    pub(crate) name: Option<String>,
    pub(crate) firmware: Firmware,
    pub(crate) first: First,
    pub(crate) tpm: bool,
    pub(crate) plain_rom: bool,
    disk: Disk,
    nics: Vec<String>,
    leads: Vec<Lead>,
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
            first: First::Pxe,
            tpm: false,
            plain_rom: false,
            disk,
            nics: vec![nic.to_owned()],
            leads: vec![Lead::Room],
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
        self.leads.push(Lead::Room);
        self
    }

    /// Where the cable of the NIC named last leads (to the room, if nothing is said).
    #[must_use]
    pub fn leads(mut self, lead: Lead) -> Self {
        if let Some(last) = self.leads.last_mut() {
            *last = lead;
        }
        self
    }

    /// What stands first in its boot order (the network by PXE, if nothing is said).
    #[must_use]
    pub fn first(mut self, first: First) -> Self {
        self.first = first;
        self
    }

    /// Adds a TPM 2.0, which lives on when the PC is off. UEFI only: the stand-in for a BIOS's Windows does not ask it.
    #[must_use]
    pub fn tpm(mut self) -> Self {
        self.tpm = true;
        self
    }

    /// BIOS: its ROM looks like a plain vendor ROM to the network, not like iPXE (see the module `plain_rom`).
    #[must_use]
    pub fn plain_rom(mut self) -> Self {
        self.plain_rom = true;
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

    /// Whether it starts by BIOS.
    #[must_use]
    pub fn has_bios(&self) -> bool {
        self.firmware == Firmware::Bios
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
        let network = match &self.first {
            First::Http => http_entry(self.first.entry(), FIRST_NIC_SLOT, mac),
            First::Stick(_) => usb_entry(self.first.entry(), USB_SLOT, STICK_PORT),
            First::Pxe | First::Disk => network_entry(First::Pxe.entry(), FIRST_NIC_SLOT, mac),
        };
        let file = r"\EFI\Microsoft\Boot\bootmgfw.efi";
        let disk = hard_disk_entry("Windows Boot Manager", partition, file);
        variables.set("Boot0000", &GLOBAL, BOOT_ATTRIBUTES, &network)?;
        variables.set("Boot0001", &GLOBAL, BOOT_ATTRIBUTES, &disk)?;
        // Both are in the order at once: firmware takes an entry outside of it for free and overwrites it.
        let disk_first = self.settled || self.first == First::Disk;
        variables.set_boot_order(if disk_first { &[1, 0] } else { &[0, 1] })?;
        variables.write(path)?;
        Ok(())
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
