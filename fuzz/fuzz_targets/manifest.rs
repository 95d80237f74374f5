//! An image's manifest.
#![no_main]

use libfuzzer_sys::fuzz_target;
use cid_protocol::manifest::Manifest;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(manifest) = serde_json::from_slice::<Manifest>(bytes) {
        let text = serde_json::to_vec(&manifest).expect("what was read can be written");
        assert_eq!(serde_json::from_slice::<Manifest>(&text).expect("and read again"), manifest);
    }
});
