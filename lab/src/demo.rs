//! The main job, shown: three PCs lend a night and get it proved that nothing of theirs changed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use cid_protocol::api::NodeState;

use crate::firmware_variables::Difference;
use crate::head::{Adoption, HeadOptions, program};
use crate::image::{Fault, build_with};
use crate::lab::{Lab, UP_LIMIT, WINDOWS_LIMIT, images_dir};
use crate::machine::{Disk, Machine};
use crate::pc::Pc;
use crate::room::Room;
use crate::run::run;
use crate::stages::Stages;

/// Three machines share two cores here, and software emulation is slow: more patience than for one.
const COMPANY: u32 = 3;

/// What is shown.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// Folder of built images.
    pub images_dir: PathBuf,
    /// Which image; it is built if it is not there.
    pub image: String,
    /// Whether the proof is to be shown to work or to be shown able to fail.
    pub night: Night,
}

/// Which night is played.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Night {
    /// As it should be.
    Ordinary,
    /// With an image that writes one byte to the disk: the checks must notice.
    WritesOneByte,
}

impl Default for DemoOptions {
    fn default() -> Self {
        Self {
            images_dir: images_dir(),
            image: "minimal".to_owned(),
            night: Night::Ordinary,
        }
    }
}

/// Whether everything that was promised held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Every disk and every firmware setting is as it was.
    Held,
    /// A check failed; what failed was printed.
    Broken,
}

/// Plays the night. Words go to standard error, tables to standard output.
///
/// # Errors
/// When it does not come to the checks: a program is missing, a machine does not arrive in time.
pub fn play(options: &DemoOptions) -> Result<Outcome> {
    let room = Room::start("demo")?;
    let (images_dir, image) = match options.night {
        Night::Ordinary => {
            ensure_image(options)?;
            (options.images_dir.clone(), options.image.clone())
        }
        Night::WritesOneByte => {
            say("Building an image that writes one byte to the disk (the control) ...");
            build_with(Fault::WritesOneByte, room.dir())?
        }
    };
    let head = HeadOptions {
        adoption: Adoption::ByHand,
        ..HeadOptions::new(images_dir, &image)
    };
    let lab = Lab::start_in(room, &head)?;
    say(&format!(
        "A head serves an empty room (its files are in {}).",
        lab.room().dir().display()
    ));

    let mut pcs = deliver(&lab)?;
    first_evening(&lab, &mut pcs)?;
    let mut stages = lend(&lab, &mut pcs)?;
    give_back(&lab, &mut pcs, &mut stages)?;

    let events = lab.head.control().events()?;
    for (pc, stages) in pcs.iter_mut().zip(&mut stages) {
        stages.read_events(&events, &pc.mac());
        pc.power_off()?;
    }
    println!("{}", Stages::table(pcs.iter().map(Pc::name).zip(&stages)));
    let outcome = check(&pcs)?;
    // The control is meant to break: its room is of no further interest either.
    if outcome == Outcome::Held || options.night == Night::WritesOneByte {
        drop(pcs);
        lab.succeeded();
    }
    Ok(outcome)
}

/// The three PCs, fresh from the shop, each with its own Windows.
fn deliver(lab: &Lab) -> Result<Vec<Pc>> {
    let machines = [
        Machine::bios().nic("e1000").disk(Disk::Sata),
        Machine::uefi().nic("virtio-net-pci").disk(Disk::Nvme).settled(),
        Machine::uefi_secure_boot()
            .nic("virtio-net-pci")
            .disk(Disk::Usb)
            .settled(),
    ];
    let mut pcs = Vec::new();
    for machine in machines {
        let pc = lab.build(machine)?;
        say(&format!(
            "{}: {}; disk SHA-256 {}...",
            pc.name(),
            pc.machine().describe(),
            &pc.disk_digest()[..16]
        ));
        pcs.push(pc);
    }
    Ok(pcs)
}

/// Nobody adopted them yet: they are listed, and start their Windows.
fn first_evening(lab: &Lab, pcs: &mut [Pc]) -> Result<()> {
    say(
        "Somebody switches all three on. The head has never heard of them: it must list them and leave them alone.",
    );
    for pc in &mut *pcs {
        pc.power_on()?;
    }
    wait_all(pcs, UP_LIMIT * COMPANY, "is listed as seen", |pc| {
        Ok(pc
            .node()
            .ok()
            .flatten()
            .is_some_and(|node| node.state == NodeState::Seen))
    })?;
    wait_windows(pcs, "started its own Windows")?;
    println!("{}", lab.ctl(&["nodes"])?);
    Ok(())
}

/// Adopts them; a person restarts them; they join.
fn lend(lab: &Lab, pcs: &mut [Pc]) -> Result<Vec<Stages>> {
    say(
        "The administrator takes them in: cidctl adopt seen --group lab --name 'lab[1-3]'. Somebody restarts them.",
    );
    lab.ctl(&["adopt", "seen", "--group", "lab", "--name", "lab[1-3]"])?;
    for pc in &mut *pcs {
        pc.reset()?;
    }
    let starts: Vec<SystemTime> = pcs.iter().map(Pc::powered_on).collect();
    wait_all(pcs, UP_LIMIT * COMPANY, "is up", |pc| {
        Ok(pc
            .node()
            .ok()
            .flatten()
            .is_some_and(|node| node.state == NodeState::Up))
    })?;
    println!("{}", lab.ctl(&["nodes"])?);
    Ok(starts.into_iter().map(Stages::new).collect())
}

/// Morning: they are released and find the way to their Windows by themselves.
fn give_back(lab: &Lab, pcs: &mut [Pc], stages: &mut [Stages]) -> Result<()> {
    say("Morning: cidctl release 'lab[1-3]'. Nobody touches the PCs.");
    lab.ctl(&["release", "lab[1-3]"])?;
    let times = wait_windows(pcs, "is back in its own Windows")?;
    for (stages, time) in stages.iter_mut().zip(times) {
        stages.windows = Some(time);
    }
    println!("{}", lab.ctl(&["nodes"])?);
    Ok(())
}

fn check(pcs: &[Pc]) -> Result<Outcome> {
    let mut outcome = Outcome::Held;
    for pc in pcs {
        match pc.assert_disk_untouched() {
            Ok(()) => println!("{}: disk unchanged: SHA-256 {}", pc.name(), pc.disk_digest()),
            Err(error) => {
                outcome = Outcome::Broken;
                println!("FAILED {error:#}");
            }
        }
        let (allowed, forbidden): (Vec<_>, Vec<_>) = pc
            .variable_differences()?
            .into_iter()
            .partition(Difference::is_allowed);
        if !forbidden.is_empty() {
            outcome = Outcome::Broken;
            println!(
                "FAILED {}: firmware variables changed: {}",
                pc.name(),
                names(&forbidden)
            );
        } else if pc.has_variables() {
            let but = if allowed.is_empty() {
                String::new()
            } else {
                format!(" but for {}", names(&allowed))
            };
            println!("{}: firmware variables unchanged{but}", pc.name());
        }
    }
    Ok(outcome)
}

fn names(differences: &[Difference]) -> String {
    differences
        .iter()
        .map(|difference| difference.key.name.as_str())
        .collect::<Vec<_>>()
        .join(", ")
}

fn ensure_image(options: &DemoOptions) -> Result<()> {
    if options
        .images_dir
        .join(&options.image)
        .join("manifest.json")
        .exists()
    {
        return Ok(());
    }
    say(&format!("Building the image {} ...", options.image));
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut build = Command::new(program("cidbuild")?);
    build
        .arg("image")
        .arg(&options.image)
        .arg("--out")
        .arg(&options.images_dir)
        .current_dir(tree);
    run(&mut build).map(drop)
}

/// Waits until each PC started its Windows once more; returns when each did.
fn wait_windows(pcs: &mut [Pc], what: &str) -> Result<Vec<SystemTime>> {
    wait_all(pcs, WINDOWS_LIMIT * COMPANY, what, |pc| Ok(pc.in_windows()))?;
    pcs.iter_mut().map(|pc| pc.wait_windows(Duration::ZERO)).collect()
}

/// Waits for a fact of every PC; says so as each comes.
fn wait_all(
    pcs: &mut [Pc],
    limit: Duration,
    what: &str,
    mut fact: impl FnMut(&mut Pc) -> Result<bool>,
) -> Result<()> {
    let started = Instant::now();
    let mut waiting: Vec<usize> = (0..pcs.len()).collect();
    while !waiting.is_empty() {
        let mut still = Vec::new();
        for index in waiting {
            let pc = &mut pcs[index];
            if fact(pc)? {
                say(&format!(
                    "  {} {what} ({:.0} s)",
                    pc.name(),
                    started.elapsed().as_secs_f64()
                ));
                continue;
            }
            if !pc.is_on() {
                bail!("{} went off", pc.name());
            }
            still.push(index);
        }
        waiting = still;
        if let Some(index) = waiting.first().filter(|_| started.elapsed() > limit) {
            // The ordinary wait, without time left, makes the error with the end of the serial log.
            return pcs[*index]
                .wait(what, Duration::ZERO, |_| Ok(false))
                .context("waiting in vain");
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    Ok(())
}

fn say(words: &str) {
    eprintln!("{words}");
}
