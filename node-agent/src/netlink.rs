//! The five things this node asks the kernel about links, over netlink (rtnetlink(7)). A library for all of it would be a sixth of
//! the program, in every image. Must ask one thing per socket, and take no word of an answer on trust.

use std::io::{self, Read};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket};
use socket2::{Domain, Protocol, Socket, Type};

/// A kernel that takes longer is stuck in a driver; the caller gives up earlier.
const ANSWER_BOUND: Duration = Duration::from_secs(20);
/// The kernel's messages are at most this long (NLMSG_GOODSIZE is below).
const BUFFER: usize = 32 * 1024;

const NETLINK: i32 = 16;
const NETLINK_ROUTE: i32 = 0;
/// Group of link changes, as a bit.
const RTMGRP_LINK: u32 = 1;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const REPLACE: u16 = 0x100;
const CREATE: u16 = 0x400;
const DUMP: u16 = 0x300;

const AF_INET: u8 = 2;
const IFF_UP: u32 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RTN_UNICAST: u8 = 1;

/// Bytes of a message's header, and of its first words for an address.
const HEADER: usize = 16;
const IFADDRMSG: usize = 8;

/// Brings a link up. Blocks as long as its driver does.
pub(crate) fn up(index: u32) -> io::Result<()> {
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend(IFF_UP.to_ne_bytes());
    // Which flags are meant.
    body.extend(IFF_UP.to_ne_bytes());
    ask(RTM_NEWLINK, ACK, &body).map(drop)
}

/// Takes all IPv4 addresses off a link.
pub(crate) fn flush(index: u32) -> io::Result<()> {
    let all = ask(RTM_GETADDR, DUMP, &address_header(0, 0))?;
    for body in all.iter().filter(|body| is_of_link(body, index)) {
        match ask(RTM_DELADDR, ACK, body) {
            // Gone already is as good.
            Err(error) if error.raw_os_error() != Some(Errno::EADDRNOTAVAIL as i32) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Gives a link an address, or changes its prefix.
pub(crate) fn add_address(index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
    let broadcast = Ipv4Addr::from(u32::from(address) | !mask);
    let mut body = address_header(prefix, index);
    attribute(&mut body, IFA_LOCAL, &address.octets());
    attribute(&mut body, IFA_ADDRESS, &address.octets());
    // Links of two have none (RFC 3021).
    if prefix < 31 {
        attribute(&mut body, IFA_BROADCAST, &broadcast.octets());
    }
    ask(RTM_NEWADDR, ACK | CREATE | REPLACE, &body).map(drop)
}

/// Sets the default route over a link; a lower `priority` is preferred.
pub(crate) fn default_route(index: u32, router: Ipv4Addr, priority: u32) -> io::Result<()> {
    let mut body = vec![
        AF_INET,
        0,
        0,
        0,
        RT_TABLE_MAIN,
        RTPROT_STATIC,
        RT_SCOPE_UNIVERSE,
        RTN_UNICAST,
    ];
    body.extend([0; 4]);
    attribute(&mut body, RTA_GATEWAY, &router.octets());
    attribute(&mut body, RTA_OIF, &index.to_ne_bytes());
    attribute(&mut body, RTA_PRIORITY, &priority.to_ne_bytes());
    ask(RTM_NEWROUTE, ACK | CREATE | REPLACE, &body).map(drop)
}

/// Tells when links change; what changed is looked up elsewhere.
#[derive(Debug)]
pub(crate) struct Changes {
    socket: OwnedFd,
}

impl Changes {
    /// From now on.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            flags,
            SockProtocol::NetlinkRoute,
        )?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, RTMGRP_LINK))?;
        Ok(Self { socket })
    }

    /// Blocks until the next change, or several.
    pub(crate) fn next(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        match nix::unistd::read(&self.socket, &mut buffer) {
            // Overrun: more changed than was kept; the caller looks at everything anyway.
            Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn address_header(prefix: u8, index: u32) -> Vec<u8> {
    let mut body = vec![AF_INET, prefix, 0, RT_SCOPE_UNIVERSE];
    body.extend(index.to_ne_bytes());
    body
}

fn is_of_link(body: &[u8], index: u32) -> bool {
    let link = body.get(4..IFADDRMSG).and_then(|bytes| bytes.try_into().ok());
    body.first() == Some(&AF_INET) && link.map(u32::from_ne_bytes) == Some(index)
}

/// Adds one; all of ours are four bytes long, so none needs padding.
fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8; 4]) {
    body.extend(8_u16.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
}

/// One request and the bodies of its answers.
fn ask(kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let socket = Socket::new(
        Domain::from(NETLINK),
        Type::RAW,
        Some(Protocol::from(NETLINK_ROUTE)),
    )?;
    socket.set_read_timeout(Some(ANSWER_BOUND))?;
    socket.send(&request(kind, flags, body)?)?;
    let mut answers = Vec::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = (&socket).read(&mut buffer)?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if read_answers(buffer.get(..length).unwrap_or_default(), &mut answers)? == Rest::Done {
            return Ok(answers);
        }
    }
}

fn request(kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(HEADER + body.len()).map_err(io::Error::other)?;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend((REQUEST | flags).to_ne_bytes());
    // Sequence and port: the socket has one question.
    message.extend([0; 8]);
    message.extend(body);
    Ok(message)
}

#[derive(Debug, PartialEq, Eq)]
enum Rest {
    Done,
    MoreComes,
}

/// The messages of one datagram.
fn read_answers(mut bytes: &[u8], answers: &mut Vec<Vec<u8>>) -> io::Result<Rest> {
    let broken = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is cut off");
    while !bytes.is_empty() {
        let length = bytes.first_chunk().map(|length| u32::from_ne_bytes(*length));
        let length = length
            .and_then(|length| usize::try_from(length).ok())
            .ok_or_else(broken)?;
        let kind = bytes.get(4..6).and_then(|kind| kind.try_into().ok());
        let kind = kind.map(u16::from_ne_bytes).ok_or_else(broken)?;
        let body = bytes.get(HEADER..length).ok_or_else(broken)?;
        match kind {
            NLMSG_DONE => return Ok(Rest::Done),
            NLMSG_ERROR => {
                let code = body
                    .first_chunk()
                    .map(|code| i32::from_ne_bytes(*code))
                    .ok_or_else(broken)?;
                return match code {
                    0 => Ok(Rest::Done),
                    _ => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                };
            }
            _ => answers.push(body.to_vec()),
        }
        // Messages begin at multiples of four.
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(Rest::MoreComes)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn cut_answers_are_errors_and_never_more() {
        let mut whole = request(RTM_NEWADDR, 0, &address_header(24, 7)).expect("short");
        whole.extend(request(NLMSG_DONE, 0, &[0; 4]).expect("short"));
        let mut answers = Vec::new();
        assert_eq!(read_answers(&whole, &mut answers).expect("whole"), Rest::Done);
        assert!(is_of_link(&answers[0], 7) && !is_of_link(&answers[0], 8) && !is_of_link(&[2], 7));
        for length in 0..whole.len() {
            for place in 0..whole.len() {
                let mut bad = whole.clone();
                bad[place] ^= 0xff;
                bad.truncate(length);
                let _ = read_answers(&bad, &mut Vec::new());
            }
        }
        let refused = request(NLMSG_ERROR, 0, &(-19_i32).to_ne_bytes()).expect("short");
        let error = read_answers(&refused, &mut Vec::new()).expect_err("refused");
        assert_eq!(error.raw_os_error(), Some(Errno::ENODEV as i32));
    }

    /// What `ip` says, on one line.
    fn ip(arguments: &str) -> String {
        let output = Command::new("ip")
            .args(arguments.split(' '))
            .output()
            .expect("ip runs");
        assert!(
            output.status.success(),
            "ip {arguments}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout)
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn a_link_is_brought_up_given_an_address_and_a_route_and_flushed() {
        if !crate::room::enter(
            "netlink::tests::a_link_is_brought_up_given_an_address_and_a_route_and_flushed",
        ) {
            return;
        }
        ip("link add v0 type veth peer name v1");
        let number = |name: &str| -> u32 {
            let path = format!("/sys/class/net/{name}/ifindex");
            // `/sys` may be another namespace's; `ip` is asked where it is.
            let text = std::fs::read_to_string(path).unwrap_or_else(|_| ip(&format!("-o link show {name}")));
            text.trim()
                .split(':')
                .next()
                .and_then(|number| number.parse().ok())
                .expect("an index")
        };
        let (first, second) = (number("v0"), number("v1"));
        let mut changes = Changes::new().expect("a socket");
        up(first).expect("up");
        up(second).expect("up");
        changes.next().expect("a change");
        assert!(ip("link show v0").contains(",UP"), "{}", ip("link show v0"));
        add_address(first, Ipv4Addr::new(10, 9, 0, 7), 24).expect("an address");
        add_address(first, Ipv4Addr::new(10, 9, 0, 7), 24).expect("the same again");
        assert!(
            ip("address show v0").contains("inet 10.9.0.7/24 brd 10.9.0.255"),
            "{}",
            ip("address show v0")
        );
        default_route(first, Ipv4Addr::new(10, 9, 0, 1), 1_001).expect("a route");
        default_route(first, Ipv4Addr::new(10, 9, 0, 2), 1_001).expect("another router");
        assert_eq!(
            ip("route show default"),
            "default via 10.9.0.2 dev v0 proto static metric 1001"
        );
        add_address(second, Ipv4Addr::new(10, 8, 0, 7), 31).expect("an address");
        flush(first).expect("flushed");
        flush(first).expect("nothing left to flush");
        assert!(
            !ip("address show v0").contains("inet 10"),
            "{}",
            ip("address show v0")
        );
        assert!(
            ip("address show v1").contains("inet 10.8.0.7/31"),
            "another link's is left alone"
        );
        let error = up(9_999).expect_err("no such link");
        assert_eq!(error.raw_os_error(), Some(Errno::ENODEV as i32));
    }
}
