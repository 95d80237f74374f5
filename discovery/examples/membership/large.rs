//! A room of 10,000: filled once, since that is much of the work; then everything is measured in it.

use std::time::Instant;

use cid_discovery::wire::Mode;

use crate::rooms::{crashes, joins, named, restarted};
use crate::sim::{World, secs};
use crate::traffic::count;
use crate::{WIRES, cpu_seconds, formed, judge, judge_crash, judge_new, resident_mb, set_mode, spread, wire};

/// Lives through one: all of it, or the named part.
pub(crate) fn room(what: &str, nodes: usize) {
    let (began, cpu) = (Instant::now(), cpu_seconds());
    let mut world = formed(nodes, true);
    let report = |what: String| {
        println!(
            "{nodes} nodes, {what} ({:.0} MB, {:.0} s, of processors {:.0} s)",
            resident_mb(),
            began.elapsed().as_secs_f64(),
            cpu_seconds() - cpu
        );
    };
    report("formed".to_owned());
    let wanted = |part: &str| matches!(what, "all" | "large") || what == part;
    if wanted("alarms") {
        alarms(&mut world, &report);
    }
    if wanted("traffic") {
        world.wire = wire((0, true));
        for mode in [Mode::Busy, Mode::Quiet] {
            set_mode(&mut world, mode);
            world.run_for(secs(20.0));
            count(&mut world, 60, &format!("{mode:?}, without loads"));
        }
    }
    for way in WIRES {
        world.wire = wire(way);
        if wanted("times") || what == named(way) {
            times(&mut world, &report);
        }
    }
    if wanted("restart") {
        world.wire = wire((0, true));
        set_mode(&mut world, Mode::Quiet);
        restarted(&mut world);
        report("restarted".to_owned());
    }
}

/// How long until all know a crash and a new node.
fn times(world: &mut World, report: &impl Fn(String)) {
    let way = (world.wire.loss_percent, world.wire.multicast);
    for mode in [Mode::Quiet, Mode::Busy] {
        let before = world.false_alarms;
        let times = crashes(world, mode, 2);
        let alarms = world.false_alarms - before;
        let what = format!("{}, crash, {mode:?}", named(way));
        judge_crash(&what, mode, &times, alarms);
        report(format!("{what}: {}; false alarms {alarms}", spread(times)));
        let times = joins(world, mode, 2);
        let what = format!("{}, new, {mode:?}", named(way));
        judge_new(&what, (world.hosts.len() - 1, way.0), &times);
        report(format!("{what}: {}", spread(times)));
    }
}

/// A thousand node-hours in six parts.
fn alarms(world: &mut World, report: &impl Fn(String)) {
    for loss_percent in [0, 5, 10] {
        for starved in [false, true] {
            let before = world.false_alarms;
            world.wire.loss_percent = loss_percent;
            world.hosts[1].starved = starved.then(|| secs(2.5));
            world.run_for(secs(600_000.0 / (world.hosts.len() - 1) as f64));
            let alarms = world.false_alarms - before;
            judge("false alarms", alarms as f64, 0.0);
            report(format!(
                "{} node-hours, loss {loss_percent} %, starved {starved}: {alarms} false alarms",
                600_000 / 3_600
            ));
        }
    }
    world.hosts[1].starved = None;
}
