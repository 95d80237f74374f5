//! Shows 1 and 3 with real agents, by asking every node itself: who is known to whom, and how long a new node and a crash take to be known to all.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cid_protocol::api::NodeState;
use cidlab::rig::{self, Asker, Multicast, Rig, View};
use rustix::process::Signal;

use super::{ROOM, all_up, head_says, state_of};

const LIMIT: Duration = Duration::from_secs(120);
/// DESIGN section 8: a crash is known to all within 10 s in a quiet room.
const QUIET: Duration = Duration::from_secs(10);
/// And within 3 s when the dead node ran jobs.
const BUSY: Duration = Duration::from_secs(3);
/// And a new node within one.
const NEW: Duration = Duration::from_secs(1);

/// What the nodes of a room do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    Quiet,
    Busy,
}

fn room(name: &str, count: usize, multicast: Multicast, room: Room) -> Result<Rig> {
    let rig = match room {
        Room::Quiet => Rig::start(name, count)?,
        Room::Busy => Rig::start_with(name, count, rig::busy)?,
    };
    rig.wire().multicast(multicast)?;
    rig.power_on(10)?;
    let limit = LIMIT + Duration::from_secs(count as u64);
    rig.wait_up(limit)?;
    head_says(&rig, "all are up", limit, |nodes| all_up(nodes, count))?;
    Ok(rig)
}

/// Asks those agents again and again until each of them says it; who said it is not asked again. Returns how long it took.
pub(crate) fn all_say(
    asker: &Asker,
    agents: &[usize],
    what: &str,
    limit: Duration,
    wanted: impl Fn(&View) -> bool,
) -> Result<Duration> {
    let started = Instant::now();
    let mut left = agents.to_vec();
    loop {
        let answers = asker.ask(&left)?;
        let says = |answer: &Result<View>| answer.as_ref().is_ok_and(&wanted);
        let open: Vec<(usize, &Result<View>)> = left
            .iter()
            .copied()
            .zip(&answers)
            .filter(|(_, answer)| !says(answer))
            .collect();
        let Some((agent, answer)) = open.first() else {
            return Ok(started.elapsed());
        };
        ensure!(
            started.elapsed() < limit,
            "{} agents do not say that {what} after {limit:?}; number {agent}: {answer:?}",
            open.len()
        );
        left = open.iter().map(|(agent, _)| *agent).collect();
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn everybody(count: usize) -> Vec<usize> {
    (0..count).collect()
}

/// Show 1: thirteen find one another; then, without the head, after every agent was started anew.
fn all_know_all(name: &str, multicast: Multicast) -> Result<()> {
    let mut rig = room(name, ROOM, multicast, Room::Quiet)?;
    let asker = Asker::new(&rig)?;
    let took = all_say(&asker, &everybody(ROOM), "13 are up", LIMIT, |view| {
        view.up() == ROOM
    })?;
    println!("{name}: all know all {took:.1?} after the head does");
    rig.head.kill()?;
    for agent in rig.agents() {
        agent.signal(Signal::KILL)?;
    }
    let restarted = Instant::now();
    rig.wait("agent that was started again", LIMIT, |agent| agent.ended() == 1)?;
    all_say(
        &asker,
        &everybody(ROOM),
        "13 are up without a head",
        LIMIT,
        |view| view.up() == ROOM,
    )?;
    println!(
        "{name}: without the head, all know all {:.1?} after every agent was killed",
        restarted.elapsed()
    );
    rig.succeeded();
    Ok(())
}

#[test]
fn thirteen_know_one_another() -> Result<()> {
    all_know_all("know", Multicast::Flooded)
}

#[test]
fn thirteen_know_one_another_without_multicast() -> Result<()> {
    all_know_all("know-unicast", Multicast::Dropped)
}

/// A crash and a new node, so many times; the worst of each.
fn crash_and_return(count: usize, times: usize, does: Room) -> Result<()> {
    let rig = room(&format!("times{count}"), count, Multicast::Flooded, does)?;
    let asker = Asker::new(&rig)?;
    let everybody = everybody(count);
    all_say(&asker, &everybody, "all are up", LIMIT, |view| view.up() == count)?;
    let (mut doubts, mut crashes, mut returns) = (Vec::new(), Vec::new(), Vec::new());
    for time in 0..times {
        let number = (time * 7 + 3) % count;
        let agent = &rig.agents()[number];
        let name = agent.mac();
        let others: Vec<usize> = everybody
            .iter()
            .copied()
            .filter(|other| *other != number)
            .collect();
        agent.crash()?;
        let crashed = Instant::now();
        let doubted = |view: &View| view.states.get(&name).is_none_or(|state| state != "up");
        doubts.push(all_say(&asker, &others, "it is in doubt", LIMIT, doubted)?);
        let lost = |view: &View| view.states.get(&name).is_none_or(|state| state == "lost");
        all_say(&asker, &others, "it is lost", LIMIT, lost)?;
        crashes.push(crashed.elapsed());
        // Before the head has given it up, an administrator's wish would be about the boot that is over.
        head_says(&rig, "it is lost", LIMIT, |nodes| {
            state_of(nodes, agent) == Some(NodeState::Lost)
        })?;
        rig.revive(agent)?;
        let up = |view: &View| view.states.get(&name).is_some_and(|state| state == "up");
        rig.wait_up(LIMIT)?;
        returns.push(all_say(&asker, &others, "it is up", LIMIT, up)?);
    }
    let worst = |times: &[Duration]| times.iter().max().copied().context("no crash at all");
    let (doubt, crash, back) = (worst(&doubts)?, worst(&crashes)?, worst(&returns)?);
    println!(
        "{count} agents, {does:?}, {times} times: a crash makes all doubt within {doubt:.1?} and is known to all within {crash:.1?}, \
         a new node {back:.1?} after its own `up`"
    );
    println!("{count} agents: doubts {doubts:.1?}, crashes {crashes:.1?}, returns {returns:.1?}");
    let budget = match does {
        Room::Quiet => QUIET,
        Room::Busy => BUSY,
    };
    ensure!(crash < budget, "{crash:.1?}, the budget is {budget:?}");
    ensure!(back < NEW || count > ROOM, "{back:.1?}");
    rig.succeeded();
    Ok(())
}

#[test]
fn crash_and_return_at_13() -> Result<()> {
    crash_and_return(13, 5, Room::Quiet)
}

#[test]
fn crash_and_return_at_50() -> Result<()> {
    crash_and_return(50, 5, Room::Quiet)
}

#[test]
fn crash_and_return_at_200() -> Result<()> {
    crash_and_return(200, 3, Room::Quiet)
}

#[test]
fn crash_and_return_of_busy_ones_at_13() -> Result<()> {
    crash_and_return(13, 5, Room::Busy)
}

#[test]
fn crash_and_return_of_busy_ones_at_50() -> Result<()> {
    crash_and_return(50, 5, Room::Busy)
}
