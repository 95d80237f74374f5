//! `manifest.json`: what an image holds, written by `cidbuild`, read by `cidhead` and people.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Version of this document's shape. A reader refuses a larger one. 2: `root`, `needed_ram_bytes`.
pub const MANIFEST_VERSION: u32 = 2;

/// One built image. Map keys and lists are sorted: the same image has the same manifest, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`MANIFEST_VERSION`] of the writer.
    pub version: u32,
    /// Name of the image, also the name of its folder.
    pub name: String,
    /// `uname -r` of the kernel, e.g. `6.12.107+deb13-amd64`.
    pub kernel_release: String,
    /// Kernel command line of the recipe; the head adds its own words behind it.
    pub cmdline: String,
    /// SHA-256 of the recipe file, lower-case hex.
    pub recipe_sha256: String,
    /// The files beside this manifest that are served: relative path to digest and size
    /// (`vmlinuz`, `initrd.img`, `efi/shimx64.efi`, `efi/grubx64.efi`, `efi/mmx64.efi`, `bios/undionly.kpxe`).
    pub artifacts: BTreeMap<String, Artifact>,
    /// Every entry of the initramfs, by absolute path.
    pub files: BTreeMap<String, FileEntry>,
    /// Names of the NIC drivers the image covers, sorted.
    pub nic_drivers: Vec<String>,
    /// PCI vendors and devices that those drivers name, as `8086:15f3`, sorted; for the head's diagnoses.
    #[serde(default)]
    pub nic_ids: Vec<String>,
    /// Firmware files that the drivers may ask for (`modinfo -F firmware`), sorted, and whether they are inside.
    pub firmware: BTreeMap<String, bool>,
    /// Bytes of RAM that a PC must have to boot this image, everything at its peak; 0 where the builder did not say. Of an image
    /// with a root: [`Root::needed_ram_bytes`] is the part that must still be free when the root's download begins.
    #[serde(default)]
    pub needed_ram_bytes: u64,
    /// The root image, where the recipe has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<Root>,
}

/// The root image of stage 2: `root.img` and what belongs to it, all of them among the [`artifacts`](Manifest::artifacts).
/// `root.tree` is its hash tree, `root.list` names each file of it with size and digest, `packages.json` what is installed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Root {
    /// Kind of file system, as `mount(2)` calls it: `erofs`.
    pub format: String,
    /// Its UUID, the same for each image: what an image is, its hash tree says.
    pub uuid: String,
    /// Bytes of `root.img`.
    pub bytes: u64,
    /// Bytes of a chunk: what is fetched and checked at a time.
    pub chunk_bytes: u64,
    /// Root of the hash tree over the chunks, lower-case hex.
    pub tree_root: String,
    /// Files, folders, links in it.
    pub entries: u64,
    /// Bytes of its files, unpacked.
    pub content_bytes: u64,
    /// Bytes of RAM that must be free when the download begins: `root.img`, its tree, and working room.
    pub needed_ram_bytes: u64,
    /// Bytes of RAM in use at the most until it is mounted, by the same count as the node's own `memory_peak_kib`; 0 where the
    /// builder did not say.
    #[serde(default)]
    pub peak_ram_bytes: u64,
    /// Templates of the recipe (`NAME.node.tera`) that the head renders for each node, sorted by path.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub templates: Vec<Template>,
    /// What the recipe has for them as `values.NAME`; values of the head's group and machine come before these.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub values: BTreeMap<String, serde_json::Value>,
}

/// A file of a root that differs from node to node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    /// Where it comes to be, below the root, without a slash in front.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Tera's language.
    pub text: String,
}

impl Manifest {
    /// Short name of what boots, `3f2a9c01-77ab01cd`: 8 digits of the kernel's SHA-256 and 8 of the initrd's. By it a stick
    /// with an image of its own is compared with the head. None when the manifest names no kernel or initrd.
    pub fn boot_digest(&self) -> Option<String> {
        let short = |file: &str| self.artifacts.get(file)?.sha256.get(..8);
        Some(format!("{}-{}", short("vmlinuz")?, short("initrd.img")?))
    }
}

/// A file beside the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    /// SHA-256, lower-case hex.
    pub sha256: String,
    /// Size in bytes.
    pub size: u64,
}

/// An entry of the initramfs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Type and permission bits as in `stat(2)`, octal text such as `100644`.
    pub mode: String,
    /// Size in bytes of the content (0 for directories and device nodes).
    pub size: u64,
    /// SHA-256 of the content, lower-case hex; empty for directories and device nodes; of the target for links.
    pub sha256: String,
}
