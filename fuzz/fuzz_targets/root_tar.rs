//! A tar archive that becomes a root: nothing in it leads out of the tree, whatever its names and links say.
#![no_main]

use std::io::Write;

use cidbuild::root::tree::{Tree, Whiteouts};
use libfuzzer_sys::fuzz_target;

const BLOCK: usize = 512;
/// Where a header's checksum is, and its magic word.
const SUM: std::ops::Range<usize> = 148..156;
const MAGIC: std::ops::Range<usize> = 257..262;

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = bytes.to_vec();
    // A wrong checksum is refused before anything is read: give each header a right one.
    for block in bytes.chunks_exact_mut(BLOCK) {
        if &block[MAGIC] == b"ustar" {
            block[SUM].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[SUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    for whiteouts in [Whiteouts::Apply, Whiteouts::Keep] {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(&bytes).expect("room for it");
        let mut tree = Tree::default();
        let _ = tree.read_tar(file, whiteouts);
        for (name, _) in tree.entries() {
            assert!(
                !name.split('/').any(|part| part == ".." || part.is_empty()),
                "{name:?}"
            );
        }
    }
});
