//! Who holds which address. A state machine without clock, socket or disk; times are Unix seconds given by the caller.
//!
//! A machine is its MAC address: firmware, Linux and Windows of one PC use different client identifiers and still
//! share one address. A lease is a promise and outlives a crash: it is granted by [`LeaseTable::grant`], whose record
//! must be on disk before the client hears of it. An offer is no promise and is forgotten soon.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use crate::machine::MacAddress;

/// How long an offered address is kept for the machine it was offered to, in seconds.
pub const OFFER_SECS: u64 = 60;
/// How long an address that a client declined is not given out, in seconds.
pub const QUARANTINE_SECS: u64 = 600;
/// Offers kept at a time. A stranger who invents MAC addresses can hold no more than these, for [`OFFER_SECS`].
/// Firmware gathers offers for 4 s before it takes one: so many PCs may be switched on together.
pub const MAX_OFFERS: usize = 4096;

/// A promise, as it is kept on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseRecord {
    /// Holder.
    pub mac: MacAddress,
    /// Address.
    pub address: Ipv4Addr,
    /// When it ends, Unix seconds. The record stays after that: the PC finds its address again.
    pub expires_unix: u64,
}

/// Why no address can be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum NoAddress {
    /// Every address of the range is leased, offered or in quarantine.
    #[error("dhcp-range-exhausted")]
    Exhausted,
    /// Too many offers are open.
    #[error("dhcp-too-many-offers")]
    TooManyOffers,
}

#[derive(Debug, Clone, Copy)]
struct Offer {
    address: Ipv4Addr,
    expires_unix: u64,
}

/// The table.
#[derive(Debug, Clone)]
pub struct LeaseTable {
    first: u32,
    last: u32,
    own: Ipv4Addr,
    leases: BTreeMap<MacAddress, LeaseRecord>,
    holders: BTreeMap<Ipv4Addr, MacAddress>,
    offers: BTreeMap<MacAddress, Offer>,
    offered: BTreeMap<Ipv4Addr, MacAddress>,
    quarantine: BTreeMap<Ipv4Addr, u64>,
    /// Until when, Unix seconds, offers and quarantine have been looked through.
    swept_unix: u64,
}

impl LeaseTable {
    /// A table for the addresses `first` to `last`, both included, with what the disk remembers. `own` is never given out.
    pub fn new(first: Ipv4Addr, last: Ipv4Addr, own: Ipv4Addr, records: &[LeaseRecord]) -> Self {
        let mut table = Self {
            first: u32::from(first),
            last: u32::from(last),
            own,
            leases: BTreeMap::new(),
            holders: BTreeMap::new(),
            offers: BTreeMap::new(),
            offered: BTreeMap::new(),
            quarantine: BTreeMap::new(),
            swept_unix: 0,
        };
        for record in records {
            table.remember(*record);
        }
        table
    }

    /// The address `mac` holds, expired or not.
    pub fn address_of(&self, mac: MacAddress) -> Option<Ipv4Addr> {
        self.leases.get(&mac).map(|lease| lease.address)
    }

    /// Who holds `address`.
    pub fn holder(&self, address: Ipv4Addr) -> Option<MacAddress> {
        self.holders.get(&address).copied()
    }

    /// Leases, offers and quarantined addresses held.
    pub fn sizes(&self) -> (usize, usize, usize) {
        (self.leases.len(), self.offers.len(), self.quarantine.len())
    }

    /// Picks an address to offer: the machine's own, the one it asks for, a free one, the longest expired one.
    pub fn offer(
        &mut self,
        now: u64,
        mac: MacAddress,
        wish: Option<Ipv4Addr>,
    ) -> Result<Ipv4Addr, NoAddress> {
        self.forget_old(now);
        if let Some(address) = self.running_lease(now, mac) {
            // The lease keeps the address for it as well as an offer would, and takes no room from others.
            self.drop_offer(mac);
            return Ok(address);
        }
        let address = self
            .address_of(mac)
            .filter(|address| self.in_range(*address) && !self.quarantine.contains_key(address))
            .or_else(|| self.offers.get(&mac).map(|offer| offer.address))
            .or_else(|| wish.filter(|address| self.is_free_for(now, *address, mac)))
            .or_else(|| self.free_address(mac))
            .or_else(|| self.longest_expired(now))
            .ok_or(NoAddress::Exhausted)?;
        if !self.offers.contains_key(&mac) && self.offers.len() >= MAX_OFFERS {
            return Err(NoAddress::TooManyOffers);
        }
        self.drop_offer(mac);
        self.offers.insert(
            mac,
            Offer {
                address,
                expires_unix: now + OFFER_SECS,
            },
        );
        self.offered.insert(address, mac);
        Ok(address)
    }

    /// Whether `mac` may have `address`: it is in the range, and nobody else holds it or was offered it.
    pub fn may_have(&self, now: u64, mac: MacAddress, address: Ipv4Addr) -> bool {
        if self
            .address_of(mac)
            .is_some_and(|held| held != address && self.in_range(held))
        {
            // One machine, one address: it is to ask again and get its own.
            return self
                .offers
                .get(&mac)
                .is_some_and(|offer| offer.address == address);
        }
        self.is_free_for(now, address, mac)
    }

    /// Promises `address` to `mac` until `expires_unix`. The caller checked [`may_have`](Self::may_have), and writes the
    /// record before it tells the client.
    pub fn grant(&mut self, mac: MacAddress, address: Ipv4Addr, expires_unix: u64) -> LeaseRecord {
        let record = LeaseRecord {
            mac,
            address,
            expires_unix,
        };
        self.drop_offer(mac);
        self.remember(record);
        record
    }

    /// The client gives its address back; it keeps its claim to the same one. `None` when it does not hold it.
    pub fn release(&mut self, now: u64, mac: MacAddress, address: Ipv4Addr) -> Option<LeaseRecord> {
        let lease = self
            .leases
            .get_mut(&mac)
            .filter(|lease| lease.address == address)?;
        lease.expires_unix = lease.expires_unix.min(now);
        Some(*lease)
    }

    /// The client found somebody else using `address`: nobody gets it for a while. `false` when it was not this
    /// client's: a stranger cannot empty the range by declining.
    pub fn decline(&mut self, now: u64, mac: MacAddress, address: Ipv4Addr) -> bool {
        let held = self.address_of(mac) == Some(address);
        let offered = self
            .offers
            .get(&mac)
            .is_some_and(|offer| offer.address == address);
        if !held && !offered {
            return false;
        }
        self.drop_offer(mac);
        self.quarantine.insert(address, now + QUARANTINE_SECS);
        true
    }

    /// The client chose another server.
    pub fn drop_offer(&mut self, mac: MacAddress) {
        if let Some(offer) = self.offers.remove(&mac) {
            self.offered.remove(&offer.address);
        }
    }

    fn running_lease(&self, now: u64, mac: MacAddress) -> Option<Ipv4Addr> {
        let lease = self.leases.get(&mac).filter(|lease| lease.expires_unix > now)?;
        let usable = self.in_range(lease.address) && !self.quarantine.contains_key(&lease.address);
        usable.then_some(lease.address)
    }

    fn remember(&mut self, record: LeaseRecord) {
        if let Some(old) = self.leases.insert(record.mac, record) {
            self.holders.remove(&old.address);
        }
        if let Some(evicted) = self.holders.insert(record.address, record.mac) {
            self.leases.remove(&evicted);
        }
    }

    fn in_range(&self, address: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&u32::from(address)) && address != self.own
    }

    fn is_free_for(&self, now: u64, address: Ipv4Addr, mac: MacAddress) -> bool {
        let others_lease = self.holders.get(&address).filter(|holder| **holder != mac);
        let expired = |holder: &MacAddress| {
            self.leases
                .get(holder)
                .is_none_or(|lease| lease.expires_unix <= now)
        };
        self.in_range(address)
            && others_lease.is_none_or(expired)
            && self.offered.get(&address).is_none_or(|to| *to == mac)
            && self.quarantine.get(&address).is_none_or(|until| *until <= now)
    }

    /// An address that nobody ever held, searched from a place that depends on the MAC only, so that a machine
    /// whose record was lost probably finds its old address.
    fn free_address(&self, mac: MacAddress) -> Option<Ipv4Addr> {
        let size = self.last.checked_sub(self.first)?.checked_add(1)?;
        // FNV-1a: any spread will do, it only must not change between versions.
        let hash = mac.0.iter().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
        });
        (0..size)
            .map(|step| Ipv4Addr::from(self.first + (hash % size + step) % size))
            .find(|address| {
                *address != self.own
                    && !self.holders.contains_key(address)
                    && !self.offered.contains_key(address)
                    && !self.quarantine.contains_key(address)
            })
    }

    fn longest_expired(&self, now: u64) -> Option<Ipv4Addr> {
        self.leases
            .values()
            .filter(|lease| lease.expires_unix <= now && self.in_range(lease.address))
            .filter(|lease| {
                !self.offered.contains_key(&lease.address) && !self.quarantine.contains_key(&lease.address)
            })
            .min_by_key(|lease| lease.expires_unix)
            .map(|lease| lease.address)
    }

    /// Once a second at most: nothing more can have ended, and in a storm the table is long.
    fn forget_old(&mut self, now: u64) {
        if now == self.swept_unix {
            return;
        }
        self.swept_unix = now;
        let Self {
            offers,
            offered,
            quarantine,
            ..
        } = self;
        offers.retain(|_, offer| {
            let keep = offer.expires_unix > now;
            if !keep {
                offered.remove(&offer.address);
            }
            keep
        });
        quarantine.retain(|_, until| *until > now);
    }
}
