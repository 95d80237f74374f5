//! A DHCP message from the wire, taken apart with every check that the library leaves to us.
//!
//! dhcproto's typed decoder drops every option after the first bad one and panics on a large `hlen`, so only its
//! borrowed view is used, behind our own length, cookie and `hlen` checks; option values are read here.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use dhcproto::v4::borrowed;

use crate::machine::{MacAddress, Uuid};

/// Fixed part and magic cookie, in bytes (RFC 2131 2).
const MIN_LENGTH: usize = 240;
/// Largest datagram we look at: an Ethernet frame's. Firmware sends less.
const MAX_LENGTH: usize = 1500;
const COOKIE: [u8; 4] = [0x63, 0x82, 0x53, 0x63];
const CHADDR_OFFSET: usize = 28;
const SNAME: std::ops::Range<usize> = 44..108;
const FILE: std::ops::Range<usize> = 108..236;

/// Option codes by their names in RFC 2132, 3046, 4578 and 3004.
pub mod option {
    #![expect(missing_docs, reason = "the names are the RFCs' own")]
    pub const SUBNET_MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const DOMAIN_NAME_SERVER: u8 = 6;
    pub const HOST_NAME: u8 = 12;
    pub const DOMAIN_NAME: u8 = 15;
    pub const BROADCAST_ADDRESS: u8 = 28;
    pub const VENDOR_SPECIFIC: u8 = 43;
    pub const REQUESTED_ADDRESS: u8 = 50;
    pub const LEASE_TIME: u8 = 51;
    pub const OVERLOAD: u8 = 52;
    pub const MESSAGE_TYPE: u8 = 53;
    pub const SERVER_IDENTIFIER: u8 = 54;
    pub const MESSAGE: u8 = 56;
    pub const MAX_MESSAGE_SIZE: u8 = 57;
    pub const RENEWAL_TIME: u8 = 58;
    pub const REBINDING_TIME: u8 = 59;
    pub const VENDOR_CLASS: u8 = 60;
    pub const TFTP_SERVER_NAME: u8 = 66;
    pub const BOOT_FILE_NAME: u8 = 67;
    pub const USER_CLASS: u8 = 77;
    pub const RELAY_AGENT: u8 = 82;
    pub const ARCHITECTURE: u8 = 93;
    pub const NETWORK_INTERFACE: u8 = 94;
    pub const MACHINE_UUID: u8 = 97;
    pub const IPXE: u8 = 175;
}

/// RFC 2132 9.6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the RFC's own")]
pub enum MessageType {
    Discover,
    Offer,
    Request,
    Decline,
    Ack,
    Nak,
    Release,
    Inform,
}

impl MessageType {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Discover,
            2 => Self::Offer,
            3 => Self::Request,
            4 => Self::Decline,
            5 => Self::Ack,
            6 => Self::Nak,
            7 => Self::Release,
            8 => Self::Inform,
            _ => return None,
        })
    }

    /// The byte of option 53.
    pub fn to_byte(self) -> u8 {
        match self {
            Self::Discover => 1,
            Self::Offer => 2,
            Self::Request => 3,
            Self::Decline => 4,
            Self::Ack => 5,
            Self::Nak => 6,
            Self::Release => 7,
            Self::Inform => 8,
        }
    }
}

/// BOOTP `op`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// 1, from a client.
    Request,
    /// 2, from a server.
    Reply,
}

/// Why a datagram is not a DHCP message for us. Each is counted under its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Malformed {
    /// Shorter than the fixed part.
    #[error("dhcp-too-short")]
    TooShort,
    /// Longer than an Ethernet frame.
    #[error("dhcp-too-long")]
    TooLong,
    /// BOOTP without the DHCP cookie, or no BOOTP at all.
    #[error("dhcp-no-cookie")]
    NoCookie,
    /// `op` is neither request nor reply.
    #[error("dhcp-bad-op")]
    BadOp,
    /// `htype`/`hlen` are not Ethernet's, or the address is multicast or zero.
    #[error("dhcp-bad-hardware-address")]
    BadHardwareAddress,
    /// No option 53, or an unknown value in it.
    #[error("dhcp-bad-message-type")]
    BadMessageType,
    /// Option 97 of another length or type than RFC 4578 2.3 allows.
    #[error("dhcp-bad-uuid")]
    BadUuid,
}

/// A decoded message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Who sent it.
    pub direction: Direction,
    /// Option 53.
    pub message_type: MessageType,
    /// Transaction.
    pub xid: u32,
    /// Seconds since the client began, as it says.
    pub secs: u16,
    /// Broadcast flag.
    pub broadcast: bool,
    /// The client's address if it is in use.
    pub ciaddr: Ipv4Addr,
    /// The client's address as a server gives it.
    pub yiaddr: Ipv4Addr,
    /// Boot server as a server gives it.
    pub siaddr: Ipv4Addr,
    /// Relay agent, or 0.0.0.0.
    pub giaddr: Ipv4Addr,
    /// Client.
    pub mac: MacAddress,
    /// Boot file as a server gives it: option 67, else the header field; empty when there is none.
    pub file: Vec<u8>,
    options: BTreeMap<u8, Vec<u8>>,
}

impl Packet {
    /// Takes a datagram apart. Options that occur several times are joined (RFC 3396 7), `file` and `sname` are
    /// read as options where option 52 says so.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        if bytes.len() > MAX_LENGTH {
            return Err(Malformed::TooLong);
        }
        if bytes.len() < MIN_LENGTH {
            return Err(Malformed::TooShort);
        }
        if bytes.get(MIN_LENGTH - COOKIE.len()..MIN_LENGTH) != Some(&COOKIE) {
            return Err(Malformed::NoCookie);
        }
        // htype 1 and hlen 6: Ethernet. Anything else would make `chaddr()` of the library slice out of bounds.
        let (Some([1, 6]), Some(chaddr)) = (bytes.get(1..3), bytes.get(CHADDR_OFFSET..CHADDR_OFFSET + 6))
        else {
            return Err(Malformed::BadHardwareAddress);
        };
        let mac = MacAddress(chaddr.try_into().map_err(|_| Malformed::BadHardwareAddress)?);
        if !mac.is_unicast() {
            return Err(Malformed::BadHardwareAddress);
        }
        let view = borrowed::Message::new(bytes).map_err(|_| Malformed::TooShort)?;
        let options = collect_options(bytes, &view);
        let message_type = match options.get(&option::MESSAGE_TYPE).map(Vec::as_slice) {
            Some([byte]) => MessageType::from_byte(*byte).ok_or(Malformed::BadMessageType)?,
            _ => return Err(Malformed::BadMessageType),
        };
        let packet = Self {
            direction: match bytes.first() {
                Some(1) => Direction::Request,
                Some(2) => Direction::Reply,
                _ => return Err(Malformed::BadOp),
            },
            message_type,
            xid: view.xid(),
            secs: view.secs(),
            broadcast: view.flags().broadcast(),
            ciaddr: view.ciaddr(),
            yiaddr: view.yiaddr(),
            siaddr: view.siaddr(),
            giaddr: view.giaddr(),
            file: boot_file(bytes, &options),
            mac,
            options,
        };
        packet.check_uuid()?;
        Ok(packet)
    }

    /// An option's whole value.
    pub fn option(&self, code: u8) -> Option<&[u8]> {
        self.options.get(&code).map(Vec::as_slice)
    }

    /// An option that is one IPv4 address.
    pub fn address_option(&self, code: u8) -> Option<Ipv4Addr> {
        let bytes: [u8; 4] = self.option(code)?.try_into().ok()?;
        Some(Ipv4Addr::from(bytes))
    }

    /// Option 97 without its type byte. Some cards send none (pixiecore issue 21); all zeros or all ones is what boards
    /// without a number of their own say (QEMU without `-uuid` among them), so that it names no machine.
    pub fn uuid(&self) -> Option<Uuid> {
        match self.option(option::MACHINE_UUID)? {
            [0, rest @ ..] if rest.iter().any(|byte| *byte != 0) && rest.iter().any(|byte| *byte != 0xff) => {
                Some(Uuid(rest.try_into().ok()?))
            }
            _ => None,
        }
    }

    /// Option 93: a list of big-endian 16-bit codes.
    pub fn architectures(&self) -> Vec<u16> {
        let bytes = self.option(option::ARCHITECTURE).unwrap_or_default();
        bytes
            .chunks_exact(2)
            .map(|pair| pair.iter().fold(0, |sum, byte| (sum << 8) | u16::from(*byte)))
            .collect()
    }

    /// PCI vendor and device of the card that iPXE asks over: its sub-option 177 is a bus type (1 is PCI) and two
    /// big-endian numbers (`struct dhcp_netdev_desc` of iPXE).
    pub fn card(&self) -> Option<(u16, u16)> {
        let mut rest = self.option(option::IPXE)?;
        while let [code, length, tail @ ..] = rest {
            let (value, next) = tail.split_at_checked(usize::from(*length))?;
            if let (177, [1, a, b, c, d]) = (code, value) {
                return Some((u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])));
            }
            rest = next;
        }
        None
    }

    fn check_uuid(&self) -> Result<(), Malformed> {
        match self.option(option::MACHINE_UUID) {
            None => Ok(()),
            Some(value) if value.len() == 17 && value.first() == Some(&0) => Ok(()),
            Some(_) => Err(Malformed::BadUuid),
        }
    }
}

/// Without its zero byte and what stands behind that. A header field that was overloaded holds options, not a name.
fn boot_file(bytes: &[u8], options: &BTreeMap<u8, Vec<u8>>) -> Vec<u8> {
    let overloaded = |value: &Vec<u8>| value.first().is_some_and(|bits| bits & 1 != 0);
    let header = || {
        let free = !options.get(&option::OVERLOAD).is_some_and(overloaded);
        bytes.get(FILE).filter(|_| free)
    };
    let name = options
        .get(&option::BOOT_FILE_NAME)
        .map(Vec::as_slice)
        .or_else(header);
    name.unwrap_or_default()
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default()
        .to_vec()
}

/// The options of the message, then those that overloading put into `file` and `sname` (RFC 2131 4.1), in that order.
fn collect_options(bytes: &[u8], view: &borrowed::Message<'_>) -> BTreeMap<u8, Vec<u8>> {
    let mut options: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
    for found in view.opts() {
        options
            .entry(found.code().into())
            .or_default()
            .extend_from_slice(found.data());
    }
    let overload = match options.get(&option::OVERLOAD).map(Vec::as_slice) {
        Some([value]) => *value,
        _ => 0,
    };
    for (bit, range) in [(1, FILE), (2, SNAME)] {
        if overload & bit != 0 {
            for found in borrowed::DhcpOptionIterator::new(bytes.get(range).unwrap_or_default()) {
                options
                    .entry(found.code().into())
                    .or_default()
                    .extend_from_slice(found.data());
            }
        }
    }
    options
}
