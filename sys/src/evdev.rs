//! Which keys an input device has.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `EV_KEY` of linux/input-event-codes.h.
pub const EV_KEY: u16 = 1;
/// `KEY_MAX` + 1 of linux/input-event-codes.h.
const KEY_COUNT: usize = 0x300;

/// The keys and buttons of a device, as a bitmap by key code.
#[derive(Debug, Clone)]
pub struct Keys([u8; KEY_COUNT / 8]);

impl Keys {
    /// Whether the device can report this key.
    pub fn contains(&self, code: u16) -> bool {
        self.0
            .get(usize::from(code / 8))
            .is_some_and(|byte| byte & (1 << (code % 8)) != 0)
    }
}

/// Asks an open `/dev/input/event*` for its keys.
///
/// # Errors
/// What `ioctl(2)` says; `ENOTTY` for a file that is no input device.
pub fn keys(device: &File) -> io::Result<Keys> {
    let mut bits = [0_u8; KEY_COUNT / 8];
    // EVIOCGBIT(EV_KEY, len): direction read, type 'E', number 0x20 + EV_KEY.
    let request =
        (2 << 30) | ((bits.len() as libc::c_ulong) << 16) | (0x45 << 8) | (0x20 + u64::from(EV_KEY));
    // SAFETY: the request carries the length of `bits`, so the kernel writes at most that many bytes into it,
    // and only before the call returns. No library wraps this ioctl without a whole evdev layer around it.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), request as _, bits.as_mut_ptr()) };
    crate::check(result.into())?;
    Ok(Keys(bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_device_is_an_error() {
        assert!(keys(&File::open("/dev/null").expect("exists")).is_err());
    }

    #[test]
    fn bits_are_by_code() {
        let mut bits = [0; KEY_COUNT / 8];
        bits[14] = 0b1_0000;
        assert!(Keys(bits).contains(116) && !Keys(bits).contains(115) && !Keys(bits).contains(60_000));
    }
}
