//! A lab PC that is plugged in: power switch, cable, keyboard, and what can be seen of it from outside.

mod look;
mod sleep;
mod tpm;

pub use tpm::Pcrs;

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::firmware_variables::FirmwareVariables;
use crate::head::Control;
use crate::machine::{Files, First, Machine, STICK, hex};
use crate::plain_rom::PlainRom;
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
    tpm: Option<Child>,
    listener: Option<Child>,
    wire: Option<PlainRom>,
    powered_on: SystemTime,
    windows_seen: usize,
    disk_before: String,
    variables_before: Option<FirmwareVariables>,
    pub(crate) control: Option<Control>,
}

impl Pc {
    /// With a head to ask that is none of the lab's own.
    #[must_use]
    pub fn under(mut self, control: Control) -> Self {
        self.control = Some(control);
        self
    }

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
            tpm: None,
            listener: None,
            wire: None,
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
        let ours = if self.machine.first == First::Disk {
            [1, 0]
        } else {
            [0, 1]
        };
        let order: Vec<u16> = ours.into_iter().chain(others).collect();
        variables.set_boot_order(&order)?;
        let entries = variables.boot_entries();
        ensure!(
            entries
                .first()
                .is_some_and(|first| first == First::entry(&self.machine.first)),
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
        // Somebody who was listening for a magic packet has the NIC's cable.
        self.stop_listening()?;
        self.start_tpm()?;
        if self.machine.plain_rom && self.wire.is_none() {
            let socat = self.room.command("socat");
            self.wire = Some(PlainRom::connect(&self.files.wire(), &self.taps[0], socat)?);
        }
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
        self.end_tpm()
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

    /// Presses a key by QEMU's name for it (`spc`, `ret`, `a`), or several at once (`ctrl-alt-delete`).
    ///
    /// # Errors
    /// When the PC is off.
    pub fn press(&mut self, keys: &str) -> Result<()> {
        let key = |name| json!({"type": "qcode", "data": name});
        let keys: Vec<_> = keys.split('-').map(key).collect();
        self.qmp("send-key", &json!({ "keys": keys })).map(drop)
    }

    /// Presses and lets go a button of the mouse.
    ///
    /// # Errors
    /// When the PC is off.
    pub fn click(&mut self) -> Result<()> {
        for down in [true, false] {
            let event = json!({"type": "btn", "data": {"button": "left", "down": down}});
            self.qmp("input-send-event", &json!({"events": [event]}))?;
        }
        Ok(())
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

    /// Pulls the USB stick out, as the screen asked the person to.
    ///
    /// # Errors
    /// When the PC is off or has none.
    pub fn pull_stick(&mut self) -> Result<()> {
        self.qmp("device_del", &json!({"id": STICK})).map(drop)
    }

    /// Plugs a USB network adapter into the PC; it must have a USB controller (`Machine::usb_keyboard`). Returns its MAC.
    ///
    /// # Errors
    /// When the PC is off or QEMU refuses.
    pub fn plug_usb_nic(&mut self) -> Result<String> {
        // The fifth byte is the number of the NIC (see `build`).
        let mac = [0x52, 0x54, 0x00, 0xc1, 0x01, self.macs[0][5]];
        let (tap, mac) = (self.room.tap()?, hex(&mac, ":"));
        let netdev =
            json!({"type": "tap", "id": "usbnet", "ifname": tap, "script": "no", "downscript": "no"});
        self.qmp("netdev_add", &netdev)?;
        let device = json!({"driver": "usb-net", "id": "usbnic", "bus": "keyboards.0", "netdev": "usbnet", "mac": mac});
        self.qmp("device_add", &device)?;
        Ok(mac)
    }

    /// Pulls it out again.
    ///
    /// # Errors
    /// When the PC is off or QEMU refuses.
    pub fn unplug_usb_nic(&mut self) -> Result<()> {
        self.qmp("device_del", &json!({"id": "usbnic"})).map(drop)
    }

    /// Saves what is on the screen, as PNG where the name ends so, else as PPM. The machine must have been built with a screen.
    ///
    /// # Errors
    /// When it has none or is off.
    pub fn screenshot(&mut self, path: &std::path::Path) -> Result<()> {
        let png = path.extension().is_some_and(|suffix| suffix == "png");
        let format = if png { "png" } else { "ppm" };
        self.qmp("screendump", &json!({"filename": path, "format": format}))
            .map(drop)
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
}

impl Drop for Pc {
    fn drop(&mut self) {
        let qemu = self.power.take().map(|(child, _)| child);
        for mut child in [qemu, self.tpm.take(), self.listener.take()]
            .into_iter()
            .flatten()
        {
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
