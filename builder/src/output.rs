//! The image folder appears at once or not at all: everything is written beside it, synced, and exchanged by one
//! rename. An interrupted or failed build leaves the previous image whole; never writes into a finished image.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};

/// A folder that will become `DIR/NAME`.
#[derive(Debug)]
pub struct Output {
    target: PathBuf,
    new: PathBuf,
    _lock: File,
    done: bool,
}

impl Output {
    /// Starts `dir/name`. Removes what an interrupted build of the same image left, finishes what it had begun.
    pub fn start(dir: &Path, name: &str) -> anyhow::Result<Self> {
        let at = || format!("output folder {}", dir.display());
        fs::create_dir_all(dir).with_context(at)?;
        let lock = File::create(dir.join(format!(".{name}.lock"))).with_context(at)?;
        flock(&lock, FlockOperation::LockExclusive).with_context(at)?;
        let target = dir.join(name);
        let (new, old) = (dir.join(format!(".{name}.new")), dir.join(format!(".{name}.old")));
        if !target.exists() && old.exists() {
            // A build was cut between the two renames of `finish` on a file system that cannot exchange.
            fs::rename(&old, &target).with_context(at)?;
        }
        for leftover in [&new, &old] {
            if leftover.exists() {
                fs::remove_dir_all(leftover).with_context(at)?;
            }
        }
        fs::create_dir(&new).with_context(at)?;
        Ok(Output {
            target,
            new,
            _lock: lock,
            done: false,
        })
    }

    /// Writes one file and syncs it.
    pub fn write(&self, relative: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let path = self.new.join(relative);
        let shown = || format!("{} ({} bytes)", self.target.join(relative).display(), bytes.len());
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(shown)?;
        }
        let mut file = File::create(&path).with_context(shown)?;
        file.write_all(bytes)
            .and_then(|()| file.sync_all())
            .with_context(shown)
    }

    /// Copies a file that is too large for memory, and syncs it.
    pub fn copy(&self, relative: &str, from: &Path) -> anyhow::Result<()> {
        let path = self.new.join(relative);
        let shown = || format!("{} from {}", self.target.join(relative).display(), from.display());
        // `fs::copy` lets the file system share the blocks where it can.
        fs::copy(from, &path)
            .and_then(|_| File::open(&path)?.sync_all())
            .with_context(shown)
    }

    /// Makes the folder visible under its name.
    pub fn finish(mut self) -> anyhow::Result<PathBuf> {
        let shown = || self.target.display().to_string();
        sync_folders(&self.new).with_context(shown)?;
        let parent = self.target.parent().unwrap_or(Path::new(".")).to_owned();
        if self.target.exists() {
            match renameat_with(CWD, &self.new, CWD, &self.target, RenameFlags::EXCHANGE) {
                Ok(()) => {}
                Err(_) => self.step_aside().with_context(shown)?,
            }
        } else {
            fs::rename(&self.new, &self.target).with_context(shown)?;
        }
        File::open(&parent)
            .and_then(|folder| folder.sync_all())
            .with_context(shown)?;
        self.done = true;
        Ok(self.target.clone())
    }

    /// Where the file system cannot exchange two names: `start` mends a cut between the two renames.
    fn step_aside(&self) -> std::io::Result<()> {
        let old = self.new.with_extension("old");
        fs::rename(&self.target, &old)?;
        fs::rename(&self.new, &self.target)?;
        fs::rename(&old, &self.new)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // After an exchange this is the previous image; after a failure, what was half-written.
        let _ = fs::remove_dir_all(&self.new);
    }
}

fn sync_folders(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_folders(&entry.path())?;
        }
    }
    File::open(folder)?.sync_all()
}
