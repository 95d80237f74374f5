//! Anything a stranger may send to the membership's port: none of it is opened.
#![no_main]

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use cid_discovery::seal::{GroupKey, Opener};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let key = GroupKey {
        epoch: 1,
        secret: [7; 32],
    };
    let here = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 3101);
    assert!(Opener::new(key, 8).open(Duration::ZERO, here, here, bytes).is_err());
});
