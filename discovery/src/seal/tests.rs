use core::net::Ipv4Addr;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

const HERE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 3101);
const THERE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 3101);

fn boot(id: u8, incarnation: u64) -> Boot {
    Boot {
        id: NodeId([id; 16]),
        incarnation,
    }
}

fn key(epoch: u32) -> GroupKey {
    GroupKey {
        epoch,
        secret: [epoch as u8; 32],
    }
}

trait Here {
    fn open_here(&mut self, now: Duration, datagram: &[u8]) -> Result<(Boot, Vec<u8>), Unopened>;
}

impl Here for Opener {
    fn open_here(&mut self, now: Duration, datagram: &[u8]) -> Result<(Boot, Vec<u8>), Unopened> {
        self.open(now, HERE, THERE, datagram)
    }
}

impl Sealer {
    fn seal_here(&mut self, body: &[u8]) -> Result<Vec<u8>, Unsealable> {
        self.seal(HERE, Some(THERE), body)
    }
}

#[test]
fn what_is_sent_from_or_to_elsewhere_is_forged() {
    let (mut sealer, mut opener) = pair();
    let datagram = seal(&mut sealer, b"hello");
    assert_eq!(
        opener.open(SECOND, THERE, THERE, &datagram),
        Err(Unopened::Forged)
    );
    assert_eq!(opener.open(SECOND, HERE, HERE, &datagram), Err(Unopened::Forged));
    let mut to_group = datagram.clone();
    to_group[5] = 1;
    assert_eq!(opener.open(SECOND, HERE, THERE, &to_group), Err(Unopened::Forged));
    let to_group = sealer.seal(HERE, None, b"all").expect("seals");
    assert!(opener.open(SECOND, HERE, THERE, &to_group).is_ok());
    assert!(opener.open(SECOND, HERE, THERE, &datagram).is_ok());
}

fn pair() -> (Sealer, Opener) {
    (Sealer::new(boot(1, 10), &key(1)), Opener::new(key(1), 4))
}

fn seal(sealer: &mut Sealer, body: &[u8]) -> Vec<u8> {
    sealer.seal_here(body).expect("seals")
}

#[test]
fn opens_what_a_member_sealed_once() {
    let (mut sealer, mut opener) = pair();
    let datagram = seal(&mut sealer, b"hello");
    assert_eq!(datagram.len(), OVERHEAD + 5);
    assert!(
        !datagram.windows(5).any(|bytes| bytes == b"hello"),
        "the body is not in clear"
    );
    assert_eq!(
        opener.open_here(SECOND, &datagram),
        Ok((boot(1, 10), b"hello".to_vec()))
    );
    assert_eq!(opener.open_here(SECOND, &datagram), Err(Unopened::Replay));
    let counted: Vec<_> = opener.drops().filter(|(_, count)| *count > 0).collect();
    assert_eq!(counted, [("seal-replay", 1)]);
}

#[test]
fn every_flipped_bit_is_noticed() {
    let (mut sealer, mut opener) = pair();
    let datagram = seal(&mut sealer, b"hello");
    for bit in 0..datagram.len() * 8 {
        let mut flipped = datagram.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let reason = opener.open_here(SECOND, &flipped).expect_err("not opened");
        let expected = match bit / 8 {
            0..4 => Unopened::Magic,
            5 if bit % 8 == 0 => Unopened::Forged,
            4..6 => Unopened::Version,
            6..10 => Unopened::Epoch,
            _ => Unopened::Forged,
        };
        assert_eq!(reason, expected, "bit {bit}");
    }
    assert!(
        opener.open_here(SECOND, &datagram).is_ok(),
        "forgeries closed no window"
    );
}

#[test]
fn datagrams_may_overtake_but_not_return() {
    let (mut sealer, mut opener) = pair();
    let mut datagrams: Vec<Vec<u8>> = (0..300).map(|_| seal(&mut sealer, b"x")).collect();
    datagrams[..100].reverse();
    let opened = datagrams[..100]
        .iter()
        .filter(|datagram| opener.open_here(SECOND, datagram).is_ok())
        .count();
    assert_eq!(opened, 100);
    assert!(opener.open_here(SECOND, &datagrams[299]).is_ok());
    assert_eq!(
        opener.open_here(SECOND, &datagrams[150]),
        Err(Unopened::Replay),
        "too far behind"
    );
    assert!(opener.open_here(SECOND, &datagrams[299 - 127]).is_ok());
    for datagram in &datagrams[..100] {
        assert_eq!(opener.open_here(SECOND, datagram), Err(Unopened::Replay));
    }
}

#[test]
fn a_later_boot_ends_the_earlier_one() {
    let (mut ghost, mut opener) = pair();
    let mut sealer = Sealer::new(boot(1, 11), &key(1));
    let old = seal(&mut ghost, b"old");
    assert!(opener.open_here(SECOND, &seal(&mut sealer, b"new")).is_ok());
    assert_eq!(opener.open_here(SECOND, &old), Err(Unopened::Ghost));
}

#[test]
fn a_rotation_leaves_time_and_a_revocation_none() {
    let (mut sealer, mut opener) = pair();
    opener.handle_key(SECOND, key(2), false);
    assert!(
        opener.open_here(2 * SECOND, &seal(&mut sealer, b"1")).is_ok(),
        "not told yet"
    );
    sealer.handle_key(&key(2));
    let second = seal(&mut sealer, b"2");
    assert!(opener.open_here(2 * SECOND, &second).is_ok());
    assert_eq!(opener.open_here(2 * SECOND, &second), Err(Unopened::Replay));
    let mut slow = Sealer::new(boot(2, 1), &key(1));
    assert_eq!(
        opener.open_here(SECOND + OLD_KEY, &seal(&mut slow, b"late")),
        Err(Unopened::Epoch)
    );
    opener.handle_key(40 * SECOND, key(3), true);
    assert_eq!(
        opener.open_here(40 * SECOND, &seal(&mut sealer, b"revoked")),
        Err(Unopened::Epoch)
    );
    opener.handle_key(40 * SECOND, key(2), false);
    assert_eq!(
        opener.open_here(41 * SECOND, &seal(&mut sealer, b"older")),
        Err(Unopened::Epoch)
    );
}

#[test]
fn a_stranger_leaves_nothing_behind() {
    let mut opener = Opener::new(key(1), 4);
    let mut stranger = Sealer::new(
        boot(9, 1),
        &GroupKey {
            epoch: 1,
            secret: [99; 32],
        },
    );
    for _ in 0..1_000 {
        assert_eq!(
            opener.open_here(SECOND, &seal(&mut stranger, b"let me in")),
            Err(Unopened::Forged)
        );
    }
    assert!(opener.senders.is_empty());
    for id in 1..=4 {
        assert!(
            opener
                .open_here(SECOND, &seal(&mut Sealer::new(boot(id, 1), &key(1)), b""))
                .is_ok()
        );
    }
    let fifth = seal(&mut Sealer::new(boot(5, 1), &key(1)), b"");
    assert_eq!(opener.open_here(SECOND, &fifth), Err(Unopened::Full));
}

#[test]
fn secrets_do_not_print() {
    let (sealer, opener) = pair();
    let printed = std::format!("{sealer:?} {opener:?} {:?}", key(1));
    assert!(
        !printed.contains("[1, 1") && printed.contains("epoch: 1"),
        "{printed}"
    );
}

#[test]
fn the_end_of_the_sequence_is_the_end() {
    let (mut sealer, _) = pair();
    sealer.sequence = u32::MAX - 1;
    assert!(sealer.seal_here(b"last").is_ok());
    assert_eq!(sealer.seal_here(b"one more"), Err(Unsealable::Exhausted));
    assert_eq!(sealer.seal_here(&[0; 2_000]), Err(Unsealable::TooLong));
}
