//! What nodes are promised: the root manifests of versions, signed by the authority. Must not decide who boots what, nor under
//! which sequence; the registry does.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cid_content::{RootManifest, Shape, Signed};
use cid_protocol::manifest::Manifest;
use cid_protocol::root::RootPromise;

use crate::node_files::Promised;
use crate::versions::{Versions, split};

/// Why a version with a root cannot be promised.
#[derive(Debug, thiserror::Error)]
enum PromiseError {
    #[error("its manifest cannot be read: {0}")]
    Disk(#[from] std::io::Error),
    #[error("its manifest is damaged: {0}")]
    Json(#[from] serde_json::Error),
    #[error("its manifest names no {0}")]
    Missing(&'static str),
    #[error(transparent)]
    Root(#[from] cid_content::manifest::ManifestError),
    #[error("{0}")]
    Signing(String),
}

/// Signs a root's manifest, or says why not.
pub type Sign = Arc<dyn Fn(&RootManifest) -> Result<Signed, String> + Send + Sync>;

/// Signs, and keeps what was signed: a version never changes.
pub struct Promises {
    versions: Versions,
    sign: Sign,
    /// By image and sequence; `None` for an image without a root.
    signed: Mutex<BTreeMap<(String, u64), Option<Promised>>>,
}

impl Promises {
    /// Of these versions.
    pub fn new(versions: Versions, sign: Sign) -> Self {
        Self {
            versions,
            sign,
            signed: Mutex::default(),
        }
    }

    /// The promises for these images under these sequences. Reads the disk for those that are new. One that cannot be made is a line
    /// in the log, and nodes that boot it are promised nothing.
    pub fn of(&self, wanted: Vec<(String, u64)>) -> Vec<Promised> {
        let mut signed = self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        signed.retain(|key, _| wanted.contains(key));
        for (image, sequence) in wanted {
            let key = (image, sequence);
            if signed.contains_key(&key) {
                continue;
            }
            let promise = self.promise(&key.0, sequence).unwrap_or_else(|error| {
                tracing::error!("no root of {} for nodes: {error}: build it again", key.0);
                None
            });
            signed.insert(key, promise);
        }
        signed.values().flatten().cloned().collect()
    }

    fn promise(&self, image: &str, sequence: u64) -> Result<Option<Promised>, PromiseError> {
        let (name, number) = split(image).ok_or(PromiseError::Missing("version"))?;
        let file = self
            .versions
            .root()
            .join(name)
            .join(number.to_string())
            .join("manifest.json");
        let built: Manifest = serde_json::from_slice(&fs::read(file)?)?;
        let Some(root) = &built.root else {
            return Ok(None);
        };
        let digest_of = |file: &'static str| {
            let artifact = built.artifacts.get(file);
            artifact
                .and_then(|artifact| artifact.sha256.parse().ok())
                .ok_or(PromiseError::Missing(file))
        };
        let chunk_bytes = u32::try_from(root.chunk_bytes).map_err(|_| PromiseError::Missing("chunk size"))?;
        let shape =
            Shape::new(root.bytes, chunk_bytes).map_err(cid_content::manifest::ManifestError::Shape)?;
        let manifest = RootManifest {
            image: image.to_owned(),
            sequence,
            format: root.format.parse()?,
            shape,
            tree_root: root
                .tree_root
                .parse()
                .map_err(|_| PromiseError::Missing("tree root"))?,
            kernel: digest_of("vmlinuz")?,
            initrd: digest_of("initrd.img")?,
            needed_ram_bytes: root.needed_ram_bytes,
        };
        let signed = (self.sign)(&manifest).map_err(PromiseError::Signing)?;
        Ok(Some(Promised {
            promise: RootPromise {
                image: image.to_owned(),
                sequence,
                manifest: STANDARD.encode(signed.encode()),
                files: Vec::new(),
            },
            templates: root.templates.clone(),
            values: root.values.clone(),
        }))
    }
}
