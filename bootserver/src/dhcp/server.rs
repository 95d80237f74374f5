//! The DHCP server of full mode (RFC 2131 4.3) as a state machine: packets in, ordered outputs out.
//!
//! Addresses and boot answers are independent: every machine gets an address; what it boots is the policy's word.
//! Must never own a socket, a clock or the disk. A [`Output::Transmit`] behind a [`Output::Persist`] may leave only
//! when that is on disk.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::dhcp::boot::{self, Voice};
use crate::dhcp::classify::classify;
use crate::dhcp::leases::{LeaseRecord, LeaseTable, NoAddress};
use crate::dhcp::packet::{Direction, Malformed, MessageType, Packet, option};
use crate::dhcp::reply::{self, Body, EncodeError};
use crate::machine::{Client, MacAddress};
use crate::policy::{Action, Decision, Facts};

/// Port of servers and relays.
pub const SERVER_PORT: u16 = 67;
/// Port of clients.
pub const CLIENT_PORT: u16 = 68;

/// What the configuration says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Our own address: server identifier and boot server.
    pub address: Ipv4Addr,
    /// Prefix length of the subnet, 0 to 32.
    pub prefix: u8,
    /// First address given out.
    pub first: Ipv4Addr,
    /// Last address given out.
    pub last: Ipv4Addr,
    /// Lease time, in seconds.
    pub lease_secs: u32,
    /// Option 3.
    pub router: Option<Ipv4Addr>,
    /// Option 6.
    pub dns: Vec<Ipv4Addr>,
    /// Option 15.
    pub domain: Option<String>,
}

impl Settings {
    fn mask(&self) -> u32 {
        u32::MAX
            .checked_shl(32 - u32::from(self.prefix.min(32)))
            .unwrap_or(0)
    }

    fn in_subnet(&self, address: Ipv4Addr) -> bool {
        (u32::from(address) ^ u32::from(self.address)) & self.mask() == 0
    }
}

/// What the caller is to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Write this lease; another machine's record of the same address is void.
    Persist(LeaseRecord),
    /// Tell the head.
    Observe(MacAddress, Observation),
    /// Send.
    Transmit {
        /// Message.
        bytes: Vec<u8>,
        /// Where to.
        to: SocketAddrV4,
    },
    /// A sign of another DHCP server: a client named it.
    RivalNamed(Ipv4Addr),
}

/// What was seen of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observation {
    /// An operating system's DHCP message: the machine is alive.
    Heard,
    /// Firmware asks for a boot: a boot session begins or goes on.
    FirmwareAsked(Facts),
    /// An offer is about to leave.
    Offered {
        /// Address in it; none from a proxy.
        address: Option<Ipv4Addr>,
        /// The policy's answer in it.
        decision: Decision,
    },
    /// Its loader named the PCI vendor and device of the card it asks over.
    CardNamed {
        /// Vendor.
        vendor: u16,
        /// Device.
        device: u16,
    },
    /// It was granted an address.
    Leased(Ipv4Addr),
    /// The policy's answer left (or is about to leave).
    Decided(Decision),
}

/// Why a packet was not answered. The name is the counter's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Drop {
    /// Not a DHCP message for us.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Another server's answer, or our own.
    #[error("dhcp-reply-heard")]
    ReplyHeard,
    /// Our own probe for a rival.
    #[error("dhcp-own-probe")]
    OwnProbe,
    /// A message that only servers send.
    #[error("dhcp-not-a-client-message")]
    NotAClientMessage,
    /// Relayed from a subnet that we have no addresses for.
    #[error("dhcp-relay-foreign-subnet")]
    ForeignRelay,
    /// The client chose another server.
    #[error("dhcp-other-server-chosen")]
    OtherServer,
    /// A REQUEST without an address in it.
    #[error("dhcp-request-without-address")]
    NoRequestedAddress,
    /// A RELEASE or DECLINE of an address that is not the sender's.
    #[error("dhcp-not-holder")]
    NotHolder,
    /// No address left.
    #[error(transparent)]
    NoAddress(#[from] NoAddress),
    /// Another DHCP server is on the wire: we keep silent.
    #[error("dhcp-suspended")]
    Suspended,
    /// In proxy mode: a message between a client and its own server.
    #[error("dhcp-not-for-proxy")]
    NotForProxy,
    /// In proxy mode: an operating system asks for an address, which is not ours to give.
    #[error("dhcp-proxy-not-firmware")]
    NotFirmware,
    /// In proxy mode: this machine is not to boot, and its firmware understands no other word for that than silence.
    #[error("dhcp-proxy-nothing-to-say")]
    NothingToSay,
    /// The answer did not fit into a packet.
    #[error("dhcp-answer-too-long")]
    AnswerTooLong,
}

impl From<EncodeError> for Drop {
    fn from(_: EncodeError) -> Self {
        Self::AnswerTooLong
    }
}

/// The state machine.
#[derive(Debug, Clone)]
pub struct Server {
    settings: Settings,
    leases: LeaseTable,
    suspended: bool,
    ignored: Option<MacAddress>,
    outputs: VecDeque<Output>,
}

impl Server {
    /// Starts from what the disk remembers.
    pub fn new(settings: Settings, records: &[LeaseRecord]) -> Self {
        let leases = LeaseTable::new(settings.first, settings.last, settings.address, records);
        Self {
            settings,
            leases,
            suspended: false,
            ignored: None,
            outputs: VecDeque::new(),
        }
    }

    /// Who holds which address.
    pub fn leases(&self) -> &LeaseTable {
        &self.leases
    }

    /// Keeps silent from now on, or speaks again.
    pub fn set_suspended(&mut self, suspended: bool) {
        self.suspended = suspended;
    }

    /// Our own probes for a rival come back to us as broadcasts; they are not to be answered.
    pub fn ignore(&mut self, mac: MacAddress) {
        self.ignored = Some(mac);
    }

    /// Next thing to do, in order.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Takes in one datagram from port 67. `decide` is the policy over what the head knows. An error is a drop that the
    /// caller counts; outputs queued until then stand.
    pub fn handle_packet(
        &mut self,
        now: u64,
        bytes: &[u8],
        decide: &dyn Fn(&Facts) -> Decision,
    ) -> Result<(), Drop> {
        let packet = Packet::decode(bytes)?;
        if packet.direction == Direction::Reply {
            return Err(Drop::ReplyHeard);
        }
        if self.ignored == Some(packet.mac) {
            return Err(Drop::OwnProbe);
        }
        if !packet.giaddr.is_unspecified() && !self.settings.in_subnet(packet.giaddr) {
            return Err(Drop::ForeignRelay);
        }
        self.notice_rival(&packet);
        if self.suspended {
            return Err(Drop::Suspended);
        }
        let facts = classify(&packet);
        match packet.message_type {
            MessageType::Discover => self.discover(now, &packet, &facts, decide),
            MessageType::Request => self.request(now, &packet, &facts, decide),
            MessageType::Inform => self.inform(&packet),
            MessageType::Release => {
                let record = self
                    .leases
                    .release(now, packet.mac, packet.ciaddr)
                    .ok_or(Drop::NotHolder)?;
                self.outputs.push_back(Output::Persist(record));
                Ok(())
            }
            MessageType::Decline => {
                let address = packet
                    .address_option(option::REQUESTED_ADDRESS)
                    .ok_or(Drop::NoRequestedAddress)?;
                if self.leases.decline(now, packet.mac, address) {
                    Ok(())
                } else {
                    Err(Drop::NotHolder)
                }
            }
            MessageType::Offer | MessageType::Ack | MessageType::Nak => Err(Drop::NotAClientMessage),
        }
    }

    /// A REQUEST on our own wire that names another server shows that there is one. Behind a relay it may be right.
    fn notice_rival(&mut self, packet: &Packet) {
        let named = packet.address_option(option::SERVER_IDENTIFIER);
        if let (MessageType::Request, Some(server), true) =
            (packet.message_type, named, packet.giaddr.is_unspecified())
            && server != self.settings.address
        {
            self.outputs.push_back(Output::RivalNamed(server));
        }
    }

    fn discover(
        &mut self,
        now: u64,
        packet: &Packet,
        facts: &Facts,
        decide: &dyn Fn(&Facts) -> Decision,
    ) -> Result<(), Drop> {
        let address = self
            .leases
            .offer(now, packet.mac, packet.address_option(option::REQUESTED_ADDRESS))?;
        self.observe_client(facts);
        let decision = decide(facts);
        let body = self.body(packet, facts, &decision, Some(address));
        self.observe_offer(packet, facts, Some(address), decision);
        self.transmit(packet, MessageType::Offer, &body)
    }

    fn request(
        &mut self,
        now: u64,
        packet: &Packet,
        facts: &Facts,
        decide: &dyn Fn(&Facts) -> Decision,
    ) -> Result<(), Drop> {
        if packet
            .address_option(option::SERVER_IDENTIFIER)
            .is_some_and(|server| server != self.settings.address)
        {
            self.leases.drop_offer(packet.mac);
            return Err(Drop::OtherServer);
        }
        let address = packet
            .address_option(option::REQUESTED_ADDRESS)
            .or(Some(packet.ciaddr).filter(|address| !address.is_unspecified()))
            .ok_or(Drop::NoRequestedAddress)?;
        if !self.leases.may_have(now, packet.mac, address) {
            return self.transmit(packet, MessageType::Nak, &Body::default());
        }
        let record = self
            .leases
            .grant(packet.mac, address, now + u64::from(self.settings.lease_secs));
        self.outputs.push_back(Output::Persist(record));
        if facts.client == Client::OperatingSystem {
            self.observe_client(facts);
        }
        self.outputs
            .push_back(Output::Observe(packet.mac, Observation::Leased(address)));
        let decision = decide(facts);
        let body = self.body(packet, facts, &decision, Some(address));
        if decision.action != Action::NoBootAnswer {
            self.outputs
                .push_back(Output::Observe(packet.mac, Observation::Decided(decision)));
        }
        self.transmit(packet, MessageType::Ack, &body)
    }

    /// RFC 2131 4.3.5: parameters only, no address and no lease time.
    fn inform(&mut self, packet: &Packet) -> Result<(), Drop> {
        let body = Body {
            options: self.network_options(),
            ..Body::default()
        };
        self.transmit(packet, MessageType::Ack, &body)
    }

    fn observe_client(&mut self, facts: &Facts) {
        let observation = match facts.client {
            Client::OperatingSystem => Observation::Heard,
            _ => Observation::FirmwareAsked(facts.clone()),
        };
        self.outputs.push_back(Output::Observe(facts.mac, observation));
    }

    fn observe_offer(
        &mut self,
        packet: &Packet,
        facts: &Facts,
        address: Option<Ipv4Addr>,
        decision: Decision,
    ) {
        if facts.client == Client::OperatingSystem {
            return;
        }
        let offered = Observation::Offered { address, decision };
        self.outputs.push_back(Output::Observe(facts.mac, offered));
        if let Some((vendor, device)) = packet.card() {
            let card = Observation::CardNamed { vendor, device };
            self.outputs.push_back(Output::Observe(facts.mac, card));
        }
    }

    fn body(&self, packet: &Packet, facts: &Facts, decision: &Decision, address: Option<Ipv4Addr>) -> Body {
        let mut options = self.network_options();
        let lease = self.settings.lease_secs;
        for (code, secs) in [
            (option::LEASE_TIME, lease),
            (option::RENEWAL_TIME, lease / 2),
            (option::REBINDING_TIME, lease / 8 * 7),
        ] {
            options.push((code, secs.to_be_bytes().to_vec()));
        }
        let mut body = Body {
            yiaddr: address,
            options,
            ..Body::default()
        };
        boot::fill(
            &mut body,
            Voice::Server,
            self.settings.address,
            packet,
            facts,
            decision,
        );
        body
    }

    fn network_options(&self) -> Vec<(u8, Vec<u8>)> {
        let settings = &self.settings;
        let mut options = vec![
            (option::SUBNET_MASK, settings.mask().to_be_bytes().to_vec()),
            (
                option::BROADCAST_ADDRESS,
                (u32::from(settings.address) | !settings.mask())
                    .to_be_bytes()
                    .to_vec(),
            ),
        ];
        if let Some(router) = settings.router {
            options.push((option::ROUTER, router.octets().to_vec()));
        }
        if !settings.dns.is_empty() {
            options.push((
                option::DOMAIN_NAME_SERVER,
                settings.dns.iter().flat_map(Ipv4Addr::octets).collect(),
            ));
        }
        if let Some(domain) = &settings.domain {
            options.push((option::DOMAIN_NAME, domain.as_bytes().to_vec()));
        }
        options
    }

    fn transmit(&mut self, packet: &Packet, kind: MessageType, body: &Body) -> Result<(), Drop> {
        let bytes = reply::encode(packet, kind, self.settings.address, body)?;
        self.outputs.push_back(Output::Transmit {
            bytes,
            to: destination(packet, kind),
        });
        Ok(())
    }
}

/// RFC 2131 4.1. A client without an address is always answered by broadcast: unicast to it would need a raw socket
/// or an entry in the ARP table.
fn destination(packet: &Packet, kind: MessageType) -> SocketAddrV4 {
    if !packet.giaddr.is_unspecified() {
        SocketAddrV4::new(packet.giaddr, SERVER_PORT)
    } else if kind != MessageType::Nak && !packet.ciaddr.is_unspecified() {
        SocketAddrV4::new(packet.ciaddr, CLIENT_PORT)
    } else {
        SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT)
    }
}
