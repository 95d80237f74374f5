//! What a mass boot takes, in virtual time: `cargo run --release -p cid-content --example swarm` prints tables, `... -- rooms 200`
//! goes through random rooms in which connections break, peers lie, nodes vanish and the head is away, and fails with the seed of the
//! first in which a node does not get everything.

use std::time::{Duration, Instant};

mod sim;
use cid_content::random::Random;
use sim::{Room, World};

const MBIT: u64 = 1_000_000;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [word, count] = &arguments[..]
        && word == "rooms"
    {
        return random_rooms(count.parse().expect("a number of rooms"));
    }
    println!(
        "  nodes  image  head's link  what                    one    all  median  head alone  ideal  all/one  head's chunks  failed"
    );
    for nodes in [1, 2, 8, 32, 100, 316, 1_000] {
        show("", &Room::new(nodes, 200 << 20, 1_000 * MBIT));
    }
    let class_room = Room::new(32, 50 << 20, 20 * MBIT);
    show("", &class_room);
    let away = Some((Duration::from_secs(10), Duration::from_secs(15)));
    show(
        "head away 10-15 s",
        &Room {
            head_away: away,
            ..class_room.clone()
        },
    );
    show(
        "5 % broken connections",
        &Room {
            loss: 0.05,
            ..class_room.clone()
        },
    );
    show(
        "3 lying peers",
        &Room {
            liars: 3,
            ..class_room.clone()
        },
    );
    show(
        "8 vanish half-way",
        &Room {
            vanish: 8,
            ..class_room
        },
    );
    let thousand = Room {
        seed: 2,
        ..Room::new(1_000, 200 << 20, 1_000 * MBIT)
    };
    let away = Some((Duration::from_secs(1), Duration::from_secs(6)));
    show(
        "head away 1-6 s",
        &Room {
            head_away: away,
            ..thousand.clone()
        },
    );
    show(
        "10 lying peers, 1 % broken",
        &Room {
            liars: 10,
            loss: 0.01,
            ..thousand
        },
    );
}

fn show(what: &str, room: &Room) {
    let began = Instant::now();
    let one = World::new(Room {
        nodes: 1,
        head_away: None,
        liars: 0,
        loss: 0.0,
        vanish: 0,
        ..room.clone()
    });
    let one = one
        .run(Duration::from_secs(3_600))
        .all
        .unwrap_or_default()
        .as_secs_f64();
    let outcome = World::new(room.clone()).run(Duration::from_secs(3_600));
    let all = outcome.all.map_or(f64::INFINITY, |all| all.as_secs_f64());
    println!(
        "{:7} {:3} MB {:7} Mbit  {what:26} {one:5.1} s {all:5.1} s {:5.1} s {:9.1} s {:4.1} s {:7.2} {:7} of {:4} {:5}",
        room.nodes,
        room.image_bytes >> 20,
        room.head_link / MBIT,
        outcome.median.as_secs_f64(),
        room.head_alone().as_secs_f64(),
        room.ideal().as_secs_f64(),
        all / one,
        outcome.head_chunks,
        outcome.chunks,
        outcome.waiting,
    );
    let lied: u32 = outcome.counters.iter().map(|node| node.wrong).sum();
    eprintln!(
        "        seed {}: {} done, {lied} wrong chunks refused, {} accusations; {} events in {:.1} s of our time",
        room.seed,
        outcome.done,
        outcome.named.len(),
        outcome.events,
        began.elapsed().as_secs_f64()
    );
}

/// Every node that stays ends with every chunk; the simulator itself refuses a wrong byte.
fn random_rooms(count: u64) {
    for seed in 0..count {
        let room = Room::random(&mut Random::new(seed), seed);
        let outcome = World::new(room.clone()).run(Duration::from_secs(7_200));
        assert_eq!(outcome.waiting, 0, "seed {seed}: {room:?}");
    }
    println!("{count} rooms: every node that stayed has everything");
}
