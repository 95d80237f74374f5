//! The JSON of one frame of a node connection, in both directions.
#![no_main]

use libfuzzer_sys::fuzz_target;
use cid_protocol::node::{FromNode, ToNode};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = serde_json::from_slice::<FromNode>(bytes) {
        serde_json::to_vec(&message).expect("what was read can be written");
    }
    if let Ok(message) = serde_json::from_slice::<ToNode>(bytes) {
        serde_json::to_vec(&message).expect("what was read can be written");
    }
});
