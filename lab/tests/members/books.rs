//! An attack's reckoning: each datagram that came to the head or to an agent is in exactly one counter, and each that was sent came, or
//! the kernel says that it did not. Must not guess.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use cidlab::rig::{Asker, Noise, Rig, View};

/// What the head may have read and not yet counted.
const BATCH: u64 = 64;
/// Families of the head's metrics that say why something was not taken, and what became of the rest.
const FAMILIES: [&str; 4] = [
    "cid_node_connections_total",
    "cid_drops_total",
    "cid_member_drops_total",
    "cid_member_door_total",
];

/// What head and agents had counted before an attack.
pub(super) struct Books {
    head: BTreeMap<String, u64>,
    agents: Vec<View>,
    full: Vec<u64>,
    on_the_way: u64,
    asker: Asker,
}

impl Books {
    pub(super) fn open(rig: &Rig) -> Result<Self> {
        let asker = Asker::new(rig)?;
        Ok(Self {
            agents: views(rig, &asker)?,
            full: agents_full(rig)?,
            on_the_way: on_the_way()?,
            head: rig.head.control().metrics()?,
            asker,
        })
    }

    /// What the head counted since, by name.
    pub(super) fn counted(&self, rig: &Rig) -> Result<BTreeMap<String, u64>> {
        let now = rig.head.control().metrics()?;
        let of_interest = |name: &String| FAMILIES.iter().any(|family| name.starts_with(family));
        let counts = now.into_iter().filter(|(name, _)| of_interest(name));
        let more = counts.map(|(name, count)| {
            let before = self.head.get(&name).copied().unwrap_or(0);
            (name, count.saturating_sub(before))
        });
        Ok(more.filter(|(_, more)| *more > 0).collect())
    }

    /// Everything is explained.
    pub(super) fn close(&self, rig: &Rig, noise: &Noise) -> Result<()> {
        let on_the_way = on_the_way()? - self.on_the_way;
        println!("all: {on_the_way} or fewer found no room on the way between the hosts");
        self.close_head(rig, noise, on_the_way)?;
        self.close_agents(rig, noise, on_the_way)
    }

    /// Each connection that the head took and that brought nobody is in exactly one counter; `garbage` of them were the attack's.
    pub(super) fn close_connections(&self, rig: &Rig, garbage: u64) -> Result<()> {
        let counted = self.counted(rig)?;
        let of = |name: &str| counted.get(name).copied().unwrap_or(0);
        let reasons = counted.iter().filter(|(name, _)| {
            name.starts_with("cid_drops_total{reason=\"tls-")
                || *name == "cid_drops_total{reason=\"node-too-many-connections\"}"
        });
        let refused: u64 = reasons.map(|(_, count)| count).sum();
        let taken = of("cid_node_connections_total");
        println!("head: {taken} connections, {refused} refused with a reason, {garbage} were garbage");
        ensure!(
            refused == garbage && taken >= garbage,
            "the head took {garbage} connections with garbage, and counts {refused}: {counted:?}"
        );
        Ok(())
    }

    fn close_head(&self, rig: &Rig, noise: &Noise, on_the_way: u64) -> Result<()> {
        let counted = self.counted(rig)?;
        for (name, count) in &counted {
            println!("head: {count} x {name}");
        }
        let sum = |prefix: &str| -> u64 {
            let these = counted.iter().filter(|(name, _)| name.starts_with(prefix));
            these.map(|(_, count)| count).sum()
        };
        let door = |what: &str| sum(&format!("cid_member_door_total{{what=\"{what}\""));
        let explained = door("opened")
            + door("beacons")
            + door("beacons-again")
            + sum("cid_member_drops_total{reason=\"seal-")
            + sum("cid_drops_total{reason=\"beacon-")
            + sum("cid_drops_total{reason=\"member-queue-full")
            + sum("cid_drops_total{reason=\"member-no-source");
        let (received, full) = (door("received"), door("socket-full"));
        println!("head: {received} read, {explained} explained, {full} found a full queue");
        ensure!(
            received.abs_diff(explained) <= BATCH,
            "{received} came to the head's door, and {explained} are explained"
        );
        let due = noise.each.first().copied().unwrap_or(0) + noise.group;
        ensure!(
            received + full + on_the_way >= due,
            "{due} of the noise were for the head; {received} came, {full} found its queue full"
        );
        Ok(())
    }

    fn close_agents(&self, rig: &Rig, noise: &Noise, on_the_way: u64) -> Result<()> {
        let mut reasons: BTreeMap<&str, u64> = BTreeMap::new();
        let (mut received, mut full) = (0, 0);
        let views = views(rig, &self.asker)?;
        let before = self.agents.iter().zip(&self.full);
        let now = views.iter().zip(agents_full(rig)?);
        for (number, ((view, full_now), (then, full_then))) in now.zip(before).enumerate() {
            ensure!(
                view.received >= then.received,
                "agent {number} began to count anew"
            );
            let (came, more_full) = (view.received - then.received, full_now - full_then);
            let due = noise.each.get(number + 1).copied().unwrap_or(0) + noise.group;
            ensure!(
                came + more_full + on_the_way >= due,
                "agent {number}: {due} of the noise were for it; it read {came}, {more_full} found its queue full"
            );
            let mut dropped = 0;
            for (reason, count) in &view.drops {
                let more = count - then.drops.get(reason).copied().unwrap_or(0);
                *reasons.entry(reason).or_default() += more;
                dropped += if reason.starts_with("seal-") { more } else { 0 };
            }
            // The rest was opened: what the others said meanwhile.
            ensure!(
                dropped <= came && came - dropped < 10_000,
                "agent {number} read {came} and dropped {dropped}"
            );
            received += came;
            full += more_full;
        }
        println!("agents: {received} read, {full} found a full queue; not taken: {reasons:?}");
        Ok(())
    }
}

fn views(rig: &Rig, asker: &Asker) -> Result<Vec<View>> {
    let everybody: Vec<usize> = (0..rig.agents().len()).collect();
    asker.ask(&everybody)?.into_iter().collect()
}

/// Datagrams that found each agent's queues full: the last column of the kernel's table.
fn agents_full(rig: &Rig) -> Result<Vec<u64>> {
    let full = rig.agents().iter().map(|agent| {
        let process = agent.process().context("the agent runs")?;
        let table = std::fs::read_to_string(format!("/proc/{process}/net/udp"))?;
        let last = |line: &str| line.split_ascii_whitespace().last()?.parse::<u64>().ok();
        Ok(table.lines().skip(1).filter_map(last).sum())
    });
    full.collect()
}

/// Datagrams, at most, that this machine's processors had no room for on the way from one namespace to the next.
fn on_the_way() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/net/softnet_stat")?;
    let dropped = |line: &str| u64::from_str_radix(line.split(' ').nth(1)?, 16).ok();
    // Each may have been a volley.
    Ok(cidlab::rig::VOLLEY as u64 * text.lines().filter_map(dropped).sum::<u64>())
}
