//! Show 3 on real wires: 5 % of all frames lost, and one agent that gets no CPU for up to 2.4 s at a time, two minutes long: nobody is
//! taken for dead. (2.5 s is what the membership promises to bear; docs/membership.md, "a doubt lasts".)

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cid_protocol::api::NodeState;
use cidlab::rig::{Asker, Rig};
use rustix::process::Signal;

use super::{ROOM, all_up, head_says, last_event, nobody_went_home, state_changes, state_of};

const LIMIT: Duration = Duration::from_secs(120);
const TIME: Duration = Duration::from_secs(120);
/// Of a thousand frames, at each port that they leave by.
const LOST: u32 = 50;
/// The starved one.
const STARVED: usize = 6;
/// It is stopped for so long, and runs for so long: milliseconds.
const BURSTS: [(u64, u64); 5] = [(2_400, 300), (900, 100), (1_700, 40), (2_400, 600), (300, 20)];

#[test]
fn a_starved_agent_and_a_lossy_wire_raise_no_alarm() -> Result<()> {
    let rig = Rig::start("alarms", ROOM)?;
    rig.power_on(20)?;
    rig.wait_up(LIMIT)?;
    head_says(&rig, "all are up", LIMIT, |nodes| all_up(nodes, ROOM))?;
    let asker = Asker::new(&rig)?;
    let others: Vec<usize> = (0..ROOM).filter(|number| *number != STARVED).collect();
    let starved = &rig.agents()[STARVED];
    let before = last_event(&rig)?;
    rig.wire().lose(LOST)?;
    let (began, mut answers, mut doubts) = (Instant::now(), 0, 0);
    while began.elapsed() < TIME {
        for (stopped, runs) in BURSTS {
            starved.signal(Signal::STOP)?;
            std::thread::sleep(Duration::from_millis(stopped));
            starved.signal(Signal::CONT)?;
            std::thread::sleep(Duration::from_millis(runs));
        }
        for view in asker.ask(&others)?.into_iter().flatten() {
            answers += 1;
            for (name, state) in &view.states {
                ensure!(state != "lost", "a node takes {name} for lost");
                doubts += usize::from(state == "suspect");
            }
        }
    }
    let events = rig.head.control().events()?;
    for (number, agent) in rig.agents().iter().enumerate() {
        let changes = state_changes(&events, before, agent);
        ensure!(
            !changes.iter().any(|change| change.contains(" is lost")),
            "{}: {changes:?}",
            agent.mac()
        );
        ensure!(
            number == STARVED || changes.is_empty(),
            "{}: {changes:?}",
            agent.mac()
        );
        if number == STARVED {
            println!(
                "the starved one: {} changes of its state: {changes:?}",
                changes.len()
            );
        }
    }
    println!("{answers} answers of nodes, in which {doubts} times somebody was in doubt");
    ensure!(answers > 60, "{answers} answers");
    nobody_went_home(&rig)?;
    rig.wire().heal()?;
    head_says(&rig, "all are up", LIMIT, |nodes| all_up(nodes, ROOM))?;

    // Control: who is stopped for longer than that is found out.
    starved.signal(Signal::STOP)?;
    let lost = |nodes: &[_]| state_of(nodes, starved) == Some(NodeState::Lost);
    let took = head_says(&rig, "the stopped one is lost", LIMIT, lost)?;
    println!("control: stopped for good, it is lost after {took:.1?}");
    starved.signal(Signal::CONT).context("it is there")?;
    head_says(&rig, "all are up", LIMIT, |nodes| all_up(nodes, ROOM))?;
    rig.succeeded();
    Ok(())
}
