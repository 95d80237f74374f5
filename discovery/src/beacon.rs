//! One beacon is one datagram. Numbers are big-endian.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `CIDb` |
//! | 4 | 1 | version, [`VERSION`] |
//! | 5 | 1 | [`NodeState`] |
//! | 6 | 16 | [`NodeId`] |
//! | 22 | 8 | incarnation: rises with every boot |
//! | 30 | 4 | sequence: rises with every beacon of an incarnation |
//! | 34 | 2 | load average of one minute, in hundredths, saturating |
//! | 36 | 4 | memory available, in MiB |
//! | 40 | 4 | IPv4 address |
//! | 44 | 1 | length of the name in bytes, at most [`MAX_NAME`]; 0 until the head gave one |
//! | 45 | n | name, UTF-8 without control characters |

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::Ipv4Addr;

pub use crate::identity::NodeId;

/// Version of the datagram. Others are rejected.
pub const VERSION: u8 = 1;
/// Longest beacon that is ever sent or accepted, in bytes.
pub const MAX_BEACON: usize = 256;
/// Longest name, in bytes.
pub const MAX_NAME: usize = 64;
/// Bytes before the name.
const FIXED: usize = 45;
const MAGIC: [u8; 4] = *b"CIDb";

/// What a node says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeState {
    /// Has an address; the head has not welcomed it.
    Joining,
    /// Welcomed.
    Up,
    /// Draining or rebooting into its own system.
    GoingHome,
}

impl NodeState {
    fn to_byte(self) -> u8 {
        match self {
            Self::Joining => 1,
            Self::Up => 2,
            Self::GoingHome => 3,
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Joining),
            2 => Some(Self::Up),
            3 => Some(Self::GoingHome),
            _ => None,
        }
    }
}

/// A decoded beacon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beacon {
    /// State.
    pub state: NodeState,
    /// Who.
    pub id: NodeId,
    /// Which boot of it; a later boot has a larger one.
    pub incarnation: u64,
    /// Which beacon of this boot.
    pub sequence: u32,
    /// One-minute load average, in hundredths.
    pub load_hundredths: u16,
    /// `MemAvailable`, in MiB.
    pub memory_available_mib: u32,
    /// Address of the node's link to the head.
    pub address: Ipv4Addr,
    /// Name; empty until the head gave one.
    pub name: String,
}

/// Why a datagram was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum Reject {
    /// Shorter than the fixed fields.
    TooShort,
    /// Longer than [`MAX_BEACON`].
    TooLong,
    /// Not a beacon.
    Magic,
    /// A beacon of another version.
    Version,
    /// Unknown state.
    State,
    /// The id is all zero.
    Id,
    /// The address cannot be a host's.
    Address,
    /// The name's length disagrees with the datagram's, or is above [`MAX_NAME`].
    NameLength,
    /// The name is not UTF-8 or holds control characters.
    NameText,
    /// It came from another address than it claims (listener).
    Source,
    /// Older than, or the same as, what was heard before (listener).
    Stale,
    /// No room for another node (listener).
    TableFull,
}

impl Reject {
    /// Every reason, in the order of the counters.
    pub const ALL: [Self; 12] = [
        Self::TooShort,
        Self::TooLong,
        Self::Magic,
        Self::Version,
        Self::State,
        Self::Id,
        Self::Address,
        Self::NameLength,
        Self::NameText,
        Self::Source,
        Self::Stale,
        Self::TableFull,
    ];

    /// Kebab-case name for counters.
    pub fn name(self) -> &'static str {
        match self {
            Self::TooShort => "beacon-too-short",
            Self::TooLong => "beacon-too-long",
            Self::Magic => "beacon-magic",
            Self::Version => "beacon-version",
            Self::State => "beacon-state",
            Self::Id => "beacon-id",
            Self::Address => "beacon-address",
            Self::NameLength => "beacon-name-length",
            Self::NameText => "beacon-name-text",
            Self::Source => "beacon-source",
            Self::Stale => "beacon-stale",
            Self::TableFull => "beacon-table-full",
        }
    }
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooShort => "beacon ends before its fixed fields",
            Self::TooLong => "beacon is longer than 256 bytes",
            Self::Magic => "datagram is not a beacon",
            Self::Version => "beacon is of another version",
            Self::State => "beacon has an unknown state",
            Self::Id => "beacon has no node id",
            Self::Address => "beacon's address cannot be a host's",
            Self::NameLength => "beacon's name has the wrong length",
            Self::NameText => "beacon's name is not clean text",
            Self::Source => "beacon came from another address than it claims",
            Self::Stale => "beacon is older than one already heard",
            Self::TableFull => "too many nodes are heard already",
        })
    }
}

impl core::error::Error for Reject {}

/// How often each [`Reject`] occurred.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rejects([u64; Reject::ALL.len()]);

impl Rejects {
    /// Counts one.
    pub fn add(&mut self, reason: Reject) {
        if let Some(count) = self.0.get_mut(reason as usize) {
            *count += 1;
        }
    }

    /// Every reason with its count, zero included.
    pub fn iter(&self) -> impl Iterator<Item = (Reject, u64)> + '_ {
        Reject::ALL.into_iter().zip(self.0.iter().copied())
    }
}

impl Beacon {
    /// The datagram. A name above [`MAX_NAME`] is cut at a character; control characters become `?`.
    pub fn encode(&self) -> Vec<u8> {
        let mut name = String::new();
        for c in self.name.chars().map(|c| if c.is_control() { '?' } else { c }) {
            if name.len() + c.len_utf8() > MAX_NAME {
                break;
            }
            name.push(c);
        }
        let mut bytes = Vec::with_capacity(FIXED + name.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.push(VERSION);
        bytes.push(self.state.to_byte());
        bytes.extend_from_slice(&self.id.0);
        bytes.extend_from_slice(&self.incarnation.to_be_bytes());
        bytes.extend_from_slice(&self.sequence.to_be_bytes());
        bytes.extend_from_slice(&self.load_hundredths.to_be_bytes());
        bytes.extend_from_slice(&self.memory_available_mib.to_be_bytes());
        bytes.extend_from_slice(&self.address.octets());
        bytes.push(u8::try_from(name.len()).unwrap_or(0));
        bytes.extend_from_slice(name.as_bytes());
        bytes
    }

    /// Reads a datagram; every byte is accounted for.
    pub fn decode(bytes: &[u8]) -> Result<Self, Reject> {
        if bytes.len() > MAX_BEACON {
            return Err(Reject::TooLong);
        }
        let mut rest = bytes;
        if take(&mut rest)? != MAGIC {
            return Err(Reject::Magic);
        }
        let [version] = take(&mut rest)?;
        if version != VERSION {
            return Err(Reject::Version);
        }
        let [state] = take(&mut rest)?;
        let id = NodeId(take(&mut rest)?);
        let incarnation = u64::from_be_bytes(take(&mut rest)?);
        let sequence = u32::from_be_bytes(take(&mut rest)?);
        let load_hundredths = u16::from_be_bytes(take(&mut rest)?);
        let memory_available_mib = u32::from_be_bytes(take(&mut rest)?);
        let address = Ipv4Addr::from(take::<4>(&mut rest)?);
        let [name_length] = take(&mut rest)?;

        let state = NodeState::from_byte(state).ok_or(Reject::State)?;
        if id.0 == [0; 16] {
            return Err(Reject::Id);
        }
        if address.is_unspecified()
            || address.is_multicast()
            || address.is_broadcast()
            || address.is_loopback()
        {
            return Err(Reject::Address);
        }
        if usize::from(name_length) > MAX_NAME || usize::from(name_length) != rest.len() {
            return Err(Reject::NameLength);
        }
        let name = core::str::from_utf8(rest).map_err(|_| Reject::NameText)?;
        if name.chars().any(char::is_control) {
            return Err(Reject::NameText);
        }
        let name = String::from(name);
        Ok(Self {
            state,
            id,
            incarnation,
            sequence,
            load_hundredths,
            memory_available_mib,
            address,
            name,
        })
    }
}

/// The next `N` bytes.
fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], Reject> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or(Reject::TooShort)?;
    *rest = tail;
    Ok(*head)
}

#[cfg(test)]
mod tests;
