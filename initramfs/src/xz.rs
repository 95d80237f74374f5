//! One `.xz` stream of several blocks, each packed by itself: what seldom changes is packed hard once and kept, and
//! all blocks are packed at the same time. The bytes depend on the content and the level alone, never on the shelf.

use std::io;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use liblzma::stream::{Action, Check, Filters, LzmaOptions, Status, Stream};

use crate::archive::Archive;
use crate::digest::sha256_hex;
use crate::plan::Group;

/// Where packed blocks are kept between builds. A shelf may forget anything at any time.
pub trait Shelf: Sync {
    /// What was put under `key`, unharmed, or nothing.
    fn take(&self, key: &str) -> Option<Vec<u8>>;
    /// Keeps `bytes` under `key`. A failure is no one's concern but the next build's time.
    fn put(&self, key: &str, bytes: &[u8]);
}

/// Keeps nothing.
impl Shelf for () {
    fn take(&self, _key: &str) -> Option<Vec<u8>> {
        None
    }

    fn put(&self, _key: &str, _bytes: &[u8]) {}
}

/// How one block is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Method {
    preset: u32,
    /// The filter for x86 machine code: 5 % off programs, but 5 % more for modules, whose jumps are not linked yet.
    x86: bool,
    /// Whether the block is worth keeping.
    keep: bool,
}

fn method_of(group: Group, level: u32) -> Method {
    let (preset, x86, keep) = match group {
        Group::Plain => (level, true, true),
        Group::Supplied => (KEPT_PRESET, true, true),
        Group::Module => (KEPT_PRESET, false, true),
        // Nothing to gain; a quick search sees that, and LZMA2 stores what does not shrink.
        Group::Packed => (0, false, true),
        Group::Mark => (0, false, false),
    };
    Method { preset, x86, keep }
}

/// Packs `archive`, telling `progress` after each block how many bytes of it are done.
pub(crate) fn pack(
    archive: &Archive,
    level: u32,
    shelf: &dyn Shelf,
    progress: &mut (dyn FnMut(u64) + Send),
) -> io::Result<Vec<u8>> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new((0, progress));
    let results: Vec<Mutex<Option<io::Result<Block>>>> =
        archive.parts.iter().map(|_| Mutex::new(None)).collect();
    let broken = || io::Error::other("a thread that packs failed");
    let work = || {
        while let Some((at, (group, range))) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, archive.parts.get(at)?)))
        {
            let plain = archive.bytes.get(range.clone()).unwrap_or_default();
            let block = block(plain, method_of(*group, level), shelf);
            if let (Ok(mut done), Some(Ok(mut slot))) = (done.lock(), results.get(at).map(|slot| slot.lock()))
            {
                *slot = Some(block);
                done.0 += plain.len() as u64;
                let sum = done.0;
                (done.1)(sum);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..WORKERS {
            scope.spawn(work);
        }
        work();
    });
    let mut blocks = Vec::new();
    for slot in results {
        let block = slot.into_inner().map_err(|_| broken())?;
        blocks.push(block.ok_or_else(broken)??);
    }
    Ok(join(&blocks))
}

/// A block as it lies in a stream, and its record in the stream's index.
struct Block {
    bytes: Vec<u8>,
    unpadded_size: u64,
    plain_size: u64,
}

fn block(plain: &[u8], method: Method, shelf: &dyn Shelf) -> io::Result<Block> {
    let take_apart = |stream: &[u8]| {
        take_apart(stream, plain.len())
            .ok_or_else(|| io::Error::other("xz: not one block where one was made"))
    };
    if !method.keep {
        return take_apart(&stream_of(plain, method)?);
    }
    let key = format!(
        "{SHELF_VERSION}-{}-{}-{}",
        method.preset,
        u8::from(method.x86),
        sha256_hex(plain)
    );
    if let Some(kept) = shelf.take(&key)
        && let Ok(block) = take_apart(&kept)
    {
        return Ok(block);
    }
    let stream = stream_of(plain, method)?;
    shelf.put(&key, &stream);
    take_apart(&stream)
}

/// `plain` as a stream of its own, of one block.
fn stream_of(plain: &[u8], method: Method) -> io::Result<Vec<u8>> {
    let mut options = LzmaOptions::new_preset(method.preset)?;
    options.dict_size(DICTIONARY);
    let mut filters = Filters::new();
    if method.x86 {
        filters.x86();
    }
    filters.lzma2(&options);
    // The kernel knows CRC32 and nothing else.
    let mut stream = Stream::new_stream_encoder(&filters, Check::Crc32)?;
    let mut output = Vec::with_capacity(plain.len() / 2 + (1 << 16));
    loop {
        let rest = plain.get(stream.total_in() as usize..).unwrap_or_default();
        if stream.process_vec(rest, &mut output, Action::Finish)? == Status::StreamEnd {
            return Ok(output);
        }
        output.reserve(1 << 20);
    }
}

/// The only block of `stream`. The XZ file format 1.2, sections 2 and 4: header, blocks, index, footer.
fn take_apart(stream: &[u8], plain_size: usize) -> Option<Block> {
    let footer = stream.get(stream.len().checked_sub(FOOTER_LEN)?..)?;
    let backward = u32::from_le_bytes(footer.get(4..8)?.try_into().ok()?) as usize;
    let index_len = backward.checked_add(1)?.checked_mul(4)?;
    let index_at = stream.len().checked_sub(FOOTER_LEN)?.checked_sub(index_len)?;
    let mut index = stream.get(index_at..)?.iter().copied();
    let header = (index.next()?, number(&mut index)?);
    let (unpadded_size, size) = (number(&mut index)?, number(&mut index)?);
    let bytes = stream.get(HEADER_LEN..index_at)?.to_vec();
    let one = header == (0, 1) && size == plain_size as u64;
    let whole = bytes.len() as u64 == unpadded_size.next_multiple_of(4);
    (one && whole && stream.starts_with(&header_of_stream())).then_some(Block {
        bytes,
        unpadded_size,
        plain_size: size,
    })
}

/// The blocks as one stream.
fn join(blocks: &[Block]) -> Vec<u8> {
    let mut index = vec![0];
    push_number(&mut index, blocks.len() as u64);
    let mut output = header_of_stream().to_vec();
    for block in blocks {
        output.extend_from_slice(&block.bytes);
        push_number(&mut index, block.unpadded_size);
        push_number(&mut index, block.plain_size);
    }
    index.resize(index.len().next_multiple_of(4), 0);
    let sum = crc32(&index);
    index.extend_from_slice(&sum);
    output.extend_from_slice(&index);
    let mut tail = (index.len() as u32 / 4 - 1).to_le_bytes().to_vec();
    tail.extend_from_slice(&FLAGS);
    output.extend_from_slice(&crc32(&tail));
    output.extend_from_slice(&tail);
    output.extend_from_slice(b"YZ");
    output
}

fn header_of_stream() -> [u8; HEADER_LEN] {
    let mut header = [0xfd, b'7', b'z', b'X', b'Z', 0, FLAGS[0], FLAGS[1], 0, 0, 0, 0];
    header[8..].copy_from_slice(&crc32(&FLAGS));
    header
}

fn crc32(bytes: &[u8]) -> [u8; 4] {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum().to_le_bytes()
}

/// Section 1.2: seven bits a byte, lowest first.
fn number(bytes: &mut impl Iterator<Item = u8>) -> Option<u64> {
    let mut value = 0;
    for shift in (0..63).step_by(7) {
        let byte = bytes.next()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn push_number(output: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        output.push(value as u8 | 0x80);
        value >>= 7;
    }
    output.push(value as u8);
}

/// What is in [`Archive::parts`].
pub(crate) type Part = (Group, Range<usize>);

/// Stream flags: CRC32.
const FLAGS: [u8; 2] = [0, 1];
const HEADER_LEN: usize = 12;
const FOOTER_LEN: usize = 12;
/// What a node needs of memory while it unpacks, as with zstd.
const DICTIONARY: u32 = 8 << 20;
const KEPT_PRESET: u32 = 9;
const WORKERS: usize = 2;
/// Raised whenever the same key would stand for other bytes.
const SHELF_VERSION: u32 = 1;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use super::*;
    use crate::compress::decompressor;

    #[derive(Default)]
    struct Memory(Mutex<BTreeMap<String, Vec<u8>>>);

    impl Shelf for Memory {
        fn take(&self, key: &str) -> Option<Vec<u8>> {
            self.0.lock().unwrap().get(key).cloned()
        }

        fn put(&self, key: &str, bytes: &[u8]) {
            self.0.lock().unwrap().insert(key.to_owned(), bytes.to_vec());
        }
    }

    fn sample() -> Archive {
        let bytes: Vec<u8> = (0_u32..400_000)
            .flat_map(|n| (n.wrapping_mul(2_654_435_761) >> 20).to_le_bytes())
            .collect();
        let parts = vec![
            (Group::Plain, 0..500_000),
            (Group::Supplied, 500_000..900_001),
            (Group::Module, 900_001..1_200_000),
            (Group::Packed, 1_200_000..1_599_990),
            (Group::Mark, 1_599_990..1_600_000),
        ];
        Archive {
            bytes,
            packed: 1_200_000..1_599_990,
            parts,
        }
    }

    #[test]
    fn blocks_make_one_stream_with_or_without_a_shelf() {
        let (archive, shelf) = (sample(), Memory::default());
        let first = pack(&archive, 1, &shelf, &mut |_| ()).unwrap();
        assert_eq!(
            shelf.0.lock().unwrap().len(),
            4,
            "all but the mark, which always changes"
        );
        let again = pack(&archive, 1, &shelf, &mut |_| ()).unwrap();
        let without = pack(&archive, 1, &(), &mut |_| ()).unwrap();
        assert!(first == again && first == without);
        let mut plain = Vec::new();
        decompressor(first.as_slice())
            .unwrap()
            .read_to_end(&mut plain)
            .unwrap();
        assert!(plain == archive.bytes);
    }

    #[test]
    fn a_shelf_with_other_things_on_it_is_not_believed() {
        let (archive, shelf) = (sample(), Memory::default());
        let good = pack(&archive, 1, &shelf, &mut |_| ()).unwrap();
        for bytes in shelf.0.lock().unwrap().values_mut() {
            bytes.truncate(bytes.len() / 2);
        }
        assert!(pack(&archive, 1, &shelf, &mut |_| ()).unwrap() == good);
    }

    #[test]
    fn numbers_of_any_length() {
        for value in [0, 1, 127, 128, 16_383, 16_384, u64::from(u32::MAX), (1 << 63) - 1] {
            let mut bytes = Vec::new();
            push_number(&mut bytes, value);
            assert_eq!(number(&mut bytes.into_iter()), Some(value));
        }
        assert_eq!(number(&mut std::iter::repeat_n(0xff, 20)), None);
    }
}
