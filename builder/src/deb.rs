//! Unpacks a `.deb` into a folder of the cache. Only files and links below that folder; never runs anything of the
//! package.

use std::fs;
use std::io::BufReader;
use std::path::PathBuf;

use anyhow::{Context, bail};

use crate::apt::Package;
use crate::cache::Cache;
use crate::progress::Progress;

/// The folder with the package's files; unpacked now or before.
pub fn unpacked(cache: &Cache, package: &Package, progress: &Progress) -> anyhow::Result<PathBuf> {
    let target = cache.path("unpacked").join(&package.sha256);
    if target.is_dir() {
        return Ok(target);
    }
    let file = package.file(cache);
    let workshop = cache.workshop()?;
    let phase = progress.bytes(&format!("unpacking {}", package.name), package.size);
    let reader = phase.reader(fs::File::open(&file).with_context(|| file.display().to_string())?);
    extract(reader, workshop.path()).with_context(|| format!("unpacking {}", package.name))?;
    phase.finish();
    // A rename after everything is there: a folder by this name is always whole.
    fs::rename(workshop.keep(), &target).with_context(|| target.display().to_string())?;
    Ok(target)
}

fn extract(deb: impl std::io::Read, into: &std::path::Path) -> anyhow::Result<()> {
    let mut members = ar::Archive::new(deb);
    while let Some(member) = members.next_entry() {
        let member = member?;
        if member.header().identifier().starts_with(b"data.tar") {
            let plain = cid_initramfs::decompressor(BufReader::with_capacity(1 << 16, member))?;
            let mut tar = tar::Archive::new(plain);
            tar.set_preserve_mtime(false);
            // `unpack` refuses paths and links that lead out of `into`.
            return Ok(tar.unpack(into)?);
        }
    }
    bail!("no data.tar in it: not a Debian package")
}
