//! A path as TFTP and HTTP clients send it: one name space for both.
#![no_main]

use libfuzzer_sys::fuzz_target;
use cid_bootserver::files::{Wanted, parse};

fuzz_target!(|path: &str| {
    if let Ok(Wanted::Image { image, .. }) = parse(path) {
        assert!(!image.contains(['/', '\\']) && image != ".." && !image.is_empty());
    }
});
