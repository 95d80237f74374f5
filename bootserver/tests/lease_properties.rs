//! Whatever clients ask, in whatever order, and wherever the power fails: no address is promised to two machines.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use cid_bootserver::dhcp::leases::{LeaseRecord, LeaseTable, MAX_OFFERS};
use cid_bootserver::dhcp::packet::MessageType;
use cid_bootserver::dhcp::server::{Output, Server, Settings};
use cid_bootserver::machine::MacAddress;
use common::{HEAD, Message, NOW, adopted, answer, decide, drain, mac, settings};
use proptest::prelude::*;
use proptest::strategy::ValueTree;

/// Few machines and fewer addresses: everything collides.
const MACHINES: u8 = 6;
const ADDRESSES: u8 = 4;

#[derive(Debug, Clone)]
enum Step {
    Discover {
        who: u8,
        wish: Option<u8>,
    },
    /// SELECTING: asks for what it was offered last, or for anything.
    Request {
        who: u8,
        address: Option<u8>,
    },
    Renew {
        who: u8,
    },
    Reboot {
        who: u8,
        address: u8,
    },
    Release {
        who: u8,
        address: u8,
    },
    Decline {
        who: u8,
        address: u8,
    },
    Wait {
        secs: u64,
    },
    /// The head dies: what was not written is gone. `cut` outputs of the message before it had been carried out.
    Crash {
        who: u8,
        cut: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let who = 1..=MACHINES;
    let address = 0..ADDRESSES + 1;
    prop_oneof![
        4 => (who.clone(), proptest::option::of(address.clone())).prop_map(|(who, wish)| Step::Discover { who, wish }),
        4 => (who.clone(), proptest::option::of(address.clone()))
            .prop_map(|(who, address)| Step::Request { who, address }),
        1 => who.clone().prop_map(|who| Step::Renew { who }),
        1 => (who.clone(), address.clone()).prop_map(|(who, address)| Step::Reboot { who, address }),
        1 => (who.clone(), address.clone()).prop_map(|(who, address)| Step::Release { who, address }),
        1 => (who.clone(), address).prop_map(|(who, address)| Step::Decline { who, address }),
        2 => prop_oneof![1..100_u64, 500..700_u64, 3_500..3_700_u64].prop_map(|secs| Step::Wait { secs }),
        2 => (who, 0..5_usize).prop_map(|(who, cut)| Step::Crash { who, cut }),
    ]
}

fn small() -> Settings {
    let first = Ipv4Addr::new(10, 77, 0, 100);
    Settings {
        first,
        last: Ipv4Addr::from(u32::from(first) + u32::from(ADDRESSES) - 1),
        ..settings()
    }
}

fn numbered(number: u8) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(small().first) + u32::from(number))
}

/// The wire, the disk and what clients believe.
struct World {
    now: u64,
    server: Server,
    disk: BTreeMap<MacAddress, LeaseRecord>,
    /// What each client was told, until when.
    believed: BTreeMap<MacAddress, (Ipv4Addr, u64)>,
    offered: BTreeMap<MacAddress, Ipv4Addr>,
    promises: u32,
}

impl World {
    fn new() -> Self {
        Self {
            now: NOW,
            server: Server::new(small(), &[]),
            disk: BTreeMap::new(),
            believed: BTreeMap::new(),
            offered: BTreeMap::new(),
            promises: 0,
        }
    }

    fn send(&mut self, message: &Message, carry_out: usize) {
        let _ = self
            .server
            .handle_packet(self.now, &message.bytes(), &decide(adopted()));
        let outputs = drain(&mut self.server);
        // Checks in passing that an ACK stands behind its lease.
        let _ = answer(&outputs);
        for output in outputs.into_iter().take(carry_out) {
            match output {
                Output::Persist(record) => {
                    // As the store does: one machine, one lease; one address, one machine.
                    self.disk.retain(|_, old| old.address != record.address);
                    self.disk.insert(record.mac, record);
                }
                Output::Transmit { bytes, .. } => self.hear(&bytes),
                _ => {}
            }
        }
    }

    fn hear(&mut self, bytes: &[u8]) {
        let packet = cid_bootserver::dhcp::packet::Packet::decode(bytes).unwrap();
        match packet.message_type {
            MessageType::Offer => {
                self.offered.insert(packet.mac, packet.yiaddr);
            }
            MessageType::Ack => {
                self.believed
                    .insert(packet.mac, (packet.yiaddr, self.now + 3_600));
                self.promises += 1;
            }
            MessageType::Nak => {
                self.believed.remove(&packet.mac);
            }
            _ => {}
        }
    }

    fn apply(&mut self, step: &Step) {
        let whole = usize::MAX;
        match *step {
            Step::Discover { who, wish } => {
                let mut message = Message::new(MessageType::Discover, mac(who));
                if let Some(wish) = wish {
                    message = message.requested(numbered(wish));
                }
                self.send(&message, whole);
            }
            Step::Request { who, address } => {
                let offered = self.offered.get(&mac(who)).copied();
                let Some(address) = address.map(numbered).or(offered) else {
                    return;
                };
                self.send(
                    &Message::new(MessageType::Request, mac(who))
                        .requested(address)
                        .server(HEAD),
                    whole,
                );
            }
            Step::Renew { who } => {
                let Some((address, until)) = self.believed.get(&mac(who)).copied() else {
                    return;
                };
                // A client whose lease has run out does not use the address, so it cannot send from it.
                if until > self.now {
                    self.send(
                        &Message::new(MessageType::Request, mac(who)).ciaddr(address),
                        whole,
                    );
                }
            }
            Step::Reboot { who, address } => {
                self.send(
                    &Message::new(MessageType::Request, mac(who)).requested(numbered(address)),
                    whole,
                );
            }
            Step::Release { who, address } => {
                let held = self
                    .believed
                    .get(&mac(who))
                    .is_some_and(|(held, _)| *held == numbered(address));
                if held {
                    self.believed.remove(&mac(who));
                }
                // A client that does not hold it may say so all the same.
                self.send(
                    &Message::new(MessageType::Release, mac(who)).ciaddr(numbered(address)),
                    whole,
                );
            }
            Step::Decline { who, address } => {
                if self
                    .believed
                    .get(&mac(who))
                    .is_some_and(|(held, _)| *held == numbered(address))
                {
                    self.believed.remove(&mac(who));
                }
                self.send(
                    &Message::new(MessageType::Decline, mac(who)).requested(numbered(address)),
                    whole,
                );
            }
            Step::Wait { secs } => self.now += secs,
            Step::Crash { who, cut } => {
                let address = self.offered.get(&mac(who)).copied().unwrap_or(numbered(0));
                self.send(
                    &Message::new(MessageType::Request, mac(who))
                        .requested(address)
                        .server(HEAD),
                    cut,
                );
                let records: Vec<LeaseRecord> = self.disk.values().copied().collect();
                self.server = Server::new(small(), &records);
            }
        }
    }

    fn check(&self) {
        let mut users: BTreeMap<Ipv4Addr, MacAddress> = BTreeMap::new();
        for (who, (address, until)) in &self.believed {
            if *until > self.now {
                let other = users.insert(*address, *who);
                assert_eq!(other, None, "{address} is used by {who} and {other:?}");
                assert!(
                    (numbered(0)..numbered(ADDRESSES)).contains(address),
                    "{address} is not in the range"
                );
            }
        }
        let (leases, offers, quarantine) = self.server.leases().sizes();
        assert!(
            leases <= usize::from(ADDRESSES) && offers <= MAX_OFFERS && quarantine <= usize::from(ADDRESSES)
        );
    }
}

proptest! {
    // 256 walks; PROPTEST_CASES asks for more.
    #![proptest_config(ProptestConfig::default())]

    #[test]
    fn no_address_is_promised_twice(steps in proptest::collection::vec(step(), 1..80)) {
        let mut world = World::new();
        for step in &steps {
            world.apply(step);
            world.check();
        }
    }
}

#[test]
fn the_walk_above_does_promise_addresses() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut promises = 0;
    for _ in 0..200 {
        let tree = proptest::collection::vec(step(), 40)
            .new_tree(&mut runner)
            .unwrap();
        let mut world = World::new();
        for step in &tree.current() {
            world.apply(step);
        }
        promises += world.promises;
    }
    assert!(
        promises > 1_000,
        "only {promises} promises in 8,000 steps: the property would say nothing"
    );
}

#[test]
fn strangers_cannot_grow_the_table() {
    let mut server = Server::new(
        Settings {
            first: Ipv4Addr::new(10, 77, 0, 2),
            ..settings()
        },
        &[],
    );
    let mut answered = 0;
    for number in 0..5_000_u32 {
        let [a, b, c, d] = number.to_be_bytes();
        let who = MacAddress([0x02, 0, a, b, c, d]);
        let message = Message::new(MessageType::Discover, who);
        let _ = server.handle_packet(
            NOW + u64::from(number / 500),
            &message.bytes(),
            &decide(adopted()),
        );
        answered += usize::from(answer(&drain(&mut server)).is_some());
        let (leases, offers, quarantine) = server.leases().sizes();
        assert!(leases == 0 && offers <= 249 && quarantine == 0);
    }
    assert!(answered >= 249);
    // And they are gone by themselves.
    let late = Message::new(MessageType::Discover, mac(1));
    server
        .handle_packet(NOW + 1_000, &late.bytes(), &decide(adopted()))
        .unwrap();
    assert_eq!(server.leases().sizes().1, 1);
}

#[test]
fn who_holds_a_lease_needs_no_room_among_the_offers() {
    let number = |number: u32| {
        (
            MacAddress([2, 0, 0, 0, (number >> 8) as u8, number as u8]),
            number,
        )
    };
    let record = |(mac, number): (MacAddress, u32)| LeaseRecord {
        mac,
        address: Ipv4Addr::from_bits(0x0a4d_1000 + number),
        expires_unix: NOW + 600,
    };
    let holders = 2 * MAX_OFFERS as u32;
    let records: Vec<_> = (0..holders).map(|at| record(number(at))).collect();
    let (first, last) = (Ipv4Addr::new(10, 77, 16, 0), Ipv4Addr::new(10, 77, 250, 255));
    let mut table = LeaseTable::new(first, last, HEAD, &records);
    for held in &records {
        assert_eq!(table.offer(NOW, held.mac, None), Ok(held.address));
        assert!(table.may_have(NOW, held.mac, held.address));
    }
    assert_eq!(table.sizes(), (records.len(), 0, 0));
    // Another machine gets neither.
    let other = number(holders).0;
    assert!(!table.may_have(NOW, other, records[0].address));
    assert_ne!(
        table.offer(NOW, other, Some(records[0].address)),
        Ok(records[0].address)
    );
}
