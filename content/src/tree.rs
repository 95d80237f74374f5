//! The hash tree over an image's chunks: SHA-256 with the leaf and node prefixes of RFC 9162 (section 2.1.1), so that no inner node
//! can be passed off as a chunk. Must never take a chunk's bytes for good because of who sent them.
//!
//! Encoded: `CIDTREE1`, the chunk size (`u32`), the image's size in bytes (`u64`), both big-endian, and the leaves' hashes in order.
//! Inner nodes are computed: 32 bytes a chunk are enough to check each one by itself.

use ring::digest::{Context, SHA256};

use crate::Digest;

/// Chunk size of images up to [`LARGE_IMAGE`], in bytes.
pub const CHUNK_BYTES: u32 = 256 * 1024;
/// Chunk size above, in bytes: the tree of 64 GiB is then 2 MiB.
pub const LARGE_CHUNK_BYTES: u32 = 1024 * 1024;
/// Above this size in bytes chunks are larger.
pub const LARGE_IMAGE: u64 = 1 << 30;
/// Largest chunk, and smallest, that a tree may have, in bytes.
pub const MAX_CHUNK_BYTES: u32 = 4 * 1024 * 1024;
/// See [`MAX_CHUNK_BYTES`].
pub const MIN_CHUNK_BYTES: u32 = 4 * 1024;
/// Chunks of one image: 64 GiB of large ones.
pub const MAX_CHUNKS: u32 = 1 << 16;

const MAGIC: &[u8; 8] = b"CIDTREE1";
/// What precedes the leaves of an encoded tree, in bytes.
pub const HEADER_BYTES: usize = 8 + 4 + 8;
const HASH: usize = 32;
const LEAF: u8 = 0;
const NODE: u8 = 1;

/// How an image is cut into chunks. All are of one size but the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    bytes: u64,
    chunk_bytes: u32,
}

impl Shape {
    /// The shape of an image of this size by the rule: 256 KiB, and 1 MiB above 1 GiB.
    ///
    /// # Errors
    /// [`TreeError::Shape`] when it is empty or larger than [`MAX_CHUNKS`] chunks.
    pub fn of(bytes: u64) -> Result<Self, TreeError> {
        Self::new(bytes, chunk_bytes_for(bytes))
    }

    /// Any allowed shape.
    ///
    /// # Errors
    /// [`TreeError::Shape`] for an empty image, too many chunks, or a chunk size that is no power of two between
    /// [`MIN_CHUNK_BYTES`] and [`MAX_CHUNK_BYTES`].
    pub fn new(bytes: u64, chunk_bytes: u32) -> Result<Self, TreeError> {
        let size_is_good =
            chunk_bytes.is_power_of_two() && (MIN_CHUNK_BYTES..=MAX_CHUNK_BYTES).contains(&chunk_bytes);
        let shape = Self { bytes, chunk_bytes };
        if !size_is_good || bytes == 0 || bytes.div_ceil(u64::from(chunk_bytes)) > u64::from(MAX_CHUNKS) {
            return Err(TreeError::Shape { bytes, chunk_bytes });
        }
        Ok(shape)
    }

    /// The image's size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Size of every chunk but the last.
    pub fn chunk_bytes(&self) -> u32 {
        self.chunk_bytes
    }

    /// How many there are: at least 1, at most [`MAX_CHUNKS`].
    pub fn chunks(&self) -> u32 {
        // `new` holds it within MAX_CHUNKS.
        self.bytes.div_ceil(u64::from(self.chunk_bytes)) as u32
    }

    /// Where a chunk lies in the image: offset and length. `None` when there is no such chunk.
    pub fn range(&self, chunk: u32) -> Option<(u64, u32)> {
        let offset = u64::from(chunk) * u64::from(self.chunk_bytes);
        let left = self.bytes.checked_sub(offset).filter(|left| *left > 0)?;
        Some((offset, left.min(u64::from(self.chunk_bytes)) as u32))
    }
}

/// The chunk size of an image of this many bytes.
pub fn chunk_bytes_for(bytes: u64) -> u32 {
    if bytes > LARGE_IMAGE {
        LARGE_CHUNK_BYTES
    } else {
        CHUNK_BYTES
    }
}

/// Why there is no tree. Nothing of what was read is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// No image is cut so.
    #[error("an image of {bytes} bytes in chunks of {chunk_bytes} is not possible")]
    Shape {
        /// Size of the image.
        bytes: u64,
        /// Size of a chunk.
        chunk_bytes: u32,
    },
    /// Another file, or another version of this one.
    #[error("not a hash tree: it does not begin with CIDTREE1")]
    Magic,
    /// It ends too early, or something follows it.
    #[error("the hash tree has {found} bytes and should have {expected}")]
    Length {
        /// As it came.
        found: usize,
        /// As its own header says, or the header's length.
        expected: usize,
    },
    /// It is for an image of another size or cut.
    #[error("the hash tree is for an image of {} bytes in chunks of {}, not of {} in chunks of {}",
        .found.bytes, .found.chunk_bytes, .expected.bytes, .expected.chunk_bytes)]
    OtherShape {
        /// The tree's.
        found: Shape,
        /// The manifest's.
        expected: Shape,
    },
    /// Its hashes do not add up to the root that was signed.
    #[error("the hash tree's root is {found}, and {expected} was signed")]
    OtherRoot {
        /// Of the tree.
        found: Digest,
        /// Of the manifest.
        expected: Digest,
    },
    /// More bytes came than were announced, or fewer.
    #[error("the image has {found} bytes and was announced with {expected}")]
    OtherLength {
        /// That came.
        found: u64,
        /// That were announced.
        expected: u64,
    },
}

/// Why bytes are not the chunk they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// There is none with this number.
    #[error("the image has no chunk {0}")]
    NoSuchChunk(u32),
    /// Too short or too long.
    #[error("chunk {chunk} came with {found} bytes and has {expected}")]
    Length {
        /// Which.
        chunk: u32,
        /// That came.
        found: usize,
        /// That it has.
        expected: u32,
    },
    /// Other bytes.
    #[error("chunk {chunk} does not match the signed hash tree")]
    Hash {
        /// Which.
        chunk: u32,
    },
}

impl ChunkError {
    /// Name of its counter.
    pub fn counter(&self) -> &'static str {
        match self {
            Self::NoSuchChunk(_) => "chunk-number",
            Self::Length { .. } => "chunk-length",
            Self::Hash { .. } => "chunk-hash",
        }
    }
}

/// The hashes of an image's chunks, and the root over them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    shape: Shape,
    leaves: Vec<Digest>,
    root: Digest,
}

impl Tree {
    /// Of all bytes of an image, with the chunk size of the rule.
    ///
    /// # Errors
    /// [`TreeError::Shape`].
    pub fn of(image: &[u8]) -> Result<Self, TreeError> {
        let mut builder = TreeBuilder::new(Shape::of(image.len() as u64)?);
        builder.update(image)?;
        builder.finish()
    }

    fn new(shape: Shape, leaves: Vec<Digest>) -> Self {
        let root = root_of(&leaves);
        Self { shape, leaves, root }
    }

    /// What is signed.
    pub fn root(&self) -> Digest {
        self.root
    }

    /// How the image is cut.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Hash of one chunk.
    pub fn leaf(&self, chunk: u32) -> Option<Digest> {
        self.leaves.get(chunk as usize).copied()
    }

    /// Whether these bytes are that chunk.
    ///
    /// # Errors
    /// See [`ChunkError`].
    pub fn check(&self, chunk: u32, bytes: &[u8]) -> Result<(), ChunkError> {
        let (leaf, (_, length)) = self
            .leaf(chunk)
            .zip(self.shape.range(chunk))
            .ok_or(ChunkError::NoSuchChunk(chunk))?;
        if bytes.len() != length as usize {
            return Err(ChunkError::Length {
                chunk,
                found: bytes.len(),
                expected: length,
            });
        }
        if leaf_hash(bytes) != leaf {
            return Err(ChunkError::Hash { chunk });
        }
        Ok(())
    }

    /// The bytes of a `root.tree`.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(encoded_bytes(self.shape));
        bytes.extend(MAGIC);
        bytes.extend(self.shape.chunk_bytes.to_be_bytes());
        bytes.extend(self.shape.bytes.to_be_bytes());
        for leaf in &self.leaves {
            bytes.extend(leaf.0);
        }
        bytes
    }

    /// Reads [`Tree::encode`] back without knowing what it should be: for whoever built it. A node uses [`Tree::decode`].
    ///
    /// # Errors
    /// See [`TreeError`].
    pub fn decode_unverified(bytes: &[u8]) -> Result<Self, TreeError> {
        let short = TreeError::Length {
            found: bytes.len(),
            expected: HEADER_BYTES,
        };
        let (magic, rest) = bytes.split_first_chunk::<8>().ok_or(short)?;
        if magic != MAGIC {
            return Err(TreeError::Magic);
        }
        let (chunk_bytes, rest) = rest.split_first_chunk::<4>().ok_or(short)?;
        let (size, leaves) = rest.split_first_chunk::<8>().ok_or(short)?;
        let shape = Shape::new(u64::from_be_bytes(*size), u32::from_be_bytes(*chunk_bytes))?;
        if bytes.len() != encoded_bytes(shape) {
            return Err(TreeError::Length {
                found: bytes.len(),
                expected: encoded_bytes(shape),
            });
        }
        let leaves = leaves.as_chunks::<HASH>().0.iter().map(|hash| Digest(*hash));
        Ok(Self::new(shape, leaves.collect()))
    }

    /// Reads [`Tree::encode`] back, and takes it only when it is the tree that was signed.
    ///
    /// # Errors
    /// See [`TreeError`].
    pub fn decode(bytes: &[u8], expected: Shape, root: Digest) -> Result<Self, TreeError> {
        let tree = Self::decode_unverified(bytes)?;
        if tree.shape != expected {
            return Err(TreeError::OtherShape {
                found: tree.shape,
                expected,
            });
        }
        if tree.root != root {
            return Err(TreeError::OtherRoot {
                found: tree.root,
                expected: root,
            });
        }
        Ok(tree)
    }
}

/// Length of an encoded tree, in bytes.
pub fn encoded_bytes(shape: Shape) -> usize {
    HEADER_BYTES + shape.chunks() as usize * HASH
}

/// Makes a tree of an image that comes in pieces of any length.
pub struct TreeBuilder {
    shape: Shape,
    leaves: Vec<Digest>,
    /// Of the chunk that is not whole yet, and how much of it came.
    open: Context,
    filled: u32,
    taken: u64,
}

impl TreeBuilder {
    /// For an image of this shape.
    pub fn new(shape: Shape) -> Self {
        Self {
            shape,
            leaves: Vec::with_capacity(shape.chunks() as usize),
            open: leaf_context(),
            filled: 0,
            taken: 0,
        }
    }

    /// The next bytes.
    ///
    /// # Errors
    /// [`TreeError::OtherLength`] when they are more than were announced.
    pub fn update(&mut self, mut bytes: &[u8]) -> Result<(), TreeError> {
        self.taken += bytes.len() as u64;
        if self.taken > self.shape.bytes {
            return Err(self.other_length());
        }
        while !bytes.is_empty() {
            let room = (self.shape.chunk_bytes - self.filled) as usize;
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.open.update(now);
            // At most `room`, which is a u32.
            self.filled += now.len() as u32;
            if self.filled == self.shape.chunk_bytes {
                self.close();
            }
            bytes = later;
        }
        Ok(())
    }

    /// The tree.
    ///
    /// # Errors
    /// [`TreeError::OtherLength`] when fewer bytes came than were announced.
    pub fn finish(mut self) -> Result<Tree, TreeError> {
        if self.taken != self.shape.bytes {
            return Err(self.other_length());
        }
        if self.filled > 0 {
            self.close();
        }
        Ok(Tree::new(self.shape, self.leaves))
    }

    fn close(&mut self) {
        let context = core::mem::replace(&mut self.open, leaf_context());
        self.leaves.push(digest_of(context));
        self.filled = 0;
    }

    fn other_length(&self) -> TreeError {
        TreeError::OtherLength {
            found: self.taken,
            expected: self.shape.bytes,
        }
    }
}

fn leaf_context() -> Context {
    let mut context = Context::new(&SHA256);
    context.update(&[LEAF]);
    context
}

fn digest_of(context: Context) -> Digest {
    let mut hash = [0; HASH];
    // SHA-256 is as long as that.
    hash.copy_from_slice(context.finish().as_ref());
    Digest(hash)
}

fn leaf_hash(bytes: &[u8]) -> Digest {
    let mut context = leaf_context();
    context.update(bytes);
    digest_of(context)
}

fn node_hash(left: Digest, right: Digest) -> Digest {
    let mut context = Context::new(&SHA256);
    context.update(&[NODE]);
    context.update(&left.0);
    context.update(&right.0);
    digest_of(context)
}

/// MTH of RFC 9162, 2.1.1, over hashed leaves: the left part is the largest power of two smaller than the whole. Its depth is at
/// most 16 ([`MAX_CHUNKS`]).
fn root_of(leaves: &[Digest]) -> Digest {
    match leaves {
        // A shape has at least one chunk.
        [] => digest_of(Context::new(&SHA256)),
        [leaf] => *leaf,
        _ => {
            let half = leaves.len().next_power_of_two() / 2;
            let (left, right) = leaves.split_at(half);
            node_hash(root_of(left), root_of(right))
        }
    }
}

#[cfg(test)]
mod tests;
