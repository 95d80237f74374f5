//! What `ci/test` sees: the rig keeps its promises to the machine it runs on, and thirteen agents join, crash, and live through their
//! head's death.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cid_protocol::api::NodeState;
use cidlab::rig::{Phase, Rig};
use cidlab::run::run;
use rustix::process::Signal;

use super::{ROOM, all_heard_again, all_up, head_dies, head_says, memory_kib, nobody_went_home, state_of};

/// Four times what it takes on an idle machine.
const LIMIT: Duration = Duration::from_secs(60);

/// A shell in a cell, which prints a word for each thing it can do that it must not be able to do.
const TRIES: &str = r#"
date -s "@$(date +%s.%N)" >/dev/null 2>&1 && echo clock
test -w /proc/sysrq-trigger && echo power
test -w /proc/sys/kernel/hostname && echo settings
mount -t tmpfs none /tmp 2>/dev/null && echo mounts
( : >/usr/cid-was-here ) 2>/dev/null && echo programs
test -e /etc/passwd && echo disk
test -e /sys/class/net/eth0/carrier || echo no card
cat /sys/class/dmi/id/product_uuid
grep -E '^(CapEff|CapBnd)' /proc/self/status
"#;

#[test]
fn an_agent_can_touch_neither_clock_nor_power_nor_disk_of_this_machine() -> Result<()> {
    let rig = Rig::start("cell", 1)?;
    let agent = &rig.agents()[0];
    agent.power_on()?;
    rig.wait_up(LIMIT)?;
    let said = agent.in_cell("/usr/bin/sh", &["-c", TRIES])?;
    // net_bind_service, net_admin, net_raw: bits 10, 12, 13.
    let wanted = format!(
        "{}\nCapEff:\t0000000000003400\nCapBnd:\t0000000000003400\n",
        agent.uuid()
    );
    assert_eq!(said, wanted);
    // Control: outside a cell there is something to be found.
    let outside = run(agent
        .command(
            "sh",
            &[
                "-c",
                "test -w /proc/sysrq-trigger && echo power; test -e /etc/passwd && echo disk; true",
            ],
        )
        .env_clear())?;
    assert!(outside.contains("disk"), "{outside}");
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.process().context("it runs")?))?;
    assert!(status.contains("CapBnd:\t0000000000003400"), "{status}");
    rig.succeeded();
    Ok(())
}

#[test]
fn the_room_is_gone_with_the_rig() -> Result<()> {
    let rig = Rig::start("gone", 2)?;
    rig.power_on(10)?;
    rig.wait_up(LIMIT)?;
    let processes: Vec<u32> = rig.agents().iter().filter_map(|agent| agent.process()).collect();
    ensure!(processes.len() == 2, "{processes:?}");
    let dir = rig.room().dir().to_owned();
    rig.succeeded();
    for process in processes {
        ensure!(
            std::fs::read_to_string(format!("/proc/{process}/comm"))
                .map_or(true, |name| name.trim() != "cid-agent"),
            "agent {process} is still there"
        );
    }
    ensure!(!dir.exists(), "{} is still there", dir.display());
    Ok(())
}

#[test]
fn thirteen_join_crash_and_live_through_their_heads_death() -> Result<()> {
    let mut rig = Rig::start("thirteen", ROOM)?;
    rig.power_on(20)?;
    let took = rig.wait_up(LIMIT)?;
    println!("all 13 up {took:.1?} after the last was switched on");
    head_says(&rig, "all are up", LIMIT, |nodes| all_up(nodes, ROOM))?;

    // A frame is counted once, by port and by kind.
    let traffic = rig.wire().traffic()?;
    let by_kind: u64 = traffic.kinds.values().map(|share| share.bytes).sum();
    let apart = traffic.all.bytes.abs_diff(by_kind);
    ensure!(
        apart * 20 < traffic.all.bytes,
        "ports and rules disagree: {traffic:?}"
    );

    // PID 1 starts an agent that died again, and the head has it back.
    rig.agents()[3].signal(Signal::KILL)?;
    rig.wait("agent that was started again", LIMIT, |agent| {
        agent.ended() == u32::from(agent.mac() == rig.agents()[3].mac())
    })?;
    head_says(&rig, "all are up", LIMIT, |nodes| all_up(nodes, ROOM))?;

    // A PC without power; the others stay.
    rig.agents()[7].crash()?;
    let lost =
        |nodes: &[_]| state_of(nodes, &rig.agents()[7]) == Some(NodeState::Lost) && all_up(nodes, ROOM - 1);
    let took = head_says(&rig, "the one without power is lost", LIMIT, lost)?;
    println!("a crash is known to the head after {took:.1?}");

    // It comes again, when it is wanted.
    rig.revive(&rig.agents()[7])?;
    rig.wait_up(LIMIT)?;
    head_says(&rig, "all are up again", LIMIT, |nodes| all_up(nodes, ROOM))?;
    assert_eq!(rig.agents()[7].boots(), 2);

    // The head dies. Nobody goes home, and all are back with the next.
    let since = head_dies(&mut rig, Duration::ZERO)?;
    let took = all_heard_again(&rig, ROOM, since, LIMIT)?;
    println!("a killed head has heard all 13 {took:.1?} after it answers");
    nobody_went_home(&rig)?;
    for agent in rig.agents() {
        let process = agent.process().context("the agent runs")?;
        let peak = memory_kib(process, "VmHWM:")?;
        ensure!(peak < 32 * 1024, "{}: {peak} KiB", agent.mac());
    }

    // A key: that PC, and no other, goes home.
    rig.agents()[1].press_key()?;
    let home = |nodes: &[_]| {
        matches!(
            state_of(nodes, &rig.agents()[1]),
            Some(NodeState::GoingHome | NodeState::Home)
        ) && all_up(nodes, ROOM - 1)
    };
    head_says(&rig, "the one whose key was pressed is home", LIMIT, home)?;
    let home = rig.agents()[1].mac();
    rig.wait("PC in its place", LIMIT, |agent| {
        matches!(agent.phase(), Phase::Home(_)) == (agent.mac() == home)
    })?;
    rig.succeeded();
    Ok(())
}

/// What `ci/night members-restart` does with a thousand, small.
#[test]
fn a_crowd_in_one_process_lives_through_its_heads_death() -> Result<()> {
    let (mut rig, mut crowd) = super::crowd::gather("crowd", 40)?;
    super::crowd::survive(&mut rig, &mut crowd, &[Duration::ZERO])?;
    let traffic = crowd.traffic(&rig)?;
    // Word from node to node never leaves the crowd's own kernel, and is counted there.
    ensure!(
        traffic.all.frames > rig.wire().traffic()?.all.frames,
        "nodes did not speak with one another"
    );
    drop(crowd);
    rig.succeeded();
    Ok(())
}
