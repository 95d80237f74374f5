//! The image's file while it comes: chunks are written to their places, and read again for peers. In memory only (ramfs), so that the
//! file can be mounted as it is. Must never hold a chunk that was not checked: see [`Store::recheck`] for what an agent before this
//! one left.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cid_content::{Bitmap, Digest, Shape, Tree};

const IMAGE: &str = "root.img";
const TREE: &str = "root.tree";

/// One image's file and tree.
#[derive(Debug)]
pub(crate) struct Store {
    folder: PathBuf,
    file: File,
    tree: Arc<Tree>,
}

impl Store {
    /// The tree that an agent before this one kept in `folder`, if it is the one that is wanted.
    pub(crate) fn kept_tree(folder: &Path, shape: Shape, root: Digest) -> Option<Tree> {
        let bytes = fs::read(folder.join(TREE)).ok()?;
        Tree::decode(&bytes, shape, root).ok()
    }

    /// Opens the file of an image of this tree. What lay there of another image is gone afterwards.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn open(folder: &Path, tree: Tree) -> io::Result<Self> {
        let encoded = tree.encode();
        let (tree_path, path) = (folder.join(TREE), folder.join(IMAGE));
        if fs::read(&tree_path).ok().as_deref() != Some(&encoded[..]) {
            // The file first: a tree without its file is nothing, a file below another tree would be rechecked for nothing.
            let _ = fs::remove_file(&path);
            fs::write(&tree_path, &encoded)?;
        }
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)?;
        file.set_len(tree.shape().bytes())?;
        let folder = folder.to_owned();
        let tree = Arc::new(tree);
        Ok(Self { folder, file, tree })
    }

    /// The file.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.join(IMAGE)
    }

    /// The tree.
    pub(crate) fn tree(&self) -> &Arc<Tree> {
        &self.tree
    }

    /// Which chunks are here and right: what an agent before this one fetched is checked again, chunk by chunk. `each` is called
    /// between them, for whatever must not wait.
    pub(crate) async fn recheck(&self, mut each: impl AsyncFnMut()) -> Bitmap {
        let shape = self.tree.shape();
        let mut have = Bitmap::none(shape.chunks());
        for chunk in 0..shape.chunks() {
            if let Ok(bytes) = self.read(chunk)
                && self.tree.check(chunk, &bytes).is_ok()
            {
                have.insert(chunk);
            }
            each().await;
        }
        have
    }

    /// A chunk as it lies there.
    pub(crate) fn read(&self, chunk: u32) -> io::Result<Vec<u8>> {
        let (at, length) = self.place(chunk)?;
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }

    /// Puts a chunk into its place. Whoever calls has checked it.
    pub(crate) fn write(&self, chunk: u32, bytes: &[u8]) -> io::Result<()> {
        let (at, length) = self.place(chunk)?;
        if bytes.len() != length {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.file.write_all_at(bytes, at)
    }

    fn place(&self, chunk: u32) -> io::Result<(u64, usize)> {
        let (at, length) = self
            .tree
            .shape()
            .range(chunk)
            .ok_or(io::ErrorKind::InvalidInput)?;
        Ok((at, usize::try_from(length).map_err(io::Error::other)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Vec<u8> {
        (0..600_000_u32)
            .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect()
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("runtime")
            .block_on(future)
    }

    #[test]
    fn what_an_agent_before_fetched_is_checked_again() {
        let (folder, image) = (tempfile::tempdir().unwrap(), image());
        let tree = Tree::of(&image).unwrap();
        let (shape, root) = (tree.shape(), tree.root());
        assert_eq!(Store::kept_tree(folder.path(), shape, root), None);
        let store = Store::open(folder.path(), tree.clone()).unwrap();
        let part = |chunk: u32| {
            let (at, length) = shape.range(chunk).unwrap();
            &image[at as usize..at as usize + length as usize]
        };
        store.write(0, part(0)).unwrap();
        store.write(2, part(2)).unwrap();
        assert!(store.write(1, part(2)).is_err() && store.write(3, part(2)).is_err());
        drop(store);

        assert_eq!(Store::kept_tree(folder.path(), shape, root), Some(tree.clone()));
        let store = Store::open(folder.path(), tree).unwrap();
        let have = block_on(store.recheck(async || ()));
        assert_eq!(have.iter().collect::<Vec<_>>(), [0, 2]);
        assert_eq!(store.read(2).unwrap(), part(2));
        // A byte that changed meanwhile.
        store.file.write_all_at(b"x", 5).unwrap();
        let have = block_on(store.recheck(async || ()));
        assert_eq!(have.iter().collect::<Vec<_>>(), [2]);
        drop(store);

        // Another image: nothing of the old one is taken for it.
        let other = Tree::of(&image[..500_000]).unwrap();
        let store = Store::open(folder.path(), other).unwrap();
        assert_eq!(block_on(store.recheck(async || ())).count(), 0);
    }
}
