//! One datagram from port 68, where other DHCP servers are heard.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::time::Duration;

use cid_bootserver::dhcp::rival::Watch;

fuzz_target!(|bytes: &[u8]| {
    let mut watch = Watch::new([10, 77, 0, 1].into(), 7, Duration::ZERO);
    watch.handle_packet(Duration::from_secs(1), bytes);
    while watch.poll_output().is_some() {}
});
