//! Show 8 with real agents: the head is killed and started again, and has them all, its history as it was.

use std::time::Duration;

use anyhow::{Result, ensure};
use cidlab::rig::{Phase, Rig};

use super::{all_heard_again, all_up, head_says, last_event, state_changes};

/// The bound.
const BOUND: Duration = Duration::from_secs(10);

/// `CID_RIG_AGENTS`, or as many as two processors carry.
fn agents() -> usize {
    let set = std::env::var("CID_RIG_AGENTS")
        .ok()
        .and_then(|text| text.parse().ok());
    set.unwrap_or(200)
}

#[test]
fn a_killed_head_has_all_back_within_ten_seconds() -> Result<()> {
    let count = agents();
    let limit = Duration::from_secs(120 + count as u64);
    let mut rig = Rig::start("restart", count)?;
    rig.power_on(10)?;
    rig.wait_up(limit)?;
    head_says(&rig, "all are up", limit, |nodes| all_up(nodes, count))?;
    for (name, down) in [
        ("at once", Duration::ZERO),
        ("after a minute", Duration::from_secs(60)),
    ] {
        let event = last_event(&rig)?;
        rig.head.kill()?;
        std::thread::sleep(down);
        rig.head.up()?;
        let took = all_heard_again(&rig, count, limit)?;
        println!("{count} agents, head back {name}: all heard {took:.1?} after it answers");
        ensure!(took < BOUND, "{took:.1?}");
        let events = rig.head.control().events()?;
        for agent in rig.agents() {
            ensure!(
                matches!(agent.phase(), Phase::Up { .. }),
                "{}: {:?}",
                agent.mac(),
                agent.phase()
            );
            let lost = state_changes(&events, event, agent);
            ensure!(
                !lost.iter().any(|text| text.contains("is lost")),
                "{}: {lost:?}",
                agent.mac()
            );
        }
    }
    rig.succeeded();
    Ok(())
}
