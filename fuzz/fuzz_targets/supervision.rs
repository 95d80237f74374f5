//! A line between PID 1 and the agent.
#![no_main]

use libfuzzer_sys::fuzz_target;
use cid_protocol::supervision::{FromAgent, FromInit, MAX_LINE};

fuzz_target!(|line: &str| {
    if let Some(message) = FromAgent::parse(line) {
        let line = message.to_line();
        assert!(line.len() < MAX_LINE && !line.contains('\n'));
    }
    if let Some(message) = FromInit::parse(line) {
        assert!(!message.to_line().contains('\n'));
    }
});
