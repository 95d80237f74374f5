//! Boots of real firmware replayed as timed traces against the DHCP cores, in every mode that has one: what came at which second,
//! what left, and what the next reader of the answer (EDK2, iPXE, shim, GRUB) makes of its bytes.
//!
//! What OVMF and the iPXE ROM say is captured (`captures/`), by PXE, on port 4011 and by UEFI HTTP Boot. The plain ROM is made up
//! from RFC 4578: no such ROM is packaged. GRUB and shim ask nothing of their own: they read the packets that firmware cached.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};

use cid_bootserver::dhcp::packet::{MessageType, Packet, option};
use cid_bootserver::dhcp::proxy::{self, Door, Proxy};
use cid_bootserver::dhcp::server::{Output, Server};
use cid_bootserver::policy::Standing;

use common::{
    HEAD, IPXE_DISCOVER, Message, NOW, OVMF_DISCOVER, OVMF_REQUEST, adopted, decide, mac, settings, unhex,
};

/// REQUEST of OVMF to port 4011.
const OVMF_4011: &str = include_str!("captures/ovmf-4011.hex");
/// DISCOVER of OVMF for UEFI HTTP Boot.
const OVMF_HTTP_DISCOVER: &str = include_str!("captures/ovmf-http-discover.hex");
/// Its REQUEST, to the site's DHCP server at 10.77.0.2.
const OVMF_HTTP_REQUEST: &str = include_str!("captures/ovmf-http-request.hex");

/// Where a message of the trace goes.
#[derive(Clone, Copy, PartialEq)]
enum To {
    Port67,
    Port4011,
}
use To::{Port67, Port4011};

enum Core {
    Full(Box<Server>),
    Proxy(Proxy),
}

impl Core {
    fn feed(
        &mut self,
        at: u64,
        to: To,
        bytes: &[u8],
        standing: &Standing,
    ) -> Option<(Vec<u8>, SocketAddrV4)> {
        let policy = decide(standing.clone());
        match self {
            Self::Full(server) => {
                let _ = server.handle_packet(NOW + at, bytes, &policy);
                std::iter::from_fn(|| server.poll_output()).find_map(|output| match output {
                    Output::Transmit { bytes, to } => Some((bytes, to)),
                    _ => None,
                })
            }
            Self::Proxy(proxy) => {
                let door = if to == Port67 {
                    Door::Dhcp
                } else {
                    Door::BootServer
                };
                let sender = match to {
                    Port67 => SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68),
                    Port4011 => SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 156), 4011),
                };
                let _ = proxy.handle_packet(door, sender, bytes, &policy);
                std::iter::from_fn(|| proxy.poll_output()).find_map(|output| match output {
                    proxy::Output::Transmit { bytes, to, .. } => Some((bytes, to)),
                    _ => None,
                })
            }
        }
    }
}

/// The header fields as shim reads them (`netboot.c`, parseDhcp4): never an option.
fn as_shim(bytes: &[u8]) -> String {
    let file = bytes[108..236].split(|byte| *byte == 0).next().unwrap();
    let siaddr: [u8; 4] = bytes[20..24].try_into().unwrap();
    format!("{}!{}", Ipv4Addr::from(siaddr), String::from_utf8_lossy(file))
}

/// The class of an offer as EDK2 counts it (`PxeBcDhcp4.c`, PxeBcParseDhcp4Packet; `HttpBootDhcp4.c`).
fn as_edk2(packet: &Packet) -> &'static str {
    let class = packet.option(option::VENDOR_CLASS).unwrap_or_default();
    let menu = packet.option(option::VENDOR_SPECIFIC);
    let proxy = packet.yiaddr.is_unspecified();
    match (proxy, class) {
        (_, class) if class.starts_with(b"HTTPClient") => "http",
        (false, b"") => "dhcp-only",
        (true, b"") => "ignored",
        _ => match (menu, proxy) {
            (Some([6, 1, 8, ..]), _) => "pxe10-direct",
            (Some([6, 1, 3, 9, _, 0, 0, ..]), _) => "pxe10-local-boot",
            (Some(_), _) => "pxe10-menu",
            (None, true) => "binl",
            (None, false) => "dhcp-binl",
        },
    }
}

/// Feeds the trace and compares what left, one line for each answer.
fn check(mode: &str, standing: &Standing, trace: &[(u64, To, Vec<u8>)], expected: &str) {
    let mut core = match mode {
        "full" => Core::Full(Box::new(Server::new(settings(), &[]))),
        _ => Core::Proxy(Proxy::new(HEAD)),
    };
    let mut told = String::new();
    for (at, to, bytes) in trace {
        let Some((answer, destination)) = core.feed(*at, *to, bytes, standing) else {
            let _ = writeln!(told, "{at} silence");
            continue;
        };
        let packet = Packet::decode(&answer).unwrap();
        let asked = Packet::decode(bytes).unwrap();
        assert_eq!((packet.xid, packet.mac), (asked.xid, asked.mac));
        assert_eq!(
            packet.option(option::MACHINE_UUID),
            asked.option(option::MACHINE_UUID),
            "echoed"
        );
        let kind = format!("{:?}", packet.message_type).to_lowercase();
        let _ = writeln!(
            told,
            "{at} {kind} {} {} {}",
            destination.port(),
            as_edk2(&packet),
            as_shim(&answer)
        );
    }
    let expected: String = expected
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(|line| format!("{line}\n"))
        .collect();
    assert_eq!(told, expected, "in {mode} mode");
}

fn ovmf() -> Vec<(u64, To, Vec<u8>)> {
    // Client seconds 0 and 4: it asks again until it has chosen.
    vec![
        (0, Port67, unhex(OVMF_DISCOVER)),
        (4, Port67, unhex(OVMF_DISCOVER)),
        (8, Port67, unhex(OVMF_REQUEST)),
    ]
}

fn at_4011() -> (u64, To, Vec<u8>) {
    (9, Port4011, unhex(OVMF_4011))
}

#[test]
fn edk2_over_pxe_then_shim() {
    let mut trace = ovmf();
    check(
        "full",
        &adopted(),
        &trace,
        "
        0 offer 68 dhcp-only 10.77.0.1!shimx64.efi
        4 offer 68 dhcp-only 10.77.0.1!shimx64.efi
        8 ack 68 dhcp-only 10.77.0.1!shimx64.efi",
    );
    check(
        "full",
        &Standing::default(),
        &trace,
        "
        0 offer 68 pxe10-local-boot 10.77.0.1!
        4 offer 68 pxe10-local-boot 10.77.0.1!
        8 ack 68 pxe10-local-boot 10.77.0.1!",
    );
    trace.push(at_4011());
    check(
        "proxy",
        &adopted(),
        &trace,
        "
        0 offer 68 binl 10.77.0.1!m/52-54-00-00-00-01/shimx64.efi
        4 offer 68 binl 10.77.0.1!m/52-54-00-00-00-01/shimx64.efi
        8 silence
        9 ack 4011 binl 10.77.0.1!m/52-54-00-00-00-01/shimx64.efi",
    );
    check(
        "proxy",
        &Standing::default(),
        &trace,
        "
        0 offer 68 pxe10-local-boot 10.77.0.1!
        4 offer 68 pxe10-local-boot 10.77.0.1!
        8 silence
        9 ack 4011 pxe10-local-boot 10.77.0.1!",
    );
}

#[test]
fn the_ipxe_rom() {
    let request = Message::new(MessageType::Request, mac(2)).ipxe();
    let request = request.requested(Ipv4Addr::new(10, 77, 0, 120)).bytes();
    let trace = [
        (0, Port67, unhex(IPXE_DISCOVER)),
        (1, Port67, unhex(IPXE_DISCOVER)),
        (3, Port67, request),
    ];
    check(
        "proxy",
        &adopted(),
        &trace,
        "
        0 offer 68 binl 10.77.0.1!http://10.77.0.1/m/52-54-00-00-00-02/boot.ipxe
        1 offer 68 binl 10.77.0.1!http://10.77.0.1/m/52-54-00-00-00-02/boot.ipxe
        3 silence",
    );
    check(
        "full",
        &adopted(),
        &trace[..2],
        "
        0 offer 68 dhcp-only 10.77.0.1!http://10.77.0.1/boot.ipxe
        1 offer 68 dhcp-only 10.77.0.1!http://10.77.0.1/boot.ipxe",
    );
}

/// Made up from RFC 4578 and the PXE specification: no vendor's ROM is packaged.
#[test]
fn a_plain_rom_then_the_ipxe_that_it_was_given() {
    let trace = [
        (
            0,
            Port67,
            Message::new(MessageType::Discover, mac(1)).pxe(0).bytes(),
        ),
        (
            20,
            Port67,
            Message::new(MessageType::Discover, mac(1)).ipxe().bytes(),
        ),
    ];
    check(
        "full",
        &adopted(),
        &trace,
        "
        0 offer 68 dhcp-only 10.77.0.1!undionly.kpxe
        20 offer 68 dhcp-only 10.77.0.1!http://10.77.0.1/boot.ipxe",
    );
    check(
        "proxy",
        &adopted(),
        &trace,
        "
        0 offer 68 pxe10-direct 10.77.0.1!m/52-54-00-00-00-01/undionly.kpxe
        20 offer 68 binl 10.77.0.1!http://10.77.0.1/m/52-54-00-00-00-01/boot.ipxe",
    );
    check(
        "proxy",
        &Standing::default(),
        &trace,
        "
        0 offer 68 pxe10-local-boot 10.77.0.1!
        20 offer 68 pxe10-local-boot 10.77.0.1!",
    );
}

#[test]
fn edk2_over_http_then_shim_and_grub() {
    let trace = [
        (0, Port67, unhex(OVMF_HTTP_DISCOVER)),
        // It chose an offer, which beside us is the site's.
        (4, Port67, unhex(OVMF_HTTP_REQUEST)),
    ];
    check(
        "full",
        &adopted(),
        &trace,
        "
        0 offer 68 http 10.77.0.1!http://10.77.0.1/shimx64.efi
        4 silence",
    );
    check(
        "full",
        &Standing::default(),
        &trace[..1],
        "0 offer 68 dhcp-only 10.77.0.1!",
    );
    check(
        "proxy",
        &adopted(),
        &trace,
        "
        0 offer 68 http 10.77.0.1!http://10.77.0.1/m/52-54-00-00-00-01/shimx64.efi
        4 silence",
    );
    check("proxy", &Standing::default(), &trace[..1], "0 silence");
}

/// GRUB (`net/bootp.c`) takes a boot for an HTTP one when option 60 is the C string `HTTPClient`: the byte behind is zero.
#[test]
fn grub_sees_an_http_boot() {
    for core in [
        &mut Core::Full(Box::new(Server::new(settings(), &[]))),
        &mut Core::Proxy(Proxy::new(HEAD)),
    ] {
        let (answer, _) = core
            .feed(0, Port67, &unhex(OVMF_HTTP_DISCOVER), &adopted())
            .unwrap();
        let at = answer.windows(2).position(|two| two == [60, 11]).unwrap();
        assert_eq!(&answer[at + 2..at + 13], b"HTTPClient\0");
    }
}
