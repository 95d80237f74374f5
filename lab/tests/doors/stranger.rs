//! A stick in a PC that nobody adopted: the head lists it, the screen asks for the stick's removal, and the PC's Windows comes.

use anyhow::{Result, ensure};
use cid_protocol::api::NodeState;
use cidlab::{Adoption, HeadOptions, Lab, UP_LIMIT, WINDOWS_LIMIT};

use crate::{stick, table::Door};

pub(crate) fn is_sent_home(name: &str, door: Door) -> Result<()> {
    let lab = Lab::start_with(name, |options| HeadOptions {
        adoption: Adoption::ByHand,
        ..options
    })?;
    let mut pc = lab.power_on(door.machine(lab.room())?)?;
    let node = pc.wait_state(NodeState::Seen, UP_LIMIT)?;
    pc.wait_serial("does not compute now", 0, UP_LIMIT)?;
    stick::remove(&mut pc, 0)?;
    pc.wait_windows(WINDOWS_LIMIT)?;
    pc.power_off()?;
    pc.assert_disk_untouched()?;
    let served = lab.head.control().events()?;
    ensure!(
        !served.iter().any(|event| event.text.contains("vmlinuz")),
        "a kernel was handed out to {node:?}"
    );
    lab.succeeded();
    Ok(())
}
