//! newc archives through the `cpio` crate, with its traps closed: our own inode numbers, byte counts checked both
//! ways, sizes that fit 32 bits, names bounded before they are read. Never seeks, never follows what an archive says.

use std::io::{self, Read, Write};

use crate::plan::{Group, Node, Plan};
use crate::xz::Part;

/// Why an archive cannot be read. Nothing was kept; the archive is at fault.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The bytes ended or could not be read inside an entry, or the compressor refused them.
    #[error("entry {number} at byte {offset}: {source}")]
    Read {
        /// Which entry, counted from 1.
        number: u64,
        /// Where its header starts, in bytes of the unpacked archive.
        offset: u64,
        /// What was wrong.
        source: io::Error,
    },
    /// A header that no honest writer makes.
    #[error("entry {number} at byte {offset}: {problem}")]
    Malformed {
        /// Which entry, counted from 1.
        number: u64,
        /// Where its header starts.
        offset: u64,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The visitor could not use the entry.
    #[error(transparent)]
    Visitor(io::Error),
}

/// A newc archive in memory, and which part of it is compressed already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    /// The whole archive with its trailer.
    pub bytes: Vec<u8>,
    /// The run of entries whose files are compressed already.
    pub packed: std::ops::Range<usize>,
    /// The runs of entries of one group; together they are the whole.
    pub parts: Vec<(Group, std::ops::Range<usize>)>,
}

/// Writes `plan` as one newc archive with its trailer. Time and owner are 0, inodes count from 1, every file has
/// one link: the bytes depend on the plan alone.
pub fn write_archive(plan: &Plan) -> io::Result<Archive> {
    let mut output = Vec::with_capacity(plan.content_size() as usize + (1 << 16));
    let mut parts: Vec<Part> = Vec::new();
    for (number, (path, node)) in plan.nodes().enumerate() {
        let start = output.len();
        output = write_entry(output, number, path, node)?;
        let group = plan.group_of(path, node);
        match parts.last_mut() {
            Some((last, range)) if *last == group => range.end = output.len(),
            _ => parts.push((group, start..output.len())),
        }
    }
    let bytes = cpio::newc::trailer(output)?;
    match parts.last_mut() {
        Some((_, range)) => range.end = bytes.len(),
        None => parts.push((Group::Mark, 0..bytes.len())),
    }
    let packed = parts.iter().find(|(group, _)| *group == Group::Packed);
    let packed = packed.map_or(bytes.len()..bytes.len(), |(_, range)| range.clone());
    Ok(Archive { bytes, packed, parts })
}

fn write_entry<W: Write>(output: W, number: usize, path: &str, node: &Node) -> io::Result<W> {
    // The crate's own numbering starts at 0, which GNU cpio takes for "no inode"; 1 is safe everywhere.
    let inode = u32::try_from(number + 1).map_err(|_| io::Error::other("more than 2^32 entries"))?;
    let mut header = cpio::newc::Builder::new(path.trim_start_matches('/'))
        .ino(inode)
        .mode(node.mode());
    header = header.nlink(if matches!(node, Node::Directory { .. }) {
        2
    } else {
        1
    });
    if let Node::CharacterDevice { major, minor, .. } = node {
        header = header.rdev_major(*major).rdev_minor(*minor);
    }
    let content = node.content();
    // Checked by the plan; the crate would truncate without a word.
    let size = u32::try_from(content.len()).map_err(|_| io::Error::other("entry larger than 4 GiB"))?;
    let mut entry = header.write(output, size);
    // `write_all` of exactly `size` bytes: the crate's `finish` says Ok after a short write.
    entry.write_all(content)?;
    entry.finish()
}

/// What a reader is told of an entry before its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryHeader {
    /// Absolute path, whatever the archive wrote (`./a`, `a` and `/a` are all `/a`).
    pub path: String,
    /// Type and permission bits.
    pub mode: u32,
    /// Modification time, seconds since 1970.
    pub mtime: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Bytes of content.
    pub size: u32,
}

/// Reads one newc archive up to its trailer, calling `visit` for each entry with a reader of exactly its content.
/// Memory is bounded by the longest path; what `visit` keeps is its own affair. Content it leaves is skipped.
pub fn read_archive(
    input: &mut dyn Read,
    mut visit: impl FnMut(&EntryHeader, &mut dyn Read) -> io::Result<()>,
) -> Result<u64, ArchiveError> {
    let mut input = Counting {
        inner: input,
        bytes: 0,
    };
    let mut number = 0;
    loop {
        number += 1;
        let offset = input.bytes;
        let read = |source| ArchiveError::Read {
            number,
            offset,
            source: plain_end(source),
        };
        let malformed = |problem| ArchiveError::Malformed {
            number,
            offset,
            problem,
        };

        let mut fixed = [0_u8; HEADER_LEN];
        input.read_exact(&mut fixed).map_err(read)?;
        let name_size = hex_field(&fixed, NAME_SIZE_FIELD).ok_or_else(|| malformed("not a newc header"))?;
        // The crate reads a name of any declared size into memory: a few hostile bytes of zstd would cost 4 GiB.
        if name_size == 0 || name_size > NAME_LIMIT {
            return Err(malformed("the name's length is 0 or beyond a path's"));
        }
        let header_and_rest = fixed.as_slice().chain(&mut input);
        let mut reader = cpio::newc::Reader::new(header_and_rest).map_err(read)?;
        let entry = reader.entry();
        if entry.is_trailer() {
            return Ok(number - 1);
        }
        let size = entry.file_size();
        let header = EntryHeader {
            path: absolute(entry.name()),
            mode: entry.mode(),
            mtime: entry.mtime(),
            owner: (entry.uid(), entry.gid()),
            size,
        };
        let mut content = Counting {
            inner: &mut reader,
            bytes: 0,
        };
        visit(&header, &mut content).map_err(ArchiveError::Visitor)?;
        io::copy(&mut content, &mut io::sink()).map_err(read)?;
        // The crate takes an early end of input for the end of the content.
        if content.bytes != u64::from(size) {
            return Err(read(io::ErrorKind::UnexpectedEof.into()));
        }
        reader.finish().map_err(read)?;
    }
}

/// `110` is what the format has before the name: 6 of magic, 13 fields of 8 hex digits.
const HEADER_LEN: usize = 110;
/// Index of `c_namesize` among the fields.
const NAME_SIZE_FIELD: usize = 11;
/// Bytes of a name with its NUL: PATH_MAX, as in `init/initramfs.c`.
const NAME_LIMIT: u32 = 4096;

fn hex_field(header: &[u8; HEADER_LEN], field: usize) -> Option<u32> {
    let at = 6 + 8 * field;
    let digits = std::str::from_utf8(header.get(at..at + 8)?).ok()?;
    u32::from_str_radix(digits, 16).ok()
}

fn absolute(name: &str) -> String {
    let relative = name.strip_prefix("./").unwrap_or(name);
    format!("/{}", relative.trim_start_matches('/'))
}

/// An end of input inside an entry, said in our words.
fn plain_end(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the archive ends in the middle (truncated?)",
        )
    } else {
        error
    }
}

struct Counting<R> {
    inner: R,
    bytes: u64,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.bytes += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
