//! Looking inside an image: `ls`, `cat`, `diff`, `du`, `verify`, `unpack`. Whatever the file holds costs one error line and bounded
//! memory; nothing from inside it reaches a terminal as a control character.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use cid_initramfs::archive::EntryHeader;
use cid_initramfs::digest::hex;
use cid_initramfs::plan::COMPLETE;
use cid_initramfs::{ArchiveError, decompressor, read_archive};
use cid_protocol::manifest::{Artifact, FileEntry, MANIFEST_VERSION, Manifest};
use serde::Serialize;
use sha2::Digest;

use crate::apt::sha256_file;
use crate::secrets;
use crate::stage2::read::RootImage;

mod compare;
mod root;
mod unpack;
mod usage;

pub use compare::{Difference, PackageDifference, diff};
pub use root::Unpacked;
pub use unpack::unpack;
pub use usage::{Usage, du};

/// Which part of an image is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The initrd.
    Stage1,
    /// The root image.
    Root,
}

impl Part {
    /// The root when it was asked for, or when the file is one.
    fn of(self, image: &Path) -> anyhow::Result<Self> {
        if self == Part::Root {
            root::needs_root(image)?;
        }
        if image.is_file() && RootImage::is_one(image) {
            return Ok(Part::Root);
        }
        Ok(self)
    }
}

/// Text for people or JSON for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A table.
    Text,
    /// One JSON document; its shape is documented and stable.
    Json,
}

/// One entry as `ls --json` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// Absolute path.
    pub path: String,
    /// Octal type and permission bits.
    pub mode: String,
    /// Bytes of content.
    pub size: u64,
    /// SHA-256 of the content, or empty for what has none.
    pub sha256: String,
}

/// `verify --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Whether the image is what its manifest says.
    pub ok: bool,
    /// One line for each thing that is not.
    pub problems: Vec<String>,
}

/// `ls IMAGE`: every entry of the initrd, or of the root image.
pub fn ls(image: &Path, part: Part, format: Format, output: &mut dyn Write) -> anyhow::Result<()> {
    if part.of(image)? == Part::Root {
        let list = root::list(image)?;
        if format == Format::Json {
            return json(
                output,
                &list.entries.values().map(Listed::from).collect::<Vec<_>>(),
            );
        }
        for entry in list.entries.values() {
            writeln!(output, "{} {:>10} {}", entry.mode, entry.size, shown(&entry.path))?;
        }
        return Ok(());
    }
    match format {
        // As it is read: nothing is kept.
        Format::Text => walk(image, |header, _| {
            writeln!(
                output,
                "{:06o} {:>10} {}",
                header.mode,
                header.size,
                shown(&header.path)
            )
        }),
        Format::Json => {
            let entries: Vec<Listed> = entries(image)?.into_values().collect();
            json(output, &entries)
        }
    }
}

/// `cat IMAGE PATH`: the content of one file.
pub fn cat(image: &Path, part: Part, path: &str, output: &mut dyn Write) -> anyhow::Result<()> {
    let wanted = format!("/{}", path.trim_start_matches('/'));
    if part.of(image)? == Part::Root {
        let found = RootImage::open(&root::file(image))?.cat(&wanted, output);
        return found
            .with_context(|| format!("{}: `cidbuild ls --root` lists what there is", image.display()));
    }
    let mut found = false;
    walk(image, |header, content| {
        if header.path != wanted {
            return Ok(());
        }
        found = true;
        if header.mode & FILE_TYPE == DIRECTORY {
            return Err(io::Error::other(format!("{wanted} is a directory")));
        }
        io::copy(content, output).map(drop)
    })?;
    if !found {
        bail!(
            "{}: no {wanted} in it; `cidbuild ls` lists what there is",
            image.display()
        );
    }
    Ok(())
}

/// `verify IMAGE`: every digest of the manifest against the files, inside and beside the initrd. True when all hold.
pub fn verify(image: &Path, format: Format, output: &mut dyn Write) -> anyhow::Result<bool> {
    let manifest = read_manifest(image)?;
    let mut problems = Vec::new();
    for (name, artifact) in &manifest.artifacts {
        if let Some(problem) = check_artifact(image, name, artifact) {
            problems.push(problem);
        }
    }
    match entries_in_order(image) {
        Ok((entries, last)) => {
            problems.extend(check_entries(&manifest.files, entries));
            if last.as_deref() != Some(COMPLETE) {
                problems.push(format!(
                    "initrd.img: {COMPLETE} is not its last entry: the archive is not whole"
                ));
            }
        }
        Err(error) => problems.push(format!("{error:#}")),
    }
    if let Some(root) = &manifest.root {
        problems.extend(root::problems(image, root));
    }
    let verdict = Verdict {
        ok: problems.is_empty(),
        problems,
    };
    match format {
        Format::Json => json(output, &verdict)?,
        Format::Text if verdict.ok => {
            let (files, inside) = (manifest.artifacts.len(), manifest.files.len());
            write!(
                output,
                "{}: {files} files and {inside} entries are as the manifest says",
                image.display()
            )?;
            if let Some(root) = &manifest.root {
                let chunks = root.bytes.div_ceil(root.chunk_bytes.max(1));
                write!(output, ", and {chunks} chunks of root.img as its tree says")?;
            }
            writeln!(output)?;
        }
        Format::Text => {
            for problem in &verdict.problems {
                writeln!(output, "{}", shown(problem))?;
            }
        }
    }
    Ok(verdict.ok)
}

/// Looks for secrets in the manifest, the image's other files and every entry of the initrd. True when there is none.
pub fn no_secrets(
    image: &Path,
    known: &[Vec<u8>],
    format: Format,
    output: &mut dyn Write,
) -> anyhow::Result<bool> {
    let manifest = read_manifest(image)?;
    let mut problems = secrets::findings("manifest.json", &serde_json::to_vec(&manifest)?, known);
    let packed = ["initrd.img", "root.img"];
    for name in manifest
        .artifacts
        .keys()
        .filter(|name| !packed.contains(&name.as_str()))
    {
        let file = image.join(name);
        let bytes = std::fs::read(&file).with_context(|| file.display().to_string())?;
        problems.extend(secrets::findings(name, &bytes, known));
    }
    walk(image, |header, content| {
        let mut bytes = Vec::new();
        content.take(ENTRY_LIMIT).read_to_end(&mut bytes)?;
        problems.extend(secrets::findings(&header.path, &bytes, known));
        Ok(())
    })?;
    if manifest.root.is_some() {
        let root = RootImage::open(&image.join("root.img"))?;
        for entry in root::list(image)?.entries.values() {
            if entry.mode.starts_with("100") && entry.size <= ENTRY_LIMIT && entry.same_as.is_none() {
                let mut bytes = Vec::new();
                root.cat(&entry.path, &mut bytes)?;
                problems.extend(secrets::findings(&format!("root:{}", entry.path), &bytes, known));
            }
        }
    }
    let ok = problems.is_empty();
    match format {
        Format::Json => json(output, &Verdict { ok, problems })?,
        Format::Text if ok => writeln!(output, "{}: no secret in it", image.display())?,
        Format::Text => {
            for problem in &problems {
                writeln!(output, "{}", shown(problem))?;
            }
        }
    }
    Ok(ok)
}

/// The manifest of an image folder, its version checked.
pub fn read_manifest(image: &Path) -> anyhow::Result<Manifest> {
    let file = image.join("manifest.json");
    let mut text = Vec::new();
    File::open(&file)
        .and_then(|file| file.take(MANIFEST_LIMIT).read_to_end(&mut text))
        .with_context(|| format!("{}: is this an image folder?", file.display()))?;
    let manifest: Manifest = serde_json::from_slice(&text).with_context(|| file.display().to_string())?;
    if manifest.version > MANIFEST_VERSION {
        bail!(
            "{}: version {} is newer than this cidbuild reads ({MANIFEST_VERSION})",
            file.display(),
            manifest.version
        );
    }
    Ok(manifest)
}

fn check_artifact(image: &Path, name: &str, artifact: &Artifact) -> Option<String> {
    // A manifest is data: its names must not lead out of the folder.
    if name.split('/').any(|part| part.is_empty() || part == "..") {
        return Some(format!("manifest.json: {name:?} is no name of a file beside it"));
    }
    let file = image.join(name);
    match std::fs::metadata(&file) {
        Err(error) => Some(format!("{name}: {error}")),
        Ok(found) if found.len() != artifact.size => Some(format!(
            "{name}: {} bytes, the manifest says {}",
            found.len(),
            artifact.size
        )),
        Ok(_) => match sha256_file(&file) {
            Err(error) => Some(format!("{error:#}")),
            Ok(found) if found != artifact.sha256 => Some(format!("{name}: SHA-256 is not the manifest's")),
            Ok(_) => None,
        },
    }
}

fn check_entries(files: &BTreeMap<String, FileEntry>, mut entries: BTreeMap<String, Listed>) -> Vec<String> {
    let mut problems = Vec::new();
    for (path, file) in files {
        match entries.remove(path) {
            None => problems.push(format!("initrd.img: {path} is missing")),
            Some(entry)
                if (&entry.mode, entry.size, &entry.sha256) != (&file.mode, file.size, &file.sha256) =>
            {
                problems.push(format!("initrd.img: {path} is not what the manifest says"));
            }
            Some(_) => {}
        }
    }
    problems.extend(
        entries
            .into_keys()
            .map(|path| format!("initrd.img: {path} is not in the manifest")),
    );
    problems
}

fn entries(image: &Path) -> anyhow::Result<BTreeMap<String, Listed>> {
    Ok(entries_in_order(image)?.0)
}

/// Every entry by path, and which came last.
fn entries_in_order(image: &Path) -> anyhow::Result<(BTreeMap<String, Listed>, Option<String>)> {
    let mut entries = BTreeMap::new();
    let mut last = None;
    let mut kept = 0;
    walk(image, |header, content| {
        kept += header.path.len() + 200;
        if kept > LISTING_LIMIT {
            return Err(io::Error::other("more entries than an image has"));
        }
        let sha256 = if header.mode & FILE_TYPE == REGULAR || header.mode & FILE_TYPE == SYMLINK {
            let mut digest = sha2::Sha256::new();
            io::copy(content, &mut digest)?;
            hex(&digest.finalize())
        } else {
            String::new()
        };
        let mode = format!("{:06o}", header.mode);
        let entry = Listed {
            path: header.path.clone(),
            mode,
            size: header.size.into(),
            sha256,
        };
        if entries.insert(header.path.clone(), entry).is_some() {
            return Err(io::Error::other(format!(
                "{} is in it twice",
                shown(&header.path)
            )));
        }
        last = Some(header.path.clone());
        Ok(())
    })?;
    Ok((entries, last))
}

/// Reads the initrd of `image` (a folder, or the file itself).
fn walk(
    image: &Path,
    visit: impl FnMut(&EntryHeader, &mut dyn Read) -> io::Result<()>,
) -> anyhow::Result<()> {
    let file: PathBuf = if image.is_dir() {
        image.join("initrd.img")
    } else {
        image.to_owned()
    };
    let name = || file.display().to_string();
    let opened = File::open(&file).with_context(name)?;
    let plain = decompressor(BufReader::with_capacity(1 << 16, opened)).with_context(name)?;
    // A few bytes of zstd can stand for any number of bytes: there is an end to our patience.
    let mut plain = plain.take(UNPACKED_LIMIT);
    match read_archive(&mut plain, visit) {
        Ok(_) => Ok(()),
        // What the visitor met (a closed pipe, say) is not the archive's fault.
        Err(ArchiveError::Visitor(error)) => Err(error.into()),
        Err(error) => Err(error).with_context(name),
    }
}

/// Control characters made visible.
fn shown(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            if c.is_control() {
                c.escape_unicode().collect::<Vec<_>>()
            } else {
                vec![c]
            }
        })
        .collect()
}

fn json(output: &mut dyn Write, value: &impl Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    Ok(output.write_all(text.as_bytes())?)
}

/// Bytes that an initrd may unpack to, that a listing may keep, and of a manifest.
const UNPACKED_LIMIT: u64 = 4 << 30;
const ENTRY_LIMIT: u64 = 1 << 30;
const LISTING_LIMIT: usize = 256 << 20;
const MANIFEST_LIMIT: u64 = 64 << 20;

/// `S_IFMT` and the types of it that matter here.
const FILE_TYPE: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const SYMLINK: u32 = 0o120_000;

#[cfg(test)]
mod tests;
