//! The person at the PC: any key or the power button means that the PC is wanted back.
//!
//! Counted is the *press* (value 1) of a key of a keyboard or of a button such as power; not mouse buttons (a
//! bumped desk moves mice), not repeats (2), not releases (0). What is held while the device appears is not a
//! press: firmware menus are entered with a held key, and things lie on keyboards. Linux reports such a key as a press
//! and then repeats, so within [`SETTLE`] of opening a press counts when the key is let go without a repeat.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;

/// A held key reaches Linux as a press and then repeats, the first within 250 ms of the driver's start.
const SETTLE: Duration = Duration::from_secs(1);
/// Devices watched at once; real PCs have about ten.
const MAX_DEVICES: usize = 64;
/// `struct input_event` on 64-bit Linux: time (16 bytes), type, code (2 each), value (4).
const EVENT_SIZE: usize = 24;

struct Device {
    path: String,
    file: File,
    opened: Instant,
    early: Early,
}

/// The open input devices.
#[derive(Default)]
pub(crate) struct Keys {
    devices: Vec<Device>,
}

impl Keys {
    /// Opens every input device that has keys.
    pub(crate) fn open_all() -> Self {
        let mut keys = Self::default();
        keys.open_missing();
        keys
    }

    /// Opens one by its name below `/dev`, if it is one and not open yet.
    pub(crate) fn open(&mut self, name: &str) {
        let path = format!("/dev/{name}");
        let known = self.devices.iter().any(|device| device.path == path);
        if known || !name.starts_with("input/event") || self.devices.len() >= MAX_DEVICES {
            return;
        }
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(&path);
        let Ok(file) = opened else { return };
        if cid_sys::evdev::keys(&file)
            .is_ok_and(|keys| (1..=0x2ff).any(|code| is_wanted(code) && keys.contains(code)))
        {
            self.devices.push(Device {
                path,
                file,
                opened: Instant::now(),
                early: Early::default(),
            });
        }
    }

    /// Opens what is not open yet; for when events were lost.
    pub(crate) fn open_missing(&mut self) {
        for entry in fs::read_dir("/dev/input").into_iter().flatten().flatten() {
            if let Some(name) = entry.file_name().to_str() {
                self.open(&format!("input/{name}"));
            }
        }
    }

    /// How many devices are watched.
    pub(crate) fn count(&self) -> usize {
        self.devices.len()
    }

    /// For polling.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.devices.iter().map(|device| device.file.as_fd())
    }

    /// Reads what there is; the code of a press, if there was one. Devices that are gone are closed.
    pub(crate) fn read(&mut self) -> Option<u16> {
        let mut pressed = None;
        self.devices.retain_mut(|device| {
            let settled = device.opened.elapsed() >= SETTLE;
            let mut buffer = [0_u8; EVENT_SIZE * 32];
            loop {
                match device.file.read(&mut buffer) {
                    Ok(0) => return false,
                    Ok(length) => {
                        let bytes = buffer.get(..length).unwrap_or_default();
                        pressed = pressed.or(device.early.press_in(bytes, settled));
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return error.kind() == ErrorKind::WouldBlock,
                }
            }
        });
        pressed
    }
}

/// A key whose press came so soon after opening that it may have been held all along.
#[derive(Default)]
struct Early(Option<u16>);

impl Early {
    /// The first press in a run of `struct input_event`.
    fn press_in(&mut self, bytes: &[u8], settled: bool) -> Option<u16> {
        bytes.chunks_exact(EVENT_SIZE).find_map(|event| {
            let (kind, rest) = event.get(16..)?.split_first_chunk::<2>()?;
            let (code, rest) = rest.split_first_chunk::<2>()?;
            let (value, _) = rest.split_first_chunk::<4>()?;
            let code = u16::from_ne_bytes(*code);
            if u16::from_ne_bytes(*kind) != cid_sys::evdev::EV_KEY || !is_wanted(code) {
                return None;
            }
            match i32::from_ne_bytes(*value) {
                0 if self.0 == Some(code) => self.0.take(),
                1 if settled => Some(code),
                1 => {
                    self.0 = Some(code);
                    None
                }
                2 if self.0 == Some(code) => {
                    self.0 = None;
                    None
                }
                _ => None,
            }
        })
    }
}

/// Keys, not buttons of mice, pads and joysticks (0x100 to 0x15f, 0x2c0 up), and not what drivers report by
/// themselves: KEY_UNKNOWN (240), the radio switches (238, 247), micmute and lights that laptops send at boot.
fn is_wanted(code: u16) -> bool {
    match code {
        0 | 238 | 240 | 247 | 248 => false,
        1..=0xff | 0x160..=0x2bf => true,
        _ => false,
    }
}

/// Words for the log and the screen.
pub(crate) fn reason(code: u16) -> String {
    // KEY_POWER and KEY_SLEEP of linux/input-event-codes.h.
    match code {
        116 => "power button pressed".to_owned(),
        142 => "sleep button pressed".to_owned(),
        _ => "key pressed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: u16, code: u16, value: i32) -> Vec<u8> {
        let mut bytes = vec![0; 16];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(code.to_ne_bytes());
        bytes.extend(value.to_ne_bytes());
        bytes
    }

    fn press_in(bytes: &[u8]) -> Option<u16> {
        Early::default().press_in(bytes, true)
    }

    #[test]
    fn a_key_held_since_before_is_no_press_and_a_tap_at_the_same_time_is_one() {
        let mut held = Early::default();
        assert_eq!(
            held.press_in(&[event(1, 88, 1), event(1, 88, 2)].concat(), false),
            None
        );
        assert_eq!(held.press_in(&event(1, 88, 2), true), None);
        assert_eq!(held.press_in(&event(1, 88, 0), true), None, "let go at last");
        assert_eq!(held.press_in(&event(1, 88, 1), true), Some(88), "pressed again");
        let mut tapped = Early::default();
        assert_eq!(tapped.press_in(&event(1, 57, 1), false), None);
        assert_eq!(tapped.press_in(&event(1, 57, 0), false), Some(57));
        let mut late = Early::default();
        assert_eq!(late.press_in(&event(1, 57, 1), false), None);
        assert_eq!(late.press_in(&event(1, 57, 0), true), Some(57));
    }

    #[test]
    fn only_a_press_of_a_key_counts() {
        assert_eq!(press_in(&event(1, 30, 1)), Some(30));
        assert_eq!(press_in(&event(1, 116, 1)), Some(116));
        assert_eq!(press_in(&event(1, 30, 0)), None, "release");
        assert_eq!(press_in(&event(1, 30, 2)), None, "repeat");
        assert_eq!(press_in(&event(1, 0x110, 1)), None, "mouse button");
        assert_eq!(press_in(&event(2, 1, 1)), None, "mouse movement");
        assert_eq!(press_in(&event(1, 240, 1)), None, "KEY_UNKNOWN");
        assert_eq!(
            press_in(&[event(4, 4, 30), event(1, 57, 1)].concat()),
            Some(57),
            "scan code first"
        );
        assert_eq!(press_in(&[0; 23]), None);
    }
}
