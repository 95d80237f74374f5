//! Shows 2, 3 and 8 at 1,000: nodes that are the agent's own library, many in one process (`cidlab::rig::crowd` says what they are
//! not), against a real head. `CID_CROWD_NODES` for another number.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cid_protocol::api::NodeState;
use cidlab::rig::{Asker, Crowd, Rig, View};

use super::restart::{self, History, history};
use super::times::all_say;
use super::{all_heard_again, all_up, head_dies, head_says, last_event};

/// kbit/s: a thirteenth of what thirteen may say in all, and a quarter more, since it grows up to fifty nodes (docs/membership.md).
const A_NODE: f64 = 25.0 / 13.0 * 1.25;
/// Of a thousand.
const CRASH: Duration = Duration::from_secs(10);

fn count() -> usize {
    let set = std::env::var("CID_CROWD_NODES").ok();
    set.and_then(|text| text.parse().ok()).unwrap_or(1000)
}

fn limit(count: usize) -> Duration {
    Duration::from_secs(120 + count as u64)
}

/// A head and so many members, all of them known to it as up.
pub(super) fn gather(name: &str, count: usize) -> Result<(Rig, Crowd)> {
    let (rig, mut crowd) = Rig::with_crowd(name, count)?;
    let started = Instant::now();
    crowd.power_on(0, count)?;
    println!("{count} nodes are switched on after {:.1?}", started.elapsed());
    crowd.wait_up(limit(count))?;
    head_says(&rig, "all are up", limit(count), |nodes| all_up(nodes, count))?;
    println!("{count} nodes are up after {:.1?}", started.elapsed());
    Ok((rig, crowd))
}

/// The history has not grown for some seconds, ten of a thousand, so nobody has anything new to tell.
fn settle(rig: &Rig, count: usize) -> Result<History> {
    let started = Instant::now();
    let mut last = history(rig)?;
    loop {
        std::thread::sleep(Duration::from_secs(2 + count as u64 / 125));
        let now = history(rig)?;
        if now == last {
            return Ok(now);
        }
        ensure!(
            started.elapsed() < limit(count),
            "the history grows for ever: {now:?}"
        );
        last = now;
    }
}

fn nobody_went_home(crowd: &mut Crowd) -> Result<()> {
    for (number, place) in crowd.places()?.iter().enumerate() {
        ensure!(place.up && place.ended == 0, "{number}: {place:?}");
    }
    Ok(())
}

/// Members, asked themselves, hold that history still, and no shorter.
fn they_hold(rig: &Rig, crowd: &Crowd, before: History) -> Result<()> {
    let macs = crowd.macs();
    let some: Vec<usize> = (0..macs.len()).step_by(macs.len().div_ceil(50)).collect();
    let asker = Asker::among(rig.room(), rig.head.control(), &macs)?;
    restart::hold(&asker, &some, before)
}

/// Kills the head, starts it again after each of these times, and holds it to [`restart::BOUND`].
pub(super) fn survive(rig: &mut Rig, crowd: &mut Crowd, downs: &[Duration]) -> Result<()> {
    let count = crowd.macs().len();
    for down in downs {
        let before = settle(rig, count)?;
        let (told, event) = (rig.head.control().events()?, last_event(rig)?);
        let since = head_dies(rig, *down)?;
        let took = all_heard_again(rig, count, since, limit(count))?;
        println!(
            "{count} nodes, head back after {} s: all heard {took:.1?} after it answers",
            down.as_secs()
        );
        // Of this head alone: what it did not take, and why.
        let mut metrics = rig.head.control().metrics()?;
        metrics.retain(|name, count| name.contains("drops_total") && *count > 0);
        println!("not taken: {metrics:?}");
        let events = rig.head.control().events()?;
        restart::is_prefix(&told, &events)?;
        they_hold(rig, crowd, before)?;
        nobody_went_home(crowd)?;
        // What is still to come of it, comes now.
        let after = settle(rig, count)?;
        println!("history {before:?} before, {after:?} after (epoch, changes)");
        ensure!(after == before, "the history changed: {before:?}, {after:?}");
        let lost = rig.head.control().events()?;
        let lost: Vec<_> = lost
            .iter()
            .filter(|one| one.seq > event && one.kind == "state")
            .map(|one| &one.text)
            .collect();
        ensure!(lost.is_empty(), "{} changes: {:?}", lost.len(), lost.first());
        nobody_went_home(crowd)?;
        // Last, so that a slow machine still shows the rest.
        ensure!(took < restart::BOUND, "{took:.1?}");
    }
    Ok(())
}

/// Show 8.
#[test]
fn a_killed_head_has_a_thousand_back_within_ten_seconds() -> Result<()> {
    let (mut rig, mut crowd) = gather("crowd-restart", count())?;
    survive(&mut rig, &mut crowd, &[Duration::ZERO, Duration::from_secs(60)])?;
    drop(crowd);
    rig.succeeded();
    Ok(())
}

/// Bytes of the head's datagrams, with UDP, IP and Ethernet headers.
fn head_says_so_much(rig: &Rig) -> Result<u64> {
    let metrics = rig.head.control().metrics()?;
    let of = |name: &str| {
        let found = metrics
            .iter()
            .find(|(key, _)| key.contains(&format!("\"{name}\"")));
        found
            .map(|(_, value)| *value)
            .with_context(|| format!("no {name}"))
    };
    Ok(of("bytes-out")? + 42 * of("datagrams-out")?)
}

/// Show 2.
#[test]
fn what_a_node_costs_at_1000() -> Result<()> {
    let count = count();
    let (rig, mut crowd) = gather("crowd-traffic", count)?;
    settle(&rig, count)?;
    // Rosters are compared and loads go round for longer than the history grows: minute by minute, until they do not.
    let minute = Duration::from_secs(60);
    let measure = |what: &str, time: Duration| -> Result<f64> {
        let (before, head_before) = (crowd.traffic(&rig)?, head_says_so_much(&rig)?);
        std::thread::sleep(time);
        let traffic = crowd.traffic(&rig)?.since(&before);
        let seconds = time.as_secs_f64();
        let each = traffic.kbit_per_second(seconds) / count as f64;
        let head = (head_says_so_much(&rig)? - head_before) as f64 * 8.0 / 1000.0 / seconds / count as f64;
        println!(
            "{count:5} nodes, {what}, {seconds:4.0} s: {}; {each:.2} kbit/s a node, {head:.2} of it in the head's datagrams",
            traffic.line(seconds)
        );
        Ok(each)
    };
    for number in 1..=(super::traffic::SETTLE.as_secs() / 60).max(3) {
        measure(&format!("minute {number}"), minute)?;
    }
    let each = measure("settled", super::traffic::seconds(180))?;
    ensure!(each < A_NODE, "{each:.2} kbit/s a node");
    nobody_went_home(&mut crowd)?;
    drop(crowd);
    rig.succeeded();
    Ok(())
}

/// Show 3: a crash and a new node, three times.
#[test]
fn a_thousand_know_of_a_crash_and_of_a_new_node() -> Result<()> {
    let count = count();
    let (rig, mut crowd) = gather("crowd-times", count)?;
    settle(&rig, count)?;
    let macs = crowd.macs();
    let asker = Asker::among(rig.room(), rig.head.control(), &macs)?;
    // So many are asked themselves that asking takes no longer than what is measured.
    let step = count.div_ceil(100);
    let patience = Duration::from_secs(120);
    let (mut doubts, mut crashes, mut returns) = (Vec::new(), Vec::new(), Vec::new());
    for time in 0..3 {
        let number = (time * 331 + 3) % count;
        let name = macs[number].clone();
        let others: Vec<usize> = (0..count)
            .step_by(step)
            .filter(|other| *other != number)
            .collect();
        all_say(&asker, &others, "all are up", patience, |view: &View| {
            view.up() == count
        })?;
        crowd.crash(number)?;
        let crashed = Instant::now();
        let doubted = |view: &View| view.states.get(&name).is_none_or(|state| state != "up");
        doubts.push(all_say(&asker, &others, "it is in doubt", patience, doubted)?);
        let lost = |view: &View| view.states.get(&name).is_none_or(|state| state == "lost");
        all_say(&asker, &others, "it is lost", patience, lost)?;
        crashes.push(crashed.elapsed());
        head_says(&rig, "it is lost", patience, |nodes| {
            nodes
                .iter()
                .any(|node| node.mac == name && node.state == NodeState::Lost)
        })?;
        let row = rig.head.control().node(&name)?.context("the head knows it")?;
        rig.head.control().ask(&["wake", &row.name])?;
        crowd.power_on(number, 1)?;
        let began = Instant::now();
        while !crowd.places()?[number].up {
            ensure!(began.elapsed() < patience, "{:?}", crowd.places()?[number]);
            std::thread::sleep(Duration::from_millis(5));
        }
        let up = |view: &View| view.states.get(&name).is_some_and(|state| state == "up");
        returns.push(all_say(&asker, &others, "it is up", patience, up)?);
    }
    println!(
        "{count} nodes: a crash makes all doubt after {doubts:.1?} and is known to all after {crashes:.1?}, a new node {returns:.2?} after its own `up`"
    );
    ensure!(crashes.iter().all(|took| *took < CRASH), "{crashes:.1?}");
    drop(crowd);
    rig.succeeded();
    Ok(())
}
