//! Finished trees in the cache, by what they were made from. A tree is there whole or not at all; the least used go
//! first when there are too many.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context;
use cid_initramfs::digest::sha256_hex;
use cid_protocol::services::Process;
use serde::{Deserialize, Serialize};

use super::oci::Hashed;
use super::tree::Tree;
use super::{Layer, PackageFacts, Tools, facts};
use crate::cache::write_atomically;

/// A kept tree.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) tar: PathBuf,
    pub(super) sha256: String,
    pub(super) epoch: u64,
    pub(super) process: Option<Process>,
    pub(super) packages: Vec<PackageFacts>,
    bytes: u64,
}

/// What stands beside the tar.
#[derive(Serialize, Deserialize)]
struct Note {
    sha256: String,
    bytes: u64,
    epoch: u64,
    process: Option<Process>,
    packages: Vec<PackageFacts>,
}

impl Stored {
    pub(super) fn layer(&self, name: &'static str) -> Layer {
        Layer {
            name,
            tar: self.tar.clone(),
            sha256: self.sha256.clone(),
            bytes: self.bytes,
        }
    }
}

/// The tree made from `words`: kept, or made now by `make`, which gives it with its newest time.
pub(super) fn stage(
    tools: Tools<'_>,
    words: &[String],
    make: impl FnOnce(&Path) -> anyhow::Result<(Tree, u64, Option<Process>)>,
) -> anyhow::Result<Stored> {
    let key = sha256_hex(words.join("\n").as_bytes());
    let folder = folder(tools)?;
    let (tar, note) = (
        folder.join(format!("{key}.tar")),
        folder.join(format!("{key}.json")),
    );
    if let Some(stored) = kept(&tar, &note) {
        return Ok(stored);
    }
    let workshop = tools.cache.workshop()?;
    let (tree, epoch, process) = make(workshop.path())?;
    let packages = facts::packages(&tree)?;
    let (sha256, bytes) = write(&tree, epoch, &workshop.path().join("tree.tar"), tools)?;
    fs::rename(workshop.path().join("tree.tar"), &tar).with_context(|| tar.display().to_string())?;
    let text = serde_json::to_vec(&Note {
        sha256: sha256.clone(),
        bytes,
        epoch,
        process: process.clone(),
        packages: packages.clone(),
    })?;
    // Last: a tar without a note is as good as none.
    write_atomically(&note, &text)?;
    forget(&folder, KEPT);
    Ok(Stored {
        tar,
        sha256,
        epoch,
        process,
        packages,
        bytes,
    })
}

fn kept(tar: &Path, note: &Path) -> Option<Stored> {
    let facts: Note = serde_json::from_slice(&fs::read(note).ok()?).ok()?;
    (fs::metadata(tar).ok()?.len() == facts.bytes).then_some(())?;
    let _ = File::open(note).and_then(|file| file.set_modified(SystemTime::now()));
    Some(Stored {
        tar: tar.to_owned(),
        sha256: facts.sha256,
        epoch: facts.epoch,
        process: facts.process,
        packages: facts.packages,
        bytes: facts.bytes,
    })
}

/// Keeps a top layer; it is made anew each time, being small.
pub(super) fn keep_top(tools: Tools<'_>, tree: &Tree, epoch: u64) -> anyhow::Result<Layer> {
    let folder = folder(tools)?.join("top");
    fs::create_dir_all(&folder)?;
    let workshop = tools.cache.workshop()?;
    let made = workshop.path().join("top.tar");
    let (sha256, bytes) = write(tree, epoch, &made, tools)?;
    let tar = folder.join(format!("{sha256}.tar"));
    fs::rename(&made, &tar).with_context(|| tar.display().to_string())?;
    forget(&folder, KEPT);
    Ok(Layer {
        name: "top",
        tar,
        sha256,
        bytes,
    })
}

fn folder(tools: Tools<'_>) -> anyhow::Result<PathBuf> {
    let folder = tools.cache.path("roots");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    Ok(folder)
}

/// Digest and size of the tar that it wrote.
fn write(tree: &Tree, epoch: u64, file: &Path, tools: Tools<'_>) -> anyhow::Result<(String, u64)> {
    let shown = || file.display().to_string();
    let total = tree.content_size();
    let phase = tools.progress.bytes("writing the tree", total);
    let mut output = BufWriter::with_capacity(1 << 20, Hashed::new(File::create(file).with_context(shown)?));
    tree.write_tar(&mut output, epoch, |done| phase.at(done))?;
    let hashed = output
        .into_inner()
        .map_err(|error| error.into_error())
        .with_context(shown)?;
    phase.finish();
    let bytes = hashed.bytes;
    Ok((hashed.finish(), bytes))
}

/// Removes the least used of more than `most` trees.
fn forget(folder: &Path, most: usize) {
    let mut seen: Vec<(SystemTime, PathBuf)> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "tar"))
        .filter_map(|tar| {
            let note = tar.with_extension("json");
            let marked = if note.is_file() { &note } else { &tar };
            Some((fs::metadata(marked).ok()?.modified().ok()?, tar))
        })
        .collect();
    seen.sort();
    for (_, tar) in seen.iter().rev().skip(most) {
        // Not fatal: it only takes space.
        let _ = fs::remove_file(tar.with_extension("json"));
        let _ = fs::remove_file(tar);
    }
}

/// Trees of a few recipes, with their stages before hooks.
const KEPT: usize = 8;
