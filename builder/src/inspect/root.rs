//! Looking inside a root image: what `ls`, `cat`, `diff`, `du`, `verify` and `unpack` say of `root.img`. Needs no root and mounts nothing;
//! what is unpacked stays below its folder.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use cid_content::Digest as ContentDigest;
use cid_content::tree::{Shape, Tree};
use cid_initramfs::digest::sha256_hex;
use cid_protocol::manifest::Root;

use super::{Difference, Listed};
use crate::root::PackageFacts;
use crate::stage2::list::{Entry, List};
use crate::stage2::read::RootImage;

/// The list that was written beside the image; of a bare `root.img`, the one that is read out of it.
pub(super) fn list(image: &Path) -> anyhow::Result<List> {
    if image.is_dir() {
        return List::read(&image.join("root.list"));
    }
    RootImage::open(image)?
        .list()
        .with_context(|| image.display().to_string())
}

/// `root.img` of a folder, or the file itself.
pub(super) fn file(image: &Path) -> PathBuf {
    if image.is_dir() {
        image.join("root.img")
    } else {
        image.to_owned()
    }
}

impl From<&Entry> for Listed {
    fn from(entry: &Entry) -> Self {
        Listed {
            path: entry.path.clone(),
            mode: entry.mode.clone(),
            size: entry.size,
            sha256: entry.sha256.clone(),
        }
    }
}

/// Files that are not the same in both, by path with `root:` before it. Times do not count.
pub(super) fn differences(first: &List, second: &List) -> Vec<Difference> {
    let same = |a: &Entry, b: &Entry| {
        (&a.mode, a.uid, a.gid, a.size, &a.sha256) == (&b.mode, b.uid, b.gid, b.size, &b.sha256)
    };
    let difference = |path: &str, first: Option<&Entry>, second: Option<&Entry>| Difference {
        path: format!("root:{path}"),
        first: first.map(Listed::from),
        second: second.map(Listed::from),
    };
    let mut found: Vec<Difference> = first
        .entries
        .iter()
        .filter(|(path, entry)| !second.entries.get(*path).is_some_and(|other| same(entry, other)))
        .map(|(path, entry)| difference(path, Some(entry), second.entries.get(path)))
        .collect();
    let new = second
        .entries
        .iter()
        .filter(|(path, _)| !first.entries.contains_key(*path));
    found.extend(new.map(|(path, entry)| difference(path, None, Some(entry))));
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// Version of each package, by name and architecture; none where an image has no list of them.
pub(super) fn packages(image: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let file = image.join("packages.json");
    if !file.is_file() {
        return Ok(BTreeMap::new());
    }
    let text = fs::read(&file).with_context(|| file.display().to_string())?;
    let packages: Vec<PackageFacts> =
        serde_json::from_slice(&text).with_context(|| file.display().to_string())?;
    let by_name = packages.into_iter().map(|package| {
        (
            format!("{}:{}", package.name, package.architecture),
            package.version,
        )
    });
    Ok(by_name.collect())
}

/// Every chunk of `root.img` against `root.tree`, that against the manifest. For what is wrong, which chunk, and which files it spoils.
pub(super) fn problems(image: &Path, root: &Root) -> Vec<String> {
    match check_chunks(image, root) {
        Ok(broken) if broken.is_empty() => Vec::new(),
        Ok(broken) => {
            let mut problems: Vec<String> = broken
                .iter()
                .map(|chunk| {
                    let from = u64::from(*chunk) * root.chunk_bytes;
                    format!("root.img: chunk {chunk} (from byte {from}) is not what root.tree says")
                })
                .collect();
            match spoilt(image) {
                Ok(names) => problems.extend(
                    names
                        .into_iter()
                        .map(|name| format!("root.img: {name} is spoilt")),
                ),
                Err(error) => problems.push(format!(
                    "root.img: which files are spoilt cannot be told: {error:#}"
                )),
            }
            problems
        }
        Err(error) => vec![format!("{error:#}")],
    }
}

fn check_chunks(image: &Path, root: &Root) -> anyhow::Result<Vec<u32>> {
    let file = image.join("root.tree");
    let bytes = fs::read(&file).with_context(|| file.display().to_string())?;
    let chunk_bytes = u32::try_from(root.chunk_bytes).context("manifest.json: chunk_bytes")?;
    let shape = Shape::new(root.bytes, chunk_bytes).context("manifest.json: root")?;
    let expected: ContentDigest = root.tree_root.parse().context("manifest.json: tree_root")?;
    let tree = Tree::decode(&bytes, shape, expected).context("root.tree")?;
    let file = image.join("root.img");
    let mut content = fs::File::open(&file).with_context(|| file.display().to_string())?;
    let (mut broken, mut there) = (Vec::new(), 0);
    loop {
        let mut chunk = Vec::new();
        (&mut content)
            .take(chunk_bytes.into())
            .read_to_end(&mut chunk)
            .with_context(|| file.display().to_string())?;
        if chunk.is_empty() || there >= shape.chunks() {
            break;
        }
        if tree.check(there, &chunk).is_err() {
            broken.push(there);
        }
        there += 1;
    }
    // A file that was cut lacks the last ones altogether.
    broken.extend(there..shape.chunks());
    Ok(broken)
}

/// Files whose content is not that of `root.list`. Each is read by itself: what is broken must not hide the rest.
fn spoilt(image: &Path) -> anyhow::Result<Vec<String>> {
    let meant = List::read(&image.join("root.list"))?;
    let root = RootImage::open(&image.join("root.img"))?;
    let is_file = |entry: &&Entry| entry.mode.starts_with("100") && entry.same_as.is_none();
    let is_spoilt = |entry: &&Entry| {
        let mut content = Vec::new();
        root.cat(&entry.path, &mut content).is_err() || sha256_hex(&content) != entry.sha256
    };
    let files = meant.entries.values().filter(is_file);
    Ok(files.filter(is_spoilt).map(|entry| entry.path.clone()).collect())
}

/// Writes everything of a root image below `target`, which must not be there or be empty. Owners are not kept.
pub(super) fn unpack(image: &Path, target: &Path) -> anyhow::Result<Unpacked> {
    let root = RootImage::open(image)?;
    super::unpack::fresh_folder(target)?;
    root.unpack(target)?;
    Ok(Unpacked::default())
}

/// What `unpack` did, counted as far as it can be.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Files, folders and links that are there now; 0 when another program did it.
    pub entries: usize,
    /// Devices and pipes that were left out.
    pub left_out: usize,
}

/// Refuses what has no root.
pub(super) fn needs_root(image: &Path) -> anyhow::Result<()> {
    if image.is_dir() && !image.join("root.img").is_file() {
        bail!(
            "{}: no root image in it; its recipe has no [root]. Without --root, stage 1 is looked at",
            image.display()
        );
    }
    Ok(())
}
