//! Show 1 on virtual PCs: thirteen, with real firmware, are switched on at random moments, and nobody has a list of them. All know all, with
//! multicast and without. (The half in which every agent starts anew without the head: `lab/tests/members/times.rs`.)

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use cidlab::rig::{Asker, Multicast, Wire};
use cidlab::{Lab, Machine, Pc, UP_LIMIT};

const PCS: usize = 13;
/// All thirteen boot on the processors that are there.
const LIMIT: Duration = UP_LIMIT.saturating_mul(8);
/// When each is switched on, in seconds from the first: drawn once, so that a failure can be repeated.
const MOMENTS: [u64; PCS] = [0, 3, 4, 11, 17, 18, 29, 41, 42, 58, 60, 77, 90];

fn all_know_all(name: &str, multicast: Multicast) -> Result<()> {
    let lab = Lab::start(name)?;
    let wire = Wire::new(Arc::clone(lab.room()))?;
    wire.multicast(multicast)?;
    let started = Instant::now();
    let mut pcs: Vec<Pc> = Vec::new();
    for moment in MOMENTS {
        std::thread::sleep(Duration::from_secs(moment).saturating_sub(started.elapsed()));
        pcs.push(lab.power_on(Machine::bios())?);
    }
    for pc in &mut pcs {
        pc.wait_up(LIMIT)?;
    }
    println!(
        "{name}: 13 are up {:.0?} after the first was switched on",
        started.elapsed()
    );
    let macs: Vec<String> = pcs.iter().map(Pc::mac).collect();
    let asker = Asker::among(lab.room(), lab.head.control(), &macs)?;
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let answers = asker.ask(&(0..PCS).collect::<Vec<_>>())?;
        if answers
            .iter()
            .all(|answer| answer.as_ref().is_ok_and(|view| view.up() == PCS))
        {
            break;
        }
        ensure!(Instant::now() < deadline, "{answers:?}");
        std::thread::sleep(Duration::from_millis(500));
    }
    println!(
        "{name}: all know all {:.0?} after the first was switched on",
        started.elapsed()
    );
    drop(pcs);
    lab.succeeded();
    Ok(())
}

#[test]
fn thirteen_pcs_know_one_another() -> Result<()> {
    all_know_all("pcs", Multicast::Flooded)
}

#[test]
fn thirteen_pcs_know_one_another_without_multicast() -> Result<()> {
    all_know_all("pcs-unicast", Multicast::Dropped)
}
