//! proxyDHCP (PXE 2.1 section 2.2) as a state machine: boot answers beside somebody else's DHCP server, on ports 67 and
//! 4011. Must never assign an address, never send a NAK, never answer INFORM, RELEASE or DECLINE.
//!
//! It keeps nothing. What it overhears (who asks for which address, which server was chosen) goes to the caller.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::dhcp::boot::{self, Voice};
use crate::dhcp::classify::classify;
use crate::dhcp::packet::{Direction, MessageType, Packet, option};
use crate::dhcp::reply::{self, Body};
use crate::dhcp::server::{CLIENT_PORT, Drop, Observation, SERVER_PORT};
use crate::machine::{Client, MacAddress};
use crate::policy::{Action, Decision, Facts};

/// Port of PXE boot servers.
pub const BOOT_SERVER_PORT: u16 = 4011;

/// The port that a message came to, and that its answer leaves from: iPXE drops an answer from another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Door {
    /// 67.
    Dhcp,
    /// 4011.
    BootServer,
}

/// What the caller is to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Tell the head.
    Observe(MacAddress, Observation),
    /// This machine uses, or is about to use, this address.
    Heard(Ipv4Addr, MacAddress),
    /// A client chose this server.
    ServerNamed(Ipv4Addr),
    /// Send.
    Transmit {
        /// From which port.
        from: Door,
        /// Message.
        bytes: Vec<u8>,
        /// Where to.
        to: SocketAddrV4,
    },
}

/// The state machine of one interface.
#[derive(Debug, Clone)]
pub struct Proxy {
    address: Ipv4Addr,
    ignored: Option<MacAddress>,
    outputs: VecDeque<Output>,
}

impl Proxy {
    /// `address` is ours on this interface.
    pub fn new(address: Ipv4Addr) -> Self {
        Self {
            address,
            ignored: None,
            outputs: VecDeque::new(),
        }
    }

    /// Our own probes for a rival come back to us as broadcasts; they are not to be answered.
    pub fn ignore(&mut self, mac: MacAddress) {
        self.ignored = Some(mac);
    }

    /// Next thing to do, in order.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Takes in one datagram that came to `door` from `sender`. An error is a drop that the caller counts; outputs queued until
    /// then stand.
    pub fn handle_packet(
        &mut self,
        door: Door,
        sender: SocketAddrV4,
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
        let facts = classify(&packet);
        match (door, packet.message_type) {
            (Door::Dhcp, MessageType::Discover) => self.discover(&packet, &facts, decide),
            (Door::Dhcp, MessageType::Request) => self.overhear(&packet, &facts),
            (Door::BootServer, MessageType::Request) => self.boot_request(sender, &packet, &facts, decide),
            (_, MessageType::Offer | MessageType::Ack | MessageType::Nak) => Err(Drop::NotAClientMessage),
            // INFORM, RELEASE, DECLINE and whatever else 4011 gets are between the client and its server.
            _ => Err(Drop::NotForProxy),
        }
    }

    fn discover(
        &mut self,
        packet: &Packet,
        facts: &Facts,
        decide: &dyn Fn(&Facts) -> Decision,
    ) -> Result<(), Drop> {
        if facts.client == Client::OperatingSystem {
            self.outputs
                .push_back(Output::Observe(facts.mac, Observation::Heard));
            return Err(Drop::NotFirmware);
        }
        let begins = Observation::FirmwareAsked(facts.clone());
        self.outputs.push_back(Output::Observe(facts.mac, begins));
        let decision = self.decide(facts, decide);
        if boot::has_words(facts, &decision) {
            let offered = Observation::Offered {
                address: None,
                decision: decision.clone(),
            };
            self.outputs.push_back(Output::Observe(facts.mac, offered));
        }
        if let Some((vendor, device)) = packet.card() {
            let card = Observation::CardNamed { vendor, device };
            self.outputs.push_back(Output::Observe(facts.mac, card));
        }
        let to = if packet.giaddr.is_unspecified() {
            SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT)
        } else {
            SocketAddrV4::new(packet.giaddr, SERVER_PORT)
        };
        let mut packet = packet.clone();
        // There is no address in a proxy's offer that a relay could send it to (RFC 1542 4.1.2), and firmware without the
        // flag (iPXE) would never see it.
        packet.broadcast = true;
        self.answer(Voice::Proxy, MessageType::Offer, to, &packet, facts, &decision)
    }

    /// A REQUEST to the site's server: who chose whom, and which machine will have which address.
    fn overhear(&mut self, packet: &Packet, facts: &Facts) -> Result<(), Drop> {
        if facts.client == Client::OperatingSystem {
            self.outputs
                .push_back(Output::Observe(facts.mac, Observation::Heard));
        }
        if let Some(server) = packet.address_option(option::SERVER_IDENTIFIER) {
            self.outputs.push_back(Output::ServerNamed(server));
        }
        let address = packet
            .address_option(option::REQUESTED_ADDRESS)
            .unwrap_or(packet.ciaddr);
        self.hear(address, facts.mac);
        Err(Drop::NotForProxy)
    }

    /// BINL, or a boot server request of a menu: for us alone, by unicast, from a client that has its address.
    fn boot_request(
        &mut self,
        sender: SocketAddrV4,
        packet: &Packet,
        facts: &Facts,
        decide: &dyn Fn(&Facts) -> Decision,
    ) -> Result<(), Drop> {
        if facts.client == Client::OperatingSystem {
            return Err(Drop::NotFirmware);
        }
        if sender.ip().is_unspecified() || sender.ip().is_broadcast() || sender.ip().is_multicast() {
            return Err(Drop::NoRequestedAddress);
        }
        self.hear(packet.ciaddr, facts.mac);
        self.hear(*sender.ip(), facts.mac);
        let decision = self.decide(facts, decide);
        self.answer(
            Voice::BootServer,
            MessageType::Ack,
            sender,
            packet,
            facts,
            &decision,
        )
    }

    fn hear(&mut self, address: Ipv4Addr, mac: MacAddress) {
        if !address.is_unspecified() && !address.is_broadcast() && !address.is_multicast() {
            self.outputs.push_back(Output::Heard(address, mac));
            let leased = Observation::Leased(address);
            self.outputs.push_back(Output::Observe(mac, leased));
        }
    }

    fn decide(&mut self, facts: &Facts, decide: &dyn Fn(&Facts) -> Decision) -> Decision {
        let decision = decide(facts);
        if decision.action != Action::NoBootAnswer {
            let decided = Observation::Decided(decision.clone());
            self.outputs.push_back(Output::Observe(facts.mac, decided));
        }
        decision
    }

    fn answer(
        &mut self,
        voice: Voice,
        kind: MessageType,
        to: SocketAddrV4,
        packet: &Packet,
        facts: &Facts,
        decision: &Decision,
    ) -> Result<(), Drop> {
        if !boot::has_words(facts, decision) {
            return Err(Drop::NothingToSay);
        }
        let mut body = Body::default();
        boot::fill(&mut body, voice, self.address, packet, facts, decision);
        let bytes = reply::encode(packet, kind, self.address, &body)?;
        let from = match voice {
            Voice::BootServer => Door::BootServer,
            Voice::Server | Voice::Proxy => Door::Dhcp,
        };
        self.outputs.push_back(Output::Transmit { from, bytes, to });
        Ok(())
    }
}
