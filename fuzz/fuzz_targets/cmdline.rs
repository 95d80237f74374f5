//! A kernel command line, as PID 1 reads it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use cid_protocol::cmdline::{BOOTIF, HEAD, lookup, parse_bootif};

fuzz_target!(|line: &str| {
    let _ = lookup(line, HEAD);
    let _ = lookup(line, BOOTIF).and_then(parse_bootif);
    let _ = parse_bootif(line);
});
