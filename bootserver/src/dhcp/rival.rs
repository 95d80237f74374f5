//! Is there another DHCP server on this wire? A state machine without socket or clock: it says when to ask, hears what
//! comes to the client's port, and says when a rival appeared and when it has gone.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::Duration;

use dhcproto::v4::{self, DhcpOption, UnknownOption};
use dhcproto::{Encodable, Encoder};

use crate::dhcp::packet::{Direction, MessageType, Packet, option};
use crate::machine::MacAddress;

/// How long a server has to answer a probe. dnsmasq 2.90 as installed pings the address first and offers after 3.01 s.
pub const ANSWER_TIME: Duration = Duration::from_millis(4_000);
/// Between probes while all is quiet.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(30);
/// Between probes while a rival is there.
pub const RIVAL_INTERVAL: Duration = Duration::from_secs(10);
/// Silent probes after which a rival is gone.
pub const SILENT_PROBES: u32 = 3;

/// Another DHCP server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rival {
    /// Its server identifier (option 54).
    pub server: Ipv4Addr,
    /// The address it offered or granted to somebody, if one was heard.
    pub offered: Option<Ipv4Addr>,
}

/// What somebody else on this wire was heard to answer: a DHCP server, a proxy, a PXE server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// Its server identifier (option 54).
    pub server: Ipv4Addr,
    /// Whether it gives addresses.
    pub role: Role,
    /// To whom it spoke: a machine, or our probe.
    pub to: MacAddress,
    /// The address it offered or granted.
    pub address: Option<Ipv4Addr>,
    /// Where the boot file is, if it named one.
    pub boot_server: Option<Ipv4Addr>,
    /// The boot file it named: printable, at most 127 characters.
    pub boot_file: Option<String>,
}

/// What a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// It gives addresses.
    Dhcp,
    /// It gives boot answers only: a proxy, a WDS, a PXE boot server.
    Proxy,
}

/// What the caller is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Broadcast this from port 68 to port 67.
    Probe(Vec<u8>),
    /// Stop answering.
    Appeared(Rival),
    /// Answer again.
    Gone(Rival),
    /// Keep it in a list for people.
    Sighted(Sighting),
}

/// The state machine.
#[derive(Debug, Clone)]
pub struct Watch {
    own: Ipv4Addr,
    probe_mac: MacAddress,
    next_xid: u32,
    /// Always later than every input's `now` after it was handled.
    next_probe: Duration,
    rival: Option<Rival>,
    silent: u32,
    /// Probes go out as an operating system's and as a PXE firmware's in turn: proxies answer the second kind only.
    as_firmware: bool,
    outputs: VecDeque<Output>,
}

impl Watch {
    /// `seed` makes the probe's hardware address and transaction; the first probe is due at `now`.
    pub fn new(own: Ipv4Addr, seed: u64, now: Duration) -> Self {
        let [a, b, c, d, e, f, g, h] = seed.to_be_bytes();
        Self {
            own,
            // Locally administered, unicast (IEEE 802, bit 1 of the first byte).
            probe_mac: MacAddress([0x02, a, b, c, d, e]),
            next_xid: u32::from_be_bytes([e, f, g, h]),
            next_probe: now,
            rival: None,
            silent: 0,
            as_firmware: false,
            outputs: VecDeque::new(),
        }
    }

    /// Hardware address of our probes: our own server must not answer it.
    pub fn probe_mac(&self) -> MacAddress {
        self.probe_mac
    }

    /// The rival that is there now.
    pub fn rival(&self) -> Option<Rival> {
        self.rival
    }

    /// Next thing to do, in order.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`handle_deadline`](Self::handle_deadline) is due.
    pub fn next_deadline(&self) -> Duration {
        self.next_probe
    }

    /// Sends a probe when one is due. An earlier call does nothing.
    pub fn handle_deadline(&mut self, now: Duration) {
        if now < self.next_probe {
            return;
        }
        self.silent += 1;
        if self.silent > SILENT_PROBES
            && let Some(rival) = self.rival.take()
        {
            self.outputs.push_back(Output::Gone(rival));
        }
        self.next_xid = self.next_xid.wrapping_add(1);
        if let Some(bytes) = discover(self.probe_mac, self.next_xid, self.as_firmware) {
            self.outputs.push_back(Output::Probe(bytes));
        }
        self.as_firmware = !self.as_firmware;
        self.next_probe = now
            + if self.rival.is_some() {
                RIVAL_INTERVAL
            } else {
                PROBE_INTERVAL
            };
    }

    /// Takes in a datagram that came to port 68: an OFFER or ACK in another server's name is a rival. Returns the machine
    /// and the address that somebody's ACK gave it.
    pub fn handle_packet(&mut self, now: Duration, bytes: &[u8]) -> Option<(Ipv4Addr, MacAddress)> {
        let packet = Packet::decode(bytes).ok()?;
        let answer = matches!(
            packet.message_type,
            MessageType::Offer | MessageType::Ack | MessageType::Nak
        );
        let server = packet.address_option(option::SERVER_IDENTIFIER);
        if let (Direction::Reply, true, Some(server)) = (packet.direction, answer, server) {
            let offered = Some(packet.yiaddr).filter(|address| !address.is_unspecified());
            // A proxyDHCP offer gives no address: that server is no rival for addresses.
            let gives_addresses = offered.is_some() || packet.message_type == MessageType::Nak;
            if server != self.own {
                let role = if gives_addresses { Role::Dhcp } else { Role::Proxy };
                self.outputs
                    .push_back(Output::Sighted(sighting(&packet, server, role)));
            }
            if gives_addresses {
                self.handle_named(now, Rival { server, offered });
            }
            return offered
                .filter(|_| packet.message_type == MessageType::Ack)
                .map(|address| (address, packet.mac));
        }
        None
    }

    /// A client named another server.
    pub fn handle_named(&mut self, now: Duration, rival: Rival) {
        if rival.server == self.own {
            return;
        }
        self.silent = 0;
        if self.rival.is_none() {
            self.outputs.push_back(Output::Appeared(rival));
            self.next_probe = now + RIVAL_INTERVAL;
        }
        self.rival = Some(rival);
    }
}

fn sighting(packet: &Packet, server: Ipv4Addr, role: Role) -> Sighting {
    let given = |address: Ipv4Addr| Some(address).filter(|address| !address.is_unspecified());
    let printable = |byte: &u8| {
        if matches!(byte, b' '..=b'~') {
            char::from(*byte)
        } else {
            '?'
        }
    };
    let boot_file: String = packet.file.iter().take(127).map(printable).collect();
    Sighting {
        server,
        role,
        to: packet.mac,
        address: given(packet.yiaddr),
        boot_server: given(packet.siaddr),
        boot_file: Some(boot_file).filter(|file| !file.is_empty()),
    }
}

/// A DHCPDISCOVER with the broadcast flag, so that the answer reaches a host that has no such address.
fn discover(mac: MacAddress, xid: u32, as_firmware: bool) -> Option<Vec<u8>> {
    let mut message = v4::Message::default();
    message
        .set_xid(xid)
        .set_chaddr(&mac.0)
        .set_flags(v4::Flags::default().set_broadcast());
    message
        .opts_mut()
        .insert(DhcpOption::MessageType(v4::MessageType::Discover));
    if as_firmware {
        let [a, b, c, d, e, f] = mac.0;
        let uuid = [0, a, b, c, d, e, f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        for (code, value) in [
            (option::VENDOR_CLASS, &b"PXEClient:Arch:00007:UNDI:003000"[..]),
            (option::ARCHITECTURE, &[0, 7]),
            (option::NETWORK_INTERFACE, &[1, 3, 0]),
            (option::MACHINE_UUID, &uuid),
        ] {
            let raw = UnknownOption::new(code.into(), value.to_vec());
            message.opts_mut().insert(DhcpOption::Unknown(raw));
        }
    }
    let mut bytes = Vec::new();
    message.encode(&mut Encoder::new(&mut bytes)).ok()?;
    bytes.resize(bytes.len().max(300), 0);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
    const OTHER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 9);

    fn offer(server: Ipv4Addr, yiaddr: Ipv4Addr) -> Vec<u8> {
        let mut message = v4::Message::default();
        message
            .set_opcode(v4::Opcode::BootReply)
            .set_chaddr(&[2, 0, 0, 0, 0, 1])
            .set_yiaddr(yiaddr);
        message
            .opts_mut()
            .insert(DhcpOption::MessageType(v4::MessageType::Offer));
        message.opts_mut().insert(DhcpOption::ServerIdentifier(server));
        let mut bytes = Vec::new();
        message.encode(&mut Encoder::new(&mut bytes)).unwrap();
        bytes
    }

    fn drain(watch: &mut Watch) -> Vec<Output> {
        std::iter::from_fn(|| watch.poll_output())
            .filter(|output| !matches!(output, Output::Probe(_) | Output::Sighted(_)))
            .collect()
    }

    #[test]
    fn a_rival_appears_and_goes_after_three_silent_probes() {
        let mut watch = Watch::new(OWN, 7, Duration::ZERO);
        watch.handle_deadline(Duration::ZERO);
        let Some(Output::Probe(probe)) = watch.poll_output() else {
            panic!("a probe is due at once")
        };
        assert_eq!(Packet::decode(&probe).unwrap().mac, watch.probe_mac());
        watch.handle_packet(
            Duration::from_secs(1),
            &offer(OTHER, Ipv4Addr::new(10, 77, 0, 50)),
        );
        let rival = Rival {
            server: OTHER,
            offered: Some(Ipv4Addr::new(10, 77, 0, 50)),
        };
        assert_eq!(drain(&mut watch), [Output::Appeared(rival)]);
        watch.handle_packet(
            Duration::from_secs(2),
            &offer(OTHER, Ipv4Addr::new(10, 77, 0, 50)),
        );
        assert_eq!(drain(&mut watch), []);
        for _ in 0..SILENT_PROBES {
            let due = watch.next_deadline();
            watch.handle_deadline(due);
            assert_eq!(drain(&mut watch), []);
        }
        let due = watch.next_deadline();
        watch.handle_deadline(due);
        assert_eq!(drain(&mut watch), [Output::Gone(rival)]);
    }

    #[test]
    fn probes_ask_as_a_system_and_as_firmware_in_turn_and_who_answers_is_listed() {
        let mut watch = Watch::new(OWN, 7, Duration::ZERO);
        let mut probes = Vec::new();
        for _ in 0..3 {
            watch.handle_deadline(watch.next_deadline());
            if let Some(Output::Probe(bytes)) = watch.poll_output() {
                probes.push(
                    Packet::decode(&bytes)
                        .unwrap()
                        .option(option::VENDOR_CLASS)
                        .is_some(),
                );
            }
        }
        assert_eq!(probes, [false, true, false]);
        let ack_for = |yiaddr| {
            let mut bytes = offer(OTHER, yiaddr);
            bytes[108..118].copy_from_slice(b"wdsmgfw.ef");
            bytes[20..24].copy_from_slice(&OTHER.octets());
            bytes
        };
        for (yiaddr, role) in [
            (Ipv4Addr::UNSPECIFIED, Role::Proxy),
            (Ipv4Addr::new(10, 77, 0, 50), Role::Dhcp),
        ] {
            watch.handle_packet(Duration::ZERO, &ack_for(yiaddr));
            let Some(Output::Sighted(sighting)) = watch.poll_output() else {
                panic!("{role:?}")
            };
            assert_eq!((sighting.server, sighting.role), (OTHER, role));
            assert_eq!(sighting.boot_file.as_deref(), Some("wdsmgfw.ef"));
            assert_eq!(sighting.boot_server, Some(OTHER));
        }
    }

    #[test]
    fn our_own_answers_and_proxies_are_no_rivals() {
        let mut watch = Watch::new(OWN, 7, Duration::ZERO);
        watch.handle_packet(Duration::ZERO, &offer(OWN, Ipv4Addr::new(10, 77, 0, 50)));
        watch.handle_packet(Duration::ZERO, &offer(OTHER, Ipv4Addr::UNSPECIFIED));
        watch.handle_packet(Duration::ZERO, b"noise");
        assert_eq!(drain(&mut watch), []);
    }
}
