//! What wakes a network card, by `SIOCETHTOOL` (linux/ethtool.h). Must not choose what shall wake it.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

/// `WAKE_MAGIC`: the card's own magic packet.
pub const MAGIC: u32 = 1 << 5;
/// `ETHTOOL_GWOL`
const GET: u32 = 5;
/// `ETHTOOL_SWOL`
const SET: u32 = 6;

/// `struct ethtool_wolinfo`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct WolInfo {
    command: u32,
    supported: u32,
    active: u32,
    password: [u8; 6],
}

/// Bits like [`MAGIC`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WakeOnLan {
    /// What the card and its driver can do on this board.
    pub supported: u32,
    /// What is switched on.
    pub active: u32,
}

/// Asks what wakes a card.
///
/// # Errors
/// `EOPNOTSUPP` when its driver knows nothing of it, `ENODEV` when there is no such interface, `InvalidInput` for a name too long.
pub fn read(interface: &str) -> io::Result<WakeOnLan> {
    let info = call(interface, GET, 0)?;
    Ok(WakeOnLan {
        supported: info.supported,
        active: info.active,
    })
}

/// Switches on these and everything else off.
///
/// # Errors
/// As [`read`]; `EINVAL` for what the card does not support, `EPERM` without CAP_NET_ADMIN.
pub fn set(interface: &str, active: u32) -> io::Result<()> {
    call(interface, SET, active).map(drop)
}

fn call(interface: &str, command: u32, active: u32) -> io::Result<WolInfo> {
    let mut info = WolInfo {
        command,
        active,
        ..WolInfo::default()
    };
    let mut name = [0 as libc::c_char; libc::IFNAMSIZ];
    // The last byte stays NUL.
    if interface.len() >= name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    let mut request = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_data: (&raw mut info).cast(),
        },
    };
    // Any socket reaches the interfaces of its namespace.
    let socket = UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0))
        .or_else(|_| UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0)))?;
    // SAFETY: `request` is a whole ifreq with a NUL-terminated name; its data points to `info`, which has the layout of the
    // structure that ETHTOOL_GWOL and ETHTOOL_SWOL read and write, and lives behind the call. nix and rustix have no ethtool.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    crate::check(result.into())?;
    Ok(info)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_cannot_wake_anybody_and_a_name_must_fit() {
        assert_eq!(size_of::<WolInfo>(), 20);
        assert!(read("lo").is_err());
        assert!(read("no-such-interface-here").is_err());
    }
}
