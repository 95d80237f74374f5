//! What is in a root: one line for each entry, with owner, mode and digest, read from the tar layers and written beside the image. By it
//! two images are compared and a broken chunk gets a file's name, without unpacking anything.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Component, Path};

use anyhow::{Context, bail};
use cid_initramfs::digest::{hex, sha256_hex};
use serde::{Deserialize, Serialize};
use sha2::Digest;

/// One file, folder, link or device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Absolute path.
    pub path: String,
    /// Type and permission bits as in `stat(2)`, octal text such as `100644`.
    pub mode: String,
    /// Owner.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub uid: u64,
    /// Group.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gid: u64,
    /// Modification time, seconds since 1970.
    pub time: u64,
    /// Bytes of content (of the target for links).
    pub size: u64,
    /// SHA-256 of the content (of the target for links), lower-case hex; empty for what has none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sha256: String,
    /// The first name of the same file, where this is a hard link to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_as: Option<String>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// All entries by path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct List {
    /// By absolute path.
    pub entries: BTreeMap<String, Entry>,
}

impl List {
    /// Reads a whole tar stream. Entries outside the root, and kinds that no root has, are refused.
    pub fn of_tar(reader: impl Read) -> anyhow::Result<Self> {
        let mut list = Self::default();
        list.entries.insert("/".into(), top_folder());
        let mut archive = tar::Archive::new(reader);
        for entry in archive.entries()? {
            let mut entry = entry?;
            if let Some(found) = read_entry(&mut entry, &list)? {
                list.insert(found)?;
            }
        }
        Ok(list)
    }

    /// A list as [`List::encode`] wrote it.
    pub fn read(file: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        Self::decode(&text).with_context(|| file.display().to_string())
    }

    /// The text of `root.list`: JSON, one entry to a line, by path.
    pub fn decode(text: &str) -> anyhow::Result<Self> {
        let mut list = Self::default();
        for (number, line) in text.lines().enumerate() {
            let entry: Entry = serde_json::from_str(line).with_context(|| format!("line {}", number + 1))?;
            list.insert(entry)?;
        }
        Ok(list)
    }

    /// See [`List::decode`].
    pub fn encode(&self) -> anyhow::Result<Vec<u8>> {
        let mut text = Vec::new();
        for entry in self.entries.values() {
            serde_json::to_writer(&mut text, entry)?;
            text.push(b'\n');
        }
        Ok(text)
    }

    /// Bytes of all files; one with several names counts once.
    pub fn content_bytes(&self) -> u64 {
        let own = |entry: &&Entry| entry.same_as.is_none();
        self.entries.values().filter(own).map(|entry| entry.size).sum()
    }

    /// Bounded, since a list may come from anywhere.
    pub(super) fn insert(&mut self, entry: Entry) -> anyhow::Result<()> {
        if self.entries.len() >= MOST_ENTRIES {
            bail!("more than {MOST_ENTRIES} entries: no root image has so many");
        }
        self.entries.insert(entry.path.clone(), entry);
        Ok(())
    }
}

/// `/` itself, which a stream need not name.
pub(super) fn top_folder() -> Entry {
    Entry {
        path: "/".into(),
        mode: "040755".into(),
        uid: 0,
        gid: 0,
        time: 0,
        size: 0,
        sha256: String::new(),
        same_as: None,
    }
}

/// None for what is no entry of its own (extended headers of the whole stream).
pub(super) fn read_entry<R: Read>(
    entry: &mut tar::Entry<'_, R>,
    below: &List,
) -> anyhow::Result<Option<Entry>> {
    let kind = entry.header().entry_type();
    if kind.is_pax_global_extensions() {
        return Ok(None);
    }
    let path = absolute(&entry.path()?)?;
    let permissions = entry.header().mode()? & 0o7777;
    let mut found = Entry {
        path,
        mode: String::new(),
        uid: entry.header().uid()?,
        gid: entry.header().gid()?,
        time: entry.header().mtime()?,
        size: 0,
        sha256: String::new(),
        same_as: None,
    };
    let target = |entry: &tar::Entry<'_, R>| -> anyhow::Result<String> {
        let bytes = entry.link_name_bytes().context("a link without a target")?;
        String::from_utf8(bytes.into_owned()).context("the target of a link is not UTF-8")
    };
    // Byte 156 of a header of before 1988 is NUL for a file, and mkfs.erofs leaves such entries out without a word.
    if entry.header().as_bytes()[TYPE_FLAG] == 0 {
        bail!(
            "{}: its header does not say that it is a file (type NUL, not 0): write the tar anew",
            found.path
        );
    }
    let file_type = match kind {
        tar::EntryType::Regular | tar::EntryType::Continuous => {
            let mut digest = sha2::Sha256::new();
            found.size = std::io::copy(entry, &mut digest)?;
            found.sha256 = hex(&digest.finalize());
            0o100_000
        }
        tar::EntryType::Directory => 0o040_000,
        tar::EntryType::Symlink => {
            let target = target(entry)?;
            found.size = target.len() as u64;
            found.sha256 = sha256_hex(target.as_bytes());
            0o120_000
        }
        tar::EntryType::Link => {
            let first = absolute(Path::new(&target(entry)?))?;
            let same = below
                .entries
                .get(&first)
                .with_context(|| format!("{}: a hard link to {first}, which is not before it", found.path))?;
            let named = Entry {
                path: found.path,
                same_as: Some(same.same_as.clone().unwrap_or(first)),
                ..same.clone()
            };
            return Ok(Some(named));
        }
        tar::EntryType::Char => 0o020_000,
        tar::EntryType::Fifo => 0o010_000,
        other => bail!("{}: a root has no entry of kind {other:?}", found.path),
    };
    found.mode = format!("{:06o}", file_type | permissions);
    Ok(Some(found))
}

/// `usr/bin` and `./usr/bin/` as `/usr/bin`.
pub(super) fn absolute(path: &Path) -> anyhow::Result<String> {
    let mut whole = String::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => {
                let name = name
                    .to_str()
                    .with_context(|| format!("{}: the name is not UTF-8", path.display()))?;
                whole.push('/');
                whole.push_str(name);
            }
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                bail!("{}: leads out of the root", path.display())
            }
        }
    }
    if whole.is_empty() {
        whole.push('/');
    }
    Ok(whole)
}

/// Where a tar header has the kind of its entry.
const TYPE_FLAG: usize = 156;
/// Debian's largest desktop has a tenth of it.
const MOST_ENTRIES: usize = 4_000_000;
