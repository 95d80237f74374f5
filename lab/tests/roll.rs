//! Issue 5, Show 7: four PCs with a root image are updated one after the other, and never fewer than three are up; each comes back on the
//! new version. A version whose health command fails stops the update at the first, which goes back. The head is killed once in the middle.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cid_protocol::api::{NodeList, NodeState};
use cid_protocol::images::{ImageList, RollPhase, RollReport, RollState};
use cidlab::head::Control;
use cidlab::rooted::{Rooted, build_rooted_with};
use cidlab::{HeadOptions, Lab, Machine, Pc, Room, UP_LIMIT};

const PCS: usize = 4;
/// Four boots one after the other, on processors that four PCs share.
const ROLL_LIMIT: Duration = UP_LIMIT.saturating_mul(8);

fn images_of(control: &Control) -> Result<Vec<String>> {
    let list: NodeList = serde_json::from_str(&control.ask(&["nodes", "--json"])?)?;
    let up = list.nodes.iter().filter(|node| node.state == NodeState::Up);
    Ok(up.filter_map(|node| node.image.clone()).collect())
}

/// Counts who is up, again and again, until it is told to stop; the fewest that were seen.
struct Watch {
    stop: Arc<AtomicBool>,
    fewest: Arc<AtomicUsize>,
    thread: std::thread::JoinHandle<()>,
}

impl Watch {
    fn begin(control: &Control) -> Self {
        let (stop, fewest) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(PCS)));
        let (control, stopped, least) = (control.clone(), Arc::clone(&stop), Arc::clone(&fewest));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // A head that is being restarted is asked again.
                if let Ok(up) = images_of(&control) {
                    least.fetch_min(up.len(), Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(500));
            }
        });
        Self { stop, fewest, thread }
    }

    fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.join();
        self.fewest.load(Ordering::Relaxed)
    }
}

fn report(control: &Control) -> Result<RollReport> {
    let list: ImageList = serde_json::from_str(&control.ask(&["image", "list", "--json"])?)?;
    list.roll.context("no update")
}

fn wait_for(what: &str, limit: Duration, mut is: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !is().unwrap_or(false) {
        if Instant::now() > deadline {
            bail!("{what}: not within {limit:?}");
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    Ok(())
}

fn has_version(control: &Control, image: &str) -> Result<()> {
    wait_for(image, Duration::from_secs(60), || {
        let list: ImageList = serde_json::from_str(&control.ask(&["image", "list", "--json"])?)?;
        Ok(list.images.iter().any(|row| row.image == image))
    })
}

/// The next build: `health` is the end of its health command. The service says what the node's own file holds.
fn build(dir: &Path, number: &str, health: &str) -> Result<PathBuf> {
    let own = format!("rolled {number} of group {{{{ group }}}} in rack {{{{ values.rack }}}}\n");
    let health = format!("#!/bin/sh\ngrep -q 'of group lab' /etc/own || exit 9\n{health}\n");
    let rooted = Rooted {
        filler: 1_000_000,
        lines: "health = [\"/bin/healthy\"]\n[[root.services]]\nname = \"own\"\ncommand = [\"/bin/cat\", \"/etc/own\"]\nrestart = \"never\"\n",
        overlay: &[("etc/own.node.tera", &own), ("bin/healthy", &health)],
        few_drivers: true,
        ..Rooted::default()
    };
    build_rooted_with(dir, "rolled", &rooted)
}

#[test]
fn four_pcs_are_updated_and_a_bad_version_goes_back() -> Result<()> {
    let room = Room::start("roll")?;
    let dir = room.dir().to_owned();
    let images = build(&dir, "1", "exit 0")?;
    let mut options = HeadOptions::new(images, "rolled");
    options.tables = "[groups.lab.values]\nrack = \"north\"\n".to_owned();
    let mut lab = Lab::start_in(room, &options)?;
    let control = lab.head.control().clone();
    has_version(&control, "rolled@1")?;
    // From here on a new build waits until it is rolled.
    lab.ctl(&["image", "set", "lab", "rolled@1"])?;
    let mut pcs: Vec<Pc> = Vec::new();
    for _ in 0..PCS {
        pcs.push(lab.power_on(Machine::bios().memory(512))?);
    }
    for pc in &mut pcs {
        pc.wait_up(UP_LIMIT * 3)?;
    }
    ensure!(
        images_of(&control)? == ["rolled@1"; PCS],
        "{:?}",
        images_of(&control)?
    );

    // What the template of its overlay became on each.
    for pc in &pcs {
        ensure!(
            pc.serial().contains("rolled 1 of group lab in rack north"),
            "{}",
            pc.serial()
        );
    }

    build(&dir, "2", "exit 0")?;
    has_version(&control, "rolled@2")?;
    let (begun, watch) = (Instant::now(), Watch::begin(&control));
    lab.ctl(&[
        "image",
        "roll",
        "@lab",
        "rolled@2",
        "--keep-up",
        "3",
        "--healthy",
        "10s",
        "--detach",
    ])?;
    // The head dies while the second PC boots, and goes on.
    wait_for("the second PC", ROLL_LIMIT, || {
        Ok(report(&control)?.nodes[1].phase == RollPhase::Booting)
    })?;
    lab.head.kill()?;
    lab.head.up()?;
    wait_for("the update", ROLL_LIMIT, || {
        Ok(report(&control)?.ended_unix.is_some())
    })?;
    let (fewest, took, done) = (watch.end(), begun.elapsed(), report(&control)?);
    ensure!(done.state == RollState::Done, "{done:?}");
    ensure!(
        images_of(&control)? == ["rolled@2"; PCS],
        "{:?}",
        images_of(&control)?
    );
    ensure!(fewest == PCS - 1, "{fewest} were up");
    println!("roll: {PCS} PCs went over in {took:.0?}, at least {fewest} were up; the head was killed once");

    build(&dir, "3", "echo the licence server is missing; exit 3")?;
    has_version(&control, "rolled@3")?;
    let (begun, watch) = (Instant::now(), Watch::begin(&control));
    lab.ctl(&[
        "image",
        "roll",
        "@lab",
        "rolled@3",
        "--healthy",
        "10s",
        "--detach",
    ])?;
    wait_for("the failed update", ROLL_LIMIT, || {
        Ok(report(&control)?.ended_unix.is_some())
    })?;
    let (fewest, took, failed) = (watch.end(), begun.elapsed(), report(&control)?);
    ensure!(failed.state == RollState::Failed, "{failed:?}");
    let phases: Vec<RollPhase> = failed.nodes.iter().map(|node| node.phase).collect();
    ensure!(
        phases
            == [
                RollPhase::Returned,
                RollPhase::Waiting,
                RollPhase::Waiting,
                RollPhase::Waiting
            ],
        "{failed:?}"
    );
    ensure!(
        images_of(&control)? == ["rolled@2"; PCS],
        "{:?}",
        images_of(&control)?
    );
    ensure!(
        failed.reason.contains("the licence server is missing"),
        "{failed:?}"
    );
    ensure!(fewest == PCS - 1, "{fewest} were up");
    println!("roll: a bad version was back after {took:.0?}: {}", failed.reason);
    drop(pcs);
    lab.succeeded();
    Ok(())
}
