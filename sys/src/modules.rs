//! Loading kernel modules.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `MODULE_INIT_COMPRESSED_FILE` of linux/module.h: the kernel decompresses (CONFIG_MODULE_DECOMPRESS).
const COMPRESSED_FILE: libc::c_int = 4;

/// What the module's file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// ELF.
    Plain,
    /// ELF, compressed in the way this kernel was configured for.
    Compressed,
}

/// Loads a module; `parameters` as on modprobe's command line. `AlreadyExists` when it is loaded.
///
/// # Errors
/// What `finit_module(2)` says; [`io::ErrorKind::InvalidInput`] for parameters with a NUL.
pub fn load(file: &File, parameters: &str, content: Content) -> io::Result<()> {
    let parameters = CString::new(parameters)?;
    let flags = match content {
        Content::Plain => 0,
        Content::Compressed => COMPRESSED_FILE,
    };
    // SAFETY: the kernel reads the NUL-terminated string before the call returns, and `parameters` outlives it;
    // the descriptor is open because `file` is borrowed. No memory of this process is written.
    // No library has the call with this flag: nix's flags are a closed set without it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_finit_module,
            file.as_raw_fd(),
            parameters.as_ptr(),
            flags,
        )
    };
    crate::check(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_is_no_module() {
        let file = File::open("/proc/self/status").expect("proc is mounted");
        assert!(load(&file, "", Content::Plain).is_err());
        assert!(load(&file, "a\0b", Content::Plain).is_err());
    }
}
