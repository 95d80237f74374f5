//! Judging before joining: what a PC measured is shown, and a PC that is unfit says why, goes home, and is left there.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cid_protocol::api::NodeState;
use cid_protocol::trace::{Trace, What};
use cidlab::{HeadOptions, Lab, Machine, UP_LIMIT, WINDOWS_LIMIT};

/// From the first refusal to the reset a PC has a minute; this machine is slow, and Windows starts behind it.
const GOES_HOME: Duration = Duration::from_secs(4 * 60);

#[test]
fn a_fit_pc_tells_what_it_measured_and_is_not_held_up() -> Result<()> {
    let lab = Lab::start("judged-fit")?;
    let mut pc = lab.power_on(Machine::bios())?;
    let node = pc.wait_up(UP_LIMIT)?;
    let measured = node.hardware.and_then(|hardware| hardware.measured);
    let measured = measured.context("nothing measured")?;
    println!("measured: {measured:?}");
    ensure!(
        measured.cpu_speed.is_some_and(|speed| speed > 0.0),
        "no CPU speed"
    );
    ensure!(measured.head.echoes >= 3, "too few echoes");
    ensure!(
        measured.head.sent.all >= 3 && measured.head.received.all >= 3,
        "the kernels counted nothing"
    );
    // Half a second is the promise; the rest is this machine's.
    ensure!(measured.took_ms <= 2_000, "held up for {} ms", measured.took_ms);
    let text = lab.ctl(&["explain", &pc.mac()])?;
    println!("{text}");
    for key in ["cpu_speed", "link (eth0)", "round_trip (the head)"] {
        ensure!(text.contains(key), "no {key} in {text}");
    }
    lab.release(&pc)?;
    pc.wait_windows(WINDOWS_LIMIT)?;
    drop(pc);
    lab.succeeded();
    Ok(())
}

#[test]
fn too_slow_a_link_is_told_on_the_screen_and_in_the_list_and_ends_in_windows() -> Result<()> {
    let lab = Lab::start_with("judged-unfit", |options: HeadOptions| {
        options.with_key("requires = { link = \"2.5 Gbit/s\" }")
    })?;
    let mut pc = lab.power_on(Machine::bios().screen())?;
    let node = pc.wait_state(NodeState::Refused, UP_LIMIT)?;
    let why = "link of eth0 runs at 1 Gbit/s, 2.5 Gbit/s are wanted: look at its cable and switch port";
    assert_eq!(node.reason, why);
    let hardware = node.hardware.context("it reported nothing")?;
    ensure!(hardware.measured.is_some(), "nothing measured");
    // Tesseract reads letters better than digits.
    let screen = pc.wait_screen("cable and switch port", Duration::from_secs(45))?;
    println!("on its screen: {screen:?}");
    let explained = lab.ctl(&["explain", &pc.mac()])?;
    println!("{explained}");
    ensure!(explained.contains("required 2.5 Gbit/s: refused"), "{explained}");
    pc.wait_windows(GOES_HOME)?;
    let node = pc.node()?.context("the head forgot it")?;
    assert_eq!(node.state, NodeState::Home, "{}", node.reason);
    ensure!(node.reason.contains(why), "{}", node.reason);
    // It tried more than once, and its next starts are its own.
    let trace: Trace = serde_json::from_str(&lab.ctl(&["trace", &pc.mac(), "--all", "--json"])?)?;
    let attempts = trace
        .steps
        .iter()
        .filter(|step| matches!(step.what, What::Refused { .. }))
        .map(|step| step.times)
        .sum::<u32>();
    ensure!((2..=4).contains(&attempts), "{attempts} attempts");
    let fetched = lab.fetched(&pc, "vmlinuz")?;
    ensure!(fetched, "it never booted");
    let before = lab.ctl(&["events"])?.matches("fetches vmlinuz").count();
    pc.reset()?;
    pc.wait_windows(WINDOWS_LIMIT)?;
    let after = lab.ctl(&["events"])?.matches("fetches vmlinuz").count();
    assert_eq!(before, after, "it was booted again");
    pc.power_off()?;
    pc.assert_disk_untouched()?;
    drop(pc);
    lab.succeeded();
    Ok(())
}
