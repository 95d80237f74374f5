//! What a BIOS PC with iPXE in its card does until its kernel starts: DHCP, the loader script, its kernel line. Must not know what the head
//! puts into that line. Runs in the agent's network namespace; the kernel and the initial RAM disk are not fetched.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dhcproto::v4::{Architecture, DhcpOption, Flags, Message, MessageType, OptionCode, UnknownOption};
use dhcproto::{Decodable, Encodable};

use crate::run::run;

/// How long each question waits for its answer; then the PC's own disk is next (iPXE's own patience is longer).
const PATIENCE: [Duration; 4] = [
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(16),
];
/// Of the fetched script, in bytes.
const MAX_SCRIPT: u64 = 64 * 1024;
/// The card.
pub(super) const LINK: &str = "eth0";

/// What firmware comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Boot {
    /// A kernel with this command line.
    Kernel {
        /// All words behind the kernel's name.
        command_line: String,
    },
    /// The next thing in the boot order.
    OwnDisk {
        /// In plain words.
        why: String,
    },
}

/// An address and where to go on.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) address: Ipv4Addr,
    pub(super) prefix: u8,
    file: String,
}

/// Switches the card on, asks, and leaves the card without an address, as a kernel finds it.
pub(super) fn start(mac: &str, uuid: &str) -> Result<Boot> {
    // Here the kernel is there already, and would greet IPv6 routers. Without IPv6 there is no such file.
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
    ip(&["link", "set", LINK, "up"])?;
    ip(&["addr", "flush", "dev", LINK])?;
    let (lease, boot) = boot(mac, uuid)?;
    if lease.is_some() {
        ip(&["addr", "flush", "dev", LINK])?;
    }
    Ok(boot)
}

/// Asks on a card that is on, and leaves the address that it was given on it.
pub(super) fn boot(mac: &str, uuid: &str) -> Result<(Option<Lease>, Boot)> {
    let Some(lease) = ask(mac, uuid)? else {
        let why = "nobody offered a boot file".to_owned();
        return Ok((None, Boot::OwnDisk { why }));
    };
    let address = format!("{}/{}", lease.address, lease.prefix);
    ip(&["addr", "replace", &address, "dev", LINK])?;
    let boot = match fetch(lease.address, &lease.file) {
        Ok(script) => read(&script),
        Err(error) => Boot::OwnDisk {
            why: format!("{}: {error:#}", lease.file),
        },
    };
    Ok((Some(lease), boot))
}

pub(super) fn ip(arguments: &[&str]) -> Result<()> {
    run(Command::new("ip").args(arguments)).map(drop)
}

fn ask(mac: &str, uuid: &str) -> Result<Option<Lease>> {
    let mac: Vec<u8> = mac
        .split(':')
        .map(|part| u8::from_str_radix(part, 16))
        .collect::<Result<_, _>>()
        .context("reading the card's address")?;
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    socket.bind_device(Some(LINK.as_bytes()))?;
    socket.set_broadcast(true)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68).into())?;
    let socket = UdpSocket::from(socket);
    // Two machines of the rig do not share a number, and one does not use it twice within a second.
    let seed = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)?
        .subsec_nanos();
    let number = mac
        .iter()
        .rev()
        .fold(seed, |number, byte| number.rotate_left(5) ^ u32::from(*byte));
    for patience in PATIENCE {
        let Some(offer) = exchange(
            &socket,
            &question(&mac, uuid, number, None)?,
            number,
            MessageType::Offer,
            patience,
        )?
        else {
            continue;
        };
        let request = question(&mac, uuid, number, Some(&offer))?;
        if let Some(ack) = exchange(&socket, &request, number, MessageType::Ack, patience)? {
            return Ok(lease(&ack));
        }
    }
    Ok(None)
}

/// As iPXE in a card's ROM asks (bootserver's captures).
fn question(mac: &[u8], uuid: &str, number: u32, taken: Option<&Message>) -> Result<Vec<u8>> {
    let none = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(number, none, none, none, none, mac);
    message.set_flags(Flags::default().set_broadcast());
    let unknown = |code: u8, data: Vec<u8>| DhcpOption::Unknown(UnknownOption::new(code.into(), data));
    let options = message.opts_mut();
    options.insert(DhcpOption::MaxMessageSize(1472));
    options.insert(DhcpOption::ClientSystemArchitecture(Architecture(0)));
    options.insert(DhcpOption::ClassIdentifier(
        b"PXEClient:Arch:00000:UNDI:002001".to_vec(),
    ));
    options.insert(DhcpOption::UserClass(b"iPXE".to_vec()));
    options.insert(DhcpOption::ParameterRequestList(vec![
        OptionCode::SubnetMask,
        OptionCode::Router,
        OptionCode::BootfileName,
    ]));
    let digits: String = uuid.chars().filter(char::is_ascii_hexdigit).collect();
    let raw = u128::from_str_radix(&digits, 16).context("reading the machine's UUID")?;
    let mut bytes = raw.to_be_bytes();
    // SMBIOS 2.6: the first three fields travel little-endian.
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    options.insert(unknown(97, [&[0], bytes.as_slice()].concat()));
    match taken {
        None => options.insert(DhcpOption::MessageType(MessageType::Discover)),
        Some(offer) => {
            if let Some(server @ DhcpOption::ServerIdentifier(_)) =
                offer.opts().get(OptionCode::ServerIdentifier)
            {
                options.insert(server.clone());
            }
            options.insert(DhcpOption::RequestedIpAddress(offer.yiaddr()));
            options.insert(DhcpOption::MessageType(MessageType::Request))
        }
    };
    message.to_vec().context("encoding a DHCP message")
}

/// One question and its answer; others' answers are passed over.
fn exchange(
    socket: &UdpSocket,
    question: &[u8],
    number: u32,
    wanted: MessageType,
    patience: Duration,
) -> Result<Option<Message>> {
    // The wire may be cut: then nobody answers.
    let _ = socket.send_to(question, (Ipv4Addr::BROADCAST, 67));
    let deadline = Instant::now() + patience;
    let mut buffer = [0; 1500];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        socket.set_read_timeout(Some(left))?;
        let Ok(length) = socket.recv(&mut buffer) else {
            continue;
        };
        let Ok(message) = Message::from_bytes(buffer.get(..length).unwrap_or_default()) else {
            continue;
        };
        if message.xid() == number && message.opts().msg_type() == Some(wanted) {
            return Ok(Some(message));
        }
    }
}

/// `None` when the answer names no file: the head lets the machine have its address, and no boot.
fn lease(ack: &Message) -> Option<Lease> {
    let mask = match ack.opts().get(OptionCode::SubnetMask) {
        Some(DhcpOption::SubnetMask(mask)) => *mask,
        _ => return None,
    };
    let file = match ack.opts().get(OptionCode::BootfileName) {
        Some(DhcpOption::BootfileName(name)) => name.clone(),
        _ => ack.fname()?.to_vec(),
    };
    let file = String::from_utf8(file).ok()?.trim_end_matches('\0').to_owned();
    (!file.is_empty()).then(|| Lease {
        address: ack.yiaddr(),
        prefix: u32::from(mask).count_ones() as u8,
        file,
    })
}

/// GET of `http://A.B.C.D/path` from this address, by which the head knows who asks.
fn fetch(from: Ipv4Addr, url: &str) -> Result<String> {
    let rest = url.strip_prefix("http://").context("no http URL")?;
    let (host, path) = rest.split_once('/').context("no path")?;
    let head = SocketAddrV4::new(host.parse()?, 80);
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.bind(&SocketAddrV4::new(from, 0).into())?;
    socket.connect_timeout(&head.into(), Duration::from_secs(10))?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(
        stream,
        "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nUser-Agent: iPXE/rig\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.take(MAX_SCRIPT).read_to_string(&mut answer)?;
    let (header, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    let status = header.lines().next().unwrap_or_default();
    ensure!(status.contains(" 200 "), "{status}");
    Ok(body.to_owned())
}

/// What iPXE would do with the script: its first `kernel` line, or what it tells the person.
fn read(script: &str) -> Boot {
    let kernel = script.lines().find_map(|line| line.strip_prefix("kernel "));
    if let Some(words) = kernel {
        let words = words.split("&&").next().unwrap_or_default();
        // The first is the kernel's name; `${door}` is empty but on UEFI.
        let line: Vec<&str> = words
            .split_whitespace()
            .skip(1)
            .filter(|word| !word.starts_with("${"))
            .collect();
        return Boot::Kernel {
            command_line: line.join(" "),
        };
    }
    let told = script.lines().filter_map(|line| line.strip_prefix("echo "));
    Boot::OwnDisk {
        why: told.collect::<Vec<_>>().join("; "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_what_stands_behind_the_kernel() {
        let script = "#!ipxe\necho x\nkernel http://10.0.0.1/images/a/vmlinuz initrd=initrd.img quiet cid.head=10.0.0.1:3101 ${door} && goto initrd || sleep 2\n";
        let line = "initrd=initrd.img quiet cid.head=10.0.0.1:3101".to_owned();
        assert_eq!(read(script), Boot::Kernel { command_line: line });
        let home = read("#!ipxe\necho CID: pc goes to its own disk: closed\nreboot\n");
        assert_eq!(
            home,
            Boot::OwnDisk {
                why: "CID: pc goes to its own disk: closed".to_owned()
            }
        );
    }

    #[test]
    fn the_uuid_travels_as_smbios_has_it() {
        let bytes = question(
            &[2, 0, 0, 0, 0, 1],
            "00112233-4455-6677-8899-aabbccddeeff",
            7,
            None,
        )
        .expect("encodes");
        let wanted = [97, 17, 0, 0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88];
        assert!(bytes.windows(wanted.len()).any(|window| window == wanted));
    }
}
