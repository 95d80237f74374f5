//! A base from an OCI image layout (a folder or a tar of one) or a `docker save` archive. Every blob is checked against
//! the digest that names it and every layer against the configuration; no container tool is needed, nothing is run.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use cid_initramfs::digest::{hex, sha256_hex};
use cid_protocol::services::Process;
use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::tree::{Stretch, Tree, Whiteouts};
use crate::progress::Progress;

/// One image, its configuration read and checked, its layers not yet.
#[derive(Debug)]
pub(super) struct Image {
    /// Names the content: equal for equal layers and configuration.
    pub(super) identity: String,
    /// What the configuration says of the process.
    pub(super) process: Process,
    blobs: Blobs,
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Layer {
    /// Name of the blob.
    blob: String,
    /// SHA-256 and size of the blob, where the format gives them.
    stored: Option<(String, u64)>,
    /// SHA-256 of the tar in it.
    plain: String,
}

/// Where the files of a layout or archive are.
#[derive(Debug)]
enum Blobs {
    Folder(PathBuf),
    /// Name to first byte and size.
    Archive(Arc<File>, BTreeMap<String, (u64, u64)>),
}

/// `manifest.json` of `docker save`.
#[derive(Deserialize)]
struct DockerImage {
    #[serde(rename = "Config")]
    config: String,
    #[serde(rename = "RepoTags", default)]
    tags: Option<Vec<String>>,
    #[serde(rename = "Layers")]
    layers: Vec<String>,
}

impl Image {
    /// Opens what lies at `path`; behind a last colon may stand a tag. `workshop` gets what has to be unpacked.
    pub(super) fn open(path: &Path, workshop: &Path) -> anyhow::Result<Self> {
        let text = path.to_string_lossy();
        let (path, tag) = match text.rsplit_once(':') {
            Some((before, tag)) if !path.exists() => (PathBuf::from(before), Some(tag.to_owned())),
            _ => (path.to_owned(), None),
        };
        let shown = path.display().to_string();
        let blobs = Blobs::open(&path, workshop).with_context(|| shown.clone())?;
        let image = match (blobs.small("index.json")?, blobs.small("manifest.json")?) {
            (Some(index), _) => Self::of_layout(blobs, &index, tag.as_deref()),
            (None, Some(manifest)) => Self::of_docker(blobs, &manifest, tag.as_deref()),
            (None, None) => bail!(
                "{shown}: neither an OCI layout (no index.json) nor a docker archive (no manifest.json)"
            ),
        };
        image.with_context(|| shown)
    }

    fn of_layout(blobs: Blobs, index: &[u8], tag: Option<&str>) -> anyhow::Result<Self> {
        let index = ImageIndex::from_reader(index).context("index.json")?;
        let mut descriptor = chosen(index.manifests(), tag)?.clone();
        for _ in 0..MAX_INDEXES {
            if !matches!(descriptor.media_type(), MediaType::ImageIndex)
                && descriptor.media_type().to_string() != DOCKER_LIST
            {
                break;
            }
            let nested =
                ImageIndex::from_reader(blobs.checked(&descriptor)?.as_slice()).context("nested index")?;
            descriptor = chosen(nested.manifests(), None)?.clone();
        }
        let manifest =
            ImageManifest::from_reader(blobs.checked(&descriptor)?.as_slice()).context("image manifest")?;
        let config = blobs.checked(manifest.config())?;
        let stored = manifest.layers().iter().map(|layer| -> anyhow::Result<_> {
            Ok((blob_name(layer)?, Some((sha256_of(layer)?, layer.size()))))
        });
        Self::new(blobs, &config, stored.collect::<anyhow::Result<_>>()?)
    }

    fn of_docker(blobs: Blobs, manifest: &[u8], tag: Option<&str>) -> anyhow::Result<Self> {
        let images: Vec<DockerImage> = serde_json::from_slice(manifest).context("manifest.json")?;
        let fits = |image: &&DockerImage| {
            let tags = image.tags.iter().flatten();
            tag.is_none_or(|tag| {
                tags.into_iter()
                    .any(|name| name == tag || name.ends_with(&format!(":{tag}")))
            })
        };
        let found: Vec<&DockerImage> = images.iter().filter(fits).collect();
        let [image] = found.as_slice() else {
            let tags: Vec<&str> = images
                .iter()
                .flat_map(|image| image.tags.iter().flatten())
                .map(String::as_str)
                .collect();
            bail!(
                "{} images fit: write one of the tags {} behind the path, as oci:PATH:TAG",
                found.len(),
                tags.join(", ")
            );
        };
        let config = blobs
            .small(&image.config)?
            .with_context(|| format!("no {} in it", image.config))?;
        let layers = image.layers.iter().map(|name| (name.clone(), None)).collect();
        Self::new(blobs, &config, layers)
    }

    fn new(
        blobs: Blobs,
        config: &[u8],
        stored: Vec<(String, Option<(String, u64)>)>,
    ) -> anyhow::Result<Self> {
        let configuration = ImageConfiguration::from_reader(config).context("image configuration")?;
        let plain = configuration.rootfs().diff_ids();
        if plain.len() != stored.len() {
            bail!(
                "the configuration names {} layers, the manifest {}",
                plain.len(),
                stored.len()
            );
        }
        let mut layers = Vec::new();
        for ((blob, stored), plain) in stored.into_iter().zip(plain) {
            let plain = plain
                .strip_prefix("sha256:")
                .with_context(|| format!("layer {plain}: only sha256 is read"))?
                .to_owned();
            layers.push(Layer { blob, stored, plain });
        }
        let words = configuration.config().clone().unwrap_or_default();
        let process = Process {
            environment: words.env().clone().unwrap_or_default(),
            entrypoint: words.entrypoint().clone().unwrap_or_default(),
            command: words.cmd().clone().unwrap_or_default(),
            user: words.user().clone().unwrap_or_default(),
            folder: words.working_dir().clone().unwrap_or_default(),
        };
        Ok(Image {
            identity: sha256_hex(config),
            process,
            blobs,
            layers,
        })
    }

    /// The layers laid over one another. Contents stay in files of `workshop`.
    pub(super) fn tree(&self, workshop: &Path, progress: &Progress) -> anyhow::Result<Tree> {
        let mut tree = Tree::default();
        for (number, layer) in self.layers.iter().enumerate() {
            let shown = || format!("layer {} of {}", number + 1, self.layers.len());
            let plain = self
                .unpack(layer, workshop, &shown(), progress)
                .with_context(shown)?;
            tree.read_tar(plain, Whiteouts::Apply).with_context(shown)?;
        }
        Ok(tree)
    }

    /// One layer's tar, both digests checked.
    fn unpack(
        &self,
        layer: &Layer,
        workshop: &Path,
        what: &str,
        progress: &Progress,
    ) -> anyhow::Result<File> {
        let (reader, size) = self
            .blobs
            .reader(&layer.blob)?
            .with_context(|| format!("no {} in it", layer.blob))?;
        let phase = progress.bytes(&format!("unpacking {what}"), size);
        let mut stored = Hashed::new(phase.reader(reader));
        let mut file = tempfile::tempfile_in(workshop)?;
        let digest = {
            let plain = cid_initramfs::decompressor(BufReader::with_capacity(BUFFER, &mut stored))?;
            let mut plain = Hashed::new(plain.take(MAX_LAYER_BYTES));
            io::copy(&mut plain, &mut file)?;
            plain.finish()
        };
        // A compressed stream may end before the blob does.
        io::copy(&mut stored, &mut io::sink())?;
        let stored = stored.finish();
        if let Some((expected, bytes)) = &layer.stored
            && (*expected != stored || *bytes != size)
        {
            bail!(
                "its {size} bytes have SHA-256 {stored}, the manifest says {bytes} and {expected}: the file is damaged, make it again"
            );
        }
        if digest != layer.plain {
            bail!(
                "its tar has SHA-256 {digest}, the configuration says {}: the file is damaged, make it again",
                layer.plain
            );
        }
        file.flush()?;
        file.rewind()?;
        Ok(file)
    }
}

/// The one manifest for this architecture and `tag`.
fn chosen<'a>(manifests: &'a [Descriptor], tag: Option<&str>) -> anyhow::Result<&'a Descriptor> {
    let name = |descriptor: &'a Descriptor| {
        descriptor
            .annotations()
            .as_ref()?
            .get(REFERENCE)
            .map(String::as_str)
    };
    let fits = |descriptor: &&Descriptor| {
        let here = descriptor.platform().as_ref().is_none_or(|platform| {
            platform.architecture().to_string() == "amd64" && platform.os().to_string() == "linux"
        });
        here && tag.is_none_or(|tag| {
            descriptor
                .annotations()
                .as_ref()
                .and_then(|all| all.get(REFERENCE))
                .is_some_and(|name| name == tag)
        })
    };
    let found: Vec<&Descriptor> = manifests.iter().filter(fits).collect();
    match found.as_slice() {
        [one] => Ok(one),
        [] => bail!(
            "no image for linux/amd64 with this tag; tags there: {}",
            manifests.iter().filter_map(name).collect::<Vec<_>>().join(", ")
        ),
        several => bail!(
            "{} images fit: write one of the tags {} behind the path, as oci:PATH:TAG",
            several.len(),
            several
                .iter()
                .copied()
                .filter_map(name)
                .collect::<Vec<_>>()
                .join(", ")
        ),
    }
}

fn sha256_of(descriptor: &Descriptor) -> anyhow::Result<String> {
    let text = descriptor.digest().to_string();
    match text.strip_prefix("sha256:") {
        // It becomes part of a path.
        Some(digest) if digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit()) => {
            Ok(digest.to_owned())
        }
        _ => bail!("digest {text:?}: only sha256 is read"),
    }
}

fn blob_name(descriptor: &Descriptor) -> anyhow::Result<String> {
    Ok(format!("blobs/sha256/{}", sha256_of(descriptor)?))
}

impl Blobs {
    fn open(path: &Path, workshop: &Path) -> anyhow::Result<Self> {
        if path.is_dir() {
            return Ok(Blobs::Folder(path.to_owned()));
        }
        let file = plain(path, workshop)?;
        let shared = Arc::new(file.try_clone()?);
        let mut archive = tar::Archive::new(BufReader::new(file));
        let mut members = BTreeMap::new();
        let mut links = Vec::new();
        for entry in archive.entries_with_seek()? {
            let entry = entry.context("tar")?;
            let name = String::from_utf8_lossy(&entry.path_bytes())
                .trim_start_matches("./")
                .to_owned();
            if entry.header().entry_type().is_file() {
                members.insert(name, (entry.raw_file_position(), entry.size()));
            } else if let Some(target) = entry.link_name_bytes() {
                // Older docker writes a repeated layer as a link `../ID/layer.tar`.
                links.push((
                    name,
                    String::from_utf8_lossy(&target)
                        .trim_start_matches("../")
                        .to_owned(),
                ));
            }
        }
        for (name, target) in links {
            if let Some(place) = members.get(&target).copied() {
                members.insert(name, place);
            }
        }
        Ok(Blobs::Archive(shared, members))
    }

    /// A file by its name in the layout, with its size.
    fn reader(&self, name: &str) -> anyhow::Result<Option<(Box<dyn Read + '_>, u64)>> {
        match self {
            Blobs::Folder(folder) => {
                if name.starts_with('/') || name.split('/').any(|part| part == "..") {
                    bail!("the name {name:?} leads out of the layout");
                }
                match File::open(folder.join(name)) {
                    Ok(file) => {
                        let size = file.metadata()?.len();
                        Ok(Some((Box::new(file), size)))
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(error).with_context(|| name.to_owned()),
                }
            }
            Blobs::Archive(file, members) => Ok(members.get(name).map(|(offset, size)| {
                let stretch = Stretch {
                    file,
                    at: *offset,
                    left: *size,
                };
                (Box::new(stretch) as Box<dyn Read>, *size)
            })),
        }
    }

    /// A small file whole.
    fn small(&self, name: &str) -> anyhow::Result<Option<Vec<u8>>> {
        let Some((reader, size)) = self.reader(name)? else {
            return Ok(None);
        };
        if size > MAX_JSON_BYTES {
            bail!("{name}: {size} bytes are too many for a JSON document");
        }
        let mut bytes = Vec::new();
        reader
            .take(MAX_JSON_BYTES)
            .read_to_end(&mut bytes)
            .with_context(|| name.to_owned())?;
        Ok(Some(bytes))
    }

    /// A JSON blob that has the digest and size by which it is named.
    fn checked(&self, descriptor: &Descriptor) -> anyhow::Result<Vec<u8>> {
        let name = blob_name(descriptor)?;
        let bytes = self.small(&name)?.with_context(|| format!("no {name} in it"))?;
        if sha256_hex(&bytes) != sha256_of(descriptor)? || bytes.len() as u64 != descriptor.size() {
            bail!("{name}: its content has another digest: the file is damaged, make it again");
        }
        Ok(bytes)
    }
}

/// `path` as an uncompressed tar file: itself, or unpacked into `workshop`.
pub(super) fn plain(path: &Path, workshop: &Path) -> anyhow::Result<File> {
    let shown = || path.display().to_string();
    let mut file = File::open(path).with_context(shown)?;
    let mut start = [0; 262];
    let compressed = file.read_exact(&mut start).is_err() || &start[257..262] != b"ustar";
    file.rewind()?;
    if !compressed {
        return Ok(file);
    }
    let mut plain = tempfile::tempfile_in(workshop)?;
    let mut reader =
        cid_initramfs::decompressor(BufReader::with_capacity(BUFFER, file))?.take(MAX_LAYER_BYTES);
    io::copy(&mut reader, &mut plain).with_context(shown)?;
    plain.rewind()?;
    Ok(plain)
}

/// Counts the digest of what passes, read or written.
pub(super) struct Hashed<S> {
    inner: S,
    digest: Sha256,
    /// Bytes that passed.
    pub(super) bytes: u64,
}

impl<S> Hashed<S> {
    pub(super) fn new(inner: S) -> Self {
        Hashed {
            inner,
            digest: Sha256::new(),
            bytes: 0,
        }
    }

    /// Lower-case hex.
    pub(super) fn finish(self) -> String {
        hex(&self.digest.finalize())
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)?;
        self.digest.update(&buffer[..got]);
        self.bytes += got as u64;
        Ok(got)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let put = self.inner.write(buffer)?;
        self.digest.update(&buffer[..put]);
        self.bytes += put as u64;
        Ok(put)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

const REFERENCE: &str = "org.opencontainers.image.ref.name";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// How deep indexes may stand in indexes.
const MAX_INDEXES: usize = 4;
const MAX_JSON_BYTES: u64 = 16 << 20;
/// More than any node's memory: a layer that unpacks without end stops here.
const MAX_LAYER_BYTES: u64 = 64 << 30;
const BUFFER: usize = 256 << 10;

#[cfg(test)]
mod tests;
