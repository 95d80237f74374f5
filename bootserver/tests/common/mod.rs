//! What several tests need: messages as clients send them, a site with one group, and readers for answers.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "each test binary uses a part of it"
)]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use cid_bootserver::dhcp::packet::{MessageType, Packet, option};
use cid_bootserver::dhcp::server::{Output, Server, Settings};
use cid_bootserver::machine::MacAddress;
use cid_bootserver::policy::{self, BiosLoader, Decision, Facts, GroupOffer, Site, Standing};

pub const HEAD: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// A moment, Unix seconds.
pub const NOW: u64 = 1_800_000_000;

/// DISCOVER of OVMF (edk2-stable202211) on a virtio-net card, as captured.
pub const OVMF_DISCOVER: &str = include_str!("../captures/ovmf-discover.hex");
/// Its REQUEST after an offer of 10.77.0.156.
pub const OVMF_REQUEST: &str = include_str!("../captures/ovmf-request.hex");
/// DISCOVER of the iPXE ROM in QEMU's BIOS machine, as captured.
pub const IPXE_DISCOVER: &str = include_str!("../captures/ipxe-discover.hex");

/// Hex with white space and `#` comments to bytes.
pub fn unhex(text: &str) -> Vec<u8> {
    let digits: String = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default())
        .collect::<String>()
        .chars()
        .filter(|c| !c.is_whitespace())
        .collect();
    assert!(digits.len().is_multiple_of(2), "odd number of hex digits");
    (0..digits.len() / 2)
        .map(|i| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).unwrap())
        .collect()
}

pub fn mac(last: u8) -> MacAddress {
    MacAddress([0x52, 0x54, 0, 0, 0, last])
}

/// A client's message, bare.
#[derive(Clone)]
pub struct Message {
    pub kind: MessageType,
    pub mac: MacAddress,
    pub ciaddr: Ipv4Addr,
    pub giaddr: Ipv4Addr,
    pub options: Vec<(u8, Vec<u8>)>,
}

impl Message {
    pub fn new(kind: MessageType, mac: MacAddress) -> Self {
        Self {
            kind,
            mac,
            ciaddr: Ipv4Addr::UNSPECIFIED,
            giaddr: Ipv4Addr::UNSPECIFIED,
            options: vec![],
        }
    }

    pub fn option(mut self, code: u8, value: &[u8]) -> Self {
        self.options.push((code, value.to_vec()));
        self
    }

    pub fn requested(self, address: Ipv4Addr) -> Self {
        self.option(option::REQUESTED_ADDRESS, &address.octets())
    }

    pub fn server(self, address: Ipv4Addr) -> Self {
        self.option(option::SERVER_IDENTIFIER, &address.octets())
    }

    pub fn ciaddr(mut self, address: Ipv4Addr) -> Self {
        self.ciaddr = address;
        self
    }

    pub fn giaddr(mut self, address: Ipv4Addr) -> Self {
        self.giaddr = address;
        self
    }

    /// As plain PXE firmware of `architecture` introduces itself.
    pub fn pxe(self, architecture: u16) -> Self {
        let class = format!("PXEClient:Arch:{architecture:05}:UNDI:003000");
        self.option(option::VENDOR_CLASS, class.as_bytes())
            .option(option::ARCHITECTURE, &architecture.to_be_bytes())
            .option(option::MACHINE_UUID, &[&[0][..], &[7; 16]].concat())
    }

    pub fn ipxe(self) -> Self {
        self.pxe(0).option(option::USER_CLASS, b"iPXE")
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; 240];
        bytes[..4].copy_from_slice(&[1, 1, 6, 0]);
        bytes[4..8].copy_from_slice(&[0xc1, 0xd0, 0, self.mac.0[5]]);
        bytes[12..16].copy_from_slice(&self.ciaddr.octets());
        bytes[24..28].copy_from_slice(&self.giaddr.octets());
        bytes[28..34].copy_from_slice(&self.mac.0);
        bytes[236..240].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
        bytes.extend([option::MESSAGE_TYPE, 1, self.kind.to_byte()]);
        for (code, value) in &self.options {
            bytes.push(*code);
            bytes.push(u8::try_from(value.len()).unwrap());
            bytes.extend(value);
        }
        bytes.push(255);
        bytes
    }
}

pub fn settings() -> Settings {
    Settings {
        address: HEAD,
        prefix: 24,
        first: Ipv4Addr::new(10, 77, 0, 100),
        last: Ipv4Addr::new(10, 77, 0, 250),
        lease_secs: 3_600,
        router: None,
        dns: vec![],
        domain: None,
    }
}

/// One group `lab-a` with a whole image `minimal`.
pub fn site() -> Site {
    let offer = GroupOffer {
        image: "minimal".to_owned(),
        image_fault: None,
        bios_loader: BiosLoader::Present,
        cmdline: "panic=10 oops=panic".to_owned(),
    };
    Site {
        groups: BTreeMap::from([("lab-a".to_owned(), offer)]),
        ..Site::default()
    }
}

pub fn adopted() -> Standing {
    Standing {
        group: Some("lab-a".to_owned()),
        name: Some("lab-a01".to_owned()),
        hours: policy::Hours::Open,
        ..Standing::default()
    }
}

/// The policy over the whole site for a machine of this standing.
pub fn decide(standing: Standing) -> impl Fn(&Facts) -> Decision {
    move |facts| policy::decide(facts, &standing, &site())
}

pub fn drain(server: &mut Server) -> Vec<Output> {
    std::iter::from_fn(|| server.poll_output()).collect()
}

/// An answer, taken apart.
#[derive(Debug)]
pub struct Answer {
    pub packet: Packet,
    pub bytes: Vec<u8>,
    pub to: std::net::SocketAddrV4,
}

impl Answer {
    pub fn siaddr(&self) -> Ipv4Addr {
        let bytes: [u8; 4] = self.bytes[20..24].try_into().unwrap();
        Ipv4Addr::from(bytes)
    }

    pub fn sname(&self) -> String {
        text(&self.bytes[44..108])
    }

    pub fn file(&self) -> String {
        text(&self.bytes[108..236])
    }
}

fn text(field: &[u8]) -> String {
    let end = field
        .iter()
        .position(|byte| *byte == 0)
        .expect("BOOTP fields end with a zero byte");
    String::from_utf8(field[..end].to_vec()).unwrap()
}

/// Checks what holds for every run of outputs, and returns the answer if one leaves: at most one, an ACK only behind
/// its lease, and of a size that every firmware takes.
pub fn answer(outputs: &[Output]) -> Option<Answer> {
    let mut promised = None;
    let mut found = None;
    for output in outputs {
        match output {
            Output::Persist(record) => promised = Some(*record),
            Output::Transmit { bytes, to } => {
                assert!(found.is_none(), "two answers to one message");
                assert!((300..=1472).contains(&bytes.len()), "{} bytes", bytes.len());
                let packet = Packet::decode(bytes).expect("our own answers decode");
                assert_eq!(packet.address_option(option::SERVER_IDENTIFIER), Some(HEAD));
                assert_eq!(
                    packet.option(option::OVERLOAD),
                    None,
                    "shim reads the header fields"
                );
                if packet.message_type == MessageType::Ack && !packet.yiaddr.is_unspecified() {
                    let record = promised.expect("an ACK without a lease before it");
                    assert_eq!((record.mac, record.address), (packet.mac, packet.yiaddr));
                }
                found = Some(Answer {
                    packet,
                    bytes: bytes.clone(),
                    to: *to,
                });
            }
            _ => {}
        }
    }
    found
}
