//! What a node measures before it joins, and the messages by which it does.
//!
//! Before its hello a node may ask over the same connection, and another node over that one's: echoes one after the
//! other give the round-trip time, a few bursts of filler each way the bandwidth, the kernel's own counts the loss.
//! The other side only answers, and bounds what it answers.

use serde::{Deserialize, Serialize};

/// Echoes that are answered on one connection.
pub const MAX_ECHOES: u32 = 64;
/// Longest burst, in bytes of filler.
pub const MAX_BURST: u32 = 1024 * 1024;
/// Filler on one connection, in bytes, each way.
pub const MAX_BULK: u32 = 2 * 1024 * 1024;
/// Filler in one frame, in bytes.
pub const FILLER: u32 = 8 * 1024;
/// Filler that a node gives to another, in bytes, on one connection.
pub const MAX_PEER_BULK: u32 = 512 * 1024;
/// Peers that a node measures the way to.
pub const PEERS: usize = 2;

/// From the one who measures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "probe", rename_all = "kebab-case")]
pub enum Probe {
    /// To be answered at once by [`Answer::Echo`].
    Echo {
        /// Told back.
        number: u32,
    },
    /// Asks for a turn at measuring bandwidth; only few may at a time. Answered by [`Answer::Turn`].
    Ask,
    /// Asks for this many bytes of filler.
    Give {
        /// At most [`MAX_BURST`].
        bytes: u32,
    },
    /// A part of a burst; behind the last one [`Answer::Took`] is due.
    Filler(Filler),
    /// The turn is over.
    Done,
    /// Asks the head which nodes to measure the ways to. Answered by [`Answer::Peers`].
    Peers,
    /// Asks what the other kernel sent over this connection. Answered by [`Answer::Counts`].
    Counts,
}

/// From the one who is measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// To [`Probe::Echo`].
    Echo {
        /// As asked.
        number: u32,
    },
    /// To [`Probe::Ask`].
    Turn {
        /// Whether bandwidth may be measured now.
        granted: bool,
    },
    /// To [`Probe::Give`].
    Filler(Filler),
    /// The whole of a burst has come.
    Took {
        /// Filler in it.
        bytes: u32,
    },
    /// To [`Probe::Peers`].
    Peers {
        /// IPv4 addresses of nodes that are in, at most [`PEERS`].
        addresses: Vec<std::net::Ipv4Addr>,
    },
    /// To [`Probe::Counts`].
    Counts(Segments),
}

/// Bytes that mean nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filler {
    /// At most [`FILLER`] bytes.
    pub text: String,
    /// No more of this burst follows.
    pub last: bool,
}

impl Filler {
    /// The next part of a burst of which `left` bytes are still to be sent.
    pub fn of(left: u32) -> Self {
        let length = left.min(FILLER);
        Self {
            text: "x".repeat(length as usize),
            last: length == left,
        }
    }
}

/// What a node measured of itself and of the ways from it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Measured {
    /// Speed of one CPU: 1.0 = 100 million steps a second of a loop of a multiplication and a dependent load from 1 MiB.
    pub cpu_speed: Option<f32>,
    /// The way to the head.
    pub head: Path,
    /// Ways to other nodes, at most [`PEERS`].
    #[serde(default)]
    pub peers: Vec<PeerPath>,
    /// What all of it added to the time until the node joined, in milliseconds.
    pub took_ms: u32,
}

/// A way to another machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Path {
    /// Echoes that came back.
    pub echoes: u32,
    /// Median of their round-trip times, in microseconds.
    pub round_trip_us: Option<u32>,
    /// The worst of them.
    pub worst_us: Option<u32>,
    /// Towards the node, in kbit/s of filler.
    pub to_node_kbit: Option<u32>,
    /// From the node, in kbit/s of filler.
    pub from_node_kbit: Option<u32>,
    /// Why bandwidth was not measured; empty when it was.
    #[serde(default)]
    pub skipped: String,
    /// What the node's kernel sent on this connection.
    #[serde(default)]
    pub sent: Segments,
    /// What the other side's kernel sent on it.
    #[serde(default)]
    pub received: Segments,
}

/// A way to another node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PeerPath {
    /// Its address.
    pub address: String,
    /// The way.
    pub path: Path,
}

/// TCP segments with data, as the kernel that sent them counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Segments {
    /// All of them, the repeated ones too.
    pub all: u32,
    /// Sent again because the first did not arrive.
    pub again: u32,
}
