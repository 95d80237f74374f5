//! From a recipe's `[root]` to a root tree: base, packages, hooks, overlays, users, services. Ends at tar streams in the
//! cache; what file system they become is not decided here. Never runs anything of a base outside a chroot.

use std::path::PathBuf;

use cid_protocol::services::Process;
use serde::{Deserialize, Serialize};

/// A finished root tree: what `root.img` is made from.
///
/// The layers are one tree, bottom first: a file of a later layer takes the place of the file of that name below it; no
/// later layer removes anything, and a folder that a later layer repeats has the owner and mode that it has below. The
/// bottom layer is large and seldom changes (base, packages, hooks); the top one is small and changes often (overlays,
/// users, services). Whoever makes a file system of them keeps what it made of the bottom by [`Layer::sha256`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootTree {
    /// One or two layers.
    pub layers: Vec<Layer>,
    /// What is installed, sorted by name; empty when the base has no package database.
    pub packages: Vec<PackageFacts>,
    /// Latest modification time of any entry, seconds since 1970: `SOURCE_DATE_EPOCH` for whoever packs it.
    pub epoch: u64,
    /// What an OCI image says of its process.
    pub process: Option<Process>,
}

/// One tar stream: GNU or PAX headers, sorted by path (`./` is not written before names), numeric owners only, no times
/// later than the tree's `epoch`; regular files, folders, symbolic links, hard links within the same layer, FIFOs and
/// character devices, extended attributes as `SCHILY.xattr.*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// `base` or `top`.
    pub name: &'static str,
    /// The file, in the cache: read it, never change it.
    pub tar: PathBuf,
    /// SHA-256 of that file, lower-case hex.
    pub sha256: String,
    /// Its size.
    pub bytes: u64,
}

/// One line of `packages.json`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackageFacts {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// Architecture, e.g. `amd64` or `all`.
    pub architecture: String,
    /// Licences named in the package's machine-readable copyright file, sorted, joined with ` and `; else
    /// `see copyright`.
    pub licence: String,
}
