//! Anything a stranger may send to the membership's port: none of it is opened.
#![no_main]

use std::time::Duration;

use cid_discovery::seal::{GroupKey, Opener};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let key = GroupKey {
        epoch: 1,
        secret: [7; 32],
    };
    assert!(Opener::new(key, 8).open(Duration::ZERO, bytes).is_err());
});
