//! How a root image gets to the nodes: what the head promises, what a node reports, whom it may ask, and what nodes ask one another.
//! Nobody is believed for it: the manifest is signed, and each chunk is checked against the tree that the manifest names (`cid-content`).
//!
//! - The promise comes with [`crate::node::Welcome`].
//! - The tree and the chunks come from the head by HTTP/1.1 at [`tree_path`] and [`chunks_path`], a chunk by one `Range`, and only
//!   those that the head gave a ticket for ([`RootOrder::Tickets`]).
//! - Chunks come from other nodes over their door ([`crate::NODE_PORT`], mutual TLS): one question at a time on a connection. Behind
//!   the frame of [`RootAnswer::Chunk`] follow that many raw bytes, then the next frame.
//!
//! A set of chunks travels as base64 (RFC 4648, section 4) of a bit for each, the first in the highest bit of the first byte.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// Peers in one [`RootOrder::Peers`].
pub const MAX_ROOT_PEERS: usize = 16;
/// Chunks in one [`RootOrder::Tickets`].
pub const MAX_TICKETS: usize = 16;
/// Bytes of all [`RootPromise::files`] of one node: a welcome is one frame.
pub const MAX_ROOT_FILES: usize = 24 * 1024;
/// Longest time that a node may let another wait for [`RootAnswer::Have`], in milliseconds.
pub const MAX_WAIT_MS: u32 = 5_000;

/// Where the head serves the hash tree of this root (64 hexadecimal digits).
pub fn tree_path(tree: &str) -> String {
    format!("/root/{tree}/tree")
}

/// Where the head serves the image whose tree has this root.
pub fn chunks_path(tree: &str) -> String {
    format!("/root/{tree}/chunks")
}

/// The head's word of what a node shall run, given with its welcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootPromise {
    /// Name and version, `compute@3`.
    pub image: String,
    /// A manifest with a lower one is refused.
    pub sequence: u64,
    /// The signed manifest (`cid_content::Signed`), base64.
    pub manifest: String,
    /// What this node alone has, written into the root before its services start; at most [`MAX_ROOT_FILES`] bytes in all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<RootFile>,
}

/// A file that the head made from a template of the image (`NAME.node.tera`) for one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFile {
    /// Below the root, without a slash in front.
    pub path: String,
    /// Permission bits; it belongs to root.
    pub mode: u32,
    /// Its content.
    pub text: String,
}

/// From a node whose welcome held a promise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "root", rename_all = "kebab-case")]
pub enum RootReport {
    /// How far it is, in bytes that were checked; at most every second.
    Fetching {
        /// As [`RootPromise::image`].
        image: String,
        /// Bytes it has.
        have: u64,
        /// Bytes of the whole.
        of: u64,
        /// What it waits for, in plain words; empty while bytes come.
        #[serde(default)]
        waits: String,
    },
    /// It has mounted it, and waits for what the image needs to work: its services, as its health command sees them.
    Checking {
        /// As [`RootPromise::image`].
        image: String,
        /// How the health command ended last, in plain words; empty while it runs for the first time.
        #[serde(default)]
        says: String,
    },
    /// It would fetch from the head, and says what it has. The head answers when it is its turn, not before. Sent again after each
    /// use of the tickets, when it has become short of peers, and after each welcome.
    Wish(RootWish),
    /// It serves this tree whole, and is `up` once the head knows. Sent again after each welcome.
    Mounted {
        /// As [`RootPromise::image`].
        image: String,
        /// As in its manifest.
        sequence: u64,
        /// Root of its tree, 64 hexadecimal digits.
        tree: String,
        /// The most memory that was in use until it was mounted, in KiB (docs/recipes.md says what counts); 0 where that is not known.
        #[serde(default)]
        peak_kib: u64,
    },
    /// It does not run what was promised.
    Refused {
        /// As [`RootPromise::image`].
        image: String,
        /// Word for the counter (`manifest-older`, `memory`, `mount`).
        counter: String,
        /// Plain words with figures.
        reason: String,
    },
    /// What the head gave was not the chunk when it arrived; it was thrown away and asked for again.
    WrongChunk {
        /// Which chunk.
        chunk: u32,
        /// Plain words.
        reason: String,
    },
    /// A peer gave bytes that are not the chunk; this node asks it for nothing more.
    BadPeer {
        /// The peer's name, as in [`RootPeer`].
        peer: String,
        /// Which chunk.
        chunk: u32,
        /// Plain words.
        reason: String,
    },
}

/// See [`RootReport::Wish`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RootWish {
    /// Root of the tree, 64 hexadecimal digits.
    pub tree: String,
    /// The chunks it has, all checked.
    pub have: String,
    /// How many chunks it would fetch from the head at a time, at most [`MAX_TICKETS`]; 0: only peers are asked for.
    pub tickets: u32,
    /// How many peers it is short of, at most [`MAX_ROOT_PEERS`].
    pub peers: u32,
    /// It has waited in vain for its peers: the head may give it what others have already.
    #[serde(default)]
    pub starving: bool,
    /// Chunks that it still fetches by earlier tickets; the others of its tickets are free again.
    #[serde(default)]
    pub using: Vec<u32>,
}

/// From the head to a node that fetches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "root", rename_all = "kebab-case")]
pub enum RootOrder {
    /// It may fetch these chunks from the head now.
    Tickets {
        /// Root of the tree.
        tree: String,
        /// At most [`MAX_TICKETS`].
        chunks: Vec<u32>,
        /// After this time, in milliseconds, the head gives them to somebody else.
        valid_ms: u32,
    },
    /// Nodes that have chunks of it or fetch them, too.
    Peers {
        /// Root of the tree.
        tree: String,
        /// At most [`MAX_ROOT_PEERS`]; new ones, in addition to those of earlier orders.
        peers: Vec<RootPeer>,
    },
    /// The wish was read and cannot be met.
    No {
        /// Root of the tree.
        tree: String,
        /// Plain words.
        reason: String,
    },
}

/// A node that may be asked for chunks at its door.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootPeer {
    /// Its name.
    pub name: String,
    /// Its id, which its certificate must show.
    pub id: String,
    /// Its address.
    pub address: Ipv4Addr,
}

/// From one node to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "root", rename_all = "kebab-case")]
pub enum RootQuestion {
    /// What do you have? Answered when it is more than was told on this connection last, at the latest after `wait_ms`.
    Have {
        /// Root of the tree.
        tree: String,
        /// At most [`MAX_WAIT_MS`].
        wait_ms: u32,
    },
    /// Give me this chunk.
    Chunk {
        /// Root of the tree.
        tree: String,
        /// Which.
        chunk: u32,
    },
}

/// From a node that was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "root", rename_all = "kebab-case")]
pub enum RootAnswer {
    /// The chunks it has.
    Have {
        /// Of the tree that was asked for.
        have: String,
    },
    /// The chunk's raw bytes follow behind this frame.
    Chunk {
        /// As asked.
        chunk: u32,
        /// How many.
        bytes: u32,
        /// As in [`RootAnswer::Have`]: news come with each chunk.
        have: String,
    },
    /// It gives as much as it may already.
    Busy {
        /// Ask again after this time.
        after_ms: u32,
    },
    /// It does not have the chunk, or runs something else.
    Missing,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{FromNode, ToNode, Welcome};
    use crate::peer::{FromPeer, ToPeer};

    #[test]
    fn a_promise_does_not_disturb_older_welcomes() {
        let older = r#"{"type":"welcome","name":"a","group":"g","time_unix_ms":1,"bail_out_secs":600,"patience_secs":60}"#;
        let ToNode::Welcome(welcome) = serde_json::from_str(older).unwrap() else {
            panic!("it is one");
        };
        assert_eq!(welcome.root, None);
        assert!(!serde_json::to_string(&welcome).unwrap().contains("root"));
        let promise = RootPromise {
            image: "compute@3".into(),
            sequence: 7,
            manifest: "AAAA".into(),
            files: vec![RootFile {
                path: "etc/rack".into(),
                mode: 0o644,
                text: "7\n".into(),
            }],
        };
        let welcome = Welcome {
            root: Some(Box::new(promise)),
            ..welcome
        };
        let text = serde_json::to_string(&welcome).unwrap();
        assert_eq!(serde_json::from_str::<Welcome>(&text).unwrap(), welcome);
    }

    #[test]
    fn messages_as_they_travel() {
        let text = r#"{"type":"root","root":"wish","tree":"ab","have":"gA==","tickets":4,"peers":8,"starving":false,"using":[]}"#;
        let wish = RootWish {
            tree: "ab".into(),
            have: "gA==".into(),
            tickets: 4,
            peers: 8,
            starving: false,
            using: Vec::new(),
        };
        let message = FromNode::Root(RootReport::Wish(wish));
        assert_eq!(serde_json::to_string(&message).unwrap(), text);
        assert_eq!(serde_json::from_str::<FromNode>(text).unwrap(), message);
        let text = r#"{"type":"root","root":"tickets","tree":"ab","chunks":[3],"valid_ms":5000}"#;
        let order = serde_json::from_str::<ToNode>(text).unwrap();
        assert_eq!(serde_json::to_string(&order).unwrap(), text);
        // A peer's door takes questions of 256 bytes.
        let tree = "f".repeat(64);
        let question = RootQuestion::Chunk {
            tree,
            chunk: u32::MAX,
        };
        let text = serde_json::to_string(&ToPeer::Root(question)).unwrap();
        assert!(text.len() < 200, "{text}");
        let text = r#"{"type":"root","root":"missing"}"#;
        let answer = FromPeer::Root(RootAnswer::Missing);
        assert_eq!(serde_json::from_str::<FromPeer>(text).unwrap(), answer);
    }
}
