//! What one membership datagram says, as bytes. Numbers are big-endian; every byte is accounted for, and what is
//! accepted has one spelling. Who sent it stands outside, in the sealed envelope ([`crate::seal`]): this module must
//! never be fed bytes that nobody vouched for.
//!
//! | bytes | field |
//! |---|---|
//! | 1 | kind |
//! | 1 | flags: bit 0 busy, bit 1 the sender is the head, bit 2 the datagram went to the group |
//! | 4, 4 | the sender's history: epoch, length |
//! | 4 | hash of the sender's roster |
//! | n | what the kind has ([`Kind`]) |
//! | 1 + 33 n | rumours; a suspicion has 16 bytes more (who suspects) |
//! | 1 + 16 n | load entries |

mod codec;
#[cfg(test)]
mod tests;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::SocketAddrV4;

use crate::history::Change;
use crate::identity::{Boot, NodeId};
use crate::load::LoadEntry;

pub(crate) use codec::put_change;

/// Version of these bytes; it stands in the envelope and others are dropped there.
pub const VERSION: u8 = 1;
/// Longest body, in bytes: with the envelope 1,400, which passes every Ethernet unfragmented.
pub const MAX_BODY: usize = 1_400 - crate::seal::OVERHEAD;
/// Most rumours in a datagram: 33 bytes each leave room for the fixed fields.
pub const MAX_RUMORS: usize = 36;
/// Most load entries in a datagram.
pub const MAX_LOADS: usize = 70;
/// Hashes in a [`Kind::Compare`].
pub const BUCKETS: usize = 32;
/// Longest text in a change (name or reason), in bytes.
pub const MAX_TEXT: usize = 48;

/// Whether a member is there, as its peers see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Liveness {
    /// Answers.
    Alive,
    /// Did not answer somebody; has some seconds to say otherwise.
    Suspect,
    /// Did not say otherwise.
    Dead,
    /// Said that it goes.
    Left,
}

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// One of many.
    Node,
    /// The head; which one is pinned by what booted the node.
    Head,
}

/// How closely a member wants to be watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Runs nothing: its crash is known within ten seconds.
    Quiet,
    /// Runs jobs: its crash is known within three.
    Busy,
}

/// Something about a member that travels from mouth to mouth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rumor {
    /// About whom.
    pub boot: Boot,
    /// How often that boot has contradicted a suspicion; a larger number wins.
    pub refutation: u16,
    /// What is said.
    pub liveness: Liveness,
    /// What it is.
    pub role: Role,
    /// Said by somebody who did not hear the head: who hears the head does not believe it.
    pub headless: bool,
    /// Where it is reached.
    pub address: SocketAddrV4,
    /// Who suspects; `None` unless `liveness` is [`Liveness::Suspect`].
    pub by: Option<NodeId>,
}

/// How far a history reaches: since it has one order, its length says everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Digest {
    /// Which history; a head that lost its database begins another. 0: none yet.
    pub epoch: u32,
    /// How many changes.
    pub length: u32,
}

/// What a datagram is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// "I am here, at this address": to the group, to the head, to addresses known from before.
    Hello {
        /// The sender's address.
        address: SocketAddrV4,
    },
    /// "Are you there?"
    Ping {
        /// Repeated in the answer.
        probe: u32,
    },
    /// "I am."
    Ack {
        /// Of the ping.
        probe: u32,
    },
    /// "Ask this one for me."
    Ask {
        /// Repeated in the answer.
        probe: u32,
        /// Whom.
        target: Boot,
        /// Where.
        address: SocketAddrV4,
    },
    /// What came of it.
    Answer {
        /// Of the ask.
        probe: u32,
        /// Whether it answered.
        reached: bool,
    },
    /// Nothing but rumours: pass them on.
    Gossip,
    /// Hashes of the parts of the sender's roster: tell me what differs.
    Compare([u32; BUCKETS]),
    /// Answer to it: rumours that are no news and are not passed on.
    Roster,
    /// Give me the history from this length on.
    Pull {
        /// What the sender has.
        from: u32,
    },
    /// Give me part of a snapshot.
    PullPart {
        /// The length at which it was taken.
        at: u32,
        /// Which part.
        part: u16,
    },
    /// Changes of the history in order.
    Tail {
        /// Place of the first.
        first: u32,
        /// They.
        changes: Vec<Change>,
    },
    /// Part of a snapshot: the latest change of each machine.
    Part {
        /// The length at which it was taken.
        at: u32,
        /// Chain hash of the history at that length.
        chain: u64,
        /// Which part.
        part: u16,
        /// Of how many.
        parts: u16,
        /// They.
        changes: Vec<Change>,
    },
}

/// A decoded datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The sender's.
    pub mode: Mode,
    /// The sender's.
    pub role: Role,
    /// Whether everybody on the link got it.
    pub to_group: bool,
    /// How much of the history the sender has.
    pub history: Digest,
    /// Hash of the sender's roster.
    pub roster: u32,
    /// What for.
    pub kind: Kind,
    /// News.
    pub rumors: Vec<Rumor>,
    /// Loads.
    pub loads: Vec<LoadEntry>,
}

/// Why a datagram, or part of one, was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum Refusal {
    /// Longer than [`MAX_BODY`].
    TooLong,
    /// Ends before its fields.
    TooShort,
    /// Bytes behind its fields.
    Trailing,
    /// Unknown kind.
    Kind,
    /// A flag or number that has no meaning.
    Value,
    /// An id of zeros.
    Id,
    /// An address that cannot be a host's.
    Address,
    /// More entries than a datagram may have.
    Count,
    /// A text that is too long, not UTF-8, or has control characters.
    Text,
    /// From an earlier boot of a machine.
    Ghost,
    /// From a later boot of this very machine, or an echo of our own.
    Own,
    /// No room for another member.
    RosterFull,
    /// The sender calls itself the head and is not the one we know.
    OtherHead,
    /// A death that somebody without the head declared, while we hear the head.
    Headless,
    /// An answer to no question of ours.
    Unasked,
    /// Asked too often.
    Throttled,
    /// Changes that leave a gap, or another history than the head's.
    History,
}

impl Refusal {
    /// Every reason with its name for counters, in the order of the counters.
    pub const ALL: [(Self, &'static str); 17] = [
        (Self::TooLong, "member-too-long"),
        (Self::TooShort, "member-too-short"),
        (Self::Trailing, "member-trailing"),
        (Self::Kind, "member-kind"),
        (Self::Value, "member-value"),
        (Self::Id, "member-id"),
        (Self::Address, "member-address"),
        (Self::Count, "member-count"),
        (Self::Text, "member-text"),
        (Self::Ghost, "member-ghost"),
        (Self::Own, "member-own"),
        (Self::RosterFull, "member-roster-full"),
        (Self::OtherHead, "member-other-head"),
        (Self::Headless, "member-headless"),
        (Self::Unasked, "member-unasked"),
        (Self::Throttled, "member-throttled"),
        (Self::History, "member-history"),
    ];
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLong => "datagram is longer than a membership datagram may be",
            Self::TooShort => "datagram ends before its fields",
            Self::Trailing => "datagram has bytes behind its fields",
            Self::Kind => "datagram is of an unknown kind",
            Self::Value => "datagram has a value without meaning",
            Self::Id => "datagram names a member without id",
            Self::Address => "datagram names an address that cannot be a host's",
            Self::Count => "datagram has more entries than allowed",
            Self::Text => "datagram has a text that is too long or not clean",
            Self::Ghost => "datagram is from an earlier boot of that machine",
            Self::Own => "datagram bears our own identity",
            Self::RosterFull => "too many members are known already",
            Self::OtherHead => "sender calls itself the head and is not ours",
            Self::Headless => "a death declared without the head",
            Self::Unasked => "answer to a question that we did not ask",
            Self::Throttled => "asked more often than we answer",
            Self::History => "changes do not continue our history",
        })
    }
}

impl core::error::Error for Refusal {}

/// How often each [`Refusal`] occurred.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusals([u64; Refusal::ALL.len()]);

impl Refusals {
    /// Counts one.
    pub fn add(&mut self, reason: Refusal) {
        if let Some(count) = self.0.get_mut(reason as usize) {
            *count += 1;
        }
    }

    /// Every reason's name with its count, zero included.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Refusal::ALL
            .iter()
            .map(|(_, name)| *name)
            .zip(self.0.iter().copied())
    }

    /// How often this one occurred.
    pub fn count(&self, reason: Refusal) -> u64 {
        self.0.get(reason as usize).copied().unwrap_or(0)
    }
}

/// `text` without control characters, cut at a character so that it is at most [`MAX_TEXT`] bytes.
pub(crate) fn clean(text: &str) -> String {
    let mut clean = String::new();
    for c in text.chars().map(|c| if c.is_control() { '?' } else { c }) {
        if clean.len() + c.len_utf8() > MAX_TEXT {
            break;
        }
        clean.push(c);
    }
    clean
}
