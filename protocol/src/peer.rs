//! What a node tells an administrator who asks it on [`crate::NODE_PORT`] (TCP, mutual TLS, frames as in [`crate::node`]): who is
//! there, as far as this node knows. Read-only; it works while the head is down.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Rows in one [`FromPeer::Nodes`]; more come in further frames.
pub const MAX_ROWS: usize = 100;

/// To the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum ToPeer {
    /// Who is there?
    Nodes,
    /// What is the way to you worth? Asked by a node that is about to join; filler is only given, never taken.
    Measure(crate::measure::Probe),
    /// Of a root image's chunks. Asked by nodes only.
    Root(crate::root::RootQuestion),
}

/// From the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum FromPeer {
    /// A part of the answer to [`ToPeer::Nodes`].
    Nodes(PeerNodes),
    /// Answer to [`ToPeer::Measure`].
    Measure(crate::measure::Answer),
    /// Answer to [`ToPeer::Root`].
    Root(crate::root::RootAnswer),
    /// No answer; the node closes.
    Refused {
        /// Plain words.
        reason: String,
    },
}

/// Who is there, in parts of [`MAX_ROWS`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerNodes {
    /// Who says so.
    pub from: Teller,
    /// Machines of the history and members that this node knows, by name.
    pub nodes: Vec<PeerRow>,
    /// Another part follows.
    #[serde(default)]
    pub more: bool,
}

/// The node that answers, and how much its word is worth.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Teller {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: String,
    /// Its head's address.
    pub head: String,
    /// Milliseconds since it last heard its head, by datagram or connection.
    pub head_heard_ms: u64,
    /// Which history it holds; 0: none yet.
    pub history_epoch: u32,
    /// How many changes of it.
    pub history_length: u32,
    /// Datagrams that came to its port.
    #[serde(default)]
    pub received: u64,
    /// Those of them that it did not take, by reason; beacons are `seal-magic`.
    #[serde(default)]
    pub drops: BTreeMap<String, u64>,
}

/// One machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PeerRow {
    /// Its name; empty until this node has learned it.
    pub name: String,
    /// Its id, 32 hexadecimal digits.
    pub id: String,
    /// State as `cidctl nodes` shows it.
    pub state: String,
    /// Where it was last heard; `None` for a machine that is no member.
    pub address: Option<String>,
    /// Since when, Unix time in milliseconds.
    pub since_unix_ms: Option<u64>,
    /// Why.
    pub reason: String,
    /// Whether the head's history says so, or only this node's own eyes.
    pub by_head: bool,
}
