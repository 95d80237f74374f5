//! One history of the cluster: the head puts every change of a node's state in order, and each node holds a prefix
//! of it. Must never reorder, skip or rewrite a change.

pub mod chronicle;
pub mod damping;
pub mod replica;
#[cfg(test)]
mod tests;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::identity::Boot;
use crate::random::mix;
use crate::wire;

/// The state of a node as users see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum State {
    /// Seen or adopted; not in the cluster.
    Known = 1,
    /// Was answered a boot.
    Booting = 2,
    /// Its agent speaks; it is not judged yet.
    Joining = 3,
    /// Computes.
    Up = 4,
    /// Does not answer its peers.
    Suspect = 5,
    /// Takes no new work.
    Draining = 6,
    /// Hands itself back.
    GoingHome = 7,
    /// In its own system.
    Home = 8,
    /// Silent, and did not say that it goes.
    Lost = 9,
    /// Not let in; the reason says why.
    Refused = 10,
}

impl State {
    /// Every state with its name for users.
    pub const ALL: [(Self, &'static str); 10] = [
        (Self::Known, "known"),
        (Self::Booting, "booting"),
        (Self::Joining, "joining"),
        (Self::Up, "up"),
        (Self::Suspect, "suspect"),
        (Self::Draining, "draining"),
        (Self::GoingHome, "going-home"),
        (Self::Home, "home"),
        (Self::Lost, "lost"),
        (Self::Refused, "refused"),
    ];

    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL
            .iter()
            .map(|(state, _)| *state)
            .find(|state| *state as u8 == byte)
    }

    /// Whether a node in this state is expected to answer its peers.
    pub fn is_present(self) -> bool {
        matches!(
            self,
            Self::Joining | Self::Up | Self::Suspect | Self::Draining | Self::GoingHome
        )
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(state, _)| state == self);
        f.write_str(name.map_or("?", |(_, name)| name))
    }
}

/// One line of the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Which boot of which machine. A machine that is not in the cluster has the incarnation of its last boot, or 0.
    pub boot: Boot,
    /// Its state from here on.
    pub state: State,
    /// Since when, in milliseconds since 1970, by the head's clock.
    pub at_unix_ms: u64,
    /// Its name; empty until it has one.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// Hash of a history that is empty.
pub const CHAIN_START: u64 = 0x6369_6420_6869_7374;

/// Hash of a history with `change` behind one whose hash is `chain`: equal hashes at equal lengths are equal
/// histories. No defence against somebody who wants a collision; the members' seal is.
pub fn link(chain: u64, change: &Change) -> u64 {
    let mut bytes = Vec::with_capacity(96);
    wire::put_change(&mut bytes, change);
    bytes.chunks(8).fold(mix(chain), |hash, chunk| {
        let mut word = [0; 8];
        word.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
        mix(hash ^ u64::from_be_bytes(word)).wrapping_add(chunk.len() as u64)
    })
}

/// Bytes of a change on the wire, without its texts.
const CHANGE_FIXED: usize = 16 + 8 + 1 + 8 + 2;
/// Room for changes in a datagram: the body without header, the kind's fields, and two empty lists.
const CHANGES_ROOM: usize = wire::MAX_BODY - 14 - 17 - 2;

/// How many of `changes`, from the first on, fit one datagram.
pub(crate) fn fitting<'a>(changes: impl Iterator<Item = &'a Change>) -> usize {
    let mut room = CHANGES_ROOM;
    changes
        .take(usize::from(u8::MAX))
        .take_while(|change| {
            let size = CHANGE_FIXED + change.name.len() + change.reason.len();
            let fits = size <= room;
            room = room.saturating_sub(size);
            fits
        })
        .count()
}
