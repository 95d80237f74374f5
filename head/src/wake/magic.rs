//! Wake-on-LAN: magic packets by every interface of ours, to everybody on its wire, and into the subnets that the PC was in.
//! Must never send anything but magic packets.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};

use socket2::{Domain, Protocol, Socket, Type};

use super::{Attempt, PowerControl, Target, WakeError};
use crate::config::Subnet;
use crate::interface::Interface;
use crate::mac::Mac;

/// Discard: what every other tool takes. Cards look at the payload only.
const PORT: u16 = 9;
/// A subnet nobody told the size of.
const USUAL_PREFIX: u8 = 24;

/// By these interfaces.
#[derive(Debug)]
pub struct WakeOnLan {
    interfaces: Vec<Interface>,
}

/// One datagram's way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    /// Interface and our address there; absent when the routing table decides.
    by: Option<(String, Ipv4Addr)>,
    to: Ipv4Addr,
}

impl WakeOnLan {
    /// Packets leave by these.
    pub fn new(interfaces: Vec<Interface>) -> Self {
        Self { interfaces }
    }

    /// To everybody on each wire of ours, twice: some switches and cards drop 255.255.255.255, some the subnet's own broadcast.
    /// Then into foreign subnets that the PC was in, which takes a router that lets directed broadcasts through.
    fn ways(&self, target: &Target) -> BTreeSet<Way> {
        let mut ways = BTreeSet::new();
        for interface in &self.interfaces {
            let by = Some((interface.name.clone(), interface.subnet.address));
            for to in [Ipv4Addr::BROADCAST, interface.subnet.broadcast()] {
                ways.insert(Way { by: by.clone(), to });
            }
        }
        let known = target
            .address
            .filter(|address| !target.subnets.iter().any(|subnet| subnet.holds(*address)));
        let guessed = known.map(|address| Subnet {
            address,
            prefix: USUAL_PREFIX,
        });
        for subnet in target.subnets.iter().cloned().chain(guessed) {
            // A /31 has no broadcast address; a prefix of a few bits would be half of the world.
            let sane = (8..=30).contains(&subnet.prefix);
            let ours = |interface: &Interface| interface.subnet.holds(subnet.address);
            if sane && !self.interfaces.iter().any(ours) {
                ways.insert(Way {
                    by: None,
                    to: subnet.broadcast(),
                });
            }
        }
        ways
    }

    fn send(&self, target: &Target) -> Result<Option<String>, WakeError> {
        let packet = magic_packet(target.mac);
        let mut failures = Vec::new();
        let mut sent = false;
        for way in self.ways(target) {
            match way.send(&packet) {
                Ok(()) => sent = true,
                Err(error) => failures.push(format!("{way}: {error}")),
            }
        }
        if sent {
            Ok(None)
        } else if failures.is_empty() {
            Err(WakeError::NothingSent("there is no interface".to_owned()))
        } else {
            Err(WakeError::NothingSent(failures.join(", ")))
        }
    }
}

impl PowerControl for WakeOnLan {
    fn wake<'a>(&'a self, target: &'a Target) -> Attempt<'a> {
        // A datagram to a wire of ours waits for nobody.
        Box::pin(async { self.send(target) })
    }
}

impl Way {
    fn send(&self, packet: &[u8]) -> std::io::Result<()> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        socket.set_broadcast(true)?;
        if let Some((name, from)) = &self.by {
            socket.bind_device(Some(name.as_bytes()))?;
            socket.bind(&SocketAddrV4::new(*from, 0).into())?;
        }
        socket
            .send_to(packet, &SocketAddrV4::new(self.to, PORT).into())
            .map(drop)
    }
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.by {
            Some((name, _)) => write!(f, "{} by {name}", self.to),
            None => write!(f, "{}", self.to),
        }
    }
}

/// Six bytes of ones, then the MAC sixteen times.
fn magic_packet(mac: Mac) -> Vec<u8> {
    let mut packet = vec![0xff; 6];
    packet.extend(mac.0.iter().copied().cycle().take(16 * 6));
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str, address: [u8; 4], prefix: u8) -> Interface {
        let address = address.into();
        Interface {
            name: name.to_owned(),
            index: 1,
            mac: [0; 6],
            subnet: Subnet { address, prefix },
        }
    }

    fn target(address: Option<[u8; 4]>, subnets: &[([u8; 4], u8)]) -> Target {
        let subnet = |(address, prefix): &([u8; 4], u8)| Subnet {
            address: (*address).into(),
            prefix: *prefix,
        };
        Target {
            mac: Mac([2, 0, 0, 0, 0, 1]),
            name: "lab-a01".to_owned(),
            group: "lab-a".to_owned(),
            address: address.map(Into::into),
            subnets: subnets.iter().map(subnet).collect(),
            command: None,
        }
    }

    fn check(address: Option<[u8; 4]>, subnets: &[([u8; 4], u8)], expected: &[&str]) {
        let lan = WakeOnLan::new(vec![
            interface("eth1", [10, 77, 0, 1], 24),
            interface("eth2", [10, 78, 0, 1], 22),
        ]);
        let ways = lan.ways(&target(address, subnets));
        let mut told: Vec<String> = ways.iter().map(ToString::to_string).collect();
        told.sort();
        let mut wanted = vec![
            "10.77.0.255 by eth1",
            "10.78.3.255 by eth2",
            "255.255.255.255 by eth1",
            "255.255.255.255 by eth2",
        ];
        wanted.extend(expected);
        wanted.sort_unstable();
        assert_eq!(told, wanted, "{address:?} {subnets:?}");
    }

    #[test]
    fn it_goes_to_every_wire_of_ours_and_into_the_subnets_of_the_pc() {
        check(None, &[], &[]);
        check(Some([10, 77, 0, 130]), &[([10, 77, 0, 130], 24)], &[]);
        check(Some([10, 77, 0, 130]), &[], &[]);
        // Behind a router, as the node said; and as it is guessed of one that never joined.
        check(Some([10, 99, 6, 7]), &[([10, 99, 6, 7], 22)], &["10.99.7.255"]);
        check(Some([10, 99, 6, 7]), &[], &["10.99.6.255"]);
        check(None, &[([10, 99, 6, 7], 3), ([10, 99, 6, 7], 31)], &[]);
    }

    #[test]
    fn a_magic_packet_is_six_ones_and_the_address_sixteen_times() {
        let packet = magic_packet(Mac([1, 2, 3, 4, 5, 6]));
        assert_eq!(packet.len(), 102);
        assert_eq!(packet[..6], [0xff; 6]);
        assert!(packet[6..].chunks(6).all(|chunk| chunk == [1, 2, 3, 4, 5, 6]));
    }

    #[test]
    fn when_nothing_leaves_it_is_told_why() {
        let none = WakeOnLan::new(Vec::new()).send(&target(None, &[]));
        assert!(matches!(none, Err(WakeError::NothingSent(_))), "{none:?}");
        let gone = WakeOnLan::new(vec![interface("cid-none", [10, 77, 0, 1], 24)]).send(&target(None, &[]));
        let text = gone.map_or_else(|error| error.to_string(), |_| String::new());
        assert!(text.contains("255.255.255.255 by cid-none"), "{text}");
    }
}
