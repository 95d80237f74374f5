//! The kernel's neighbour table: which hardware address stands behind an address on our own wire. Reads only.
//!
//! Where somebody else gives out the addresses, this is how a file request is known to come from a machine: to ask us it
//! had to resolve our address, and the kernel notes the asker of an ARP request (RFC 826) as it answers.

use std::net::Ipv4Addr;

use crate::machine::MacAddress;

/// Where Linux lists the table of this network namespace (proc(5)).
const TABLE: &str = "/proc/self/net/arp";
/// Set when an entry has been resolved (`ATF_COM` in linux/if_arp.h).
const COMPLETE: u32 = 2;

/// Who can be asked.
pub trait Neighbours: Send + Sync + 'static {
    /// The hardware address behind `address`, if this host spoke with it lately.
    fn hardware_address(&self, address: Ipv4Addr) -> Option<MacAddress>;
}

/// The kernel's own table.
#[derive(Debug, Clone, Copy, Default)]
pub struct KernelTable;

impl Neighbours for KernelTable {
    fn hardware_address(&self, address: Ipv4Addr) -> Option<MacAddress> {
        find(&std::fs::read_to_string(TABLE).ok()?, address)
    }
}

/// Nobody is known.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoNeighbours;

impl Neighbours for NoNeighbours {
    fn hardware_address(&self, _address: Ipv4Addr) -> Option<MacAddress> {
        None
    }
}

/// Columns: address, hardware type, flags, hardware address, mask, device.
fn find(table: &str, address: Ipv4Addr) -> Option<MacAddress> {
    table.lines().skip(1).find_map(|line| {
        let mut columns = line.split_ascii_whitespace();
        let found: Ipv4Addr = columns.next()?.parse().ok()?;
        let (_, flags, mac) = (columns.next()?, columns.next()?, columns.next()?);
        let flags = u32::from_str_radix(flags.strip_prefix("0x")?, 16).ok()?;
        (found == address && flags & COMPLETE != 0).then(|| mac.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolved_entry_names_its_machine_and_an_unresolved_one_does_not() {
        let table = "IP address       HW type     Flags       HW address            Mask     Device\n\
            10.77.0.50       0x1         0x2         52:54:00:00:00:01     *        lab0\n\
            10.77.0.51       0x1         0x0         00:00:00:00:00:00     *        lab0\n\
            10.77.0.52       0x1         0x6         52:54:00:00:00:03     *        lab0\nnoise\n";
        let mac = |last| Some(MacAddress([0x52, 0x54, 0, 0, 0, last]));
        for (address, expected) in [
            ("10.77.0.50", mac(1)),
            ("10.77.0.51", None),
            ("10.77.0.52", mac(3)),
            ("10.77.0.5", None),
        ] {
            assert_eq!(find(table, address.parse().unwrap()), expected, "{address}");
        }
        assert_eq!(find("", Ipv4Addr::LOCALHOST), None);
    }
}
