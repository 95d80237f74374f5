//! `cidlab agents`: a rig to look at. Must leave nothing behind, however it ends: the room dies with this process.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::Result;
use cidlab::rig::{self, Rig};

/// Figures are printed this often while it is held.
const EVERY: Duration = Duration::from_secs(10);

/// Starts that many, which run programs (`cidctl run`), watched as if they ran jobs if `busy`; says how they are until a line comes in, and ends them.
pub(crate) fn hold(count: usize, per_second: u32, busy: bool) -> Result<()> {
    let options = |options| if busy { rig::busy(options) } else { options };
    let rig = Rig::that_works("agents", count, options)?;
    eprintln!(
        "cidlab: cidctl --socket {} nodes",
        rig.room().dir().join("head.sock").display()
    );
    let started = Instant::now();
    rig.power_on(per_second)?;
    rig.wait_up(Duration::from_secs(60 + 2 * count as u64))?;
    eprintln!(
        "cidlab: {count} agents are up after {:.1} s; press Enter to end",
        started.elapsed().as_secs_f64()
    );
    let (sender, entered) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let _ = std::io::stdin().read_line(&mut line);
        let _ = sender.send(());
    });
    let mut before = rig.wire().traffic()?;
    while entered.recv_timeout(EVERY).is_err() {
        let now = rig.wire().traffic()?;
        eprintln!("{}", now.since(&before).line(EVERY.as_secs_f64()));
        before = now;
    }
    if std::io::stdin().is_terminal() {
        eprintln!("cidlab: closing the room");
    }
    rig.succeeded();
    Ok(())
}
