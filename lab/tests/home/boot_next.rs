//! `way_home = "boot-next"`: from `cidctl release` to Windows without asking the head, beside the way by local boot; and the
//! firmware's variables afterwards.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use cid_protocol::api::NodeState;
use cid_protocol::trace::{Step, Trace, What};
use cidlab::lab::images_dir;
use cidlab::{HeadOptions, Lab, Machine, Pc, Room, UP_LIMIT, WINDOWS_LIMIT};

/// How often its firmware has asked the head for a boot.
fn asked(lab: &Lab, pc: &Pc) -> Result<usize> {
    let trace: Trace = serde_json::from_str(&lab.ctl(&["trace", &pc.mac(), "--all", "--json"])?)?;
    let asked = |step: &&Step| matches!(step.what, What::Discover { .. });
    Ok(trace.steps.iter().filter(asked).count())
}

/// In the cluster, released, in Windows; how long from the one to the other, and how often firmware asked on the way.
fn home(lab: &mut Lab, pc: &mut Pc, way: &str) -> Result<(Duration, usize)> {
    let key = format!("way_home = \"{way}\"");
    lab.head.kill()?;
    lab.head
        .configure(&HeadOptions::new(images_dir(), "minimal").with_key(&key))?;
    lab.head.up()?;
    pc.power_on()?;
    let node = pc.wait_up(UP_LIMIT)?;
    let entry = node.hardware.and_then(|hardware| hardware.windows_entry);
    ensure!(
        entry.as_deref() == Some("Boot0001 Windows Boot Manager"),
        "{entry:?}"
    );
    let before = asked(lab, pc)?;
    let released = SystemTime::now();
    lab.release(pc)?;
    let windows = pc.wait_windows(WINDOWS_LIMIT)?.duration_since(released)?;
    let asked = asked(lab, pc)? - before;
    pc.wait_state(NodeState::Home, Duration::from_secs(60))?;
    pc.power_off()?;
    pc.assert_disk_untouched()?;
    lab.ctl(&["wake", &node.name])?;
    Ok((windows, asked))
}

fn is_home_sooner(name: &str, machine: Machine) -> Result<()> {
    let options = HeadOptions::new(images_dir(), "minimal");
    let mut lab = Lab::start_in(Room::start(name)?, &options)?;
    let mut pc = lab.build(machine.settled())?;
    let (local, asked_locally) = home(&mut lab, &mut pc, "local-boot")?;
    let (next, asked) = home(&mut lab, &mut pc, "boot-next")?;
    println!(
        "{name}: from release to Windows: {:.1} s by local boot, {:.1} s by BootNext",
        local.as_secs_f64(),
        next.as_secs_f64()
    );
    ensure!(
        asked_locally > 0 && asked == 0,
        "asked {asked_locally} and {asked} times"
    );
    let told = lab.head.control().events()?;
    let set = |text: &str| text.contains("BootNext is Boot0001 Windows Boot Manager");
    ensure!(told.iter().any(|event| set(&event.text)), "no event tells of it");
    let changed = pc.variable_differences()?;
    ensure!(
        changed.iter().all(|found| found.is_allowed()),
        "variables changed: {changed:?}"
    );
    // The control: it was for one boot only, and the next one asks again.
    pc.power_on()?;
    pc.wait_up(UP_LIMIT).context("BootNext was not consumed")?;
    pc.power_off()?;
    super::gone(lab, pc)
}

#[test]
fn boot_next_on_uefi() -> Result<()> {
    is_home_sooner("next-uefi", Machine::uefi())
}

#[test]
fn boot_next_with_secure_boot() -> Result<()> {
    is_home_sooner("next-sb", Machine::uefi_secure_boot())
}
