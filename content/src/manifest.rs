//! What a root image is, as canonical bytes that the head's authority signs, and what a node refuses. Must never take a field from
//! bytes whose signature was not verified against the pin that booted with the node.
//!
//! The bytes are lines of text in one fixed order, `cid root manifest 1` first. No certificate begins so (DER begins with 0x30),
//! hence a signature over a manifest can never pass for one over a certificate that the same key signed, nor the other way round.
//!
//! Signed: `CIDROOT1`, the authority's public key (32 bytes, RFC 8032), the signature (64 bytes), the manifest's bytes.

use core::fmt;
use core::str::FromStr;

use ring::digest::{SHA256, digest};
use ring::signature::{ED25519, UnparsedPublicKey};

use crate::Digest;
use crate::tree::{Shape, TreeError};

/// Longest signed manifest, in bytes.
pub const MAX_SIGNED: usize = 4 * 1024;
/// Longest name of an image, without its version.
pub const MAX_NAME: usize = 64;

const FIRST_LINE: &str = "cid root manifest 1";
const MAGIC: &[u8; 8] = b"CIDROOT1";
/// What precedes the key in the SubjectPublicKeyInfo of Ed25519 (RFC 8410, 4): the pin is the hash of both.
const ED25519_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// File system of a root image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// EROFS: the one that is mounted from a file without a block device.
    Erofs,
}

impl Format {
    /// As in recipes, and as `mount -t` takes it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Erofs => "erofs",
        }
    }
}

impl FromStr for Format {
    type Err = ManifestError;

    fn from_str(text: &str) -> Result<Self, ManifestError> {
        match text {
            "erofs" => Ok(Self::Erofs),
            _ => Err(ManifestError::Value("format")),
        }
    }
}

/// One version of a root image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootManifest {
    /// Name and version, `compute@3`.
    pub image: String,
    /// Rises for ever: with every signature of this head over this image's name, rollbacks too.
    pub sequence: u64,
    /// File system of `root.img`.
    pub format: Format,
    /// Size of `root.img` and how it is cut.
    pub shape: Shape,
    /// Root of its hash tree.
    pub tree_root: Digest,
    /// SHA-256 of the `vmlinuz` it was built with.
    pub kernel: Digest,
    /// SHA-256 of the `initrd.img` it was built with.
    pub initrd: Digest,
    /// RAM that a PC needs to boot it, in bytes, as the build computed.
    pub needed_ram_bytes: u64,
}

/// Why bytes are no manifest, or fields cannot be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not UTF-8, another first line, a line missing or too much, or a number written in another way than ours.
    #[error("not a root manifest: {0}")]
    Malformed(&'static str),
    /// The value of this field.
    #[error("the root manifest's {0} is not possible")]
    Value(&'static str),
    /// Its size.
    #[error("the root manifest's size is not possible: {0}")]
    Shape(#[from] TreeError),
}

impl RootManifest {
    /// The bytes that are signed.
    ///
    /// # Errors
    /// [`ManifestError::Value`] when `image` is no name with a version.
    pub fn encode(&self) -> Result<Vec<u8>, ManifestError> {
        if !is_image(&self.image) {
            return Err(ManifestError::Value("image"));
        }
        Ok(self.to_string().into_bytes())
    }

    /// Reads [`RootManifest::encode`] back: exactly those bytes.
    ///
    /// # Errors
    /// See [`ManifestError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let text = core::str::from_utf8(bytes).map_err(|_| ManifestError::Malformed("it is no text"))?;
        let mut lines = text.lines();
        if lines.next() != Some(FIRST_LINE) {
            return Err(ManifestError::Malformed("its first line is another"));
        }
        let mut value = |key: &'static str| {
            let line = lines.next().and_then(|line| line.strip_prefix(key));
            line.and_then(|rest| rest.strip_prefix(' '))
                .ok_or(ManifestError::Malformed("a line is missing or in another place"))
        };
        let manifest = Self {
            image: value("image")?.to_owned(),
            sequence: number("sequence", value("sequence")?)?,
            format: value("format")?.parse()?,
            shape: Shape::new(
                number("bytes", value("bytes")?)?,
                number("chunk-bytes", value("chunk-bytes")?)?,
            )?,
            tree_root: hash("tree-root", value("tree-root")?)?,
            kernel: hash("kernel", value("kernel")?)?,
            initrd: hash("initrd", value("initrd")?)?,
            needed_ram_bytes: number("needed-ram-bytes", value("needed-ram-bytes")?)?,
        };
        if manifest.encode()? != bytes {
            return Err(ManifestError::Malformed("it is written in another way"));
        }
        Ok(manifest)
    }
}

impl fmt::Display for RootManifest {
    /// The canonical text, for people as well.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{FIRST_LINE}")?;
        writeln!(f, "image {}", self.image)?;
        writeln!(f, "sequence {}", self.sequence)?;
        writeln!(f, "format {}", self.format.word())?;
        writeln!(f, "bytes {}", self.shape.bytes())?;
        writeln!(f, "chunk-bytes {}", self.shape.chunk_bytes())?;
        writeln!(f, "tree-root {}", self.tree_root)?;
        writeln!(f, "kernel {}", self.kernel)?;
        writeln!(f, "initrd {}", self.initrd)?;
        writeln!(f, "needed-ram-bytes {}", self.needed_ram_bytes)
    }
}

fn number<N: FromStr>(key: &'static str, text: &str) -> Result<N, ManifestError> {
    text.parse().map_err(|_| ManifestError::Value(key))
}

fn hash(key: &'static str, text: &str) -> Result<Digest, ManifestError> {
    text.parse().map_err(|_| ManifestError::Value(key))
}

/// Whether this is a name and a version: `compute@3`.
pub fn is_image(text: &str) -> bool {
    split_image(text).is_some()
}

/// Name and version of `compute@3`.
pub fn split_image(text: &str) -> Option<(&str, u32)> {
    let (name, version) = text.split_once('@')?;
    let letter = |byte: u8| matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.');
    let good = !name.is_empty() && name.len() <= MAX_NAME && !name.starts_with(['.', '-']);
    let number: u32 = version.parse().ok().filter(|number| *number > 0)?;
    (good && name.bytes().all(letter) && number.to_string() == version).then_some((name, number))
}

/// A manifest with the signature of a head's authority over its bytes. Nothing in it is to be believed before [`Signed::verify`].
#[derive(Clone, PartialEq, Eq)]
pub struct Signed {
    key: [u8; 32],
    signature: [u8; 64],
    manifest: Vec<u8>,
}

/// What the head promised to a node, over its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promise<'a> {
    /// As [`RootManifest::image`].
    pub image: &'a str,
    /// As [`RootManifest::sequence`]: an older one is not taken.
    pub sequence: u64,
}

/// Why a node does not boot a root image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not the bytes of a [`Signed`], or what is signed is no manifest.
    #[error("the signed manifest is malformed: {0}")]
    Malformed(#[from] ManifestError),
    /// Another head's, or a forger's.
    #[error("the manifest is signed by another key than that of the head this PC booted from")]
    OtherKey,
    /// It was changed after it was signed.
    #[error("the manifest's signature is wrong: it was changed after the head signed it")]
    BadSignature,
    /// A good manifest of something else.
    #[error("the manifest is for {found}, and the head promised {promised}")]
    OtherImage {
        /// It names.
        found: String,
        /// The head named.
        promised: String,
    },
    /// A good one from before.
    #[error("the manifest of {image} is older than promised: sequence {found}, promised {promised}")]
    Older {
        /// Which image.
        image: String,
        /// Its sequence.
        found: u64,
        /// The head's word.
        promised: u64,
    },
}

impl Refusal {
    /// Name of its counter.
    pub fn counter(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "manifest-malformed",
            Self::OtherKey => "manifest-other-key",
            Self::BadSignature => "manifest-bad-signature",
            Self::OtherImage { .. } => "manifest-other-image",
            Self::Older { .. } => "manifest-older",
        }
    }
}

impl Signed {
    /// A manifest and what the authority made of [`RootManifest::encode`]: its raw public key and the signature.
    ///
    /// # Errors
    /// See [`RootManifest::encode`].
    pub fn new(manifest: &RootManifest, key: [u8; 32], signature: [u8; 64]) -> Result<Self, ManifestError> {
        let manifest = manifest.encode()?;
        Ok(Self {
            key,
            signature,
            manifest,
        })
    }

    /// As it is kept and sent.
    pub fn encode(&self) -> Vec<u8> {
        [MAGIC, &self.key[..], &self.signature, &self.manifest].concat()
    }

    /// Reads [`Signed::encode`] back; says nothing of the signature.
    ///
    /// # Errors
    /// [`Refusal::Malformed`] when it is too short, too long or something else.
    pub fn decode(bytes: &[u8]) -> Result<Self, Refusal> {
        let malformed = |why| Refusal::Malformed(ManifestError::Malformed(why));
        if bytes.len() > MAX_SIGNED {
            return Err(malformed("it is too long"));
        }
        let rest = bytes
            .strip_prefix(MAGIC)
            .ok_or(malformed("it does not begin with CIDROOT1"))?;
        let short = malformed("it ends too early");
        let (key, rest) = rest.split_first_chunk().ok_or(short.clone())?;
        let (signature, manifest) = rest.split_first_chunk().ok_or(short)?;
        Ok(Self {
            key: *key,
            signature: *signature,
            manifest: manifest.to_vec(),
        })
    }

    /// The manifest, if the key behind `pin` signed it and it is what the head promised, or a newer one of that image.
    /// `pin` is the SHA-256 of the authority's SubjectPublicKeyInfo (`cid.ca=`).
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn verify(&self, pin: &[u8; 32], promise: Promise<'_>) -> Result<RootManifest, Refusal> {
        let manifest = self.verify_signature(pin)?;
        if manifest.image != promise.image {
            return Err(Refusal::OtherImage {
                found: manifest.image,
                promised: promise.image.to_owned(),
            });
        }
        if manifest.sequence < promise.sequence {
            return Err(Refusal::Older {
                image: manifest.image,
                found: manifest.sequence,
                promised: promise.sequence,
            });
        }
        Ok(manifest)
    }

    /// The manifest, if the key behind `pin` signed it: for who has no promise to compare it with.
    ///
    /// # Errors
    /// [`Refusal::OtherKey`], [`Refusal::BadSignature`], [`Refusal::Malformed`].
    pub fn verify_signature(&self, pin: &[u8; 32]) -> Result<RootManifest, Refusal> {
        let public_key = [&ED25519_PREFIX[..], &self.key].concat();
        if digest(&SHA256, &public_key).as_ref() != pin {
            return Err(Refusal::OtherKey);
        }
        UnparsedPublicKey::new(&ED25519, &self.key)
            .verify(&self.manifest, &self.signature)
            .map_err(|_| Refusal::BadSignature)?;
        Ok(RootManifest::decode(&self.manifest)?)
    }
}

impl fmt::Debug for Signed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signed").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
