//! From the tar layers of a root tree to `root.img`: EROFS, made by the suite's own `mkfs.erofs`, with its hash tree and list of files.
//! The same layers give the same bytes on any machine; never needs root, never mounts anything.

pub mod list;
pub mod read;
mod tool;
mod top;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::PathBuf;

use anyhow::{Context, bail};
use cid_content::tree::{Shape, TreeBuilder};
use cid_initramfs::digest::{hex, sha256_hex};
use sha2::Digest;

use crate::apt::Apt;
use crate::cache::{Cache, oldest, write_atomically};
use crate::progress::Progress;
use crate::root::{Layer, RootTree};
use list::List;
use tool::{Onto, Tool};

/// How the file system is called by `mount(2)`.
pub const FORMAT: &str = "erofs";
/// Every image has the same: what an image is, its hash tree says.
pub const UUID: &str = "c1dc1dc1-0000-4000-8000-000000000008";
/// Modules that the node needs for its root. No loop: EROFS is mounted from the file itself (docs/decisions/0008-root-format.md).
pub const MODULES: [&str; 2] = ["erofs", "overlay"];
/// Compressor, its level, and bytes that are compressed together; measured in docs/decisions/0008-root-format.md.
const COMPRESSION: [&str; 3] = ["-zzstd,level=3", "-C131072", "-Eztailpacking"];
/// Finished bottom layers that are kept in the cache.
const KEPT: usize = 6;

/// A finished root image, in the builder's own folder until it is dropped.
#[derive(Debug)]
pub struct Packed {
    _workshop: tempfile::TempDir,
    /// `root.img`.
    pub image: PathBuf,
    /// `root.tree`.
    pub tree: Vec<u8>,
    /// What is in it; `root.list` is made of it.
    pub list: List,
    /// The manifest's entry, [`needed_ram_bytes`](cid_protocol::manifest::Root::needed_ram_bytes) still 0.
    pub root: cid_protocol::manifest::Root,
    /// SHA-256 of `root.img`, lower-case hex.
    pub sha256: String,
}

/// Makes the image of `tree`, whose `epoch` its superblock bears.
///
/// The bottom layer is packed once and kept; a second layer is appended to a copy, which takes seconds whatever the first's size.
pub fn pack(
    tree: &RootTree,
    apt: &mut Apt<'_>,
    cache: &Cache,
    progress: &Progress,
) -> anyhow::Result<Packed> {
    let Some((bottom, above)) = tree.layers.split_first() else {
        bail!("a root without a layer: its recipe names no base");
    };
    let tool = Tool::of_suite(apt, cache, progress)?;
    let kept = bottom_image(bottom, &tool, cache, progress)?;
    let workshop = cache.workshop()?;
    let image = workshop.path().join("root.img");
    fs::copy(&kept.image, &image).with_context(|| image.display().to_string())?;
    let mut list = List::read(&kept.list)?;
    for (number, layer) in above.iter().enumerate() {
        let fitted = workshop.path().join(format!("layer{number}.tar"));
        list =
            top::fit(&layer.tar, &list, &fitted).with_context(|| format!("layer {}", layer.tar.display()))?;
        let phase = progress.spinner("appending what changes often to root.img");
        tool.make(&image, &fitted, tree.epoch, Onto::Existing)?;
        phase.finish();
        fs::remove_file(&fitted).with_context(|| fitted.display().to_string())?;
    }
    finish(workshop, image, list)
}

/// The digests of a finished file system.
fn finish(workshop: tempfile::TempDir, image: PathBuf, list: List) -> anyhow::Result<Packed> {
    let bytes = fs::metadata(&image)
        .with_context(|| image.display().to_string())?
        .len();
    let shape = Shape::of(bytes)?;
    let mut builder = TreeBuilder::new(shape);
    let mut digest = sha2::Sha256::new();
    let mut reader = File::open(&image).with_context(|| image.display().to_string())?;
    let mut block = vec![0; 1 << 20];
    loop {
        let count = reader
            .read(&mut block)
            .with_context(|| image.display().to_string())?;
        let Some(part) = block.get(..count).filter(|part| !part.is_empty()) else {
            break;
        };
        builder.update(part)?;
        digest.update(part);
    }
    let tree = builder.finish()?;
    let root = cid_protocol::manifest::Root {
        format: FORMAT.into(),
        uuid: UUID.into(),
        bytes,
        chunk_bytes: shape.chunk_bytes().into(),
        tree_root: tree.root().to_string(),
        entries: list.entries.len() as u64,
        content_bytes: list.content_bytes(),
        needed_ram_bytes: 0,
        peak_ram_bytes: 0,
        templates: Vec::new(),
        values: BTreeMap::new(),
    };
    Ok(Packed {
        _workshop: workshop,
        image,
        tree: tree.encode(),
        list,
        root,
        sha256: hex(&digest.finalize()),
    })
}

/// A bottom layer as the cache has it.
struct Kept {
    image: PathBuf,
    list: PathBuf,
}

/// Packed now or before: kept under everything that decides its bytes.
fn bottom_image(layer: &Layer, tool: &Tool, cache: &Cache, progress: &Progress) -> anyhow::Result<Kept> {
    let recipe = format!("{} {} {UUID} {COMPRESSION:?}", layer.sha256, tool.identity());
    let folder = cache.path(FOLDER).join(sha256_hex(recipe.as_bytes()));
    let kept = Kept {
        image: folder.join("root.img"),
        list: folder.join("root.list"),
    };
    if folder.is_dir() {
        // The oldest are thrown away first. Not fatal: one that cannot be marked is only made again.
        let _ = File::open(&folder).and_then(|open| open.set_modified(std::time::SystemTime::now()));
        return Ok(kept);
    }
    let workshop = cache.workshop()?;
    let phase = progress.growing("packing root.img", layer.bytes / 3, workshop.path());
    let image = workshop.path().join("root.img");
    // One reads and hashes, the other mostly packs.
    let (list, made) = std::thread::scope(|scope| {
        let made = scope.spawn(|| tool.make(&image, &layer.tar, 0, Onto::Nothing));
        let list = File::open(&layer.tar)
            .context("open")
            .and_then(|file| List::of_tar(BufReader::with_capacity(1 << 20, file)).context("read"))
            .with_context(|| layer.tar.display().to_string());
        (list, made.join())
    });
    let list = list?;
    made.map_err(|_| anyhow::anyhow!("the thread that packs root.img failed"))??;
    // A stream need not name the root itself, and mkfs.erofs then makes it everybody's to write.
    let only_root = workshop.path().join("root.tar");
    top::only_root(&list, &only_root)?;
    tool.make(&image, &only_root, 0, Onto::Existing)?;
    fs::remove_file(&only_root).with_context(|| only_root.display().to_string())?;
    phase.finish();
    write_atomically(&workshop.path().join("root.list"), &list.encode()?)?;
    for path in oldest(&cache.path(FOLDER), KEPT - 1) {
        // Not fatal: it only takes space.
        let _ = fs::remove_dir_all(path);
    }
    fs::create_dir_all(cache.path(FOLDER)).with_context(|| folder.display().to_string())?;
    // A rename after everything is there: a folder by this name is always whole.
    fs::rename(workshop.keep(), &folder).with_context(|| folder.display().to_string())?;
    Ok(kept)
}

/// Folder of packed bottom layers in the cache.
const FOLDER: &str = "stage2";

#[cfg(test)]
mod tests;
