//! Show 5: the head is killed (`kill -9`) at twenty moments during three boots and started again each time. Everybody comes
//! up, no address is given twice, and after each restart nobody is forgotten.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cid_protocol::api::NodeState;
use cidlab::{Lab, Machine, Pc, UP_LIMIT};

const KILLS: usize = 20;
/// A boot under emulation takes about 40 s; three run at once, so kills spread over a minute and a half.
const PAUSES: [u64; 7] = [900, 3100, 5300, 7700, 2300, 6100, 4400];

#[test]
fn killed_at_twenty_moments_during_three_boots() -> Result<()> {
    let mut lab = Lab::start("crash")?;
    let machines = [
        Machine::bios(),
        Machine::bios().nic("virtio-net-pci"),
        Machine::uefi(),
    ];
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
        // Boots are over sooner than twenty kills: whoever is up starts again.
        for pc in &mut pcs {
            if pc.node()?.is_some_and(|node| node.state == NodeState::Up) && kill % 7 == 6 {
                pc.reset()?;
            }
        }
    }
    let deadline = Instant::now() + UP_LIMIT;
    for pc in &mut pcs {
        // Two boots that the kills spoilt send a PC to its own disk, as promised; then somebody has to say otherwise.
        let node = pc.wait_settled_state(deadline.saturating_duration_since(Instant::now()))?;
        if node.state == NodeState::Home {
            println!("{}: {}", pc.name(), node.reason);
            lab.ctl(&["wake", &node.name])?;
            pc.reset()?;
        }
        pc.wait_up(UP_LIMIT)?;
        remember(&lab, &mut promised)?;
        pc.power_off()?;
        pc.assert_disk_untouched()?;
    }
    drop(pcs);
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
