//! The builder's own folder: packages by version and digest, what is unpacked from them, and module facts. One
//! builder at a time holds it; whatever is in it can be deleted at any time and is made again.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context;
use cid_initramfs::Shelf;
use cid_initramfs::digest::sha256_hex;

/// The cache, held for this process alone until it is dropped.
#[derive(Debug)]
pub struct Cache {
    root: PathBuf,
    _lock: File,
}

impl Cache {
    /// Opens the cache of this user, see [`root`].
    pub fn open() -> anyhow::Result<Self> {
        Self::at(&root()?)
    }

    /// Opens the cache at `root`, waiting for another builder that holds it.
    pub fn at(root: &Path) -> anyhow::Result<Self> {
        let place = || format!("cache folder {}", root.display());
        for folder in ["apt", "packages", "unpacked", "facts", "pins", PACKED] {
            fs::create_dir_all(root.join(folder)).with_context(place)?;
        }
        let lock = File::create(root.join("lock")).with_context(place)?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).with_context(place)?;
        let cache = Cache {
            root: root.to_owned(),
            _lock: lock,
        };
        cache.sweep();
        Ok(cache)
    }

    /// A path inside the cache.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    /// A fresh folder inside the cache, to be filled and renamed.
    pub fn workshop(&self) -> anyhow::Result<tempfile::TempDir> {
        tempfile::Builder::new()
            .prefix(WORKSHOP)
            .tempdir_in(&self.root)
            .with_context(|| format!("cache folder {}", self.root.display()))
    }

    /// Removes what an interrupted builder left: nobody else can be at work while we hold the lock.
    fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.root) else {
            return;
        };
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        for entry in entries.flatten() {
            // Removing would go on into whatever somebody mounted there.
            let mounted = mounts.contains(&*entry.path().to_string_lossy());
            if entry.file_name().to_string_lossy().starts_with(WORKSHOP) && !mounted {
                // Not fatal: it only takes space, and the next builder tries again.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// What is in a folder but for the `keep` that were written or used last.
pub(crate) fn oldest(folder: &Path, keep: usize) -> Vec<PathBuf> {
    let mut seen: Vec<(SystemTime, PathBuf)> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    seen.sort();
    seen.into_iter().rev().skip(keep).map(|(_, path)| path).collect()
}

/// Packed blocks of images, each behind its SHA-256: a damaged one is as good as none.
impl Shelf for Cache {
    fn take(&self, key: &str) -> Option<Vec<u8>> {
        let path = self.path(PACKED).join(key);
        let file = fs::read(&path).ok()?;
        let (digest, bytes) = file.split_at_checked(64)?;
        if sha256_hex(bytes).as_bytes() != digest {
            return None;
        }
        // The oldest are thrown away first. Not fatal: one that cannot be marked is only made again.
        let _ = File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        Some(bytes.to_vec())
    }

    fn put(&self, key: &str, bytes: &[u8]) {
        let folder = self.path(PACKED);
        for path in oldest(&folder, PACKED_LIMIT - 1) {
            let _ = fs::remove_file(path);
        }
        let file = [sha256_hex(bytes).as_bytes(), bytes].concat();
        let _ = write_atomically(&folder.join(key), &file);
    }
}

/// Where the cache of this user is: `${XDG_CACHE_HOME}/cid`, else `/var/cache/cid` for root, else `~/.cache/cid`.
pub fn root() -> anyhow::Result<PathBuf> {
    let variable = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    match (variable("XDG_CACHE_HOME"), variable("HOME")) {
        (Some(cache), _) => Ok(cache.join("cid")),
        (None, _) if rustix::process::geteuid().is_root() => Ok(PathBuf::from("/var/cache/cid")),
        (None, Some(home)) => Ok(home.join(".cache/cid")),
        (None, None) => anyhow::bail!("no cache folder: set HOME or XDG_CACHE_HOME"),
    }
}

/// Folder of packed blocks, and how many are kept: three for each of a few recipes and kernels.
const PACKED: &str = "packed";
const PACKED_LIMIT: usize = 24;

const WORKSHOP: &str = ".work-";

/// Writes a small file so that it is whole or absent.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(|| folder.display().to_string())?;
    std::io::Write::write_all(&mut file, bytes).with_context(|| path.display().to_string())?;
    file.persist(path).with_context(|| path.display().to_string())?;
    Ok(())
}
