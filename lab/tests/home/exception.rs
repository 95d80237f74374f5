//! A group is closed for once; the machine is real and takes the time it takes.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use cid_protocol::api::NodeState;
use cidlab::lab::images_dir;
use cidlab::{HeadOptions, Lab, Machine, Room, UP_LIMIT};

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn a_group_that_is_closed_for_once_drains_goes_home_and_is_woken_when_that_is_taken_back() -> Result<()> {
    let mut options = HeadOptions::new(images_dir(), "minimal");
    options.patience = "40s".to_owned();
    let mut lab = Lab::start_in(Room::start("closed-for-once")?, &options)?;
    let mut pc = lab.power_on(Machine::bios())?;
    pc.wait_up(UP_LIMIT)?;
    lab.ctl(&["hours", "lab", "closed", "until", &in_two_hours()?])?;
    let closed = SystemTime::now();
    let node = pc.wait_state(NodeState::Draining, MINUTE)?;
    let deadline = Duration::from_secs(node.deadline_unix.context("no deadline")?);
    // The exception outlives the head, and gives nobody a second patience.
    lab.head.kill()?;
    lab.head.up()?;
    let windows = pc
        .wait_windows(2 * MINUTE)?
        .duration_since(SystemTime::UNIX_EPOCH)?;
    let late = windows.saturating_sub(deadline).as_secs_f64();
    println!(
        "closed for once: in Windows {late:.1} s behind its deadline, {:?} after the command",
        closed.elapsed()?
    );
    ensure!(
        windows >= deadline,
        "it was sent home before its patience was over"
    );
    pc.power_off()?;
    pc.sleep()?;
    lab.ctl(&["hours", "lab", "clear"])?;
    pc.wait_woken(MINUTE)?;
    pc.wait_up(UP_LIMIT)?;
    pc.power_off()?;
    super::gone(lab, pc)
}

/// A time of day as a person writes it; the lab's time zone is UTC.
fn in_two_hours() -> Result<String> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let minute = (now.as_secs() / 60 + 120) % 1_440;
    Ok(format!("{:02}:{:02}", minute / 60, minute % 60))
}
