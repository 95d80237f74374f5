//! Show 2: what rooms of 13, 50 and 200 put on the wire while nobody does anything, by byte counters of the bridge with Ethernet
//! headers. Everything counts: datagrams, the connections' pulses, the clock, ARP, DHCP. A thousand are a crowd (`crowd`).

use std::time::Duration;

use anyhow::{Result, ensure};
use cidlab::rig::{Rig, Traffic};

use super::ROOM;

/// The 2004 system measured 25 kbit/s.
const BUDGET: f64 = 25.0;
/// Behind the last `up`: rosters are compared, loads have gone round.
pub(super) const SETTLE: Duration = Duration::from_secs(60);

/// `CID_TRAFFIC_SECS`, or these.
pub(super) fn seconds(default: u64) -> Duration {
    let set = std::env::var("CID_TRAFFIC_SECS")
        .ok()
        .and_then(|text| text.parse().ok());
    Duration::from_secs(set.unwrap_or(default))
}

fn measure(name: &str, count: usize, time: Duration) -> Result<Traffic> {
    let rig = Rig::start(name, count)?;
    rig.power_on(20)?;
    rig.wait_up(Duration::from_secs(120 + count as u64))?;
    std::thread::sleep(SETTLE);
    let before = rig.wire().traffic()?;
    std::thread::sleep(time);
    let traffic = rig.wire().traffic()?.since(&before);
    let seconds = time.as_secs_f64();
    println!("{count:5} agents, {:4.0} s: {}", seconds, traffic.line(seconds));
    println!(
        "{:22} per node {:.2} kbit/s",
        "",
        traffic.kbit_per_second(seconds) / count as f64
    );
    rig.succeeded();
    Ok(traffic)
}

#[test]
fn thirteen_stay_within_the_budget() -> Result<()> {
    let time = seconds(600);
    let traffic = measure("traffic13", ROOM, time)?;
    let rate = traffic.kbit_per_second(time.as_secs_f64());
    ensure!(rate <= BUDGET, "{rate:.1} kbit/s, the budget is {BUDGET}");
    Ok(())
}

#[test]
fn what_a_node_costs_at_50() -> Result<()> {
    measure("traffic50", 50, seconds(120)).map(drop)
}

#[test]
fn what_a_node_costs_at_200() -> Result<()> {
    measure("traffic200", 200, seconds(120)).map(drop)
}
