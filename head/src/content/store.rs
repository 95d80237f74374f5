//! Root images on the head's disk, found by the root of their hash tree: `root.img` beside `root.tree`, in a folder of built images
//! or of versions. Must never give bytes that do not match the tree.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::Read as _;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cid_bootserver::roots::{RootFile, RootRefusal, Roots};
use cid_content::tree::{HEADER_BYTES, MAX_CHUNKS};
use cid_content::{Digest, Tree};

/// Between two looks at the disk for a tree that is not known: nodes that ask for nonsense cost no more.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// Folders that are looked into.
const MAX_FOLDERS: usize = 4_096;
/// Words for the administrator that wait.
const MAX_NOTES: usize = 64;
/// Longest `root.tree`.
const MAX_TREE: u64 = (HEADER_BYTES + MAX_CHUNKS as usize * 32) as u64;

/// A root image.
#[derive(Debug)]
struct Held {
    tree: Arc<Tree>,
    folder: PathBuf,
}

#[derive(Debug, Default)]
struct Known {
    held: BTreeMap<Digest, Arc<Held>>,
    looked: Option<Instant>,
    notes: VecDeque<String>,
}

/// The root images below some folders.
#[derive(Debug)]
pub struct RootStore {
    folders: Vec<PathBuf>,
    known: Mutex<Known>,
    given: AtomicU64,
    refused: AtomicU64,
}

impl RootStore {
    /// Of the images in these folders: `FOLDER/NAME/root.tree` and `FOLDER/NAME/VERSION/root.tree`.
    pub fn new(folders: Vec<PathBuf>) -> Self {
        Self {
            folders,
            known: Mutex::default(),
            given: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// The tree with this root, if its image is here. Blocks when it is not known yet.
    pub fn tree(&self, root: &Digest) -> Option<Arc<Tree>> {
        self.find(root).map(|held| Arc::clone(&held.tree))
    }

    /// Bytes of images given so far, and parts that were refused.
    pub fn counters(&self) -> (u64, u64) {
        (
            self.given.load(Ordering::Relaxed),
            self.refused.load(Ordering::Relaxed),
        )
    }

    /// What an administrator should know since the last call.
    pub fn notes(&self) -> Vec<String> {
        self.lock().notes.drain(..).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, root: &Digest) -> Option<Arc<Held>> {
        let mut known = self.lock();
        if let Some(held) = known.held.get(root) {
            return Some(Arc::clone(held));
        }
        if known.looked.is_some_and(|at| at.elapsed() < LOOK_AGAIN) {
            return None;
        }
        known.looked = Some(Instant::now());
        known.held.clear();
        for folder in self.folders.iter().flat_map(|folder| candidates(folder)) {
            if let Some(tree) = read_tree(&folder) {
                let held = Held {
                    tree: Arc::new(tree),
                    folder,
                };
                known.held.insert(held.tree.root(), Arc::new(held));
            }
        }
        known.held.get(root).cloned()
    }

    /// Whole chunks around the part are read and checked.
    fn checked(&self, held: &Held, part: &Range<u64>) -> Result<Vec<u8>, RootRefusal> {
        let shape = held.tree.shape();
        if part.start >= part.end || part.end > shape.bytes() {
            return Err(RootRefusal::Range);
        }
        let size = u64::from(shape.chunk_bytes());
        // Within MAX_CHUNKS, for the end is within the image.
        let chunks = (part.start / size) as u32..=((part.end - 1) / size) as u32;
        let image = held.folder.join("root.img");
        let file = File::open(&image).map_err(|_| RootRefusal::Unreadable)?;
        let mut bytes = Vec::new();
        for chunk in chunks {
            let (offset, length) = shape.range(chunk).ok_or(RootRefusal::Range)?;
            let mut whole = vec![0; length as usize];
            let read = file.read_exact_at(&mut whole, offset);
            let read = read.map_err(|error| error.to_string());
            if let Err(why) =
                read.and_then(|()| held.tree.check(chunk, &whole).map_err(|error| error.to_string()))
            {
                self.note(format!(
                    "{} is not what it was when it was built ({why}): nodes wait; build it again or put the file back from a backup",
                    image.display()
                ));
                return Err(RootRefusal::Changed);
            }
            let (from, to) = (part.start.saturating_sub(offset), part.end - offset);
            let to = to.min(u64::from(length)) as usize;
            bytes.extend(whole.get(from as usize..to).unwrap_or_default());
        }
        Ok(bytes)
    }

    /// Once, not for each node that asks.
    fn note(&self, text: String) {
        let mut known = self.lock();
        if known.notes.len() < MAX_NOTES && !known.notes.contains(&text) {
            known.notes.push_back(text);
        }
    }
}

impl Roots for RootStore {
    fn size(&self, tree: &str, file: RootFile) -> Option<u64> {
        let held = self.find(&tree.parse().ok()?)?;
        Some(match file {
            RootFile::Tree => held.tree.encode().len() as u64,
            RootFile::Chunks => held.tree.shape().bytes(),
        })
    }

    fn read(&self, tree: &str, file: RootFile, part: Range<u64>) -> Result<Vec<u8>, RootRefusal> {
        let root = tree.parse().map_err(|_| RootRefusal::Unknown)?;
        let held = self.find(&root).ok_or(RootRefusal::Unknown)?;
        let bytes = match file {
            RootFile::Tree => {
                let bytes = held.tree.encode();
                let part = part.start as usize..part.end as usize;
                bytes.get(part).map(<[u8]>::to_vec).ok_or(RootRefusal::Range)
            }
            RootFile::Chunks => self.checked(&held, &part),
        };
        match &bytes {
            Ok(bytes) => self.given.fetch_add(bytes.len() as u64, Ordering::Relaxed),
            Err(_) => self.refused.fetch_add(1, Ordering::Relaxed),
        };
        bytes
    }
}

/// Folders one and two levels below.
fn candidates(folder: &Path) -> Vec<PathBuf> {
    let below = |folder: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.path())
            .filter(|path| path.is_dir())
            .take(MAX_FOLDERS)
            .collect()
    };
    let first = below(folder);
    let second = first.iter().flat_map(|folder| below(folder)).take(MAX_FOLDERS);
    second
        .chain(first.iter().cloned())
        .filter(|folder| folder.join("root.tree").is_file())
        .collect()
}

fn read_tree(folder: &Path) -> Option<Tree> {
    let file = File::open(folder.join("root.tree")).ok()?;
    let mut bytes = Vec::new();
    file.take(MAX_TREE + 1).read_to_end(&mut bytes).ok()?;
    let tree = Tree::decode_unverified(&bytes);
    if let Err(error) = &tree {
        tracing::warn!(folder = %folder.display(), %error, "a root image that cannot be served");
    }
    tree.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_checked_and_a_changed_byte_is_refused_with_its_reason() {
        let folder = tempfile::tempdir().unwrap();
        let version = folder.path().join("compute/3");
        std::fs::create_dir_all(&version).unwrap();
        let mut image: Vec<u8> = (0..700_000_u32).map(|at| (at % 251) as u8).collect();
        let tree = Tree::of(&image).unwrap();
        std::fs::write(version.join("root.img"), &image).unwrap();
        std::fs::write(version.join("root.tree"), tree.encode()).unwrap();
        let store = RootStore::new(vec![folder.path().to_owned()]);
        let root = tree.root().to_string();
        assert_eq!(store.size(&root, RootFile::Chunks), Some(700_000));
        for part in [
            0..262_144,
            262_144..524_288,
            524_288..700_000,
            262_000..263_000,
            5..6,
            0..700_000,
        ] {
            let expected = image[part.start as usize..part.end as usize].to_vec();
            assert_eq!(store.read(&root, RootFile::Chunks, part), Ok(expected));
        }
        let length = store.size(&root, RootFile::Tree).unwrap();
        assert_eq!(store.read(&root, RootFile::Tree, 0..length), Ok(tree.encode()));
        for part in [0..700_001, 700_000..700_000, 9..9] {
            assert_eq!(store.read(&root, RootFile::Chunks, part), Err(RootRefusal::Range));
        }
        assert_eq!(
            store.read(&"00".repeat(32), RootFile::Tree, 0..1),
            Err(RootRefusal::Unknown)
        );
        image[300_000] ^= 1;
        std::fs::write(version.join("root.img"), &image).unwrap();
        for _ in 0..3 {
            assert_eq!(
                store.read(&root, RootFile::Chunks, 262_144..524_288),
                Err(RootRefusal::Changed)
            );
        }
        assert!(
            store.read(&root, RootFile::Chunks, 0..262_144).is_ok(),
            "the others are good"
        );
        let notes = store.notes();
        assert!(
            notes.len() == 1 && notes[0].contains("chunk 1 does not match"),
            "{notes:?}"
        );
        std::fs::write(version.join("root.img"), &image[..400_000]).unwrap();
        assert_eq!(
            store.read(&root, RootFile::Chunks, 262_144..524_288),
            Err(RootRefusal::Changed)
        );
    }
}
