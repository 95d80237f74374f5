//! Show 4: how long it takes until everybody has the image, beside one client, beside the head alone, beside what nobody can beat.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cidlab::rig::{Phase, Rig};

use super::{IMAGE, Images, all_mounted, log, wants};

/// Of the head's link, in Mbit/s.
const LINK: u32 = 20;
/// The bound, in times of one client.
const BOUND: f64 = 1.5;

/// What is done to a room while it fetches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Nothing,
    /// No node reaches another: all from the head.
    HeadAlone,
    /// The head is killed when the image is about half out, and started again after this time.
    HeadDies(Duration),
}

/// One room.
#[derive(Debug, Clone, Copy)]
struct Mass {
    clients: usize,
    what: What,
    limit: Duration,
}

/// What came of it.
#[derive(Debug)]
struct Outcome {
    /// From the first switch to the last `up`.
    all: Duration,
    /// What the agents say of their own fetches, in seconds: the median and the longest.
    median: f64,
    longest: f64,
    /// Bytes of chunks that left the head.
    given: u64,
}

impl Outcome {
    fn show(&self, what: &str, bytes: u64) {
        println!(
            "{what:34} all up {:6.1} s; fetch: median {:6.1} s, longest {:6.1} s; the head gave the image {:.2} times",
            self.all.as_secs_f64(),
            self.median,
            self.longest,
            self.given as f64 / bytes as f64
        );
    }
}

fn ideal(bytes: u64) -> Duration {
    Duration::from_secs_f64(bytes as f64 * 8.0 / f64::from(LINK * 1_000_000))
}

/// Seconds of an agent's fetch, by its own word.
fn own_word(log: &str) -> Option<f64> {
    let line = log.lines().find(|line| line.contains(" fetched in "))?;
    line.split(" fetched in ").nth(1)?.split(' ').next()?.parse().ok()
}

fn boot(images: &Images, name: &str, mass: Mass) -> Result<Outcome> {
    let mut rig = Rig::rooted(name, mass.clients, &images.folder(), IMAGE)?;
    rig.wire().shape_head(LINK)?;
    if mass.what == What::HeadAlone {
        rig.wire().shut_doors(true)?;
    }
    let began = Instant::now();
    // A room is switched on in about a second.
    rig.power_on(u32::try_from(mass.clients)?.max(10))?;
    if let What::HeadDies(away) = mass.what {
        let half = ideal(images.bytes()?) / 2;
        std::thread::sleep(half.saturating_sub(began.elapsed()));
        let up = rig
            .agents()
            .iter()
            .filter(|agent| matches!(agent.phase(), Phase::Up { .. }));
        ensure!(up.count() == 0, "somebody was up before the head died");
        rig.head.kill()?;
        std::thread::sleep(away);
        rig.head.up()?;
    }
    let died = all_mounted(&rig, mass.limit);
    let all = began.elapsed();
    died?;
    let mut fetches = Vec::new();
    for agent in rig.agents() {
        let log = log(agent)?;
        fetches.push(own_word(&log).with_context(|| format!("no word of a fetch: {log}"))?);
    }
    fetches.sort_by(f64::total_cmp);
    let metrics = rig.head.control().metrics()?;
    let given = metrics
        .iter()
        .find(|(name, _)| name.starts_with("cid_root_bytes_total"));
    let outcome = Outcome {
        all,
        median: fetches[fetches.len() / 2],
        longest: *fetches.last().context("clients")?,
        given: given.map_or(0, |(_, bytes)| *bytes),
    };
    rig.succeeded();
    Ok(outcome)
}

/// One client, all of them, all of them with a head that dies, and, if `alone`, all of them from the head.
fn show(name: &str, clients: usize, bytes: usize, away: Duration, alone: bool) -> Result<()> {
    wants()?;
    let images = Images::build(name, bytes)?;
    let bytes = images.bytes()?;
    let ideal = ideal(bytes);
    println!(
        "{clients} clients, {:.1} MB, head's link {LINK} Mbit/s: ideal {:.1} s",
        bytes as f64 / 1e6,
        ideal.as_secs_f64()
    );
    let boot = |what, clients, times: u32| {
        let limit = Duration::from_secs(60) + ideal * times;
        let name = format!("{name}-{clients}");
        boot(&images, &name, Mass { clients, what, limit })
    };
    let one = boot(What::Nothing, 1, 4)?;
    one.show("one client", bytes);
    let all = boot(What::Nothing, clients, 8)?;
    all.show("all", bytes);
    let times = all.all.as_secs_f64() / one.all.as_secs_f64();
    println!("{clients} clients take {times:.2} times as long as one (limit {BOUND})");
    let died = boot(What::HeadDies(away), clients, 8)?;
    died.show(&format!("all, the head away for {} s", away.as_secs()), bytes);
    if alone {
        let clients_times = u32::try_from(clients)? * 2;
        let alone = boot(What::HeadAlone, clients, clients_times)?;
        alone.show("all, from the head alone", bytes);
    }
    ensure!(times <= BOUND, "{times:.2} times as long as one client");
    Ok(())
}

#[test]
fn covering_six_clients_take_about_as_long_as_one() -> Result<()> {
    show("swarm-few", 6, 5_000_000, Duration::from_secs(1), false)
}

/// A little of the 52 MB is packed.
#[test]
fn thirty_two_clients_take_about_as_long_as_one() -> Result<()> {
    show("swarm", 32, 52_000_000, Duration::from_secs(5), true)
}
