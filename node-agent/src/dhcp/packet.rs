//! Packets of the client: requests out, replies in. dhcproto encodes and finds the options; lengths and
//! addresses are checked here first, since its `chaddr()` trusts the packet's `hlen`.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use dhcproto::Encodable;
use dhcproto::v4::{DhcpOption, Flags, HType, Message, MessageType, OptionCode, borrowed};

use super::{Lease, SHORTEST_LEASE};

/// BOOTP's fixed part and the magic cookie (RFC 2131 section 2).
const FIXED: usize = 240;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// RFC 1542 section 2.1: BOOTP relays may drop shorter ones.
const SHORTEST: usize = 300;
/// Told to servers as option 60: this is an operating system, not firmware that wants to boot.
const CLASS: &[u8] = b"cid-agent";

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    Discover {
        wanted: Option<Ipv4Addr>,
    },
    /// SELECTING: this offer is taken.
    Select {
        server: Ipv4Addr,
        address: Ipv4Addr,
    },
    /// INIT-REBOOT: is this still mine?
    Verify {
        address: Ipv4Addr,
    },
    /// RENEWING and REBINDING.
    Renew {
        address: Ipv4Addr,
    },
}

/// Why a datagram was not acted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Reject {
    /// Shorter than the fixed part, or without the cookie.
    NotDhcp,
    /// A request, or for another client or exchange.
    NotOurs,
    /// No message type that servers send to clients.
    MessageType,
    /// An offer or acknowledgement without a usable address or server identifier.
    NoAddress,
    /// Right, but not what this state waits for.
    Unexpected,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReplyKind {
    Offer,
    Ack,
    Nak,
}

/// A reply that is for us.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) kind: ReplyKind,
    pub(super) address: Ipv4Addr,
    pub(super) server: Option<Ipv4Addr>,
    options: BTreeMap<u8, Vec<u8>>,
}

pub(super) fn encode(request: Request, xid: u32, secs: u16, mac: [u8; 6]) -> Vec<u8> {
    let none = Ipv4Addr::UNSPECIFIED;
    let own = if let Request::Renew { address } = request {
        address
    } else {
        none
    };
    let mut message = Message::new_with_id(xid, own, none, none, none, &mac);
    message.set_htype(HType::Eth).set_secs(secs);
    // With an address of ours the answer can be unicast; without, it cannot.
    if own.is_unspecified() {
        message.set_flags(Flags::default().set_broadcast());
    }
    let options = message.opts_mut();
    let kind = if let Request::Discover { .. } = request {
        MessageType::Discover
    } else {
        MessageType::Request
    };
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::MaxMessageSize(1472));
    options.insert(DhcpOption::ClassIdentifier(CLASS.to_vec()));
    options.insert(DhcpOption::ParameterRequestList(vec![
        OptionCode::SubnetMask,
        OptionCode::Router,
        OptionCode::DomainNameServer,
        OptionCode::DomainName,
        OptionCode::AddressLeaseTime,
        OptionCode::Renewal,
        OptionCode::Rebinding,
    ]));
    match request {
        Request::Discover {
            wanted: Some(address),
        }
        | Request::Verify { address } => {
            options.insert(DhcpOption::RequestedIpAddress(address));
        }
        Request::Select { server, address } => {
            options.insert(DhcpOption::ServerIdentifier(server));
            options.insert(DhcpOption::RequestedIpAddress(address));
        }
        Request::Discover { wanted: None } | Request::Renew { .. } => {}
    }
    // Encoding into memory fails for options above 255 bytes only, and there is none.
    let mut bytes = message.to_vec().unwrap_or_default();
    bytes.resize(bytes.len().max(SHORTEST), 0);
    bytes
}

pub(super) fn parse(bytes: &[u8], xid: u32, mac: [u8; 6]) -> Result<Reply, Reject> {
    if bytes.len() < FIXED || bytes.get(236..FIXED) != Some(COOKIE.as_slice()) {
        return Err(Reject::NotDhcp);
    }
    // op 2 is BOOTREPLY; hlen before anything that slices with it.
    let ours =
        bytes.first() == Some(&2) && bytes.get(2) == Some(&6) && bytes.get(28..34) == Some(mac.as_slice());
    if !ours {
        return Err(Reject::NotOurs);
    }
    let message = borrowed::Message::new(bytes).map_err(|_| Reject::NotDhcp)?;
    if message.xid() != xid {
        return Err(Reject::NotOurs);
    }
    let mut options: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
    for option in message.opts() {
        // RFC 3396: repeated options are one.
        options
            .entry(option.code().into())
            .or_default()
            .extend_from_slice(option.data());
    }
    let kind = match options.get(&53).map(Vec::as_slice) {
        Some([2]) => ReplyKind::Offer,
        Some([5]) => ReplyKind::Ack,
        Some([6]) => ReplyKind::Nak,
        _ => return Err(Reject::MessageType),
    };
    let server = options.get(&54).and_then(|bytes| addresses(bytes).next());
    Ok(Reply {
        kind,
        address: message.yiaddr(),
        server,
        options,
    })
}

impl Reply {
    pub(super) fn into_lease(self) -> Result<Lease, Reject> {
        let address = self.address;
        let Some(server) = self.server else {
            return Err(Reject::NoAddress);
        };
        if address.is_unspecified()
            || address.is_broadcast()
            || address.is_multicast()
            || address.is_loopback()
        {
            return Err(Reject::NoAddress);
        }
        let option = |code: u8| self.options.get(&code).map(Vec::as_slice).unwrap_or_default();
        let secs = |code: u8| {
            option(code)
                .try_into()
                .ok()
                .map(u32::from_be_bytes)
                .map(u64::from)
        };
        let prefix = match addresses(option(1)).next() {
            Some(mask) if mask.to_bits().leading_ones() + mask.to_bits().trailing_zeros() == 32 => {
                u8::try_from(mask.to_bits().leading_ones()).unwrap_or(24)
            }
            // A server that names no mask, or none that is one, leaves the most common.
            _ => 24,
        };
        // RFC 2131 section 4.4.5: halves and eighths where the server says nothing sensible.
        let time = Duration::from_secs(secs(51).unwrap_or(3600)).max(SHORTEST_LEASE);
        let rebind = secs(59)
            .map(Duration::from_secs)
            .filter(|t| *t < time)
            .unwrap_or(time * 7 / 8);
        let renew = secs(58)
            .map(Duration::from_secs)
            .filter(|t| *t <= rebind)
            .unwrap_or(time / 2)
            .min(rebind);
        let domain = std::str::from_utf8(option(15))
            .ok()
            .map(|text| text.trim_end_matches('\0').to_owned());
        let plain = |name: &String| {
            !name.is_empty()
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        };
        Ok(Lease {
            address,
            prefix,
            router: addresses(option(3))
                .next()
                .filter(|router| !router.is_unspecified()),
            dns: addresses(option(6)).take(3).collect(),
            domain: domain.filter(plain),
            server,
            time,
            renew,
            rebind,
        })
    }
}

fn addresses(bytes: &[u8]) -> impl Iterator<Item = Ipv4Addr> + '_ {
    bytes.as_chunks::<4>().0.iter().map(|four| Ipv4Addr::from(*four))
}
