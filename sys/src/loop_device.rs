//! A file as a block device: the `loop` driver's ioctls (`linux/loop.h`).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `_IO`-less numbers of `linux/loop.h`.
const LOOP_CTL_GET_FREE: u64 = 0x4c82;
const LOOP_CONFIGURE: u64 = 0x4c0a;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// `struct loop_info64`.
#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// The number of a loop device that nobody uses. `control` is `/dev/loop-control`.
///
/// # Errors
/// What `ioctl(2)` says.
pub fn free_number(control: &File) -> io::Result<u32> {
    // SAFETY: this request takes no argument and touches no memory of ours. nix and rustix do not have it.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) };
    let number = crate::check(number.into())?;
    u32::try_from(number).map_err(io::Error::other)
}

/// Shows `file` as the loop device `device`, read-only, until the device's last user goes.
///
/// # Errors
/// What `ioctl(2)` says; `EBUSY` when somebody else took the device first.
pub fn show(device: &File, file: &File) -> io::Result<()> {
    let fd = u32::try_from(file.as_raw_fd()).map_err(io::Error::other)?;
    let info = Info {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
    let config = Config {
        fd,
        block_size: 0,
        info,
        reserved: [0; 8],
    };
    // SAFETY: the kernel reads one `struct loop_config` from a value of exactly its layout (checked below), alive during the
    // call. nix and rustix do not have it.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as _, &raw const config) };
    crate::check(result.into()).map(drop)
}

/// Sizes on every 64-bit Linux.
const _: () = assert!(size_of::<Info>() == 232 && size_of::<Config>() == 304);
