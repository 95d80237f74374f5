//! A TFTP journal that anything may have been written to: it is read with bounds.
#![no_main]

use cid_bootserver::tftp::journal::read;
use cid_bootserver::tftp::server::MAX_TRANSFERS;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    assert!(read(text).len() <= MAX_TRANSFERS);
});
