//! Show 5: the head is killed (`kill -9`) at twenty moments during three boots and started again each time. Everybody comes
//! up without a hand, no address is given twice, and after each restart nobody is forgotten.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cidlab::{Lab, Machine, Pc, UP_LIMIT};

const KILLS: usize = 20;
/// Milliseconds between a restart and the next kill, taken in turn. Three boots at once take about a minute under
/// emulation; so do twenty kills, and their moments fall differently into each boot.
const PAUSES: [u64; 7] = [900, 3100, 1300, 3700, 2300, 500, 4400];

#[test]
fn killed_at_twenty_moments_during_three_boots() -> Result<()> {
    let mut lab = Lab::start("crash")?;
    let machines = [Machine::bios(), Machine::uefi(), Machine::uefi_secure_boot()];
    let mut pcs = machines
        .into_iter()
        .map(|machine| lab.power_on(machine))
        .collect::<Result<Vec<Pc>>>()?;
    let mut promised = BTreeMap::new();
    for kill in 0..KILLS {
        std::thread::sleep(Duration::from_millis(PAUSES[kill % PAUSES.len()]));
        remember(&lab, &mut promised)?;
        lab.head.kill()?;
        lab.head.up()?;
        remember(&lab, &mut promised).with_context(|| format!("after kill {}", kill + 1))?;
    }
    for pc in &mut pcs {
        // Without anybody's hand: no reset, no wake.
        let node = pc.wait_up(UP_LIMIT)?;
        println!("{} is up: {}", pc.name(), node.reason);
        remember(&lab, &mut promised)?;
    }
    for mut pc in pcs {
        pc.power_off()?;
        pc.assert_disk_untouched()?;
    }
    lab.succeeded();
    Ok(())
}

/// Notes who has which address; nobody may vanish, change, or share.
fn remember(lab: &Lab, promised: &mut BTreeMap<String, String>) -> Result<()> {
    let nodes = lab.head.control().nodes()?;
    for mac in promised.keys() {
        ensure!(nodes.iter().any(|node| node.mac == *mac), "{mac} was forgotten");
    }
    for node in nodes {
        let Some(address) = node.address else { continue };
        let holder = promised
            .iter()
            .find(|(mac, known)| **known == address && **mac != node.mac);
        ensure!(
            holder.is_none(),
            "{address} was given to {} and to {holder:?}",
            node.mac
        );
        if let Some(known) = promised.insert(node.mac.clone(), address.clone()) {
            ensure!(known == address, "{} had {known} and has {address}", node.mac);
        }
    }
    Ok(())
}
