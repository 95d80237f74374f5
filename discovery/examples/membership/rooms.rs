//! Times until all know, a head that restarts, false alarms.

use std::time::Duration;

use cid_discovery::wire::Mode;

use crate::sim::{World, secs};
use crate::{WIRES, each_seed, judge, judge_crash, judge_new, set_mode, spread, times, wire};

const MODES: [Mode; 2] = [Mode::Quiet, Mode::Busy];

pub(crate) fn detect(nodes: usize) {
    for way in WIRES {
        let rooms = each_seed(nodes, |seed| {
            let mut world = World::settled(seed, nodes, wire(way));
            let times = MODES.map(|mode| crashes(&mut world, mode, times(nodes)));
            (times, world.false_alarms)
        });
        let alarms: u64 = rooms.iter().map(|room| room.1).sum();
        for (index, mode) in MODES.into_iter().enumerate() {
            let times: Vec<Duration> = rooms.iter().flat_map(|room| room.0[index].clone()).collect();
            let what = format!("{nodes} nodes, {}, crash, {mode:?}", named(way));
            judge_crash(&what, mode, &times, alarms);
            println!("{what}: {}", spread(times));
        }
        println!("{nodes} nodes, {}, crashes: {alarms} false alarms", named(way));
    }
}

pub(crate) fn named((loss_percent, multicast): (u64, bool)) -> String {
    let multicast = if multicast { "multicast" } else { "no multicast" };
    format!("loss {loss_percent} %, {multicast}")
}

/// Machines are cut off power one after the other; how long until all others know.
pub(crate) fn crashes(world: &mut World, mode: Mode, count: usize) -> Vec<Duration> {
    let nodes = world.hosts.len() - 1;
    set_mode(world, mode);
    let mut times = Vec::new();
    for _ in 0..count {
        let phase = secs(world.below(3_000) as f64 / 1_000.0);
        world.run_for(secs(12.0) + phase);
        let victim = 1 + world.below(nodes);
        let boot = world.hosts[victim].boot;
        world.crash(victim);
        times.push(world.time_until_buried(secs(60.0), boot).unwrap_or(secs(60.0)));
        world.start(victim);
        world.with(victim, |member, now| member.handle_mode(now, mode));
    }
    times
}

pub(crate) fn join(nodes: usize) {
    for way in WIRES {
        let rooms = each_seed(nodes, |seed| {
            let mut world = World::new(seed, nodes);
            world.wire = wire(way);
            for index in 1..nodes {
                world.start(index);
            }
            let all = world.time_until(secs(120.0), World::agreed);
            world.run_for(secs(30.0));
            let times = MODES.map(|mode| joins(&mut world, mode, times(nodes)));
            (all.unwrap_or(secs(120.0)), times)
        });
        for (index, mode) in MODES.into_iter().enumerate() {
            let times: Vec<Duration> = rooms.iter().flat_map(|room| room.1[index].clone()).collect();
            let what = format!("{nodes} nodes, {}, new, {mode:?}", named(way));
            judge_new(&what, (nodes, way.0), &times);
            println!("{what}: {}", spread(times));
        }
        let all = rooms.iter().map(|room| room.0).collect();
        println!("{nodes} nodes, {}, all at once: {}", named(way), spread(all));
    }
}

/// The last machine comes, until all know it and it knows all, and goes.
pub(crate) fn joins(world: &mut World, mode: Mode, count: usize) -> Vec<Duration> {
    let last = world.hosts.len() - 1;
    set_mode(world, mode);
    let mut times = Vec::new();
    for _ in 0..count {
        world.crash(last);
        // Until then all have buried it.
        world.run_for(secs(15.0));
        world.start(last);
        world.with(last, |member, now| member.handle_mode(now, mode));
        times.push(world.time_until(secs(60.0), World::agreed).unwrap_or(secs(60.0)));
    }
    times
}

/// The head is killed and comes back 20 s later.
pub(crate) fn restart(nodes: usize) {
    for multicast in [true, false] {
        let mut world = World::settled(1, nodes, wire((0, multicast)));
        restarted(&mut world);
    }
}

pub(crate) fn restarted(world: &mut World) {
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
        "{} nodes, {}, head restarted: all found after {:.2} s, all act after {:.2} s, {} went home, {} changes",
        world.hosts.len() - 1,
        named((world.wire.loss_percent, world.wire.multicast)),
        found.unwrap_or(secs(60.0)).as_secs_f64(),
        (found.unwrap_or(secs(60.0)) + acting.unwrap_or(secs(60.0))).as_secs_f64(),
        world.hosts.iter().filter(|host| host.went_home).count(),
        world.disk.len() - before,
    );
}

/// A thousand node-hours each.
pub(crate) fn alarms(nodes: usize) {
    for loss_percent in [0, 5, 10] {
        for starved in [false, true] {
            // Both processors live through half of the hours.
            let halves = std::thread::scope(|scope| {
                let half = |seed| {
                    move || {
                        let mut world = World::settled(seed, nodes, wire((loss_percent, true)));
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
            let alarms = halves.iter().sum::<u64>();
            let what = format!("{nodes} nodes, 1000 node-hours, loss {loss_percent} %, starved {starved}");
            judge(&what, alarms as f64, 0.0);
            println!("{what}: {alarms} false alarms");
        }
    }
}
