//! Trees from tar streams, whiteouts of OCI layers among them, and sorted tar streams from trees. Unpacks nothing.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::Arc;

use anyhow::{Context, bail};

use super::{Content, Entry, Kind, Last, Tree, Whiteouts, clean, join, last_part};

impl Tree {
    /// Reads an uncompressed tar file over this tree. Contents stay in the file.
    pub fn read_tar(&mut self, file: File, whiteouts: Whiteouts) -> anyhow::Result<()> {
        let shared = Arc::new(file.try_clone()?);
        let mut file = file;
        file.seek(SeekFrom::Start(0))?;
        let size = file.metadata()?.len();
        let mut archive = tar::Archive::new(io::BufReader::new(file));
        let mut names = Vec::new();
        for entry in archive.entries_with_seek().context("tar")? {
            let mut entry = entry.context("tar")?;
            if let Some(member) = Member::read(&mut entry, &shared, size)? {
                names.push(member);
            }
        }
        if whiteouts == Whiteouts::Apply {
            for member in &names {
                self.apply_whiteout(&member.name)?;
            }
            names.retain(|member| !last_part(&member.name).starts_with(WHITEOUT));
        }
        for member in names {
            let entry = match member.what {
                What::Entry(entry) => entry,
                What::HardLink(target) => {
                    let target = self.resolve(&clean(&target)?, Last::Keep)?;
                    match self.entries.get(&target) {
                        Some(entry) if !matches!(entry.kind, Kind::Folder) => entry.clone(),
                        _ => bail!(
                            "tar: /{} is a hard link to /{target}, which is not in it",
                            member.name
                        ),
                    }
                }
            };
            self.put(&member.name, entry)?;
        }
        Ok(())
    }

    fn apply_whiteout(&mut self, name: &str) -> anyhow::Result<()> {
        let last = last_part(name);
        let Some(hidden) = last.strip_prefix(WHITEOUT) else {
            return Ok(());
        };
        let folder = name[..name.len() - last.len()].trim_end_matches('/');
        let folder = self.resolve(folder, Last::Follow)?;
        if hidden == OPAQUE {
            self.remove_below(&folder);
        } else if !hidden.is_empty() && !hidden.starts_with(WHITEOUT) && hidden != ".." && hidden != "." {
            self.remove(join(&folder, hidden).as_str());
        }
        Ok(())
    }

    /// Writes a tar stream; no time is later than `epoch`. `done` hears of the bytes of content written so far.
    pub fn write_tar(&self, output: impl Write, epoch: u64, mut done: impl FnMut(u64)) -> anyhow::Result<()> {
        let mut archive = tar::Builder::new(output);
        let mut written: HashMap<*const Content, &str> = HashMap::new();
        let mut total = 0;
        for (name, entry) in &self.entries {
            let mut header = tar::Header::new_gnu();
            header.set_mode(entry.mode & 0o7777);
            header.set_uid(entry.uid);
            header.set_gid(entry.gid);
            header.set_mtime(entry.mtime.min(epoch));
            header.set_size(0);
            if !entry.attributes.is_empty() {
                let keys: Vec<String> = entry
                    .attributes
                    .keys()
                    .map(|key| format!("{PAX_ATTRIBUTE}{key}"))
                    .collect();
                let pairs = keys.iter().zip(entry.attributes.values());
                archive.append_pax_extensions(pairs.map(|(key, value)| (key.as_str(), value.as_slice())))?;
            }
            let shown = || format!("/{name}");
            match &entry.kind {
                Kind::Folder => {
                    header.set_entry_type(tar::EntryType::Directory);
                    archive
                        .append_data(&mut header, name, io::empty())
                        .with_context(shown)?;
                }
                Kind::Link(target) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    archive
                        .append_link(&mut header, name, target)
                        .with_context(shown)?;
                }
                Kind::Pipe => {
                    header.set_entry_type(tar::EntryType::Fifo);
                    archive
                        .append_data(&mut header, name, io::empty())
                        .with_context(shown)?;
                }
                Kind::Device(major, minor) => {
                    header.set_entry_type(tar::EntryType::Char);
                    header.set_device_major(*major)?;
                    header.set_device_minor(*minor)?;
                    archive
                        .append_data(&mut header, name, io::empty())
                        .with_context(shown)?;
                }
                Kind::File(content) => {
                    if let Some(first) = written.get(&Arc::as_ptr(content)) {
                        header.set_entry_type(tar::EntryType::Link);
                        archive
                            .append_link(&mut header, name, first)
                            .with_context(shown)?;
                        continue;
                    }
                    header.set_entry_type(tar::EntryType::Regular);
                    header.set_size(content.size());
                    let reader = content.reader().with_context(shown)?;
                    let mut reader = Exact {
                        reader,
                        left: content.size(),
                    };
                    archive
                        .append_data(&mut header, name, &mut reader)
                        .with_context(shown)?;
                    if reader.left != 0 {
                        bail!("/{name}: the file became shorter while it was read; build again");
                    }
                    written.insert(Arc::as_ptr(content), name);
                    total += content.size();
                    done(total);
                }
            }
        }
        archive.finish()?;
        archive.get_mut().flush()?;
        Ok(())
    }
}

/// As many bytes as were promised in the header, never more.
struct Exact<R> {
    reader: R,
    left: u64,
}

impl<R: Read> Read for Exact<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let got = self.reader.read(&mut buffer[..wanted])?;
        self.left -= got as u64;
        Ok(got)
    }
}

/// One member of a tar stream.
struct Member {
    name: String,
    what: What,
}

enum What {
    Entry(Entry),
    HardLink(String),
}

impl Member {
    /// None for what has no place in a root: the root's own entry, block devices, unknown types.
    fn read(
        entry: &mut tar::Entry<'_, impl Read>,
        file: &Arc<File>,
        size: u64,
    ) -> anyhow::Result<Option<Self>> {
        let name = clean(&utf8(&entry.path_bytes())?)?;
        let link = match entry.link_name_bytes() {
            Some(bytes) => utf8(&bytes)?,
            None => String::new(),
        };
        let header = entry.header();
        let kind = match header.entry_type() {
            _ if name.is_empty() => return Ok(None),
            tar::EntryType::Directory => Kind::Folder,
            tar::EntryType::Symlink => Kind::Link(link),
            tar::EntryType::Fifo => Kind::Pipe,
            tar::EntryType::Char => Kind::Device(
                header.device_major()?.unwrap_or(0),
                header.device_minor()?.unwrap_or(0),
            ),
            tar::EntryType::Link => {
                return Ok(Some(Member {
                    name,
                    what: What::HardLink(link),
                }));
            }
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                let offset = entry.raw_file_position();
                let length = entry.size();
                // Sparse files would have holes that a stretch does not show; a cut archive would end too soon.
                if offset.checked_add(length).is_none_or(|end| end > size) {
                    bail!("tar: /{name}: its {length} bytes are not all there; fetch the archive again");
                }
                Kind::File(Arc::new(Content::Stretch {
                    file: file.clone(),
                    offset,
                    size: length,
                }))
            }
            tar::EntryType::GNUSparse => {
                bail!("tar: /{name}: sparse files are not read; pack it without --sparse")
            }
            _ => return Ok(None),
        };
        let mut made = Entry::new(kind, header.mode()? & 0o7777);
        (made.uid, made.gid) = (header.uid()?, header.gid()?);
        made.mtime = header.mtime()?;
        if let Some(extensions) = entry.pax_extensions()? {
            for extension in extensions {
                let extension = extension?;
                let (Ok(key), value) = (extension.key(), extension.value_bytes()) else {
                    continue;
                };
                let number = || {
                    std::str::from_utf8(value)
                        .ok()?
                        .split('.')
                        .next()?
                        .parse::<u64>()
                        .ok()
                };
                match key {
                    "uid" => made.uid = number().unwrap_or(made.uid),
                    "gid" => made.gid = number().unwrap_or(made.gid),
                    "mtime" => made.mtime = number().unwrap_or(made.mtime),
                    _ => {
                        if let Some(attribute) = key.strip_prefix(PAX_ATTRIBUTE) {
                            made.attributes.insert(attribute.to_owned(), value.to_vec());
                        }
                    }
                }
            }
        }
        Ok(Some(Member {
            name,
            what: What::Entry(made),
        }))
    }
}

fn utf8(bytes: &[u8]) -> anyhow::Result<String> {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text.to_owned()),
        _ => bail!(
            "tar: the name {:?} is no UTF-8; rename it",
            String::from_utf8_lossy(bytes)
        ),
    }
}

const WHITEOUT: &str = ".wh.";
/// Behind [`WHITEOUT`]: everything of the layers below that is in this folder.
const OPAQUE: &str = ".wh..opq";
const PAX_ATTRIBUTE: &str = "SCHILY.xattr.";
