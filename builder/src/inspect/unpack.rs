//! `unpack`: everything of an image as files below one folder, and never outside it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::{DIRECTORY, FILE_TYPE, Part, REGULAR, SYMLINK, Unpacked, root, shown, walk};

/// `unpack IMAGE DIR`: everything of the initrd or of the root image as files below a new folder.
pub fn unpack(image: &Path, part: Part, target: &Path) -> anyhow::Result<Unpacked> {
    if part.of(image)? == Part::Root {
        return root::unpack(&root::file(image), target);
    }
    fresh_folder(target)?;
    let mut done = Unpacked::default();
    let mut folders: BTreeSet<PathBuf> = [target.to_owned()].into();
    walk(image, |header, content| {
        let place = target.join(header.path.trim_start_matches('/'));
        // Only below folders that were made here: never through a link that the archive brought before.
        let parent = place.parent().unwrap_or(target);
        if header.path.split('/').any(|part| part == "..") || !folders.contains(parent) {
            return Err(io::Error::other(format!(
                "{}: its folder is not before it",
                shown(&header.path)
            )));
        }
        match header.mode & FILE_TYPE {
            DIRECTORY => {
                std::fs::create_dir(&place)?;
                folders.insert(place);
            }
            SYMLINK => {
                let mut link = String::new();
                content.take(LINK_LIMIT).read_to_string(&mut link)?;
                std::os::unix::fs::symlink(link, &place)?;
            }
            REGULAR => {
                let mut file = File::create_new(&place)?;
                io::copy(content, &mut file)?;
                file.set_permissions(std::fs::Permissions::from_mode(header.mode & 0o777))?;
            }
            _ => {
                done.left_out += 1;
                return Ok(());
            }
        }
        done.entries += 1;
        Ok(())
    })?;
    Ok(done)
}

/// Makes a folder, or takes one that is empty.
pub(super) fn fresh_folder(target: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(target).with_context(|| target.display().to_string())?;
    if std::fs::read_dir(target)?.next().is_some() {
        bail!(
            "{}: not empty; give a folder that is not there yet",
            target.display()
        );
    }
    Ok(())
}

/// Longest target of a link, in bytes.
const LINK_LIMIT: u64 = 1 << 16;
