//! Device events of the kernel (NETLINK_KOBJECT_UEVENT, Documentation/ABI/stable/sysfs-uevent).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, setsockopt, socket, sockopt,
};

/// Room for events that come while PID 1 loads drivers, in bytes.
const BUFFER: usize = 1024 * 1024;

/// The kernel's event socket.
pub(crate) struct Events(OwnedFd);

/// One event, reduced to what PID 1 acts on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Event {
    pub(crate) action: String,
    pub(crate) subsystem: String,
    pub(crate) modalias: Option<String>,
    pub(crate) device_name: Option<String>,
}

/// What reading gave.
pub(crate) enum Read {
    Event(Event),
    /// The kernel dropped events: look at all devices again.
    Overflow,
    /// Nothing more now.
    Empty,
}

impl Events {
    pub(crate) fn open() -> nix::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::NetlinkKObjectUEvent;
        let socket = socket(AddressFamily::Netlink, SockType::Datagram, flags, protocol)?;
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &BUFFER);
        // Group 1: what the kernel says itself (2 would be udev's).
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 1))?;
        Ok(Self(socket))
    }

    pub(crate) fn read(&self) -> Read {
        let mut buffer = [0_u8; 8192];
        loop {
            match recvfrom::<NetlinkAddr>(self.0.as_raw_fd(), &mut buffer) {
                // Only the kernel has port 0.
                Ok((length, Some(from))) if from.pid() == 0 => {
                    return Read::Event(parse(buffer.get(..length).unwrap_or_default()));
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => return Read::Overflow,
                Err(_) => return Read::Empty,
            }
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// `add@/devices/…` NUL `ACTION=add` NUL `SUBSYSTEM=…` NUL …
fn parse(bytes: &[u8]) -> Event {
    let mut event = Event::default();
    for field in bytes.split(|byte| *byte == 0) {
        let Some((key, value)) = std::str::from_utf8(field)
            .ok()
            .and_then(|text| text.split_once('='))
        else {
            continue;
        };
        match key {
            "ACTION" => value.clone_into(&mut event.action),
            "SUBSYSTEM" => value.clone_into(&mut event.subsystem),
            "MODALIAS" => event.modalias = Some(value.to_owned()),
            "DEVNAME" => event.device_name = Some(value.to_owned()),
            _ => {}
        }
    }
    event
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_of_the_kernel_is_read() {
        let text = b"add@/devices/pci/virtio0\0ACTION=add\0DEVPATH=/devices/pci/virtio0\0SUBSYSTEM=virtio\0\
            MODALIAS=virtio:d00000001v00001AF4\0SEQNUM=7\0";
        let event = parse(text);
        assert_eq!(
            (event.action.as_str(), event.subsystem.as_str()),
            ("add", "virtio")
        );
        assert_eq!(event.modalias.as_deref(), Some("virtio:d00000001v00001AF4"));
    }

    #[test]
    fn noise_is_an_empty_event() {
        assert_eq!(parse(b"\xff\xfe\0=\0x"), Event::default());
    }
}
