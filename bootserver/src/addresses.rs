//! Which machine holds an address: what TFTP and HTTP ask before the policy can be asked. Must not decide what it gets.
//!
//! In full mode we gave the address out. Beside somebody else's DHCP server it is, in this order: the kernel's neighbour
//! table (a fact of the wire), the machine's own word in the path it fetches (see [`crate::files::machine_in_path`]:
//! we wrote it there, or its loader did), what was overheard of its DHCP. The last two are words that a stranger could
//! say as well, as it could say any MAC address in a DHCP message.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::sync::{Mutex, PoisonError, RwLock};

use crate::dhcp::leases::LeaseRecord;
use crate::machine::MacAddress;
use crate::neighbours::{Neighbours, NoNeighbours};

/// Addresses remembered from what was overheard: several rooms. The longest known one gives way.
pub const MAX_HEARD: usize = 4096;

/// The table.
pub struct Addresses {
    leases: RwLock<BTreeMap<Ipv4Addr, MacAddress>>,
    heard: Mutex<Heard>,
    neighbours: Box<dyn Neighbours>,
}

#[derive(Default)]
struct Heard {
    machines: BTreeMap<Ipv4Addr, MacAddress>,
    order: VecDeque<Ipv4Addr>,
}

impl Default for Addresses {
    fn default() -> Self {
        Self::new(&[])
    }
}

impl Addresses {
    /// What the disk remembers of our own leases.
    pub fn new(records: &[LeaseRecord]) -> Self {
        Self {
            leases: RwLock::new(
                records
                    .iter()
                    .map(|record| (record.address, record.mac))
                    .collect(),
            ),
            heard: Mutex::default(),
            neighbours: Box::new(NoNeighbours),
        }
    }

    /// Asks `neighbours` too.
    #[must_use]
    pub fn with_neighbours(mut self, neighbours: impl Neighbours) -> Self {
        self.neighbours = Box::new(neighbours);
        self
    }

    /// Who holds `address`. `said` is whom the request itself names.
    pub fn holder(&self, address: Ipv4Addr, said: Option<MacAddress>) -> Option<MacAddress> {
        self.leaseholder(address)
            .or_else(|| self.neighbours.hardware_address(address))
            .or(said)
            .or_else(|| self.overheard(address))
    }

    /// A lease was granted.
    pub fn insert(&self, record: LeaseRecord) {
        let mut map = self.leases.write().unwrap_or_else(PoisonError::into_inner);
        map.insert(record.address, record.mac);
    }

    /// A message of `mac` named `address` as its own, or another server gave it that.
    pub fn hear(&self, address: Ipv4Addr, mac: MacAddress) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if heard.machines.insert(address, mac).is_none() {
            heard.order.push_back(address);
            if heard.order.len() > MAX_HEARD
                && let Some(oldest) = heard.order.pop_front()
            {
                heard.machines.remove(&oldest);
            }
        }
    }

    fn leaseholder(&self, address: Ipv4Addr) -> Option<MacAddress> {
        let leases = self.leases.read().unwrap_or_else(PoisonError::into_inner);
        leases.get(&address).copied()
    }

    fn overheard(&self, address: Ipv4Addr) -> Option<MacAddress> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.machines.get(&address).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct One(Ipv4Addr, MacAddress);

    impl Neighbours for One {
        fn hardware_address(&self, address: Ipv4Addr) -> Option<MacAddress> {
            (address == self.0).then_some(self.1)
        }
    }

    #[test]
    fn a_lease_stands_above_the_wire_the_wire_above_a_word_and_that_above_hearsay() {
        let mac = |last| MacAddress([2, 0, 0, 0, 0, last]);
        let address = |last| Ipv4Addr::new(10, 77, 0, last);
        let lease = LeaseRecord {
            mac: mac(1),
            address: address(1),
            expires_unix: 0,
        };
        let table = Addresses::new(&[lease]).with_neighbours(One(address(2), mac(2)));
        for last in 1..=4 {
            table.hear(address(last), mac(4));
        }
        assert_eq!(table.holder(address(1), Some(mac(3))), Some(mac(1)));
        assert_eq!(table.holder(address(2), Some(mac(3))), Some(mac(2)));
        assert_eq!(table.holder(address(3), Some(mac(3))), Some(mac(3)));
        assert_eq!(table.holder(address(3), None), Some(mac(4)));
        assert_eq!(table.holder(address(9), None), None);
    }

    #[test]
    fn hearsay_is_bounded_and_the_oldest_goes_first() {
        let table = Addresses::default();
        let mac = MacAddress([2, 0, 0, 0, 0, 1]);
        let address = |number: usize| Ipv4Addr::from_bits(0x0a00_0000 + u32::try_from(number).unwrap());
        for number in 0..=MAX_HEARD {
            table.hear(address(number), mac);
            table.hear(address(number), mac);
        }
        assert_eq!(table.holder(address(0), None), None);
        assert_eq!(table.holder(address(1), None), Some(mac));
        assert_eq!(table.holder(address(MAX_HEARD), None), Some(mac));
    }
}
