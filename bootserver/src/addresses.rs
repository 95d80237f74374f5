//! Which machine holds an address: written by the DHCP shell, read by TFTP and HTTP.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{PoisonError, RwLock};

use crate::dhcp::leases::LeaseRecord;
use crate::machine::MacAddress;

/// The table. As large as the leases are.
#[derive(Debug, Default)]
pub struct Addresses(RwLock<BTreeMap<Ipv4Addr, MacAddress>>);

impl Addresses {
    /// What the disk remembers.
    pub fn new(records: &[LeaseRecord]) -> Self {
        Self(RwLock::new(
            records
                .iter()
                .map(|record| (record.address, record.mac))
                .collect(),
        ))
    }

    /// Who holds `address`.
    pub fn holder(&self, address: Ipv4Addr) -> Option<MacAddress> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&address)
            .copied()
    }

    /// A lease was granted.
    pub fn insert(&self, record: LeaseRecord) {
        let mut map = self.0.write().unwrap_or_else(PoisonError::into_inner);
        map.insert(record.address, record.mac);
    }
}
