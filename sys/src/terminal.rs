//! The size of a terminal.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Columns and rows of an open terminal.
///
/// # Errors
/// What `ioctl(2)` says; `ENOTTY` for a file that is no terminal.
pub fn size(terminal: &File) -> io::Result<(u16, u16)> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the kernel writes one `struct winsize`, which `size` is, before the call returns.
    // nix offers the call only as a macro that expands to `unsafe` where it is used.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    crate::check(result.into())?;
    Ok((size.ws_col, size.ws_row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_terminal_is_an_error() {
        assert!(size(&File::open("/dev/null").expect("exists")).is_err());
    }
}
