//! Issue 5, Show 7: four PCs are updated one after the other, and never fewer than three are up; each comes back on the new version.
//! A version with which no PC comes up stops the update at the first, which goes back. The head is killed once in the middle.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cid_protocol::api::{NodeList, NodeState};
use cid_protocol::images::{ImageList, RollPhase, RollReport, RollState};
use cidlab::head::Control;
use cidlab::lab::images_dir;
use cidlab::{HeadOptions, Lab, Machine, Pc, Room, UP_LIMIT, image};

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

#[test]
fn four_pcs_are_updated_and_a_bad_version_goes_back() -> Result<()> {
    let room = Room::start("roll")?;
    let (source, dir) = (images_dir().join("minimal"), room.dir().to_owned());
    let images = image::with_words(&source, &dir, "cid.lab=1")?;
    let mut lab = Lab::start_in(room, &HeadOptions::new(images, "minimal"))?;
    let control = lab.head.control().clone();
    has_version(&control, "minimal@1")?;
    // From here on a new build waits until it is rolled.
    lab.ctl(&["image", "set", "lab", "minimal@1"])?;
    let mut pcs: Vec<Pc> = Vec::new();
    for _ in 0..PCS {
        pcs.push(lab.power_on(Machine::bios())?);
    }
    for pc in &mut pcs {
        pc.wait_up(UP_LIMIT * 3)?;
    }
    ensure!(
        images_of(&control)? == ["minimal@1"; PCS],
        "{:?}",
        images_of(&control)?
    );

    image::with_words(&source, &dir, "cid.lab=2")?;
    has_version(&control, "minimal@2")?;
    let (begun, watch) = (Instant::now(), Watch::begin(&control));
    lab.ctl(&[
        "image",
        "roll",
        "@lab",
        "minimal@2",
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
        images_of(&control)? == ["minimal@2"; PCS],
        "{:?}",
        images_of(&control)?
    );
    ensure!(fewest == PCS - 1, "{fewest} were up");
    println!("roll: {PCS} PCs went over in {took:.0?}, at least {fewest} were up; the head was killed once");

    image::with_words(&source, &dir, "cid.lab=3 rdinit=/no-such-program")?;
    has_version(&control, "minimal@3")?;
    let (begun, watch) = (Instant::now(), Watch::begin(&control));
    lab.ctl(&[
        "image",
        "roll",
        "@lab",
        "minimal@3",
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
        images_of(&control)? == ["minimal@2"; PCS],
        "{:?}",
        images_of(&control)?
    );
    ensure!(fewest == PCS - 1, "{fewest} were up");
    println!("roll: a bad version was back after {took:.0?}: {}", failed.reason);
    drop(pcs);
    lab.succeeded();
    Ok(())
}
