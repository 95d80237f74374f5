//! Members: real agents and a real head in network namespaces. `ci/test` runs `covering`, `judging` and `secrets`; the rest are slices of `ci/night`, named after the
//! modules. Figures are printed: `--nocapture`.

mod alarms;
mod books;
mod covering;
mod crowd;
mod faults;
mod hostile;
mod judging;
mod restart;
mod secrets;
mod times;
mod traffic;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cid_protocol::api::{Event, NodeRow, NodeState};
use cidlab::rig::{Agent, Phase, Rig};

/// The room of the papers: thirteen.
const ROOM: usize = 13;

/// What the head says of all nodes, once `wanted` holds for it; and how long that took.
fn head_says(
    rig: &Rig,
    what: &str,
    limit: Duration,
    wanted: impl Fn(&[NodeRow]) -> bool,
) -> Result<Duration> {
    let started = std::time::Instant::now();
    loop {
        let nodes = rig.head.control().nodes();
        if let Ok(nodes) = &nodes
            && wanted(nodes)
        {
            return Ok(started.elapsed());
        }
        ensure!(
            started.elapsed() < limit,
            "the head did not say that {what} within {limit:?}: {}",
            nodes.map_or_else(|error| format!("{error:#}"), |nodes| table(&nodes))
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A few words of each node.
fn table(nodes: &[NodeRow]) -> String {
    let line = |node: &NodeRow| format!("{} {:?} ({})", node.name, node.state, node.reason);
    nodes.iter().map(line).collect::<Vec<_>>().join("; ")
}

/// The head dies (`kill -9`), and another is started after this time, at the beginning of a second: whole seconds are what it tells of when
/// it heard whom. Returns that second.
fn head_dies(rig: &mut Rig, down: Duration) -> Result<u64> {
    let unix = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    rig.head.kill()?;
    std::thread::sleep(down);
    let since = unix()?.as_secs() + 1;
    std::thread::sleep(Duration::from_secs(since).saturating_sub(unix()?));
    rig.head.up()?;
    Ok(since)
}

/// Waits until the head that runs now, which remembers who was up, has heard every one of them itself; returns how long that took.
fn all_heard_again(rig: &Rig, count: usize, since: u64, limit: Duration) -> Result<Duration> {
    let started = std::time::Instant::now();
    // When so many of a hundred were heard.
    let marks = std::cell::RefCell::new(Vec::new());
    let took = head_says(rig, "it has heard all", limit, |nodes| {
        // A datagram comes sooner than the connection.
        let connected = |node: &&NodeRow| node.connected && node.last_seen_unix >= since;
        let heard = nodes.iter().filter(connected).count();
        let mut marks = marks.borrow_mut();
        let next = |marks: &Vec<_>| [50, 90, 99].get(marks.len()).copied();
        while let Some(percent) = next(&marks)
            && heard * 100 >= count * percent
        {
            marks.push((percent, started.elapsed()));
        }
        all_up(nodes, count) && heard >= count
    })?;
    println!("heard, of a hundred: {:.1?}, all {took:.1?}", marks.into_inner());
    Ok(took)
}

/// Every PC is up, by its own word.
fn nobody_went_home(rig: &Rig) -> Result<()> {
    for agent in rig.agents() {
        let phase = agent.phase();
        ensure!(matches!(phase, Phase::Up { .. }), "{}: {phase:?}", agent.mac());
    }
    Ok(())
}

fn state_of(nodes: &[NodeRow], agent: &Agent) -> Option<NodeState> {
    let mac = agent.mac();
    nodes.iter().find(|node| node.mac == mac).map(|node| node.state)
}

fn all_up(nodes: &[NodeRow], count: usize) -> bool {
    nodes.iter().filter(|node| node.state == NodeState::Up).count() == count
}

/// Number of the head's latest event.
fn last_event(rig: &Rig) -> Result<u64> {
    Ok(rig.head.control().events()?.last().map_or(0, |event| event.seq))
}

/// What the history says of this one behind event `after`.
fn state_changes(events: &[Event], after: u64, agent: &Agent) -> Vec<String> {
    let mac = agent.mac();
    let of_it = |event: &&Event| event.seq > after && event.kind == "state" && event.mac == mac;
    events
        .iter()
        .filter(of_it)
        .map(|event| event.text.clone())
        .collect()
}

/// A line of `/proc/PROCESS/status`, in KiB.
fn memory_kib(process: u32, line: &str) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let found = text.lines().find_map(|words| words.strip_prefix(line));
    let number = found.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.with_context(|| format!("no {line} of process {process}"))
}
