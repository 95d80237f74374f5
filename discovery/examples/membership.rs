//! Prints what the membership does in simulated rooms, beside memberlist's defaults by its formulas, and how long each
//! part took. Virtual time:
//! `cargo run --release -p cid-discovery --example membership -- [all|idle|detect|join|restart|alarms|memory] [nodes...]`

#[path = "../tests/sim/mod.rs"]
mod sim;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cid_discovery::load::LoadVector;
use cid_discovery::wire::Mode;
use sim::{Wire, World, secs};

/// In rooms above this size nodes are told of one another to begin with, and few of them are in the history.
const LARGE: usize = 2_000;

/// One table, for a room of so many.
type Part = fn(usize);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let what = arguments.first().map_or("all", String::as_str);
    let sizes = arguments.iter().skip(1).filter_map(|size| size.parse().ok());
    let mut sizes: Vec<usize> = sizes.collect();
    if sizes.is_empty() {
        sizes = vec![13, 50, 200, 1_000, 10_000];
    }
    let parts: [(&str, Part); 6] = [
        ("idle", idle),
        ("detect", detect),
        ("join", join),
        ("restart", restart),
        ("alarms", alarms),
        ("memory", memory),
    ];
    for nodes in sizes {
        for (name, part) in parts {
            // A room of 10,000 is lived through once: in `large`.
            if what == name || (what == "all" && nodes <= LARGE) {
                let began = Instant::now();
                part(nodes);
                println!(
                    "  ({name}, {nodes} nodes: {:.0} s)",
                    began.elapsed().as_secs_f64()
                );
            }
        }
        if nodes > LARGE && matches!(what, "all" | "large") {
            let began = Instant::now();
            large(nodes);
            println!("  (large, {nodes} nodes: {:.0} s)", began.elapsed().as_secs_f64());
        }
    }
}

/// How many rooms are lived through.
fn seeds(nodes: usize) -> u64 {
    match nodes {
        0..=200 => 10,
        201..=LARGE => 3,
        _ => 1,
    }
}

/// Lives through one room for each seed, as many at a time as there are processors.
fn each_seed<T: Send>(nodes: usize, room: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let (next, results) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, |cores| cores.get()) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds(nodes) {
                        break;
                    }
                    let result = room(seed);
                    results.lock().expect("alive").push(result);
                }
            });
        }
    });
    results.into_inner().expect("alive")
}

fn spread(mut times: Vec<Duration>) -> String {
    times.sort();
    let mean = times.iter().sum::<Duration>().as_secs_f64() / times.len().max(1) as f64;
    let worst = times.last().copied().unwrap_or_default().as_secs_f64();
    format!("mean {mean:.2} s, worst {worst:.2} s of {}", times.len())
}

/// memberlist's LAN defaults: expected time to the first failed probe (1/(1-1/e) periods of 1 s), then the
/// confirmed suspicion; the spreading comes on top.
fn memberlist_detects(nodes: usize) -> f64 {
    let suspicion = 4.0 * (nodes as f64).log10().max(1.0);
    1.58 + suspicion
}

fn wire(loss_percent: u64, multicast: bool) -> Wire {
    Wire {
        loss_percent,
        multicast,
        ..Wire::default()
    }
}

fn detect(nodes: usize) {
    for (loss_percent, multicast) in [(0, true), (0, false), (5, false), (10, false)] {
        let rooms = each_seed(nodes, |seed| {
            let mut world = World::settled(seed, nodes, wire(loss_percent, multicast));
            let (mut quiet, mut busy) = (Vec::new(), Vec::new());
            crashes(&mut world, Mode::Quiet, 10, &mut quiet);
            crashes(&mut world, Mode::Busy, 10, &mut busy);
            (quiet, busy, world.false_alarms)
        });
        let alarms: u64 = rooms.iter().map(|room| room.2).sum();
        let quiet = rooms.iter().flat_map(|room| room.0.clone()).collect();
        let busy = rooms.iter().flat_map(|room| room.1.clone()).collect();
        let wire = format!("crash, {nodes} nodes, loss {loss_percent} %, multicast {multicast}");
        println!("{wire}, quiet: {}", spread(quiet));
        println!(
            "{wire}, busy: {}; false alarms {alarms}; memberlist {:.1} s",
            spread(busy),
            memberlist_detects(nodes)
        );
    }
}

/// Machines are cut off power one after the other; how long until all others know.
fn crashes(world: &mut World, mode: Mode, count: usize, times: &mut Vec<Duration>) {
    let nodes = world.hosts.len() - 1;
    for node in 1..=nodes {
        world.with(node, |member, now| member.handle_mode(now, mode));
    }
    for _ in 0..count {
        let phase = secs(world.below(3_000) as f64 / 1_000.0);
        world.run_for(secs(12.0) + phase);
        let victim = 1 + world.below(nodes);
        let boot = world.hosts[victim].boot;
        world.crash(victim);
        let known = |world: &World| world.all_buried(boot);
        times.push(world.time_until(secs(60.0), known).unwrap_or(secs(60.0)));
        world.start(victim);
        world.with(victim, |member, now| member.handle_mode(now, mode));
    }
}

fn join(nodes: usize) {
    for (loss_percent, multicast) in [(0, true), (0, false), (10, false)] {
        let rooms = each_seed(nodes, |seed| {
            let mut world = World::new(seed, nodes);
            world.wire = wire(loss_percent, multicast);
            for index in 1..nodes {
                world.start(index);
            }
            let all = world.time_until(secs(120.0), World::agreed);
            world.run_for(secs(30.0));
            let mut times = Vec::new();
            joins(&mut world, 10, &mut times);
            (all.unwrap_or(secs(120.0)), times)
        });
        println!(
            "join {nodes} loss {loss_percent} % multicast {multicast}: {}; all at once: {}",
            spread(rooms.iter().flat_map(|room| room.1.clone()).collect()),
            spread(rooms.iter().map(|room| room.0).collect())
        );
    }
}

/// The last machine comes, until all know it and it knows all, and goes.
fn joins(world: &mut World, count: usize, times: &mut Vec<Duration>) {
    let last = world.hosts.len() - 1;
    for _ in 0..count {
        world.crash(last);
        world.run_for(secs(20.0));
        world.start(last);
        times.push(world.time_until(secs(60.0), World::agreed).unwrap_or(secs(60.0)));
    }
}

/// The head is killed and comes back 20 s later.
fn restart(nodes: usize) {
    for multicast in [true, false] {
        let mut world = World::settled(1, nodes, wire(0, multicast));
        restarted(&mut world);
    }
}

fn restarted(world: &mut World) {
    let before = world.disk.len();
    world.crash(0);
    world.run_for(secs(20.0));
    world.start(0);
    let found = world.time_until(secs(60.0), World::agreed);
    // And all of them may act again.
    let act = |world: &World| (1..world.hosts.len()).all(|node| world.acts(node));
    let acting = world.time_until(secs(60.0), act);
    world.run_for(secs(60.0));
    println!(
        "{} nodes, head restarted, multicast {}: all found after {:.2} s, all act after {:.2} s, {} went home, {} changes",
        world.hosts.len() - 1,
        world.wire.multicast,
        found.unwrap_or(secs(60.0)).as_secs_f64(),
        (found.unwrap_or(secs(60.0)) + acting.unwrap_or(secs(60.0))).as_secs_f64(),
        world.hosts.iter().filter(|host| host.went_home).count(),
        world.disk.len() - before,
    );
}

fn alarms(nodes: usize) {
    for loss_percent in [0, 5, 10] {
        for starved in [false, true] {
            // Both processors live through half of the hours.
            let halves = std::thread::scope(|scope| {
                let half = |seed| {
                    move || {
                        let mut world = World::settled(seed, nodes, wire(loss_percent, true));
                        if starved {
                            world.hosts[1].starved = Some(secs(2.5));
                        }
                        world.run_for(secs(500.0 / nodes as f64 * 3_600.0));
                        world.false_alarms
                    }
                };
                let threads = [3, 4].map(|seed| scope.spawn(half(seed)));
                threads.map(|thread| thread.join().expect("lives"))
            });
            println!(
                "{nodes} nodes, 1000 node-hours, loss {loss_percent} %, starved {starved}: {} false alarms",
                halves.iter().sum::<u64>()
            );
        }
    }
}

/// A room of 10,000: filled once, since that is most of the work; then everything is measured in it.
fn large(nodes: usize) {
    let began = Instant::now();
    let mut world = formed(nodes, true);
    let report = |what: String| {
        println!(
            "{nodes} nodes, {what}; {:.0} MB, {:.0} s",
            resident_mb(),
            began.elapsed().as_secs_f64()
        );
    };
    report("formed".to_owned());
    for multicast in [true, false] {
        world.wire.multicast = multicast;
        let (mut quiet, mut busy, mut new) = (Vec::new(), Vec::new(), Vec::new());
        crashes(&mut world, Mode::Quiet, 4, &mut quiet);
        crashes(&mut world, Mode::Busy, 4, &mut busy);
        for node in 1..=nodes {
            world.with(node, |member, now| member.handle_mode(now, Mode::Quiet));
        }
        joins(&mut world, 3, &mut new);
        report(format!(
            "loss 0 %, multicast {multicast}: crash quiet {}; busy {}; memberlist {:.1} s; join {}; false alarms {}",
            spread(quiet),
            spread(busy),
            memberlist_detects(nodes),
            spread(new),
            world.false_alarms
        ));
    }
    world.wire.multicast = true;
    traffic(&mut world, 60);
    restarted(&mut world);
    for loss_percent in [0, 5, 10] {
        let before = world.false_alarms;
        world.wire.loss_percent = loss_percent;
        world.hosts[1].starved = Some(secs(2.5));
        world.run_for(secs(60.0));
        let alarms = world.false_alarms - before;
        let hours = nodes / 60;
        report(format!(
            "{hours} node-hours, loss {loss_percent} %, one starved: {alarms} false alarms"
        ));
    }
}

/// A settled room.
fn formed(nodes: usize, multicast: bool) -> World {
    if nodes <= LARGE {
        return World::settled(1, nodes, wire(0, multicast));
    }
    let mut world = World::introduced(1, nodes, 200);
    let took = world.time_until(secs(60.0), World::agreed);
    println!("{nodes} nodes, introduced: all agree after {took:?} more");
    world.wire.multicast = multicast;
    world
}

fn resident_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib: f64 = line
        .and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or(0.0);
    kib / 1_024.0
}

/// What one core needs: the room's memory shared among its nodes, loads and history included up to 1,000.
fn memory(nodes: usize) {
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

fn idle(nodes: usize) {
    let mut world = formed(nodes, true);
    println!(
        "{nodes} nodes, formation: {} kB per node",
        world.bytes() / 1_000 / nodes as u64
    );
    if nodes <= LARGE {
        // The first telling of all loads passes, and they are told again at their own times.
        loads(&mut world, 60 + 2 * 30 * (nodes / 100).max(1));
    }
    let seconds = if nodes <= LARGE { 600 } else { 60 };
    traffic(&mut world, seconds);
    let now = world.now;
    let book = world.member(1).loads();
    let ages = world.hosts[1..]
        .iter()
        .filter_map(|host| Some(book.load_of(now, host.boot.id)?.1));
    let ages: Vec<Duration> = ages.collect();
    println!("{nodes} nodes, loads known at one: {}", spread(ages));
}

/// Counts bytes of an idle room.
fn traffic(world: &mut World, seconds: usize) {
    let nodes = world.hosts.len() - 1;
    let count = |world: &World| {
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
    let (before, kinds_before) = count(world);
    if nodes <= LARGE {
        loads(world, seconds);
    } else {
        world.run_for(secs(seconds as f64));
    }
    let (after, kinds) = count(world);
    let per_second = |index: usize| (after[index] - before[index]) as f64 / seconds as f64;
    let kbit = |index: usize| per_second(index) * 8.0 / 1_000.0;
    println!(
        "{nodes} nodes, idle: {:.1} kbit/s sent in all, {:.2} per node with the head's; of that the head sends {:.1} kbit/s, {:.0} frames/s; it receives {:.1} kbit/s, {:.0} frames/s; a node sends {:.2} kbit/s and receives {:.2}",
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
}
