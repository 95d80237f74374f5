//! Prints what the membership does in simulated rooms, beside memberlist's defaults by its formulas. Virtual time:
//! `cargo run --release -p cid-discovery --example membership -- [idle|detect|join|restart|alarms] [nodes...]`

#[path = "../tests/sim/mod.rs"]
mod sim;

use std::time::Duration;

use cid_discovery::load::LoadVector;
use cid_discovery::wire::Mode;
use sim::{Wire, World, secs};

const SEEDS: u64 = 10;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let what = arguments.first().map_or("all", String::as_str);
    let sizes: Vec<usize> = arguments
        .iter()
        .skip(1)
        .filter_map(|size| size.parse().ok())
        .collect();
    let sizes = if sizes.is_empty() {
        vec![13, 50, 200, 1_000]
    } else {
        sizes
    };
    for &nodes in &sizes {
        let wanted = |name: &str| what == name || what == "all";
        if wanted("idle") {
            idle(nodes);
        }
        if wanted("detect") {
            detect(nodes);
        }
        if wanted("join") {
            join(nodes);
        }
        if wanted("restart") {
            restart(nodes);
        }
        if wanted("alarms") {
            alarms(nodes);
        }
    }
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

fn detect(nodes: usize) {
    for (loss_percent, multicast) in [(0, true), (0, false), (5, false), (10, false)] {
        let wire = Wire {
            loss_percent,
            multicast,
            ..Wire::default()
        };
        let (mut quiet, mut busy, mut alarms) = (Vec::new(), Vec::new(), 0);
        let seeds = if nodes >= 1_000 { 1 } else { SEEDS };
        for seed in 0..seeds {
            let mut world = World::settled(seed, nodes, wire.clone());
            crashes(&mut world, Mode::Quiet, &mut quiet);
            crashes(&mut world, Mode::Busy, &mut busy);
            alarms += world.false_alarms;
        }
        let wire = format!("crash, {nodes} nodes, loss {loss_percent} %, multicast {multicast}");
        println!("{wire}, quiet: {}", spread(quiet));
        println!(
            "{wire}, busy: {}; false alarms {alarms}; memberlist {:.1} s",
            spread(busy),
            memberlist_detects(nodes)
        );
    }
}

/// Ten machines are cut off power one after the other; how long until all others know.
fn crashes(world: &mut World, mode: Mode, times: &mut Vec<Duration>) {
    let nodes = world.hosts.len() - 1;
    for node in 1..=nodes {
        world.with(node, |member, now| member.handle_mode(now, mode));
    }
    for _ in 0..10 {
        let phase = secs(world.below(3_000) as f64 / 1_000.0);
        world.run_for(secs(12.0) + phase);
        let victim = 1 + world.below(nodes);
        let boot = world.hosts[victim].boot;
        world.crash(victim);
        let known = |world: &World| {
            world
                .nodes_on()
                .into_iter()
                .chain([0])
                .all(|index| world.buried(index, boot))
        };
        times.push(world.time_until(secs(60.0), known).unwrap_or(secs(60.0)));
        world.start(victim);
        world.with(victim, |member, now| member.handle_mode(now, mode));
    }
}

fn join(nodes: usize) {
    for (loss_percent, multicast) in [(0, true), (0, false), (10, false)] {
        let wire = Wire {
            loss_percent,
            multicast,
            ..Wire::default()
        };
        let mut times = Vec::new();
        let mut all = Vec::new();
        let seeds = if nodes >= 1_000 { 1 } else { SEEDS };
        for seed in 0..seeds {
            let mut world = World::new(seed, nodes);
            world.wire = wire.clone();
            for index in 1..nodes {
                world.start(index);
            }
            all.push(
                world
                    .time_until(secs(120.0), |world| world.wrong_pairs() == 0)
                    .unwrap_or(secs(120.0)),
            );
            world.run_for(secs(30.0));
            for _ in 0..10 {
                world.start(nodes);
                times.push(
                    world
                        .time_until(secs(60.0), |world| world.wrong_pairs() == 0)
                        .unwrap_or(secs(60.0)),
                );
                world.crash(nodes);
                world.run_for(secs(20.0));
            }
        }
        println!(
            "join {nodes} loss {loss_percent} % multicast {multicast}: {}; all at once: {}",
            spread(times),
            spread(all)
        );
    }
}

/// The head is killed and comes back 20 s later.
fn restart(nodes: usize) {
    for multicast in [true, false] {
        let wire = Wire {
            multicast,
            ..Wire::default()
        };
        let mut world = World::settled(1, nodes, wire);
        let before = world.disk.len();
        world.crash(0);
        world.run_for(secs(20.0));
        world.start(0);
        let found = world.time_until(secs(60.0), |world| world.wrong_pairs() == 0);
        world.run_for(secs(60.0));
        let (home, changes) = (
            world.hosts.iter().filter(|host| host.went_home).count(),
            world.disk.len() - before,
        );
        println!(
            "{nodes} nodes, head restarted, multicast {multicast}: all found after {:.2} s, {home} went home, {changes} changes",
            found.unwrap_or(secs(60.0)).as_secs_f64()
        );
    }
}

fn alarms(nodes: usize) {
    for loss_percent in [0, 5, 10] {
        for starved in [false, true] {
            let wire = Wire {
                loss_percent,
                ..Wire::default()
            };
            let mut world = World::settled(3, nodes, wire);
            if starved {
                world.hosts[1].starved = Some(secs(2.5));
            }
            let hours = 1_000.0 / nodes as f64;
            world.run_for(secs(hours * 3_600.0));
            println!(
                "{nodes} nodes, 1000 node-hours, loss {loss_percent} %, starved {starved}: {} false alarms",
                world.false_alarms
            );
        }
    }
}

fn idle(nodes: usize) {
    let mut world = World::settled(1, nodes, Wire::default());
    println!(
        "{nodes} nodes, formation: {} kB per node in 40 s",
        world.bytes() / 1_000 / nodes as u64
    );
    world.run_for(secs(60.0));
    let before = world.bytes();
    let seconds = if nodes >= 1_000 { 120 } else { 600 };
    for _ in 0..seconds {
        for node in 1..=nodes {
            let load = LoadVector {
                runnable_tenths: 1 + world.below(3) as u16,
                memory_available_16mib: 990 + world.below(3) as u16,
                ..LoadVector::default()
            };
            world.with(node, |member, now| member.handle_load(now, load));
        }
        world.run_for(secs(1.0));
    }
    let kbit = (world.bytes() - before) as f64 * 8.0 / f64::from(seconds) / 1_000.0;
    let mut ages: Vec<Duration> = (1..=nodes)
        .filter_map(|node| {
            Some(
                world
                    .member(1)
                    .loads()
                    .load_of(world.now, world.hosts[node].boot.id)?
                    .1,
            )
        })
        .collect();
    let known = ages.len();
    ages.push(Duration::ZERO);
    println!(
        "{nodes} nodes, idle: {kbit:.1} kbit/s in all, {:.2} per node, {:.1} frames/s per node; loads known {known}, {}",
        kbit / nodes as f64,
        kbit * 1_000.0 / 8.0 / 120.0 / nodes as f64,
        spread(ages),
    );
}
