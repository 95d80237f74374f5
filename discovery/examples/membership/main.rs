//! Prints what the membership does in simulated rooms, beside memberlist's defaults by its formulas, and how long each
//! part took. Virtual time:
//! `cargo run --release -p cid-discovery --example membership -- [all|traffic|detect|join|restart|alarms|memory] [nodes...]`

mod large;
mod rooms;
#[path = "../../tests/sim/mod.rs"]
mod sim;
mod traffic;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cid_discovery::wire::Mode;
use sim::{Wire, World, secs};

/// In rooms above this size nodes are told of one another to begin with, and few of them are in the history.
const LARGE: usize = 2_000;
/// Loss in per cent, and whether multicast works.
const WIRES: [(u64, bool); 6] = [
    (0, true),
    (5, true),
    (10, true),
    (0, false),
    (5, false),
    (10, false),
];

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
    // Memory first: the others leave some behind.
    let parts: [(&str, Part); 6] = [
        ("memory", traffic::memory),
        ("traffic", traffic::table),
        ("detect", rooms::detect),
        ("join", rooms::join),
        ("restart", rooms::restart),
        ("alarms", rooms::alarms),
    ];
    for nodes in sizes {
        println!(
            "{nodes} nodes, memberlist's defaults by formula: {}",
            memberlist(nodes)
        );
        for (name, part) in parts {
            // A room of 10,000 is lived through once: in `large`.
            if nodes <= LARGE && (what == name || what == "all") {
                timed(name, nodes, part);
            }
        }
        if nodes > LARGE {
            timed("large", nodes, |nodes| large::room(what, nodes));
        }
    }
    let missed = MISSED.load(Ordering::Relaxed);
    if missed > 0 {
        println!("{missed} budgets missed");
        std::process::exit(1);
    }
}

/// Budgets that were not met.
static MISSED: AtomicU64 = AtomicU64::new(0);
/// A crash is known to all so soon, among quiet nodes and among busy ones.
const CRASH: [f64; 2] = [10.0, 3.0];
/// A new node, in rooms of up to 200 without loss.
const NEW: (usize, f64) = (200, 1.0);
/// An idle node sends so many bit/s: 25 kbit/s for 13.
const IDLE: f64 = 25_000.0 / 13.0;

/// Says so when something is more than its budget.
fn judge(what: &str, value: f64, most: f64) {
    if value > most {
        println!("MISSED: {what}: {value:.2}, and at most {most:.2} is wanted");
        MISSED.fetch_add(1, Ordering::Relaxed);
    }
}

fn worst(times: &[Duration]) -> f64 {
    times.iter().max().copied().unwrap_or_default().as_secs_f64()
}

fn judge_crash(what: &str, mode: Mode, times: &[Duration], false_alarms: u64) {
    let [quiet, busy] = CRASH;
    judge(what, worst(times), if mode == Mode::Quiet { quiet } else { busy });
    judge(&format!("{what}, false alarms"), false_alarms as f64, 0.0);
}

fn judge_new(what: &str, (nodes, loss_percent): (usize, u64), times: &[Duration]) {
    if nodes <= NEW.0 && loss_percent == 0 {
        judge(what, worst(times), NEW.1);
    }
}

fn timed(name: &str, nodes: usize, part: impl FnOnce(usize)) {
    let (began, cpu) = (Instant::now(), cpu_seconds());
    part(nodes);
    println!(
        "  ({name}, {nodes} nodes: {:.0} s, of processors {:.0} s; {:.0} MB)",
        began.elapsed().as_secs_f64(),
        cpu_seconds() - cpu,
        resident_mb()
    );
}

/// What this process had of the processors: what it takes on an idle machine, however busy this one is.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // utime and stime, in hundredths; the name before them may hold blanks.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks = fields
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<f64>().ok());
    ticks.sum::<f64>() / 100.0
}

fn resident_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib: f64 = line
        .and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or(0.0);
    kib / 1_024.0
}

/// How many rooms are lived through.
fn seeds(nodes: usize) -> u64 {
    match nodes {
        0..=200 => 10,
        201..=LARGE => 3,
        _ => 1,
    }
}

/// How many crashes, and how many new nodes, in each room.
fn times(nodes: usize) -> usize {
    match nodes {
        0..=200 => 10,
        201..=LARGE => 4,
        _ => 2,
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
    let half = times.get(times.len() / 2).copied().unwrap_or_default();
    let worst = times.last().copied().unwrap_or_default();
    format!(
        "p50 {:.2} s, worst {:.2} s of {}",
        half.as_secs_f64(),
        worst.as_secs_f64(),
        times.len()
    )
}

/// memberlist's LAN defaults. A crash: the expected time to the first failed probe (1/(1-1/e) periods of 1 s), the
/// confirmed suspicion (4 s times the decimal logarithm), and the spreading, by the formula of Serf's simulator
/// (3 members every 0.2 s, half of the contacts counted) until 99.99 % know. A new node: the spreading alone.
fn memberlist(nodes: usize) -> String {
    let count = nodes as f64;
    let spreading = |loss: f64| {
        let contacts = 3.0 * (1.0 - loss) * 0.5;
        0.2 * ((count + 1.0) / (1.0 / 0.9999 - 1.0)).ln() / contacts
    };
    let found = 1.58 + 4.0 * count.log10().max(1.0);
    let texts = [0.0, 0.05, 0.1].map(|loss| {
        let new = spreading(loss);
        format!(
            "loss {:.0} %: crash {:.1} s, new {new:.1} s",
            loss * 100.0,
            found + new
        )
    });
    format!("{}; at most 336 kbit/s a node", texts.join("; "))
}

fn wire((loss_percent, multicast): (u64, bool)) -> Wire {
    Wire {
        loss_percent,
        multicast,
        ..Wire::default()
    }
}

fn set_mode(world: &mut World, mode: Mode) {
    for node in 1..world.hosts.len() {
        world.with(node, |member, now| member.handle_mode(now, mode));
    }
}

/// A settled room.
fn formed(nodes: usize, multicast: bool) -> World {
    if nodes <= LARGE {
        return World::settled(1, nodes, wire((0, multicast)));
    }
    let mut world = World::introduced(1, nodes, 200);
    let took = world.time_until(secs(60.0), World::agreed);
    println!("{nodes} nodes, introduced: all agree after {took:?} more");
    world.wire.multicast = multicast;
    world
}
