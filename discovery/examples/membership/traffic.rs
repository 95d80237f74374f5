//! Bytes of an idle room and of a busy one, and what a core takes of memory.

use std::time::Duration;

use cid_discovery::load::LoadVector;
use cid_discovery::wire::Mode;

use crate::sim::{World, secs};
use crate::{IDLE, LARGE, formed, judge, resident_mb, set_mode, spread};

/// Counts the bytes of a room whose machines have nothing to do, and of one whose machines run jobs.
pub(crate) fn table(nodes: usize) {
    let mut world = formed(nodes, true);
    println!(
        "{nodes} nodes, formation: {} kB per node",
        world.bytes() / 1_000 / nodes as u64
    );
    // The first telling of all loads passes, and they are told again at their own times.
    loads(&mut world, 60 + 2 * 30 * (nodes / 100).max(1));
    let sent = count(&mut world, 600, "idle");
    judge(
        &format!("{nodes} nodes, idle, bit/s that a node sends"),
        sent,
        IDLE,
    );
    let now = world.now;
    let book = world.member(1).loads();
    let ages = world.hosts[1..]
        .iter()
        .filter_map(|host| Some(book.load_of(now, host.boot.id)?.1));
    let ages: Vec<Duration> = ages.collect();
    println!("{nodes} nodes, loads known at one: {}", spread(ages));
    set_mode(&mut world, Mode::Busy);
    count(&mut world, 300, "busy");
}

/// Counts the bytes of so many seconds; how many bit/s a node sends.
pub(crate) fn count(world: &mut World, seconds: usize, what: &str) -> f64 {
    let nodes = world.hosts.len() - 1;
    let total = |world: &World| {
        let head = &world.hosts[0];
        let received: u64 = world.hosts[1..].iter().map(|host| host.received_bytes).sum();
        let numbers = [
            world.bytes(),
            head.sent_bytes,
            head.sent,
            head.received_bytes,
            head.received,
            received,
        ];
        (numbers, world.by_kind)
    };
    let (before, kinds_before) = total(world);
    if nodes <= LARGE {
        loads(world, seconds);
    } else {
        world.run_for(secs(seconds as f64));
    }
    let (after, kinds) = total(world);
    let per_second = |index: usize| (after[index] - before[index]) as f64 / seconds as f64;
    let kbit = |index: usize| per_second(index) * 8.0 / 1_000.0;
    println!(
        "{nodes} nodes, {what}: {:.1} kbit/s sent in all, {:.2} per node with the head's; of that the head sends {:.1} kbit/s, {:.0} frames/s; it receives {:.1} kbit/s, {:.0} frames/s; a node sends {:.2} kbit/s and receives {:.2}",
        kbit(0),
        kbit(0) / nodes as f64,
        kbit(1),
        per_second(2),
        kbit(3),
        per_second(4),
        (kbit(0) - kbit(1)) / nodes as f64,
        kbit(5) / nodes as f64,
    );
    let by_kind: Vec<String> = kinds
        .iter()
        .zip(kinds_before)
        .enumerate()
        .map(|(kind, (after, before))| {
            (
                kind,
                (after - before) as f64 * 8.0 / 1_000.0 / seconds as f64 / nodes as f64,
            )
        })
        .filter(|(_, kbit)| *kbit >= 0.005)
        .map(|(kind, kbit)| format!("{kind}: {kbit:.2}"))
        .collect();
    println!("  by kind, kbit/s per node: {}", by_kind.join(", "));
    (kbit(0) - kbit(1)) * 1_000.0 / nodes as f64
}

/// What one core needs: the room's memory shared among its nodes, loads and history included.
pub(crate) fn memory(nodes: usize) {
    let before = resident_mb();
    let mut world = formed(nodes, true);
    loads(&mut world, 1);
    world.run_for(secs(60.0));
    let roster = world.member(1).roster().heap_bytes() as f64;
    println!(
        "{nodes} nodes: {:.0} kB a core, {:.1} kB of it its roster, {:.1} bytes a member",
        (resident_mb() - before) * 1_024.0 / nodes as f64,
        roster / 1_000.0,
        roster / nodes as f64
    );
}

/// An idle machine's load moves a little, and is measured every second.
fn loads(world: &mut World, seconds: usize) {
    for _ in 0..seconds {
        for node in 1..world.hosts.len() {
            let load = LoadVector {
                runnable_tenths: 1 + world.below(3) as u16,
                memory_available_16mib: 990 + world.below(3) as u16,
                ..LoadVector::default()
            };
            world.with(node, |member, now| member.handle_load(now, load));
        }
        world.run_for(secs(1.0));
    }
}
