//! Root images by HTTP, for agents: `/root/TREE/tree` and `/root/TREE/chunks`, the latter by ranges. Must never give bytes that do
//! not match the image's hash tree: whoever holds the files checks them ([`Roots`]).

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Longest part of an image that is given at a time, in bytes: a chunk has at most 4 MiB.
pub const MAX_PART: u64 = 4 * 1024 * 1024;
/// Transfers at a time. The head's tickets allow fewer; whoever has none finds a place only between them.
const TRANSFERS: usize = 32;
/// How long a request waits for its place.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is served of a root image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootFile {
    /// Its hash tree.
    Tree,
    /// The image.
    Chunks,
}

/// Why nothing is given. The name is the counter's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum RootRefusal {
    /// No image here has such a tree.
    #[error("root-unknown")]
    Unknown,
    /// No range, or more than [`MAX_PART`].
    #[error("root-range")]
    Range,
    /// The file on disk is not what it was when its tree was made.
    #[error("root-changed-on-disk")]
    Changed,
    /// The file cannot be read.
    #[error("root-unreadable")]
    Unreadable,
    /// Too many transfers.
    #[error("root-busy")]
    Busy,
}

/// Who has the images.
pub trait Roots: Send + Sync + 'static {
    /// Size in bytes of a file of the image whose tree has this root (64 hexadecimal digits). Blocks.
    fn size(&self, tree: &str, file: RootFile) -> Option<u64>;

    /// A part of it, checked against the tree. Blocks.
    ///
    /// # Errors
    /// See [`RootRefusal`].
    fn read(&self, tree: &str, file: RootFile, part: Range<u64>) -> Result<Vec<u8>, RootRefusal>;
}

/// The images and the places of those who fetch them.
#[derive(Clone)]
pub struct RootDoor {
    roots: Arc<dyn Roots>,
    places: Arc<Semaphore>,
}

/// A part of a file on its way out; its place is free again when the last byte is in the kernel.
struct Part {
    bytes: Vec<u8>,
    _place: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl RootDoor {
    /// Serves these.
    pub fn new(roots: Arc<dyn Roots>) -> Self {
        Self {
            roots,
            places: Arc::new(Semaphore::new(TRANSFERS)),
        }
    }

    /// Size of what `path` names.
    ///
    /// # Errors
    /// [`RootRefusal::Unknown`].
    pub async fn size(&self, path: &str) -> Result<u64, RootRefusal> {
        let (tree, file) = named(path).ok_or(RootRefusal::Unknown)?;
        let (roots, tree) = (Arc::clone(&self.roots), tree.to_owned());
        let size = tokio::task::spawn_blocking(move || roots.size(&tree, file)).await;
        size.ok().flatten().ok_or(RootRefusal::Unknown)
    }

    /// A part of it.
    ///
    /// # Errors
    /// See [`RootRefusal`].
    pub async fn read(&self, path: &str, part: Range<u64>) -> Result<Bytes, RootRefusal> {
        let (tree, file) = named(path).ok_or(RootRefusal::Unknown)?;
        if part.end.saturating_sub(part.start) > MAX_PART {
            return Err(RootRefusal::Range);
        }
        let place = Arc::clone(&self.places).acquire_owned();
        let place = tokio::time::timeout(PATIENCE, place)
            .await
            .map_err(|_| RootRefusal::Busy)?;
        let place = place.map_err(|_| RootRefusal::Busy)?;
        let (roots, tree) = (Arc::clone(&self.roots), tree.to_owned());
        let bytes = tokio::task::spawn_blocking(move || roots.read(&tree, file, part)).await;
        let bytes = bytes.map_err(|_| RootRefusal::Unreadable)??;
        Ok(Bytes::from_owner(Part { bytes, _place: place }))
    }
}

/// Whether a path is one of ours.
pub fn is_root(path: &str) -> bool {
    path.starts_with("/root/")
}

fn named(path: &str) -> Option<(&str, RootFile)> {
    let (tree, file) = path.strip_prefix("/root/")?.split_once('/')?;
    let digits = tree.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    match file {
        "tree" if digits && tree.len() == 64 => Some((tree, RootFile::Tree)),
        "chunks" if digits && tree.len() == 64 => Some((tree, RootFile::Chunks)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_names_are_looked_up() {
        let tree = "0a".repeat(32);
        assert_eq!(
            named(&format!("/root/{tree}/tree")),
            Some((&*tree, RootFile::Tree))
        );
        assert_eq!(
            named(&format!("/root/{tree}/chunks")),
            Some((&*tree, RootFile::Chunks))
        );
        for path in [
            format!("/root/{tree}/"),
            format!("/root/{tree}"),
            format!("/root/{tree}/root.img"),
            format!("/root/{}/tree", tree.to_uppercase()),
            format!("/root/{}/tree", &tree[1..]),
            "/root/../../etc/passwd".into(),
            format!("/root/..{}/tree", &tree[2..]),
        ] {
            assert_eq!(named(&path), None, "{path}");
        }
    }
}
