//! What `cidctl trace` says of real boots that fail in the usual ways, and `cidctl doctor` of a real head.
//! With `CID_RECORD_DIR` every answer is kept there; `head/src/timeline/recorded/` was made so.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use cid_protocol::api::NodeState;
use cid_protocol::trace::{Trace, What};
use cidlab::{HeadOptions, Lab, Machine, Pc, Room, UP_LIMIT, WINDOWS_LIMIT, image};

/// Asks until the verdict is this one; the answer as a person reads it is printed.
fn wait_verdict(lab: &Lab, pc: &Pc, verdict: &str, limit: Duration) -> Result<Trace> {
    let deadline = Instant::now() + limit;
    loop {
        let (_, text) = ask(lab, &["trace", &pc.mac(), "--json"])?;
        let trace: Option<Trace> = serde_json::from_str(&text).ok();
        if let Some(trace) = trace.filter(|trace| trace.diagnosis.verdict == verdict) {
            if let Some(folder) = std::env::var_os("CID_RECORD_DIR") {
                std::fs::write(
                    std::path::Path::new(&folder).join(format!("{verdict}.json")),
                    &text,
                )?;
            }
            let (passed, plain) = ask(lab, &["trace", &pc.mac(), "--all"])?;
            println!("{plain}");
            ensure!(passed != trace.diagnosis.fault, "its exit status says otherwise");
            return Ok(trace);
        }
        ensure!(Instant::now() < deadline, "no {verdict}: {text}");
        std::thread::sleep(Duration::from_secs(2));
    }
}

/// `cidctl`, whose failure is data here: whether it exited with 0, and what it printed.
fn ask(lab: &Lab, arguments: &[&str]) -> Result<(bool, String)> {
    let output = lab.head.control().command(arguments).output()?;
    Ok((output.status.success(), String::from_utf8(output.stdout)?))
}

/// Keeps broadcasts from the PCs' ports of the bridge, as a switch with DHCP snooping keeps a stranger's offers.
fn snoop(lab: &Lab) -> Result<()> {
    let script =
        "for tap in /sys/class/net/tap*; do bridge link set dev ${tap##*/} bcast_flood off || exit 1; done";
    let status = lab.room().command("sh").args(["-c", script]).status()?;
    ensure!(status.success(), "bridge link: {status}");
    Ok(())
}

#[test]
fn a_boot_is_told_from_the_first_question_to_windows() -> Result<()> {
    let lab = Lab::start("trace-home")?;
    let mut pc = lab.power_on(Machine::uefi())?;
    pc.wait_up(UP_LIMIT)?;
    let trace = wait_verdict(&lab, &pc, "up", UP_LIMIT)?;
    let phases = trace.steps.iter().find_map(|step| match &step.what {
        What::Init { phases, .. } => Some(phases.len()),
        _ => None,
    });
    ensure!(
        phases.is_some_and(|count| count >= 12),
        "phases of PID 1: {phases:?}"
    );
    pc.press("spc")?;
    wait_verdict(&lab, &pc, "went-home", UP_LIMIT)?;
    pc.wait_windows(WINDOWS_LIMIT)?;
    wait_verdict(&lab, &pc, "sent-home", UP_LIMIT)?;
    let (healthy, doctor) = ask(&lab, &["doctor"])?;
    println!("{doctor}");
    ensure!(healthy, "the doctor finds faults in the lab's own head");
    lab.succeeded();
    Ok(())
}

#[test]
fn secure_boot_refuses_the_loader() -> Result<()> {
    let room = Room::start("trace-unsigned")?;
    let (images, name) = image::unsigned(&cidlab::lab::images_dir().join("minimal"), room.dir())?;
    let lab = Lab::start_in(room, &HeadOptions::new(images, &name))?;
    let pc = lab.power_on(Machine::uefi_secure_boot())?;
    let trace = wait_verdict(&lab, &pc, "loader-refused", UP_LIMIT)?;
    ensure!(
        trace.diagnosis.text.contains("Secure Boot"),
        "{:?}",
        trace.diagnosis
    );
    drop(pc);
    lab.succeeded();
    Ok(())
}

#[test]
fn the_image_has_no_driver_for_the_card() -> Result<()> {
    let room = Room::start("trace-driver")?;
    let (images, name) = image::build_for_nic("e1000e", room.dir())?;
    let lab = Lab::start_in(room, &HeadOptions::new(images, &name))?;
    let mut pc = lab.power_on(Machine::bios().screen())?;
    let read = pc
        .wait_screen("8086:188e", UP_LIMIT)
        .or_else(|_| pc.wait_screen("No driver", UP_LIMIT))?;
    println!("on the screen: {read:?}");
    let trace = wait_verdict(&lab, &pc, "no-driver", UP_LIMIT)?;
    ensure!(
        trace.diagnosis.text.contains("8086:100e"),
        "{:?}",
        trace.diagnosis
    );
    drop(pc);
    lab.succeeded();
    Ok(())
}

#[test]
fn the_offer_does_not_arrive() -> Result<()> {
    let lab = Lab::start("trace-snooping")?;
    let mut pc = lab.build(Machine::uefi())?;
    snoop(&lab)?;
    pc.power_on()?;
    wait_verdict(&lab, &pc, "offer-not-taken", UP_LIMIT)?;
    drop(pc);
    lab.succeeded();
    Ok(())
}

#[test]
fn grub_goes_silent() -> Result<()> {
    let lab = Lab::start("trace-grub")?;
    let mut pc = lab.power_on(Machine::uefi())?;
    pc.wait_state(NodeState::Booting, UP_LIMIT)?;
    pc.freeze()?;
    wait_verdict(&lab, &pc, "loader-went-silent", UP_LIMIT)?;
    drop(pc);
    lab.succeeded();
    Ok(())
}
