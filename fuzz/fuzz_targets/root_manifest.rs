//! A root image's manifest: canonical, and never believed without the signature.
#![no_main]

use cid_content::{Promise, RootManifest, Signed};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(manifest) = RootManifest::decode(bytes) {
        assert_eq!(manifest.encode().expect("what was read can be written"), bytes);
    }
    if let Ok(signed) = Signed::decode(bytes) {
        assert_eq!(signed.encode(), bytes);
        let promise = Promise {
            image: "compute@3",
            sequence: 1,
        };
        assert!(signed.verify(&[0; 32], promise).is_err());
    }
});
