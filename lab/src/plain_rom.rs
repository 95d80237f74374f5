//! A cable that makes QEMU's iPXE ROM look like a plain vendor ROM to the network: iPXE's marks (options 77 and 175) are taken
//! out of its DHCP packets, so that the head sees what RFC 4578 prescribes and no more. No vendor ROM is packaged, so this
//! one is synthesised; must not change anything else, and nothing of what the fetched iPXE says for itself.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};

/// The file that a plain ROM is sent to; the next one who asks by DHCP is that file.
const NEXT_STAGE: &[u8] = b"undionly.kpxe";
const DHCP_SERVER_PORTS: [u16; 2] = [67, 4011];
const TFTP_PORT: u16 = 69;
/// Length of the fixed part of a DHCP packet with its magic number.
const DHCP_FIXED: usize = 240;
const USER_CLASS: u8 = 77;
const IPXE_ENCAPSULATED: u8 = 175;
/// How often the threads look whether the cable is still wanted.
const LOOK: Duration = Duration::from_millis(200);

/// What the cable remembers.
#[derive(Debug, Default)]
struct Marks {
    /// The ROM has asked for the next stage; whoever asks with a new transaction is that one.
    fetched: bool,
    last: Option<[u8; 4]>,
    genuine: Option<[u8; 4]>,
}

impl Marks {
    /// Looks at a frame of the PC; takes the marks out where the ROM speaks.
    fn pass(&mut self, frame: &mut [u8]) {
        let Some((port, start)) = udp_payload(frame) else {
            return;
        };
        if port == TFTP_PORT && contains(frame.get(start..).unwrap_or_default(), NEXT_STAGE) {
            self.fetched = true;
        }
        if !DHCP_SERVER_PORTS.contains(&port) {
            return;
        }
        let Some(transaction) = frame
            .get(start + 4..start + 8)
            .and_then(|bytes| bytes.try_into().ok())
        else {
            return;
        };
        if self.last != Some(transaction) && std::mem::take(&mut self.fetched) {
            self.genuine = Some(transaction);
        }
        self.last = Some(transaction);
        if self.genuine != Some(transaction) {
            blank(frame, start);
        }
    }
}

/// Turns iPXE's options into padding, and the checksum into "none" (RFC 768).
fn blank(frame: &mut [u8], start: usize) {
    let mut at = start + DHCP_FIXED;
    while let Some(&tag) = frame.get(at) {
        let length = match tag {
            0 => {
                at += 1;
                continue;
            }
            255 => break,
            _ => usize::from(frame.get(at + 1).copied().unwrap_or(0)) + 2,
        };
        let marked = tag == USER_CLASS || tag == IPXE_ENCAPSULATED;
        if let Some(option) = frame.get_mut(at..at + length).filter(|_| marked) {
            option.fill(0);
        }
        at += length;
    }
    if let Some(checksum) = frame.get_mut(start - 2..start) {
        checksum.fill(0);
    }
}

/// Destination port and start of the payload of an unfragmented IPv4 UDP frame.
fn udp_payload(frame: &[u8]) -> Option<(u16, usize)> {
    if frame.get(12..14)? != [8, 0] || *frame.get(23)? != 17 {
        return None;
    }
    let udp = 14 + usize::from(frame.get(14)? & 15) * 4;
    let port = u16::from_be_bytes(frame.get(udp + 2..udp + 4)?.try_into().ok()?);
    Some((port, udp + 8))
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

/// A cable that lies. It is pulled out when the value is dropped.
#[derive(Debug)]
pub(crate) struct PlainRom {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    tap: Child,
}

impl PlainRom {
    /// Between QEMU, which speaks at `BASE.qemu`, and the room's tap, which `socat` (to be completed) holds.
    pub(crate) fn connect(base: &Path, tap: &str, mut socat: Command) -> Result<Self> {
        let path = |end: &str| base.with_extension(end);
        for end in ["wire-pc", "wire-tap", "wire-socat", "wire-qemu"] {
            let _ = std::fs::remove_file(path(end));
        }
        let from_pc = UnixDatagram::bind(path("wire-pc")).context("laying a cable")?;
        let from_tap = UnixDatagram::bind(path("wire-tap")).context("laying a cable")?;
        let child = socat
            .arg(format!("TUN,tun-type=tap,tun-name={tap},iff-no-pi,iff-up"))
            .arg(format!(
                "UNIX-SENDTO:{},bind={}",
                path("wire-tap").display(),
                path("wire-socat").display()
            ))
            .stdin(Stdio::null())
            .spawn()
            .context("starting socat (ci/prepare installs what the lab needs)")?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut marks = Marks::default();
        let to_tap = from_tap.try_clone()?;
        let to_pc = from_pc.try_clone()?;
        let threads = vec![
            carry(from_pc, to_tap, &path("wire-socat"), &stop, move |frame| {
                marks.pass(frame)
            })?,
            carry(from_tap, to_pc, &path("wire-qemu"), &stop, |_| {})?,
        ];
        Ok(Self {
            stop,
            threads,
            tap: child,
        })
    }

    /// Value of QEMU's `-netdev` for NIC 0.
    pub(crate) fn netdev(base: &Path) -> String {
        format!(
            "dgram,id=net0,local.type=unix,local.path={},remote.type=unix,remote.path={}",
            base.with_extension("wire-qemu").display(),
            base.with_extension("wire-pc").display()
        )
    }
}

/// Carries frames one way until the cable is pulled. A frame that cannot be delivered is lost, as on any cable.
fn carry(
    from: UnixDatagram,
    to: UnixDatagram,
    target: &Path,
    stop: &Arc<AtomicBool>,
    mut change: impl FnMut(&mut [u8]) + Send + 'static,
) -> Result<JoinHandle<()>> {
    from.set_read_timeout(Some(LOOK))?;
    let (target, stop) = (target.to_owned(), Arc::clone(stop));
    Ok(std::thread::spawn(move || {
        let mut buffer = vec![0_u8; 65_536];
        while !stop.load(Ordering::Relaxed) {
            let Ok(length) = from.recv(&mut buffer) else {
                continue;
            };
            change(&mut buffer[..length]);
            let _ = to.send_to(&buffer[..length], &target);
        }
    }))
}

impl Drop for PlainRom {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.tap.kill();
        let _ = self.tap.wait();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(port: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0_u8; 14 + 20 + 8];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14] = 0x45;
        frame[23] = 17;
        frame[36..38].copy_from_slice(&port.to_be_bytes());
        frame[40..42].copy_from_slice(&[9, 9]);
        frame.extend(payload);
        frame
    }

    fn discover(transaction: u8) -> Vec<u8> {
        let mut packet = vec![0_u8; DHCP_FIXED];
        packet[4..8].copy_from_slice(&[transaction; 4]);
        packet.extend([
            53, 1, 1, 77, 4, b'i', b'P', b'X', b'E', 175, 2, 1, 1, 93, 2, 0, 0, 255,
        ]);
        frame(67, &packet)
    }

    #[test]
    fn the_rom_loses_its_marks_and_the_fetched_ipxe_keeps_them() {
        let mut marks = Marks::default();
        let mut asks = |transaction| {
            let mut packet = discover(transaction);
            marks.pass(&mut packet);
            (contains(&packet, b"iPXE"), contains(&packet, &[93, 2, 0, 0, 255]))
        };
        assert_eq!(asks(1), (false, true));
        assert_eq!(asks(1), (false, true));
        marks.pass(&mut frame(69, b"\0\x01undionly.kpxe\0octet\0"));
        let mut asks = |transaction| {
            let mut packet = discover(transaction);
            marks.pass(&mut packet);
            contains(&packet, b"iPXE")
        };
        // A repeat of the ROM's own request is still the ROM's; then iPXE asks, twice; after a reset it is the ROM again.
        assert!(!asks(1));
        assert!(asks(2));
        assert!(asks(2));
        assert!(!asks(3));
    }
}
