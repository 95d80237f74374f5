//! What one kernel module file says about itself: its `.modinfo` and the symbols it wants that could make a block
//! device. Reads `.ko`, `.ko.xz`, `.ko.zst`, `.ko.gz` from memory; never loads anything.

use std::io::{self, Read};

use object::{Object, ObjectSection, ObjectSymbol};
use serde::{Deserialize, Serialize};

use crate::compress::decompressor;
use crate::digest::sha256_hex;

/// Bytes of an unpacked module that are accepted; the largest of Debian 13 (`amdgpu`) has 30 MB.
pub const MODULE_SIZE_LIMIT: u64 = 256 << 20;

/// Symbols by which a driver makes a block device itself, or a host whose devices the kernel turns into block
/// devices by loading another driver. Each is the only exported way through its subsystem (read in 6.12's
/// `EXPORT_SYMBOL`s): a module that wants none of them cannot do it.
pub const BLOCK_SYMBOLS: &[&str] = &[
    // block/genhd.c: every gendisk is made and shown by these.
    "__alloc_disk_node",
    "__blk_alloc_disk",
    "__blk_mq_alloc_disk",
    "add_disk_fwnode",
    "blk_mq_alloc_disk_for_queue",
    "device_add_disk",
    "__register_blkdev",
    // SCSI hosts (a disk on it is sd's): drivers/scsi/hosts.c. iSCSI and Fibre Channel end here too.
    "scsi_add_host_with_dma",
    "scsi_host_alloc",
    "__scsi_add_device",
    "scsi_scan_host",
    "iscsi_host_alloc",
    "iscsi_host_add",
    "fc_remote_port_add",
    "sas_register_ha",
    // libata.
    "ata_host_activate",
    "ata_host_alloc",
    "ata_host_alloc_pinfo",
    "ata_host_register",
    "ata_pci_bmdma_init_one",
    "ata_pci_bmdma_prepare_host",
    "ata_pci_sff_activate_host",
    "ata_pci_sff_init_one",
    "ata_pci_sff_prepare_host",
    "ahci_host_activate",
    "ahci_platform_init_host",
    // NVMe hosts: drivers/nvme/host/core.c.
    "nvme_add_ctrl",
    "nvme_init_ctrl",
    "nvme_init_ctrl_finish",
    // SD and eMMC hosts, SD card readers behind MFD.
    "mmc_add_host",
    "mmc_alloc_host",
    "devm_mmc_alloc_host",
    "sdhci_add_host",
    "__sdhci_add_host",
    "memstick_add_host",
    // Flash translated to blocks (mtdblock, ftl, ubi's block).
    "register_mtd_blktrans",
    "add_mtd_blktrans_dev",
    // Persistent memory and old IDE-like things.
    "nvdimm_bus_register",
    "ufshcd_init",
];

/// Facts of one module file. Serializable because it is what the builder keeps beside an unpacked package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModuleFacts {
    /// Path below `/lib/modules/RELEASE/`, e.g. `kernel/drivers/net/mii.ko.xz`.
    pub path: String,
    /// SHA-256 of the file as it lies there (compressed).
    pub sha256: String,
    /// The name the kernel knows: the file's stem with `-` as `_`.
    pub name: String,
    /// First word of `vermagic`: the kernel release it was built for.
    pub release: String,
    /// Modules whose symbols it uses, as the kernel's own build wrote them.
    pub depends: Vec<String>,
    /// Names to load before it, if there are any.
    pub soft_before: Vec<String>,
    /// Names to load after it, and names that are useful with it (`weakdep`).
    pub soft_after: Vec<String>,
    /// Device patterns it answers to.
    pub aliases: Vec<String>,
    /// Firmware files it may ask for.
    pub firmware: Vec<String>,
    /// Those of [`BLOCK_SYMBOLS`] that it imports.
    pub block_symbols: Vec<String>,
}

/// Why a file is no module. The file is at fault.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// The compressed file is broken or too large when unpacked.
    #[error("{path}: cannot be decompressed: {source}")]
    Decompress {
        /// The file.
        path: String,
        /// What the decompressor said.
        source: io::Error,
    },
    /// Not an ELF file that can be read.
    #[error("{path}: not a kernel module: {problem}")]
    NotAModule {
        /// The file.
        path: String,
        /// What is missing.
        problem: String,
    },
}

impl ModuleFacts {
    /// Reads `bytes`, the file as it lies at `path`.
    pub fn read(path: &str, bytes: &[u8]) -> Result<Self, ModuleError> {
        let plain = unpack(path, bytes)?;
        let not_a_module = |problem: String| ModuleError::NotAModule {
            path: path.to_owned(),
            problem,
        };
        let elf = object::File::parse(plain.as_slice()).map_err(|error| not_a_module(error.to_string()))?;
        let section = elf
            .section_by_name(".modinfo")
            .ok_or_else(|| not_a_module("no .modinfo section".into()))?;
        let data = section.data().map_err(|error| not_a_module(error.to_string()))?;

        let mut facts = ModuleFacts {
            path: path.to_owned(),
            sha256: sha256_hex(bytes),
            name: module_name(path).ok_or_else(|| not_a_module("its name does not end in .ko".into()))?,
            release: String::new(),
            depends: Vec::new(),
            soft_before: Vec::new(),
            soft_after: Vec::new(),
            aliases: Vec::new(),
            firmware: Vec::new(),
            block_symbols: block_symbols(&elf),
        };
        for (key, value) in modinfo(data) {
            facts.note(key, value);
        }
        if facts.release.is_empty() {
            return Err(not_a_module("no vermagic".into()));
        }
        Ok(facts)
    }

    fn note(&mut self, key: &str, value: &str) {
        match key {
            "vermagic" => self.release = value.split(' ').next().unwrap_or_default().to_owned(),
            "depends" => {
                self.depends = value
                    .split(',')
                    .filter(|name| !name.is_empty())
                    .map(normal_name)
                    .collect();
            }
            "softdep" => {
                let (before, after) = parse_softdep(value);
                self.soft_before.extend(before);
                self.soft_after.extend(after);
            }
            "weakdep" => self
                .soft_after
                .extend(value.split_whitespace().map(str::to_owned)),
            "alias" => self.aliases.push(value.to_owned()),
            "firmware" => self.firmware.push(value.to_owned()),
            _ => {}
        }
    }
}

/// The plain bytes of a module file.
pub fn unpack(path: &str, bytes: &[u8]) -> Result<Vec<u8>, ModuleError> {
    let mut plain = Vec::new();
    decompressor(bytes)
        .and_then(|reader| reader.take(MODULE_SIZE_LIMIT + 1).read_to_end(&mut plain))
        .and_then(|count| {
            if count as u64 > MODULE_SIZE_LIMIT {
                Err(io::Error::other("larger than a module may be"))
            } else {
                Ok(())
            }
        })
        .map_err(|source| ModuleError::Decompress {
            path: path.to_owned(),
            source,
        })?;
    Ok(plain)
}

/// `kernel/a/snd-hda.ko.xz` -> `snd_hda`. None when the file is no module by its name.
pub fn module_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let stem = SUFFIXES.iter().find_map(|suffix| file.strip_suffix(suffix))?;
    (!stem.is_empty()).then(|| normal_name(stem))
}

const SUFFIXES: &[&str] = &[".ko", ".ko.xz", ".ko.zst", ".ko.gz"];

/// Module names mean the same with `-` and `_`.
pub fn normal_name(name: &str) -> String {
    name.replace('-', "_")
}

/// `pre: a b post: c` as in `modules.softdep` and MODULE_SOFTDEP().
pub fn parse_softdep(text: &str) -> (Vec<String>, Vec<String>) {
    let (mut before, mut after) = (Vec::new(), Vec::new());
    let mut list: Option<&mut Vec<String>> = None;
    for word in text.split_whitespace() {
        match word {
            "pre:" => list = Some(&mut before),
            "post:" => list = Some(&mut after),
            name => {
                if let Some(list) = &mut list {
                    list.push(name.to_owned());
                }
            }
        }
    }
    (before, after)
}

/// NUL-separated `key=value` strings. Anything else in the section is skipped, as modprobe does.
pub fn modinfo(section: &[u8]) -> impl Iterator<Item = (&str, &str)> {
    section
        .split(|byte| *byte == 0)
        .filter_map(|field| std::str::from_utf8(field).ok()?.split_once('='))
}

fn block_symbols(elf: &object::File<'_>) -> Vec<String> {
    let mut found: Vec<String> = elf
        .symbols()
        .filter(|symbol| symbol.is_undefined())
        .filter_map(|symbol| symbol.name().ok())
        .filter(|name| BLOCK_SYMBOLS.contains(name))
        .map(str::to_owned)
        .collect();
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(
            module_name("kernel/a/snd-hda-intel.ko.xz").as_deref(),
            Some("snd_hda_intel")
        );
        assert_eq!(module_name("e1000.ko").as_deref(), Some("e1000"));
        assert_eq!(module_name("modules.dep"), None);
        assert_eq!(module_name(".ko"), None);
    }

    #[test]
    fn softdeps() {
        let (before, after) = parse_softdep("pre: crc32c realtek post: x");
        assert_eq!(
            (before, after),
            (vec!["crc32c".into(), "realtek".into()], vec!["x".to_owned()])
        );
        assert_eq!(parse_softdep("stray words"), (vec![], vec![]));
    }

    #[test]
    fn what_is_no_module_says_so() {
        let check = |bytes: &[u8], part: &str| {
            let error = ModuleFacts::read("kernel/x.ko", bytes)
                .expect_err(part)
                .to_string();
            assert!(
                error.starts_with("kernel/x.ko: ") && error.contains(part),
                "{error}"
            );
        };
        check(b"", "not a kernel module");
        check(b"plain text", "not a kernel module");
        check(b"\xfd7zXZ\0broken", "cannot be decompressed");
        check(b"\x28\xb5\x2f\xfdbroken", "cannot be decompressed");
        // An ELF file that is a program, not a module.
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        check(&program, "no .modinfo");
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(0_u8.., 0..500)) {
            let _ = ModuleFacts::read("x.ko", &bytes);
            let elf = [b"\x7fELF\x02\x01\x01".as_slice(), &bytes].concat();
            let _ = ModuleFacts::read("x.ko", &elf);
        }
    }
}
