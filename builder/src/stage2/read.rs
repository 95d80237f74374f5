//! Reading `root.img` without mounting it and without root, by the suite's own `dump.erofs` and `fsck.erofs`: what makes an image also reads
//! it. Whatever the file holds costs one error line.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use cid_initramfs::digest::{hex, sha256_hex};
use sha2::Digest;

use super::list::{Entry, List, top_folder};
use super::tool::Tool;
use crate::apt::{Apt, Freshness};
use crate::cache::Cache;
use crate::progress::Progress;

/// A root image, and what reads it.
#[derive(Debug)]
pub struct RootImage {
    file: PathBuf,
    tool: Tool,
    // The tools lie in it.
    _cache: Cache,
}

impl RootImage {
    /// Fetches the tools if they are not there.
    pub fn open(file: &Path) -> anyhow::Result<Self> {
        if !Self::is_one(file) {
            bail!("{}: no EROFS in it", file.display());
        }
        let cache = Cache::open()?;
        let mut apt = Apt::new(&cache, SUITE, Freshness::Pinned);
        let tool = Tool::of_suite(&mut apt, &cache, &Progress::silent())?;
        Ok(Self {
            file: file.to_owned(),
            tool,
            _cache: cache,
        })
    }

    /// Whether these are the first bytes of a root image, not of an initrd.
    pub fn is_one(file: &Path) -> bool {
        let mut start = [0; SUPERBLOCK + 4];
        fs::File::open(file).is_ok_and(|mut open| open.read_exact(&mut start).is_ok())
            && start.ends_with(&MAGIC)
    }

    /// Writes the content of the file at `path`, links not followed.
    pub fn cat(&self, path: &str, output: &mut dyn Write) -> anyhow::Result<()> {
        let arguments = ["--cat".to_owned(), format!("--path={path}")];
        let found = self.tool.read("dump.erofs", &arguments, &self.file);
        Ok(output.write_all(&found.with_context(|| format!("no {path} that can be read in it"))?)?)
    }

    /// Writes everything below `target`, an empty folder. Owners are not kept.
    pub fn unpack(&self, target: &Path) -> anyhow::Result<()> {
        let arguments = [
            format!("--extract={}", target.display()),
            "--no-preserve-owner".to_owned(),
            "--preserve-perms".to_owned(),
            "--overwrite".to_owned(),
        ];
        self.tool.read("fsck.erofs", &arguments, &self.file).map(drop)
    }

    /// Everything in it, as it unpacks; owners are not among it.
    pub fn list(&self) -> anyhow::Result<List> {
        let workshop = tempfile::tempdir()?;
        self.unpack(workshop.path())?;
        let mut list = List::default();
        list.insert(top_folder())?;
        add_folder(&mut list, workshop.path(), "")?;
        Ok(list)
    }
}

fn add_folder(list: &mut List, place: &Path, path: &str) -> anyhow::Result<()> {
    for entry in fs::read_dir(place).with_context(|| place.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_str().context("a name is not UTF-8")?;
        let data = entry.metadata()?;
        let mut found = Entry {
            path: format!("{path}/{name}"),
            mode: format!("{:06o}", data.permissions().mode()),
            uid: 0,
            gid: 0,
            time: u64::try_from(data.mtime()).unwrap_or(0),
            size: 0,
            sha256: String::new(),
            same_as: None,
        };
        if data.is_symlink() {
            let target = fs::read_link(entry.path())?;
            let target = target.to_str().context("the target of a link is not UTF-8")?;
            (found.size, found.sha256) = (target.len() as u64, sha256_hex(target.as_bytes()));
        } else if data.is_file() {
            let mut digest = sha2::Sha256::new();
            found.size = io::copy(&mut fs::File::open(entry.path())?, &mut digest)?;
            found.sha256 = hex(&digest.finalize());
        }
        let below = found.path.clone();
        list.insert(found)?;
        if data.is_dir() {
            add_folder(list, &entry.path(), &below)?;
        }
    }
    Ok(())
}

/// Whose tools read an image; newer ones read what older ones wrote.
const SUITE: &str = "trixie";
/// Where EROFS has its superblock, and how that begins.
const SUPERBLOCK: usize = 1024;
const MAGIC: [u8; 4] = 0xe0f5_e1e2_u32.to_le_bytes();
