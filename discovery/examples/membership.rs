//! Prints what the membership does in simulated rooms, beside memberlist's defaults by its formulas. Virtual time:
//! `cargo run --release -p cid-discovery --example membership -- [idle|detect|join|alarms] [nodes...]`

#[path = "../tests/sim/mod.rs"]
mod sim;

use std::time::Duration;

use cid_discovery::wire::Mode;
use sim::{Wire, World, secs};

const SEEDS: u64 = 10;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let what = arguments.first().map_or("all", String::as_str);
    let sizes: Vec<usize> = arguments.iter().skip(1).filter_map(|size| size.parse().ok()).collect();
    let sizes = if sizes.is_empty() { vec![13, 50, 200, 1_000] } else { sizes };
    let tables: [(&str, fn(usize)); 4] = [("idle", idle), ("detect", detect), ("join", join), ("alarms", alarms)];
    for (name, table) in tables {
        if what == name || what == "all" {
            sizes.iter().for_each(|nodes| table(*nodes));
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
    for mode in [Mode::Quiet, Mode::Busy] {
        for (loss_percent, multicast) in [(0, true), (0, false), (5, false), (10, true), (10, false)] {
            let wire = Wire {
                loss_percent,
                multicast,
                ..Wire::default()
            };
            let (mut times, mut alarms) = (Vec::new(), 0);
            let seeds = if nodes >= 1_000 { 1 } else { SEEDS };
            for seed in 0..seeds {
                let mut world = World::settled(seed, nodes, wire.clone());
                for node in 1..=nodes {
                    world.with(node, |member, now| member.handle_mode(now, mode));
                }
                world.run_for(secs(20.0));
                for _ in 0..10 {
                    let victim = 1 + world.below(nodes);
                    let boot = world.hosts[victim].boot;
                    world.crash(victim);
                    let done = |world: &World| world.nodes_on().into_iter().chain([0]).all(|index| world.buried(index, boot));
                    times.push(world.time_until(secs(60.0), done).unwrap_or(secs(60.0)));
                    world.start(victim);
                    let phase = secs(world.below(3_000) as f64 / 1_000.0);
                    world.run_for(secs(20.0) + phase);
                    world.with(victim, |member, now| member.handle_mode(now, mode));
                    world.run_for(secs(5.0));
                }
                alarms += world.false_alarms;
            }
            println!("crash {nodes} {mode:?} loss {loss_percent} % multicast {multicast}: {}; alarms {alarms}; memberlist {:.1} s", spread(times), memberlist_detects(nodes));
        }
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
            all.push(world.time_until(secs(120.0), |world| world.wrong_pairs() == 0).unwrap_or(secs(120.0)));
            world.run_for(secs(30.0));
            for _ in 0..10 {
                world.start(nodes);
                times.push(world.time_until(secs(60.0), |world| world.wrong_pairs() == 0).unwrap_or(secs(60.0)));
                world.crash(nodes);
                world.run_for(secs(20.0));
            }
        }
        println!("join {nodes} loss {loss_percent} % multicast {multicast}: {}; all at once: {}", spread(times), spread(all));
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
            println!("{nodes} nodes, 1000 node-hours, loss {loss_percent} %, starved {starved}: {} false alarms", world.false_alarms);
        }
    }
}

fn idle(nodes: usize) {
    let started = std::time::Instant::now();
    let mut world = World::settled(1, nodes, Wire::default());
    println!("{nodes}: wrong pairs after 40 s: {}, {} kB per node, {:?}", world.wrong_pairs(), world.bytes() / 1000 / nodes as u64, started.elapsed());
    for (kind, (count, bytes)) in world.by_kind.iter().enumerate().filter(|(_, sent)| sent.0 > 0) {
        println!("   kind {kind}: {count} {} kB", bytes / 1000);
    }
    world.run_for(secs(60.0));
    let (bytes, kinds) = (world.bytes(), world.by_kind);
    world.run_for(secs(600.0));
    let kbit = (world.bytes() - bytes) as f64 * 8.0 / 600.0 / 1000.0;
    println!("{nodes} idle: {kbit:.1} kbit/s in all, {:.2} per node; alarms {} ({:?})", kbit / nodes as f64, world.false_alarms, started.elapsed());
    for (kind, (after, before)) in world.by_kind.iter().zip(kinds).enumerate() {
        if after.0 > before.0 {
            println!("   kind {kind}: {:.2}/s {:.2} kbit/s", (after.0 - before.0) as f64 / 600.0, (after.1 - before.1) as f64 * 8.0 / 600e3);
        }
    }
    for i in [0, 1] { println!("{:?} health {} hist {:?}", world.member(i).refusals().iter().filter(|r| r.1 > 0).collect::<Vec<_>>(), world.member(i).health(), world.member(i).table().len()); }
}
