use super::*;

fn sample() -> Beacon {
    Beacon {
        state: NodeState::Up,
        id: NodeId::of_machine("4C4C4544-0042-3510-8051-B4C04F564231", [0x52, 0x54, 0, 1, 2, 3]),
        incarnation: 1_795_000_000_000,
        sequence: 17,
        load_hundredths: 213,
        memory_available_mib: 15_800,
        address: Ipv4Addr::new(10, 77, 0, 100),
        name: "lab-a01".into(),
    }
}

#[test]
fn round_trips_and_stays_small() {
    let mut beacon = sample();
    assert_eq!(Beacon::decode(&beacon.encode()), Ok(beacon.clone()));
    beacon.name = "é\n".repeat(100);
    let bytes = beacon.encode();
    assert!(bytes.len() <= MAX_BEACON);
    let back = Beacon::decode(&bytes).expect("encode never makes what decode refuses");
    assert!(back.name.starts_with("é?é?") && back.name.len() <= MAX_NAME);
}

#[test]
fn each_fault_has_its_reason() {
    let good = sample().encode();
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        Beacon::decode(&bytes)
    };
    assert_eq!(Beacon::decode(&[]), Err(Reject::TooShort));
    assert_eq!(Beacon::decode(&good[..44]), Err(Reject::TooShort));
    assert_eq!(Beacon::decode(&[0; 300]), Err(Reject::TooLong));
    assert_eq!(with(0, b'X'), Err(Reject::Magic));
    assert_eq!(with(4, 2), Err(Reject::Version));
    assert_eq!(with(5, 0), Err(Reject::State));
    assert_eq!(with(40, 224), Err(Reject::Address));
    assert_eq!(with(44, 6), Err(Reject::NameLength));
    assert_eq!(with(44, 65), Err(Reject::NameLength));
    assert_eq!(with(45, 0xff), Err(Reject::NameText));
    assert_eq!(with(45, b'\n'), Err(Reject::NameText));
    let mut anonymous = sample();
    anonymous.id = NodeId([0; 16]);
    assert_eq!(Beacon::decode(&anonymous.encode()), Err(Reject::Id));
}

#[test]
fn useless_uuids_leave_the_mac() {
    let (a, b) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    for uuid in [
        "",
        " 00000000-0000-0000-0000-000000000000\n",
        "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
    ] {
        assert_ne!(NodeId::of_machine(uuid, a), NodeId::of_machine(uuid, b));
    }
    let uuid = "4c4c4544-0042-3510-8051-b4c04f564231";
    assert_eq!(
        NodeId::of_machine(uuid, a),
        NodeId::of_machine(&uuid.to_uppercase(), b)
    );
}

/// SplitMix64, as in the announcer: the seed is the test's name for its inputs.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) >> 1).expect("64-bit") % bound
    }
}

/// Mutates a valid beacon: mostly behind magic and version, so that framing is passed, and sometimes its length.
fn mutate(random: &mut Random) -> Vec<u8> {
    let mut beacon = sample();
    beacon.name = "n".repeat(random.below(MAX_NAME + 1));
    let mut bytes = beacon.encode();
    for _ in 0..random.below(4) {
        let from = if random.below(8) == 0 { 0 } else { 5 };
        let at = from + random.below(bytes.len() - from);
        bytes[at] = match random.below(3) {
            0 => random.below(256) as u8,
            _ => bytes[at] ^ (1 << random.below(8)),
        };
    }
    match random.below(10) {
        0 => bytes.truncate(random.below(bytes.len() + 1)),
        1 => bytes.extend((0..random.below(300)).map(|_| 0x41)),
        _ => {}
    }
    bytes
}

#[test]
fn twenty_thousand_mutated_beacons_each_have_a_fate() {
    const SEED: u64 = 20_261_121;
    const INPUTS: usize = 25_000;
    let mut random = Random(SEED);
    let mut rejects = Rejects::default();
    let (mut accepted, mut framed) = (0_usize, 0_usize);
    for _ in 0..INPUTS {
        let bytes = mutate(&mut random);
        match Beacon::decode(&bytes) {
            Ok(beacon) => {
                accepted += 1;
                framed += 1;
                assert_eq!(beacon.encode(), bytes, "what is accepted has one spelling");
            }
            Err(reason) => {
                let framing = [Reject::TooShort, Reject::TooLong, Reject::Magic, Reject::Version];
                framed += usize::from(!framing.contains(&reason));
                rejects.add(reason);
            }
        }
    }
    let dropped: u64 = rejects.iter().map(|(_, count)| count).sum();
    println!("seed {SEED}: {INPUTS} inputs, {framed} past framing, {accepted} accepted, {rejects:?}");
    assert_eq!(accepted as u64 + dropped, INPUTS as u64);
    assert!(framed * 2 >= INPUTS, "{framed} of {INPUTS} got past framing");
    for (reason, count) in rejects.iter() {
        let decoder = !matches!(
            reason,
            Reject::Source | Reject::Stale | Reject::TableFull | Reject::Id
        );
        assert!(!decoder || count > 0, "{reason:?} never occurred");
    }
}
