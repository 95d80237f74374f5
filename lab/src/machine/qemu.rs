//! The QEMU command line of a machine. Must not start anything.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::plain_rom::PlainRom;

use super::{
    Disk, FIRST_NIC_SLOT, Files, Firmware, First, Lead, Machine, STICK_PORT, USB_SLOT, Watchdog, hex, ovmf,
};

/// Port of the verdict.
const VERDICT_PORT: &str = "0x504";
/// QEMU's name of the stick, by which it is pulled out.
pub(crate) const STICK: &str = "stick";

impl Machine {
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
        if let First::Stick(content) = &self.first {
            self.stick_arguments(command, content);
        }
        if self.tpm {
            let socket = files.tpm_socket();
            command.args(["-chardev", &format!("socket,id=tpm,path={}", socket.display())]);
            command.args([
                "-tpmdev",
                "emulator,id=tpm0,chardev=tpm",
                "-device",
                "tpm-tis,tpmdev=tpm0",
            ]);
        }
        for (number, ((model, tap), mac)) in self.nics.iter().zip(taps).zip(macs).enumerate() {
            let slot = usize::from(FIRST_NIC_SLOT) + number;
            let netdev = if self.plain_rom && number == 0 {
                PlainRom::netdev(&files.wire())
            } else {
                match self.leads.get(number) {
                    Some(Lead::Nowhere) => format!("hubport,id=net{number},hubid={number}"),
                    Some(Lead::Elsewhere) => {
                        format!("user,id=net{number},restrict=on,net=192.168.{number}.0/24")
                    }
                    Some(Lead::Room) | None => {
                        format!("tap,id=net{number},ifname={tap},script=no,downscript=no")
                    }
                }
            };
            command.args(["-netdev", &netdev]);
            let mut device = format!(
                "{model},id=nic{number},netdev=net{number},mac={},addr={slot:#x}",
                hex(mac, ":")
            );
            match (self.firmware, number, &self.first) {
                (Firmware::Bios, 0, First::Pxe) => device.push_str(",bootindex=1"),
                // Without its own ROM a NIC of UEFI is driven by OVMF, or not at all.
                _ => device.push_str(",romfile="),
            }
            command.args(["-device", &device]);
        }
        Ok(())
    }

    fn board(&self, command: &mut Command, files: &Files) -> Result<()> {
        let board = if self.screen { "q35" } else { "q35,graphics=off" };
        let code = match self.firmware {
            Firmware::Bios => {
                command.args(["-machine", board]);
                return Ok(());
            }
            Firmware::Uefi => {
                command.args(["-machine", board]);
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
            Disk::Usb => "usb-storage,drive=disk0,bus=xhci.0,port=1",
        };
        if self.disk == Disk::Usb || matches!(self.first, First::Stick(_)) {
            command.args(["-device", &format!("qemu-xhci,id=xhci,addr={USB_SLOT:#x}")]);
        }
        command.args(["-device", &format!("{device}{boot}")]);
    }

    fn stick_arguments(&self, command: &mut Command, content: &Path) {
        command.args([
            "-drive",
            &format!("if=none,id=stick,format=raw,file={}", content.display()),
        ]);
        let boot = if self.firmware == Firmware::Bios {
            ",bootindex=1"
        } else {
            ""
        };
        // QEMU counts ports from 1.
        let port = STICK_PORT + 1;
        let device = format!("usb-storage,id={STICK},drive=stick,bus=xhci.0,port={port},removable=on{boot}");
        command.args(["-device", &device]);
    }
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
