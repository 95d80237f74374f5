//! One beacon datagram; what is taken is written back as it came.
#![no_main]

use libfuzzer_sys::fuzz_target;
use cid_discovery::beacon::Beacon;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(beacon) = Beacon::decode(bytes) {
        assert_eq!(beacon.encode(), bytes);
    }
});
