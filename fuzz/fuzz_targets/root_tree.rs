//! A root image's hash tree and set of chunks; what is taken is written back as it came.
#![no_main]

use cid_content::{Bitmap, Tree};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(tree) = Tree::decode_unverified(bytes) {
        assert_eq!(tree.encode(), bytes);
        let _ = tree.check(0, bytes);
    }
    if let Some((chunks, rest)) = bytes.split_first()
        && let Ok(bitmap) = Bitmap::decode(rest, u32::from(*chunks))
    {
        assert_eq!(bitmap.as_bytes(), rest);
    }
});
