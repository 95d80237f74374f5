//! Small rooms in the simulator of `examples/swarm`: a mass boot takes about as long as one client, whatever breaks, lies, vanishes or is
//! away, and nobody is left without. Large rooms: `ci/night image-swarm`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use cid_content::random::Random;
use sim::{Outcome, Room, World};

#[path = "../examples/swarm/sim.rs"]
#[expect(dead_code, reason = "the tables print more than is asserted here")]
mod sim;

const MBIT: u64 = 1_000_000;
const LIMIT: Duration = Duration::from_secs(3_600);

fn class_room() -> Room {
    Room::new(32, 12 << 20, 20 * MBIT)
}

/// Everybody who stayed has everything; returns how many times one client's time that took.
fn times(room: &Room) -> (f64, Outcome) {
    let one = Room {
        nodes: 1,
        liars: 0,
        vanish: 0,
        loss: 0.0,
        head_away: None,
        ..room.clone()
    };
    let one = World::new(one).run(LIMIT).all.unwrap();
    let outcome = World::new(room.clone()).run(LIMIT);
    assert_eq!(outcome.waiting, 0, "{room:?}");
    (outcome.all.unwrap().as_secs_f64() / one.as_secs_f64(), outcome)
}

#[test]
fn a_class_room_takes_as_long_as_one_client() {
    let (times, outcome) = times(&class_room());
    assert!(times < 1.1, "{times}");
    assert_eq!(
        outcome.head_chunks, outcome.chunks,
        "each chunk once over the head's link"
    );
}

/// The bound of the issue holds for these, too: what only liars have is given again at once.
#[test]
fn lying_peers_and_broken_connections_cost_little() {
    for room in [
        Room {
            liars: 3,
            ..class_room()
        },
        Room {
            loss: 0.05,
            ..class_room()
        },
        Room {
            liars: 2,
            loss: 0.02,
            ..class_room()
        },
    ] {
        let (times, outcome) = times(&room);
        assert!(times < 1.5, "{times}: {room:?}");
        assert!(outcome.named.len() >= room.liars, "{:?}", outcome.named);
    }
}

#[test]
fn a_fast_link_and_a_hundred_nodes_take_no_more_than_twice_as_long() {
    // 2.8 times when new nodes were named to whoever had no place for them.
    let (times, _) = times(&Room::new(100, 60 << 20, 1_000 * MBIT));
    assert!(times < 2.0, "{times}");
}

#[test]
fn a_head_that_is_away_costs_its_absence_and_no_more() {
    let away = Some((Duration::from_secs(2), Duration::from_secs(5)));
    let room = Room {
        head_away: away,
        ..class_room()
    };
    let (times, _) = times(&room);
    // One client takes 5 s of it.
    assert!(times < 2.2, "{times}");
}

#[test]
fn random_rooms_leave_nobody_without() {
    for seed in 0..12 {
        let mut random = Random::new(seed);
        let room = Room::random(&mut random, seed);
        let outcome = World::new(room.clone()).run(Duration::from_secs(7_200));
        assert_eq!(outcome.waiting, 0, "seed {seed}: {room:?}");
    }
}
