//! Show 5 on real wires: a bridge cut into ten and three and healed, a wire that flaps for two minutes.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use cid_protocol::api::NodeState;
use cidlab::rig::Rig;

use super::{ROOM, all_up, head_says, last_event, nobody_went_home, state_changes, state_of};

const LIMIT: Duration = Duration::from_secs(90);

fn room(name: &str) -> Result<Rig> {
    let rig = Rig::start(name, ROOM)?;
    rig.power_on(20)?;
    rig.wait_up(LIMIT)?;
    head_says(&rig, "all are up", LIMIT, |nodes| all_up(nodes, ROOM))?;
    Ok(rig)
}

#[test]
fn ten_and_three_apart_and_together_again() -> Result<()> {
    let rig = room("partition")?;
    let apart: Vec<String> = rig.agents()[10..].iter().map(|agent| agent.port()).collect();
    let before = last_event(&rig)?;
    rig.wire().partition(&apart)?;
    let gone = |nodes: &[_]| {
        let lost = |agent| matches!(state_of(nodes, agent), Some(NodeState::Lost));
        rig.agents()[10..].iter().all(lost) && all_up(nodes, 10)
    };
    let took = head_says(&rig, "three are lost and ten are up", LIMIT, gone)?;
    println!("partition: three lost after {took:.1?}");
    // Nothing happens on either side for a while.
    std::thread::sleep(Duration::from_secs(30));
    head_says(
        &rig,
        "three are lost and ten are up",
        Duration::from_secs(1),
        gone,
    )?;
    nobody_went_home(&rig)?;
    rig.wire().heal()?;
    let took = head_says(&rig, "all are up", LIMIT, |nodes| all_up(nodes, ROOM))?;
    println!("partition: all up {took:.1?} after it healed");
    let events = rig.head.control().events()?;
    for (number, agent) in rig.agents().iter().enumerate() {
        let changes = state_changes(&events, before, agent);
        println!("{}: {changes:?}", agent.mac());
        if number < 10 {
            ensure!(
                changes.is_empty(),
                "{} stayed with the head: {changes:?}",
                agent.mac()
            );
        }
    }
    rig.succeeded();
    Ok(())
}

#[test]
fn a_wire_that_flaps_for_two_minutes_makes_two_changes() -> Result<()> {
    let rig = room("flap")?;
    let agent = &rig.agents()[4];
    let before = last_event(&rig)?;
    let end = Instant::now() + Duration::from_secs(120);
    while Instant::now() < end {
        agent.plug(false)?;
        std::thread::sleep(Duration::from_secs(2));
        agent.plug(true)?;
        std::thread::sleep(Duration::from_secs(2));
    }
    head_says(&rig, "all are up", LIMIT * 2, |nodes| all_up(nodes, ROOM))?;
    let events = rig.head.control().events()?;
    let changes = state_changes(&events, before, agent);
    println!("flapping wire: {changes:?}");
    ensure!(changes.len() <= 2, "{changes:?}");
    for other in rig.agents().iter().filter(|other| other.mac() != agent.mac()) {
        let changes = state_changes(&events, before, other);
        ensure!(changes.is_empty(), "{}: {changes:?}", other.mac());
    }
    rig.succeeded();
    Ok(())
}
