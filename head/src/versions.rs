//! Versions of images on the head's disk: `STATE_DIR/versions/NAME/VERSION/`, complete from the moment they have their name, and never
//! changed after it. Must not decide who boots what. Blocks: call it off the event loop.

use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use cid_protocol::manifest::{MANIFEST_VERSION, Manifest};
use sha2::{Digest as _, Sha256};

/// Folder in the state folder.
pub const FOLDER: &str = "versions";
const MANIFEST: &str = "manifest.json";
/// Largest manifest that is read, in bytes.
const MAX_MANIFEST: u64 = 16 * 1024 * 1024;
/// Versions of one image that are looked at.
const MAX_VERSIONS: usize = 1_024;
const BLOCK: usize = 1024 * 1024;

/// One version of one image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Of the image.
    pub name: String,
    /// From 1 on; a number is given once.
    pub number: u32,
    /// SHA-256 of its manifest, lower-case hex: it names every other byte of it.
    pub digest: String,
    /// Of all files that the manifest names.
    pub bytes: u64,
    /// When it was imported, Unix seconds.
    pub imported_unix: u64,
}

impl Version {
    /// `compute@3`.
    pub fn image(&self) -> String {
        format!("{}@{}", self.name, self.number)
    }
}

/// Splits `compute@3`; `None` when there is no number.
pub fn split(image: &str) -> Option<(&str, u32)> {
    let (name, number) = image.rsplit_once('@')?;
    let plain = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    Some((name, number.parse().ok().filter(|number| plain && *number > 0)?))
}

/// Why an image cannot be imported, or a version removed; one line with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    /// There is no built image. Nothing was changed.
    #[error("there is no built image in {folder} ({why}); `cidbuild image` makes one")]
    Missing {
        /// Where it was looked for.
        folder: PathBuf,
        /// What the system said.
        why: io::Error,
    },
    /// A file is not what the manifest says. Nothing was changed.
    #[error("the image in {folder} is damaged: {why}; build it again with `cidbuild image`")]
    Damaged {
        /// Where it lies.
        folder: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The head's disk. What was begun is removed at the next start.
    #[error("cannot keep a version in {path}: {source}; look at the disk that holds the state folder")]
    Disk {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What an import came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Imported {
    /// A version more.
    New(Version),
    /// This version has the same bytes.
    Known(Version),
}

impl Imported {
    /// Either.
    pub fn version(&self) -> &Version {
        match self {
            Self::New(version) | Self::Known(version) => version,
        }
    }
}

/// The folder of versions.
#[derive(Debug, Clone)]
pub struct Versions {
    root: PathBuf,
}

impl Versions {
    /// Below this state folder.
    pub fn new(state_dir: &Path) -> Self {
        Self {
            root: state_dir.join(FOLDER),
        }
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Every version, by name and number. What a head that was killed had not finished is removed.
    ///
    /// # Errors
    /// [`VersionError::Disk`].
    pub fn list(&self) -> Result<Vec<Version>, VersionError> {
        let mut found = Vec::new();
        for (name, folder) in self.entries(&self.root)? {
            for (number, version) in self.entries(&folder)? {
                if number.starts_with(".new-") {
                    fs::remove_dir_all(&version).map_err(|source| disk(&version, source))?;
                    continue;
                }
                let number = number.parse::<u32>().ok().filter(|number| *number > 0);
                if let Some(version) = number.and_then(|number| read(&version, &name, number))
                    && found.len() < MAX_VERSIONS
                {
                    found.push(version);
                }
            }
        }
        found.sort();
        Ok(found)
    }

    fn entries(&self, folder: &Path) -> Result<Vec<(String, PathBuf)>, VersionError> {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(disk(folder, source)),
        };
        let folders = entries
            .filter_map(Result::ok)
            .filter(|entry| entry.path().is_dir());
        let named = folders.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())));
        Ok(named.collect())
    }

    /// Takes in the built image in `folder`, unless a version with these bytes is there. It is known as `name`, or as its manifest says.
    ///
    /// # Errors
    /// See [`VersionError`]; no version was made.
    pub fn import(&self, folder: &Path, name: Option<&str>) -> Result<Imported, VersionError> {
        let (manifest, text) = manifest_of(folder)?;
        let name = name.unwrap_or(&manifest.name).to_owned();
        let digest = hex(&Sha256::digest(&text));
        let known: Vec<Version> = self
            .list()?
            .into_iter()
            .filter(|version| version.name == name)
            .collect();
        if let Some(same) = known.iter().find(|version| version.digest == digest) {
            return Ok(Imported::Known(same.clone()));
        }
        let number = known.iter().map(|version| version.number).max().unwrap_or(0) + 1;
        let of_name = self.root.join(&name);
        let (unready, ready) = (
            of_name.join(format!(".new-{}-{number}", std::process::id())),
            of_name.join(number.to_string()),
        );
        let copied = copy(folder, &unready, &manifest, &text);
        if copied.is_err() {
            let _ = fs::remove_dir_all(&unready);
        }
        copied?;
        let failed = |source| disk(&ready, source);
        fs::rename(&unready, &ready).map_err(failed)?;
        for folder in [&of_name, &self.root] {
            sync_folder(folder).map_err(failed)?;
        }
        read(&ready, &name, number)
            .map(Imported::New)
            .ok_or_else(|| disk(&ready, io::ErrorKind::NotFound.into()))
    }

    /// Removes a version for good. It is gone under its name at once, whatever happens afterwards.
    ///
    /// # Errors
    /// [`VersionError::Disk`].
    pub fn remove(&self, name: &str, number: u32) -> Result<(), VersionError> {
        let of_name = self.root.join(name);
        let (folder, gone) = (
            of_name.join(number.to_string()),
            of_name.join(format!(".new-removed-{number}")),
        );
        fs::rename(&folder, &gone).map_err(|source| disk(&folder, source))?;
        sync_folder(&of_name).map_err(|source| disk(&folder, source))?;
        fs::remove_dir_all(&gone).map_err(|source| disk(&gone, source))
    }
}

fn disk(path: &Path, source: io::Error) -> VersionError {
    VersionError::Disk {
        path: path.to_owned(),
        source,
    }
}

/// The version in a folder; `None` when its manifest cannot be read, which whoever boots it is told.
fn read(folder: &Path, name: &str, number: u32) -> Option<Version> {
    let (manifest, text) = manifest_of(folder).ok()?;
    let written = fs::metadata(folder.join(MANIFEST)).ok()?.modified().ok()?;
    let mut bytes = 0_u64;
    for artifact in manifest.artifacts.values() {
        bytes = bytes.saturating_add(artifact.size);
    }
    Some(Version {
        name: name.to_owned(),
        number,
        digest: hex(&Sha256::digest(&text)),
        bytes,
        imported_unix: written.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
    })
}

fn manifest_of(folder: &Path) -> Result<(Manifest, Vec<u8>), VersionError> {
    let file = folder.join(MANIFEST);
    let missing = |why| VersionError::Missing {
        folder: folder.to_owned(),
        why,
    };
    let damaged = |why: String| VersionError::Damaged {
        folder: folder.to_owned(),
        why,
    };
    let size = fs::metadata(&file).map_err(missing)?.len();
    if size > MAX_MANIFEST {
        return Err(damaged(format!("its manifest has {size} bytes")));
    }
    let text = fs::read(&file).map_err(missing)?;
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|error| damaged(format!("{MANIFEST}: {error}")))?;
    if manifest.version > MANIFEST_VERSION {
        let version = manifest.version;
        return Err(damaged(format!(
            "its manifest has version {version}, newer than this cidhead reads"
        )));
    }
    if !is_plain(&manifest.name) || manifest.name.contains(['@', '/']) {
        return Err(damaged(format!("`{}` is no name of an image", manifest.name)));
    }
    Ok((manifest, text))
}

/// One component of a path, and no hidden one.
fn is_plain(part: &str) -> bool {
    !part.is_empty() && !part.starts_with('.') && part.len() <= 255
}

/// Copies what the manifest names, each file against its digest, and the manifest last.
fn copy(from: &Path, to: &Path, manifest: &Manifest, text: &[u8]) -> Result<(), VersionError> {
    let failed = |source| disk(to, source);
    // A folder of this name is from a process that had our number.
    let _ = fs::remove_dir_all(to);
    fs::create_dir_all(to).map_err(failed)?;
    for (path, artifact) in &manifest.artifacts {
        let damaged = |why: String| VersionError::Damaged {
            folder: from.to_owned(),
            why,
        };
        if !path.split('/').all(is_plain) {
            return Err(damaged(format!("its manifest names a file outside it: {path}")));
        }
        let target = to.join(path);
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        let input = File::open(from.join(path)).map_err(|error| damaged(format!("{path}: {error}")))?;
        let (digest, size) = copy_file(input, &target).map_err(failed)?;
        if digest != artifact.sha256 || size != artifact.size {
            return Err(damaged(format!("{path} is not the file that was built")));
        }
    }
    let (_, _) = copy_file(text, &to.join(MANIFEST)).map_err(failed)?;
    let folders: std::collections::BTreeSet<PathBuf> = manifest
        .artifacts
        .keys()
        .filter_map(|path| to.join(path).parent().map(Path::to_owned))
        .chain([to.to_owned()])
        .collect();
    for folder in folders {
        sync_folder(&folder).map_err(failed)?;
    }
    Ok(())
}

/// On disk and read-only; digest and size of what was copied.
fn copy_file(mut input: impl io::Read, to: &Path) -> io::Result<(String, u64)> {
    let mut out = File::create_new(to)?;
    let (mut digest, mut size) = (Sha256::new(), 0_u64);
    let mut block = vec![0; BLOCK];
    loop {
        let count = input.read(&mut block)?;
        let Some(bytes) = block.get(..count).filter(|bytes| !bytes.is_empty()) else {
            break;
        };
        digest.update(bytes);
        size += bytes.len() as u64;
        out.write_all(bytes)?;
    }
    out.set_permissions(Permissions::from_mode(0o444))?;
    out.sync_all()?;
    Ok((hex(&digest.finalize()), size))
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
pub(crate) mod tests;
