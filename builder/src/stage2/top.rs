//! The upper layer, fitted to the lower one: folders that both have keep the owner and mode that they have below, since the file system
//! would take those of the layer that comes last. Files pass unchanged.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, bail};

use super::list::{Entry, List, absolute, read_entry};

/// Writes `tar` as it goes over `below` to `fitted`; what both are together.
pub(super) fn fit(tar: &Path, below: &List, fitted: &Path) -> anyhow::Result<List> {
    let open = || -> anyhow::Result<_> { Ok(tar::Archive::new(BufReader::new(File::open(tar)?))) };
    let mut list = below.clone();
    for entry in open()?.entries()? {
        let mut entry = entry?;
        let Some(found) = read_entry(&mut entry, &list)? else {
            continue;
        };
        if let Some(was) = below.entries.get(&found.path)
            && is_folder(was) != is_folder(&found)
        {
            bail!(
                "{}: a folder in one layer and a file in the other; remove one of them",
                found.path
            );
        }
        if !below.entries.contains_key(&found.path) || !is_folder(&found) {
            list.insert(found)?;
        }
    }

    let file = File::create(fitted).with_context(|| fitted.display().to_string())?;
    let mut output = tar::Builder::new(BufWriter::new(file));
    // Without it the root of the file system would be everybody's to write.
    append_folder(&mut output, "./", below.entries.get("/"))?;
    for entry in open()?.entries()? {
        let mut entry = entry?;
        let path = absolute(&entry.path()?)?;
        if path == "/" || entry.header().entry_type().is_pax_global_extensions() {
            continue;
        }
        if let Some(was) = below.entries.get(&path)
            && entry.header().entry_type().is_dir()
        {
            append_folder(&mut output, path.trim_start_matches('/'), Some(was))?;
            continue;
        }
        if let Some(extensions) = entry.pax_extensions()? {
            let kept: Vec<(String, Vec<u8>)> = extensions
                .map(|extension| {
                    let extension = extension?;
                    Ok((extension.key()?.to_owned(), extension.value_bytes().to_vec()))
                })
                .collect::<anyhow::Result<_>>()?;
            let attributes = kept.iter().filter(|(key, _)| key.starts_with("SCHILY.xattr."));
            output.append_pax_extensions(attributes.map(|(key, value)| (key.as_str(), value.as_slice())))?;
        }
        let mut header = entry.header().clone();
        match entry.link_name_bytes().map(std::borrow::Cow::into_owned) {
            Some(target) => {
                let target = std::str::from_utf8(&target).context("the target of a link is not UTF-8")?;
                output.append_link(&mut header, path.trim_start_matches('/'), target)?;
            }
            None => output.append_data(&mut header, path.trim_start_matches('/'), &mut entry)?,
        }
    }
    output.into_inner()?.flush()?;
    Ok(list)
}

/// Writes a stream that names nothing but the root itself.
pub(super) fn only_root(list: &List, to: &Path) -> anyhow::Result<()> {
    let file = File::create(to).with_context(|| to.display().to_string())?;
    let mut output = tar::Builder::new(file);
    append_folder(&mut output, "./", list.entries.get("/"))?;
    output.into_inner()?;
    Ok(())
}

fn append_folder(
    output: &mut tar::Builder<impl Write>,
    path: &str,
    entry: Option<&Entry>,
) -> anyhow::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_size(0);
    let (mode, uid, gid, time) = match entry {
        None => (0o755, 0, 0, 0),
        Some(entry) => (
            u32::from_str_radix(&entry.mode, 8).context("mode")? & 0o7777,
            entry.uid,
            entry.gid,
            entry.time,
        ),
    };
    header.set_mode(mode);
    header.set_uid(uid);
    header.set_gid(gid);
    header.set_mtime(time);
    Ok(output.append_data(&mut header, path, std::io::empty())?)
}

fn is_folder(entry: &Entry) -> bool {
    entry.mode.starts_with("04")
}
