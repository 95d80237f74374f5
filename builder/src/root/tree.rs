//! A file tree as a value: names and attributes in memory, contents where they lie (in a tar file, in a folder, in
//! memory). Never writes into a folder, so no name in an archive can lead out of one; links are followed inside the
//! tree only.

mod archive;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};

/// A tree. Names are relative, without `.` and `..`; the root itself is not an entry.
#[derive(Debug, Default, Clone)]
pub struct Tree {
    entries: BTreeMap<String, Entry>,
    /// What was changed since [`Tree::record`].
    touched: Option<BTreeSet<String>>,
}

/// One name.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Modification time, seconds since 1970.
    pub mtime: u64,
    /// Extended attributes, e.g. `security.capability`.
    pub attributes: BTreeMap<String, Vec<u8>>,
}

impl Entry {
    /// An entry of root's, as old as can be.
    pub fn new(kind: Kind, mode: u32) -> Self {
        Entry {
            kind,
            mode,
            uid: 0,
            gid: 0,
            mtime: 0,
            attributes: BTreeMap::new(),
        }
    }

    /// A small file of root's.
    pub fn text(text: impl Into<Vec<u8>>, mode: u32) -> Self {
        Self::new(Kind::File(Arc::new(Content::Memory(text.into()))), mode)
    }
}

/// What a name stands for. Names with the same content object are hard links of one another. Block devices have no
/// place in a root.
#[derive(Debug, Clone)]
pub enum Kind {
    /// A folder.
    Folder,
    /// A regular file.
    File(Arc<Content>),
    /// A symbolic link.
    Link(String),
    /// A named pipe.
    Pipe,
    /// A character device.
    Device(u32, u32),
}

/// Where a file's bytes are.
#[derive(Debug)]
pub enum Content {
    /// Here.
    Memory(Vec<u8>),
    /// A stretch of a file.
    Stretch {
        /// The file; it must not change.
        file: Arc<File>,
        /// Its first byte.
        offset: u64,
        /// Number of bytes.
        size: u64,
    },
    /// A whole file, opened when it is read (a folder may have more files than a process may open).
    Path {
        /// The file.
        path: std::path::PathBuf,
        /// Its size when it was seen.
        size: u64,
    },
}

impl Content {
    /// Number of bytes.
    pub fn size(&self) -> u64 {
        match self {
            Content::Memory(bytes) => bytes.len() as u64,
            Content::Stretch { size, .. } | Content::Path { size, .. } => *size,
        }
    }

    /// All of it; only for files known to be small.
    pub fn bytes(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.reader()?.take(SMALL_FILE).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn reader(&self) -> io::Result<Box<dyn Read + '_>> {
        Ok(match self {
            Content::Memory(bytes) => Box::new(bytes.as_slice()),
            Content::Stretch { file, offset, size } => Box::new(io::BufReader::with_capacity(
                BUFFER,
                Stretch {
                    file,
                    at: *offset,
                    left: *size,
                },
            )),
            Content::Path { path, .. } => Box::new(io::BufReader::with_capacity(BUFFER, File::open(path)?)),
        })
    }
}

/// A stretch of a file; one that is shorter than it was is an error.
pub(super) struct Stretch<'a> {
    pub(super) file: &'a File,
    pub(super) at: u64,
    pub(super) left: u64,
}

impl Read for Stretch<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let got = self.file.read_at(&mut buffer[..wanted], self.at)?;
        if got == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += got as u64;
        self.left -= got as u64;
        Ok(got)
    }
}

/// Whether names that start with `.wh.` remove something (OCI image layers) or are names like any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whiteouts {
    /// `.wh.NAME` removes NAME of the layers below, `.wh..wh..opq` everything in its folder.
    Apply,
    /// They are names.
    Keep,
}

impl Tree {
    /// An entry by its name.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// All entries, sorted by name.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// A small file's content; links are followed.
    pub fn read(&self, name: &str) -> anyhow::Result<Option<Vec<u8>>> {
        let name = self.resolve(name, Last::Follow)?;
        match self.entries.get(&name).map(|entry| &entry.kind) {
            Some(Kind::File(content)) => Ok(Some(content.bytes().with_context(|| name.clone())?)),
            _ => Ok(None),
        }
    }

    /// From here on it is noted what changes; [`Tree::touched`] has it.
    pub fn record(&mut self) {
        self.touched = Some(BTreeSet::new());
    }

    /// The entries that were put since [`Tree::record`], and the folders they are in.
    pub fn touched(&self) -> Tree {
        let mut top = Tree::default();
        for name in self.touched.iter().flatten() {
            let folders = name.match_indices('/').map(|(at, _)| &name[..at]);
            for name in folders.chain([name.as_str()]) {
                if let Some(entry) = self.entries.get(name) {
                    top.entries.insert(name.to_owned(), entry.clone());
                }
            }
        }
        top
    }

    /// Puts `entry` at `name` in place of what is there; a folder in place of a folder keeps what is in it. Missing
    /// folders above are made. Links among them are followed inside the tree. Returns the name it got.
    pub fn put(&mut self, name: &str, entry: Entry) -> anyhow::Result<String> {
        let name = self.resolve(&clean(name)?, Last::Keep)?;
        if name.is_empty() {
            return Ok(name);
        }
        let folders: Vec<&str> = name.match_indices('/').map(|(at, _)| &name[..at]).collect();
        for folder in folders {
            match self.entries.get(folder).map(|entry| &entry.kind) {
                Some(Kind::Folder) => {}
                Some(_) => bail!("/{name}: /{folder} is no folder"),
                None => {
                    self.entries
                        .insert(folder.to_owned(), Entry::new(Kind::Folder, 0o755));
                }
            }
        }
        if !matches!(entry.kind, Kind::Folder)
            && matches!(self.entries.get(&name), Some(old) if matches!(old.kind, Kind::Folder))
        {
            self.remove_below(&name);
        }
        if let Some(touched) = &mut self.touched {
            touched.insert(name.clone());
        }
        self.entries.insert(name.clone(), entry);
        Ok(name)
    }

    /// Removes a name and everything below it.
    pub fn remove(&mut self, name: &str) {
        self.remove_below(name);
        self.entries.remove(name);
    }

    fn remove_below(&mut self, folder: &str) {
        let prefix = format!("{folder}/");
        let below: Vec<String> = self
            .entries
            .range(prefix.clone()..)
            .take_while(|(name, _)| name.starts_with(&prefix))
            .map(|(name, _)| name.clone())
            .collect();
        for name in below {
            self.entries.remove(&name);
        }
    }

    /// Keeps only the names for which `keep` says so.
    pub fn retain(&mut self, mut keep: impl FnMut(&str) -> bool) {
        self.entries.retain(|name, _| keep(name));
    }

    /// The name that `name` comes to when links among its folders are followed, in the tree and never out of it.
    fn resolve(&self, name: &str, last: Last) -> anyhow::Result<String> {
        let mut left: Vec<String> = name.split('/').rev().map(str::to_owned).collect();
        let mut found: Vec<String> = Vec::new();
        let mut links = 0;
        while let Some(part) = left.pop() {
            match part.as_str() {
                "" | "." => continue,
                ".." => {
                    found.pop();
                    continue;
                }
                _ => found.push(part),
            }
            if left.is_empty() && last == Last::Keep {
                break;
            }
            let here = found.join("/");
            if let Some(Kind::Link(target)) = self.entries.get(&here).map(|entry| &entry.kind) {
                links += 1;
                if links > MAX_LINKS {
                    bail!("/{name}: more than {MAX_LINKS} links; they lead in a circle");
                }
                found.pop();
                if target.starts_with('/') {
                    found.clear();
                }
                left.extend(target.split('/').rev().map(str::to_owned));
            }
        }
        Ok(found.join("/"))
    }

    /// Reads a folder over this tree. Everything belongs to root and has the permissions 0755 or 0644 when `plain` (a
    /// folder under version control keeps no more than that), else its own; times are not kept.
    pub fn read_folder(&mut self, folder: &Path, plain: bool) -> anyhow::Result<()> {
        let mut names = Vec::new();
        list(folder, "", &mut names)?;
        // Whose checkout it is does not show.
        let owner = folder.metadata().with_context(|| folder.display().to_string())?;
        let (uid, gid) = (owner.uid(), owner.gid());
        let number = |id: u32, own: u32| if id == own { 0 } else { u64::from(id) };
        let mut linked: HashMap<(u64, u64), Arc<Content>> = HashMap::new();
        for name in names {
            let path = folder.join(&name);
            let facts = path
                .symlink_metadata()
                .with_context(|| path.display().to_string())?;
            let kind = facts.file_type();
            let (kind, mode) = if kind.is_dir() {
                (Kind::Folder, 0o755)
            } else if kind.is_symlink() {
                let target = path.read_link()?;
                let Some(target) = target.to_str() else {
                    bail!("{}: the link's target is no UTF-8; rename it", path.display());
                };
                (Kind::Link(target.to_owned()), 0o777)
            } else if kind.is_file() {
                let new = || {
                    Arc::new(Content::Path {
                        path: path.clone(),
                        size: facts.len(),
                    })
                };
                let content = linked
                    .entry((facts.dev(), facts.ino()))
                    .or_insert_with(new)
                    .clone();
                (
                    Kind::File(content),
                    if facts.mode() & 0o111 == 0 { 0o644 } else { 0o755 },
                )
            } else {
                // Sockets, pipes and devices of a live system.
                continue;
            };
            let mut entry = Entry::new(kind, if plain { mode } else { facts.mode() & 0o7777 });
            if !plain {
                (entry.uid, entry.gid) = (number(facts.uid(), uid), number(facts.gid(), gid));
            } else if matches!(entry.kind, Kind::Folder) && self.is_folder(&name)? {
                continue;
            }
            self.put(&name, entry)?;
        }
        Ok(())
    }

    /// Whether a folder is there, links followed.
    pub fn is_folder(&self, name: &str) -> anyhow::Result<bool> {
        let name = self.resolve(name, Last::Follow)?;
        Ok(name.is_empty()
            || matches!(self.entries.get(&name), Some(entry) if matches!(entry.kind, Kind::Folder)))
    }

    /// Gives entries without extended attributes those they have in `before`, where size, mode and time are the same.
    pub fn keep_attributes(&mut self, before: &Tree) {
        for (name, entry) in &mut self.entries {
            let Some(old) = before.entries.get(name) else {
                continue;
            };
            let same = match (&entry.kind, &old.kind) {
                (Kind::File(new), Kind::File(old)) => new.size() == old.size(),
                (new, old) => std::mem::discriminant(new) == std::mem::discriminant(old),
            };
            if same && entry.attributes.is_empty() && (entry.mode, entry.mtime) == (old.mode, old.mtime) {
                entry.attributes = old.attributes.clone();
            }
        }
    }

    /// Whether a regular file is there, links followed.
    pub fn is_file(&self, name: &str) -> anyhow::Result<bool> {
        let name = self.resolve(name, Last::Follow)?;
        Ok(matches!(self.entries.get(&name), Some(entry) if matches!(entry.kind, Kind::File(_))))
    }

    /// Bytes of all files.
    pub fn content_size(&self) -> u64 {
        let size = |entry: &Entry| match &entry.kind {
            Kind::File(content) => content.size(),
            _ => 0,
        };
        self.entries.values().map(size).sum()
    }

    /// One line for each entry with everything that its tar entry comes from, times aside; reads all contents.
    pub fn facts(&self) -> anyhow::Result<Vec<String>> {
        let mut lines = Vec::with_capacity(self.entries.len());
        for (name, entry) in &self.entries {
            let content = match &entry.kind {
                Kind::Folder => "folder".to_owned(),
                Kind::Pipe => "pipe".to_owned(),
                Kind::Device(major, minor) => format!("device {major} {minor}"),
                Kind::Link(target) => format!("link {target:?}"),
                Kind::File(content) => {
                    use sha2::Digest;
                    let mut digest = sha2::Sha256::new();
                    io::copy(&mut content.reader()?, &mut digest).with_context(|| format!("/{name}"))?;
                    cid_initramfs::digest::hex(&digest.finalize())
                }
            };
            lines.push(format!(
                "{name:?} {:o} {} {} {content}",
                entry.mode, entry.uid, entry.gid
            ));
        }
        Ok(lines)
    }
}

/// Whether the last part of a name is followed when it is a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    Follow,
    Keep,
}

/// A name without a leading slash, empty parts and `.`; one with `..` is refused.
fn clean(name: &str) -> anyhow::Result<String> {
    let parts: Vec<&str> = name
        .split('/')
        .filter(|part| !matches!(*part, "" | "."))
        .collect();
    if parts.contains(&"..") {
        bail!("{name:?} leads out of the tree with '..'; nothing was unpacked");
    }
    Ok(parts.join("/"))
}

fn last_part(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

fn join(folder: &str, name: &str) -> String {
    match folder {
        "" => name.to_owned(),
        folder => format!("{folder}/{name}"),
    }
}

/// Names below `folder`, folders before what is in them.
fn list(folder: &Path, below: &str, names: &mut Vec<String>) -> anyhow::Result<()> {
    let place = if below.is_empty() {
        folder.to_owned()
    } else {
        folder.join(below)
    };
    let mut here = Vec::new();
    for entry in std::fs::read_dir(&place).with_context(|| place.display().to_string())? {
        let entry = entry.with_context(|| place.display().to_string())?;
        let Ok(name) = entry.file_name().into_string() else {
            bail!("{}: the name is no UTF-8; rename it", entry.path().display());
        };
        here.push((name, entry.file_type()?.is_dir()));
    }
    here.sort();
    for (name, is_folder) in here {
        let name = join(below, &name);
        names.push(name.clone());
        if is_folder {
            list(folder, &name, names)?;
        }
    }
    Ok(())
}

/// Whether `pattern` covers `text`; `*` stands for anything, slashes too.
pub fn covers(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

/// As many as Linux follows.
const MAX_LINKS: usize = 40;
const BUFFER: usize = 256 << 10;
/// More than any file has that is read whole: package databases, copyright files.
const SMALL_FILE: u64 = 64 << 20;

#[cfg(test)]
mod tests;
