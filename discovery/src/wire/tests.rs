use core::net::Ipv4Addr;
use core::time::Duration;

use super::*;
use crate::history::State;
use crate::load::LoadVector;
use crate::random::Random;

fn boot(id: u8) -> Boot {
    Boot {
        id: NodeId([id; 16]),
        incarnation: 1_795_000_000_000,
    }
}

fn address(last: u8) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, last), 3101)
}

fn change() -> Change {
    Change {
        boot: boot(3),
        state: State::Up,
        at_unix_ms: 1_795_000_000_123,
        name: "lab-a01".into(),
        reason: "welcomed".into(),
    }
}

fn rumor(liveness: Liveness) -> Rumor {
    Rumor {
        boot: boot(5),
        refutation: 2,
        liveness,
        role: Role::Node,
        headless: liveness == Liveness::Dead,
        address: address(5),
        by: (liveness == Liveness::Suspect).then_some(NodeId([6; 16])),
    }
}

fn message(kind: Kind) -> Message {
    let entry = LoadEntry {
        short: [7; 6],
        age_tenths: 12,
        vector: LoadVector {
            runnable_tenths: 40,
            ..LoadVector::default()
        },
    };
    Message {
        mode: Mode::Busy,
        role: Role::Node,
        to_group: true,
        history: Digest { epoch: 7, length: 9 },
        roster: 0xdead_beef,
        kind,
        rumors: [Liveness::Alive, Liveness::Suspect, Liveness::Dead, Liveness::Left]
            .map(rumor)
            .to_vec(),
        loads: alloc::vec![entry],
    }
}

fn kinds() -> Vec<Kind> {
    let probe = 17;
    alloc::vec![
        Kind::Hello { address: address(1) },
        Kind::Ping { probe },
        Kind::Ack { probe },
        Kind::Ask {
            probe,
            target: boot(2),
            address: address(2),
        },
        Kind::Answer { probe, reached: true },
        Kind::Gossip,
        Kind::Compare([3; BUCKETS]),
        Kind::Roster,
        Kind::Pull { from: 4 },
        Kind::PullPart { at: 512, part: 3 },
        Kind::Tail {
            first: 4,
            changes: alloc::vec![change(), change()],
        },
        Kind::Part {
            at: 512,
            chain: 99,
            part: 1,
            parts: 2,
            changes: alloc::vec![change()],
        },
    ]
}

#[test]
fn every_kind_round_trips() {
    for kind in kinds() {
        let message = message(kind);
        let bytes = message.encode();
        assert_eq!(Message::decode(&bytes), Ok(message), "{} bytes", bytes.len());
    }
}

#[test]
fn a_ping_is_small() {
    let mut ping = message(Kind::Ping { probe: 1 });
    ping.rumors.clear();
    ping.loads.clear();
    // With envelope, UDP, IP and Ethernet 116 bytes: what the idle budget of docs/membership.md is made of.
    assert_eq!(ping.encode().len() + crate::seal::OVERHEAD + 42, 116);
}

#[test]
fn the_largest_messages_fit_a_datagram() {
    let mut gossip = message(Kind::Gossip);
    gossip.rumors = alloc::vec![rumor(Liveness::Alive); MAX_RUMORS];
    gossip.loads.clear();
    assert!(gossip.encode().len() <= MAX_BODY);
    let mut doubts = message(Kind::Roster);
    doubts.rumors = alloc::vec![rumor(Liveness::Suspect); MAX_RUMORS / 4 * 3];
    doubts.loads.clear();
    assert!(doubts.encode().len() <= MAX_BODY);
    let long = Change {
        name: "n".repeat(MAX_TEXT),
        reason: "r".repeat(MAX_TEXT),
        ..change()
    };
    for sample in [long, change()] {
        let many = alloc::vec![sample; 200];
        let fitting = crate::history::fitting(many.iter());
        let mut tail = message(Kind::Part {
            at: 1,
            chain: 1,
            part: 0,
            parts: 1,
            changes: many[..fitting].to_vec(),
        });
        tail.rumors.clear();
        tail.loads.clear();
        let size = tail.encode().len();
        assert!(
            size <= MAX_BODY && size > MAX_BODY - 140,
            "{fitting} changes, {size} bytes"
        );
    }
}

#[test]
fn each_fault_has_its_reason() {
    let good = message(Kind::Ping { probe: 1 }).encode();
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        Message::decode(&bytes)
    };
    assert_eq!(Message::decode(&[]), Err(Refusal::TooShort));
    assert_eq!(Message::decode(&good[..good.len() - 1]), Err(Refusal::TooShort));
    assert_eq!(Message::decode(&[0; 1_401]), Err(Refusal::TooLong));
    assert_eq!(
        Message::decode(&[good.as_slice(), &[0]].concat()),
        Err(Refusal::Trailing)
    );
    assert_eq!(with(0, 0), Err(Refusal::Kind));
    assert_eq!(with(1, 8), Err(Refusal::Value));
    assert_eq!(with(18, 200), Err(Refusal::Count));
    // The first rumour begins at 19: boot 24, refutation 2, tag 1, address 6.
    assert_eq!(with(19 + 26, 16), Err(Refusal::Value));
    assert_eq!(with(19 + 27, 224), Err(Refusal::Address));
    let mut nameless = message(Kind::Gossip);
    nameless.rumors[0].boot.id = NodeId([0; 16]);
    assert_eq!(Message::decode(&nameless.encode()), Err(Refusal::Id));
    let mut tail = message(Kind::Tail {
        first: 0,
        changes: alloc::vec![change()],
    })
    .encode();
    // Behind header 14, first 4, count 1, boot 24, state 1, time 8, length 1 stands the name.
    tail[14 + 4 + 1 + 24 + 8 + 2] = b'\n';
    assert_eq!(Message::decode(&tail), Err(Refusal::Text));
}

#[test]
fn texts_are_cleaned_and_cut_before_they_travel() {
    let dirty = Change {
        name: "é\n".repeat(100),
        ..change()
    };
    let kind = Kind::Tail {
        first: 0,
        changes: alloc::vec![dirty],
    };
    let Ok(Message {
        kind: Kind::Tail { changes, .. },
        ..
    }) = Message::decode(&message(kind).encode())
    else {
        panic!("encode never makes what decode refuses");
    };
    assert!(changes[0].name.starts_with("é?é?") && changes[0].name.len() <= MAX_TEXT);
}

#[test]
fn a_hundred_thousand_mutated_bodies_each_have_a_fate() {
    const SEED: u64 = 20_261_121;
    let mut random = Random::new(SEED);
    let kinds = kinds();
    let mut member = crate::member::tests::node(1, Duration::ZERO);
    let (mut accepted, mut refused) = (0_u32, Refusals::default());
    for round in 0..100_000_u64 {
        let mut bytes = message(kinds[random.below(kinds.len())].clone()).encode();
        for _ in 0..random.below(4) {
            let at = random.below(bytes.len());
            bytes[at] ^= 1 << random.below(8);
        }
        match random.below(10) {
            0 => bytes.truncate(random.below(bytes.len() + 1)),
            1 => bytes.extend((0..random.below(40)).map(|_| 0x41)),
            _ => {}
        }
        match Message::decode(&bytes) {
            Ok(message) => {
                accepted += 1;
                assert_eq!(message.encode(), bytes, "what is accepted has one spelling");
            }
            Err(reason) => refused.add(reason),
        }
        // The machine behind the decoder bears it too, and stays bounded.
        let now = Duration::from_millis(round);
        let _ = member.handle_datagram(now, boot(9), address(9), &bytes);
        member.handle_deadline(now);
        while member.poll_output().is_some() {}
    }
    println!("seed {SEED}: {accepted} accepted, {refused:?}");
    assert!(accepted > 20_000, "{accepted}");
    assert!(member.roster().members().count() <= 64);
    for reason in [
        Refusal::TooShort,
        Refusal::Trailing,
        Refusal::Kind,
        Refusal::Value,
        Refusal::Count,
        Refusal::Text,
    ] {
        assert!(refused.count(reason) > 0, "{reason:?} never occurred");
    }
}
