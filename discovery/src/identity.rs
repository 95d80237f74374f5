//! Who a machine is and which boot of it speaks. The identity is the machine's, never its address; it must not be
//! taken for proof: a certificate or a sealed datagram proves.

use core::fmt;

use crate::random::mix;

/// Who a machine is, whatever its address: a hash of the SMBIOS UUID, or of the MAC where the UUID is useless.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub [u8; 16]);

/// UUIDs that vendors left on many boards; two PCs with one of them would be one node.
const USELESS_UUIDS: [&str; 4] = [
    "00000000-0000-0000-0000-000000000000",
    "ffffffff-ffff-ffff-ffff-ffffffffffff",
    "03000200-0400-0500-0006-000700080009",
    "12345678-1234-5678-90ab-cddeefaabbcc",
];

impl NodeId {
    /// From the SMBIOS UUID as text (any case) and the boot NIC's MAC. An empty or useless UUID leaves the MAC.
    ///
    /// 128-bit FNV-1a, finished so that machines bought together do not stand together on the ring; it is no defence
    /// against somebody who wants a collision.
    pub fn of_machine(uuid: &str, mac: [u8; 6]) -> Self {
        let uuid = uuid.trim().to_ascii_lowercase();
        if uuid.is_empty() || USELESS_UUIDS.contains(&uuid.as_str()) {
            Self(fnv128(&[b"mac:".as_slice(), &mac]))
        } else {
            Self(fnv128(&[b"uuid:".as_slice(), uuid.as_bytes()]))
        }
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn fnv128(parts: &[&[u8]]) -> [u8; 16] {
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    for byte in parts.iter().copied().flatten() {
        hash ^= u128::from(*byte);
        hash = hash.wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
    }
    // FNV leaves the first bytes of similar inputs alike.
    let (high, low) = ((hash >> 64) as u64, hash as u64);
    let first = mix(high ^ mix(low));
    let second = mix(low ^ first);
    (u128::from(first) << 64 | u128::from(second)).to_be_bytes()
}

/// One boot of one machine: what takes part in the membership. A later boot beats an earlier one, so a machine that
/// was reset is never taken for its own ghost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Boot {
    /// The machine.
    pub id: NodeId,
    /// Rises with every boot, assigned by the head: far apart, so that an agent that restarts while the head is down
    /// can take the next number itself.
    pub incarnation: u64,
}

impl fmt::Display for Boot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.id, self.incarnation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_bought_together_are_spread_over_the_ring() {
        let mut first: [u32; 16] = [0; 16];
        for last in 0..=255 {
            let id = NodeId::of_machine("", [0x52, 0x54, 0, 1, 2, last]);
            first[usize::from(id.0[0] >> 4)] += 1;
        }
        assert!(first.iter().all(|count| (4..=32).contains(count)), "{first:?}");
    }
}
