//! Issue 5, Show 5: eight PCs are switched on together and each boots `compute`. Prints p50 and p99 from power-on to `up`; then all go home,
//! and no disk has changed.

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use cidlab::shipped::build_shipped;
use cidlab::{HeadOptions, Lab, Machine, Pc, Room, UP_LIMIT, WINDOWS_LIMIT};

const PCS: usize = 8;
const MEMORY_MIB: u32 = 1024;
/// All of them share the processors that are there.
const LIMIT: Duration = UP_LIMIT.saturating_mul(12);

/// The value below which `percent` of the sorted ones are (nearest rank).
fn percentile(sorted: &[u64], percent: usize) -> u64 {
    sorted[(sorted.len() * percent).div_ceil(100) - 1]
}

#[test]
fn eight_pcs_boot_compute_together() -> Result<()> {
    let room = Room::start("eight")?;
    let images = build_shipped(room.dir(), "compute")?;
    let size = std::fs::metadata(Path::new(&images).join("compute/root.img"))?.len();
    // Under emulation eight kernels take longer from the script to their first word than a room of PCs.
    let mut options = HeadOptions::new(images, "compute");
    options.tables = "[trust]\ntoken = \"10m\"\n".to_owned();
    let lab = Lab::start_in(room, &options)?;
    let mut pcs = (0..PCS)
        .map(|_| lab.build(Machine::bios().memory(MEMORY_MIB)))
        .collect::<Result<Vec<Pc>>>()?;
    for pc in &mut pcs {
        pc.power_on()?;
    }
    let mut seconds = Vec::new();
    for pc in &mut pcs {
        let node = pc.wait_up(LIMIT)?;
        let on = pc.powered_on().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        seconds.push(node.since_unix.saturating_sub(on));
        ensure!(
            node.image.as_deref() == Some("compute@1"),
            "it runs {:?}",
            node.image
        );
        let hardware = node.hardware.context("no hardware reported")?;
        ensure!(hardware.block_devices.is_empty(), "{:?}", hardware.block_devices);
    }
    let fetched: Vec<String> = pcs.iter().filter_map(fetched).collect();
    ensure!(
        fetched.len() == PCS,
        "not every PC says where its chunks came from"
    );
    seconds.sort_unstable();
    println!(
        "eight: root.img {:.1} MB, from power-on to up: p50 {} s, p99 {} s; each: {seconds:?}",
        size as f64 / 1e6,
        percentile(&seconds, 50),
        percentile(&seconds, 99)
    );
    for line in fetched {
        println!("eight: {line}");
    }
    for pc in &pcs {
        lab.release(pc)?;
    }
    for mut pc in pcs {
        pc.wait_windows(WINDOWS_LIMIT * 4)?;
        pc.power_off()?;
        pc.assert_disk_untouched()?;
    }
    lab.succeeded();
    Ok(())
}

/// What the agent says of where its image came from.
fn fetched(pc: &Pc) -> Option<String> {
    let serial = pc.serial();
    let line = serial.lines().find(|line| line.contains(" fetched in "))?;
    Some(
        line.split_once("cid-agent: ")
            .map_or(line, |(_, said)| said)
            .trim()
            .to_owned(),
    )
}
