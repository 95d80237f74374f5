//! Images on the head's disk, checked against their manifests; what loaders ask for is kept in memory for serving, a root image never.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use cid_protocol::manifest::{MANIFEST_VERSION, Manifest};
use sha2::{Digest, Sha256};

use crate::policy::{BiosLoader, ImageFault};

/// Largest manifest that is read, in bytes: a thousand modules make half a megabyte.
const MAX_MANIFEST: u64 = 16 * 1024 * 1024;
/// Largest artifact that is kept in memory, in bytes. A kernel and an initramfs are a tenth of it.
const MAX_ARTIFACT: u64 = 512 * 1024 * 1024;
/// Bytes that are read at a time from what is not kept.
const BLOCK: usize = 1024 * 1024;

/// Whether loaders ask for a file of an image; the root image and what belongs to it are the agents'.
fn is_for_loaders(path: &str) -> bool {
    !path.starts_with("root.") && path != "packages.json"
}

/// A whole image, every file of it as the manifest says.
#[derive(Debug, Clone)]
pub struct Image {
    /// What it holds.
    pub manifest: Manifest,
    /// Its files by path below its folder.
    pub files: BTreeMap<String, Bytes>,
}

impl Image {
    /// Why UEFI machines cannot be booted from it, if so: no loader at all, or a chain with a link missing. shim asks for
    /// MokManager when it meets a signature it does not know, and stops when there is none.
    pub fn uefi_fault(&self) -> Option<ImageFault> {
        let missing: Vec<&str> = ["efi/shimx64.efi", "efi/grubx64.efi", "efi/mmx64.efi"]
            .into_iter()
            .filter(|file| !self.files.contains_key(*file))
            .collect();
        match missing.len() {
            0 => None,
            3 => Some(ImageFault::NoUefiLoader),
            _ => Some(ImageFault::BrokenChain(format!(
                "{} is missing",
                missing.join(" and ")
            ))),
        }
    }

    /// Whether PCs with a plain PXE ROM can be booted from it.
    pub fn bios_loader(&self) -> BiosLoader {
        if self.files.contains_key("bios/undionly.kpxe") {
            BiosLoader::Present
        } else {
            BiosLoader::Absent
        }
    }

    /// A file by the last component of its path (`vmlinuz`, `shimx64.efi`).
    pub fn file_named(&self, name: &str) -> Option<Bytes> {
        self.files
            .iter()
            .find(|(path, _)| path.rsplit('/').next() == Some(name))
            .map(|(_, bytes)| bytes.clone())
    }
}

/// Reads the image `name` below `images_dir` and checks every digest. Blocks: call it off the event loop.
pub fn load(images_dir: &Path, name: &str) -> Result<Image, ImageFault> {
    load_folder(&images_dir.join(name), name)
}

/// The same of an image that lies in `folder`; `name` is for people. Blocks.
pub fn load_folder(folder: &Path, name: &str) -> Result<Image, ImageFault> {
    let file = folder.join("manifest.json");
    let missing =
        |why: String| ImageFault::Missing(format!("image {name} is not there: {}: {why}", file.display()));
    let damaged = |why: String| ImageFault::Damaged(format!("image {name} is damaged: {why}"));
    let size = std::fs::metadata(&file)
        .map_err(|error| missing(error.to_string()))?
        .len();
    if size > MAX_MANIFEST {
        return Err(damaged(format!("{} has {size} bytes", file.display())));
    }
    let text = std::fs::read(&file).map_err(|error| missing(error.to_string()))?;
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|error| damaged(format!("{}: {error}", file.display())))?;
    if manifest.version > MANIFEST_VERSION {
        return Err(damaged(format!(
            "its manifest has version {}, newer than this cidhead reads",
            manifest.version
        )));
    }
    let mut files = BTreeMap::new();
    for (path, artifact) in &manifest.artifacts {
        if !is_for_loaders(path) {
            let digest = digest_of(folder, path, artifact.size).map_err(&damaged)?;
            if digest != artifact.sha256 {
                return Err(damaged(format!("{path} is not the file that was built")));
            }
            continue;
        }
        let bytes = read_artifact(folder, path, artifact.size).map_err(&damaged)?;
        if hex(&Sha256::digest(&bytes)) != artifact.sha256 {
            return Err(damaged(format!("{path} is not the file that was built")));
        }
        files.insert(path.clone(), Bytes::from(bytes));
    }
    for needed in ["vmlinuz", "initrd.img"] {
        if !files.contains_key(needed) {
            return Err(damaged(format!("its manifest names no {needed}")));
        }
    }
    Ok(Image { manifest, files })
}

fn read_artifact(folder: &Path, path: &str, size: u64) -> Result<Vec<u8>, String> {
    let file = artifact(folder, path, size)?;
    if size > MAX_ARTIFACT {
        return Err(format!("{path} has {size} bytes, more than a loader can take"));
    }
    std::fs::read(&file).map_err(|error| format!("{}: {error}", file.display()))
}

/// SHA-256 of a file that is too large for memory, lower-case hex.
fn digest_of(folder: &Path, path: &str, size: u64) -> Result<String, String> {
    let file = artifact(folder, path, size)?;
    let failed = |error: std::io::Error| format!("{}: {error}", file.display());
    let mut input = std::fs::File::open(&file).map_err(failed)?;
    let mut digest = Sha256::new();
    let mut block = vec![0; BLOCK];
    loop {
        match input.read(&mut block).map_err(failed)? {
            0 => return Ok(hex(&digest.finalize())),
            count => digest.update(block.get(..count).unwrap_or_default()),
        }
    }
}

/// Where an artifact lies, if it lies below the folder and has its size.
fn artifact(folder: &Path, path: &str, size: u64) -> Result<PathBuf, String> {
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    if !path.split('/').all(plain) {
        return Err(format!("its manifest names a file outside it: {path}"));
    }
    let file = folder.join(path);
    let real = std::fs::metadata(&file)
        .map_err(|error| format!("{}: {error}", file.display()))?
        .len();
    if real != size {
        return Err(format!("{path} has {real} bytes, the manifest says {size}"));
    }
    Ok(file)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What tells whether an image's folder changed since it was loaded: `cidbuild` replaces it whole.
pub fn stamp(folder: &Path) -> Option<(SystemTime, u64, PathBuf)> {
    let file = folder.join("manifest.json");
    let metadata = std::fs::metadata(&file).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cid_protocol::manifest::Artifact;

    fn write(folder: &Path, files: &[(&str, &[u8])]) {
        let image = folder.join("minimal");
        std::fs::create_dir_all(image.join("efi")).unwrap();
        let mut artifacts = BTreeMap::new();
        for (path, bytes) in files {
            std::fs::write(image.join(path), bytes).unwrap();
            let artifact = Artifact {
                sha256: hex(&Sha256::digest(bytes)),
                size: bytes.len() as u64,
            };
            artifacts.insert((*path).to_owned(), artifact);
        }
        let manifest = Manifest {
            version: MANIFEST_VERSION,
            name: "minimal".into(),
            kernel_release: "6.12".into(),
            cmdline: String::new(),
            recipe_sha256: String::new(),
            artifacts,
            files: BTreeMap::new(),
            nic_drivers: vec![],
            nic_ids: vec![],
            firmware: BTreeMap::new(),
            needed_ram_bytes: 0,
            root: None,
        };
        std::fs::write(
            image.join("manifest.json"),
            serde_json::to_vec(&manifest).unwrap(),
        )
        .unwrap();
    }

    const WHOLE: &[(&str, &[u8])] = &[
        ("vmlinuz", b"k"),
        ("initrd.img", b"i"),
        ("efi/shimx64.efi", b"s"),
        ("efi/grubx64.efi", b"g"),
        ("efi/mmx64.efi", b"m"),
    ];

    #[test]
    fn a_whole_image_loads() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), WHOLE);
        let image = load(folder.path(), "minimal").unwrap();
        assert_eq!(
            (image.uefi_fault(), image.bios_loader()),
            (None, BiosLoader::Absent)
        );
        assert_eq!(image.file_named("grubx64.efi").unwrap(), "g");
    }

    #[test]
    fn a_chain_with_a_link_missing_is_named() {
        for (gone, expected) in [
            (&["grubx64"][..], "efi/grubx64.efi is missing"),
            (&["mmx64"], "efi/mmx64.efi is missing"),
            (
                &["shimx64", "mmx64"],
                "efi/shimx64.efi and efi/mmx64.efi is missing",
            ),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let left = |(name, _): &&(&str, &[u8])| !gone.iter().any(|part| name.contains(part));
            let files: Vec<(&str, &[u8])> = WHOLE.iter().filter(left).copied().collect();
            write(folder.path(), &files);
            let fault = load(folder.path(), "minimal").unwrap().uefi_fault();
            assert_eq!(fault, Some(ImageFault::BrokenChain(expected.to_owned())));
        }
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &WHOLE[..2]);
        assert_eq!(
            load(folder.path(), "minimal").unwrap().uefi_fault(),
            Some(ImageFault::NoUefiLoader)
        );
    }

    #[test]
    fn one_changed_byte_is_damage() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), WHOLE);
        std::fs::write(folder.path().join("minimal/initrd.img"), b"j").unwrap();
        assert!(
            matches!(load(folder.path(), "minimal"), Err(ImageFault::Damaged(why)) if why.contains("initrd.img"))
        );
        std::fs::write(folder.path().join("minimal/initrd.img"), b"ii").unwrap();
        assert!(
            matches!(load(folder.path(), "minimal"), Err(ImageFault::Damaged(why)) if why.contains("2 bytes"))
        );
    }

    #[test]
    fn missing_escaping_and_incomplete_images_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(
            load(folder.path(), "minimal"),
            Err(ImageFault::Missing(_))
        ));
        write(folder.path(), &[("vmlinuz", b"k")]);
        assert!(
            matches!(load(folder.path(), "minimal"), Err(ImageFault::Damaged(why)) if why.contains("initrd.img"))
        );
        std::fs::write(folder.path().join("outside"), b"x").unwrap();
        write(
            folder.path(),
            &[("vmlinuz", b"k"), ("initrd.img", b"i"), ("../outside", b"x")],
        );
        assert!(
            matches!(load(folder.path(), "minimal"), Err(ImageFault::Damaged(why)) if why.contains("outside it"))
        );
    }
}
