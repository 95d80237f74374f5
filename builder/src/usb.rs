//! One stick for BIOS, UEFI and Secure Boot: a GPT with one EFI system partition, which BIOS boots by SYSLINUX. The stick
//! holds loaders and the question to the head, and on demand kernel and initrd, which count only while they are the head's. Writes nothing.

use std::fs;
use std::io::Cursor;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use cid_initramfs::digest::{hex, sha256_hex};
use cid_protocol::manifest::Manifest;
use fatfs::{FatType, FormatVolumeOptions};
use gpt::{GptConfig, disk::LogicalBlockSize, mbr::ProtectiveMBR, partition_types};
use sha2::{Digest, Sha256};

use crate::apt::{Apt, Freshness};
use crate::cache::Cache;
use crate::deb;
use crate::progress::Progress;

/// What a stick is made of.
#[derive(Debug, Clone)]
pub struct Options {
    /// The image's folder: shim, GRUB and MokManager come from it.
    pub image: PathBuf,
    /// The head; none means the next server of whatever DHCP server answers.
    pub head: Option<Ipv4Addr>,
    /// Whether kernel and initrd go on the stick, too.
    pub payload: Payload,
    /// Suite of `ipxe` and `syslinux`.
    pub suite: String,
    /// Whether packages are looked up again.
    pub freshness: Freshness,
}

/// Whether kernel and initrd are on the stick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload {
    /// They come from the head at each boot.
    FromHead,
    /// They are on the stick; taken from there when they are the head's.
    OnStick,
}

/// Files of the partition, by path.
type Contents = Vec<(&'static str, Vec<u8>)>;

/// The stick's image, to be written to a file or a device.
pub fn build(options: &Options, cache: &Cache, progress: &Progress) -> anyhow::Result<Vec<u8>> {
    let mut apt = Apt::new(cache, &options.suite, options.freshness);
    let mut tree = |name: &str| {
        let package = apt.package(name, None, progress)?;
        deb::unpacked(cache, &package, progress)
    };
    let (ipxe, syslinux, parts) = (tree("ipxe")?, tree("syslinux")?, tree("syslinux-common")?);
    let manifest = manifest(&options.image)?;
    let mut contents = from_image(&options.image, &manifest, &LOADERS)?;
    let head = options.head.map(|head| head.to_string()).unwrap_or_default();
    let mut digest = String::new();
    if options.payload == Payload::OnStick {
        contents.extend(from_image(&options.image, &manifest, &KERNEL)?);
        digest = manifest.boot_digest().unwrap_or_default();
    }
    let ask = |template: &str| {
        template
            .replace("@HEAD@", &head)
            .replace("@IMAGE@", if digest.is_empty() { "" } else { &manifest.name })
            .replace("@DIGEST@", &digest)
            .replace("@CARDS@", &cards())
            .into_bytes()
    };
    contents.extend([
        ("grub/grub.cfg", ask(ASK_GRUB)),
        ("bios/ipxe.lkrn", read(&ipxe.join("usr/lib/ipxe/ipxe.lkrn"))?),
        ("bios/ask.ipxe", ask(ASK_IPXE)),
        ("syslinux/syslinux.cfg", SYSLINUX_CFG.to_vec()),
    ]);
    let boot_code = read(&parts.join("usr/lib/syslinux/mbr/gptmbr.bin"))?;
    let identity = identity(&contents, &boot_code);
    let phase = progress.spinner("writing the stick's files");
    let partition = file_system(&contents, &identity, &syslinux.join("usr/bin/syslinux"))?;
    let disk = partition_table(&partition, &boot_code, &identity)?;
    phase.finish();
    Ok(disk)
}

fn manifest(image: &Path) -> anyhow::Result<Manifest> {
    let manifest = image.join("manifest.json");
    serde_json::from_slice(&read(&manifest)?)
        .with_context(|| format!("{}: build the image anew", manifest.display()))
}

/// Files as the manifest names them: a stick is no way around its digests.
fn from_image(
    image: &Path,
    manifest: &Manifest,
    wanted: &[(&str, &'static str)],
) -> anyhow::Result<Contents> {
    let mut contents = Contents::new();
    for (file, target) in wanted {
        let bytes = read(&image.join(file))?;
        let known = manifest.artifacts.get(*file);
        if known.is_none_or(|known| known.sha256 != sha256_hex(&bytes)) {
            bail!(
                "{}: differs from the manifest; build the image anew with cidbuild image",
                image.join(file).display()
            );
        }
        contents.push((*target, bytes));
    }
    Ok(contents)
}

/// The question over each card in turn. GRUB's language cannot put a variable's name together, and one `net_bootp` for all
/// fails when one card has no answer.
fn cards() -> String {
    let card = |number: u8| {
        format!(
            "    if net_bootp efinet{number}; then\n        ask efinet{number} \"$net_efinet{number}_dhcp_mac\" \"$net_efinet{number}_dhcp_next_server\"\n    fi"
        )
    };
    (0..MAX_CARDS).map(card).collect::<Vec<_>>().join("\n")
}

/// Identifiers come from the content: same input, same stick.
fn identity(contents: &Contents, boot_code: &[u8]) -> [u8; 32] {
    let mut digest = Sha256::new();
    for (path, bytes) in contents {
        digest.update(format!("{path} {} ", bytes.len()));
        digest.update(bytes);
    }
    digest.update(boot_code);
    digest.finalize().into()
}

/// FAT32 with these files, made bootable. mtools puts them in: `fatfs` 0.3 gives the `.` of a folder a long name, which
/// `fsck.fat` refuses, and SYSLINUX goes through mtools anyway. Needs no root; every time is FAT's first.
fn file_system(contents: &Contents, identity: &[u8; 32], syslinux: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = vec![0; partition_bytes(contents)];
    let volume_id = u32::from_le_bytes([identity[0], identity[1], identity[2], identity[3]]);
    let format = FormatVolumeOptions::new()
        .fat_type(FatType::Fat32)
        .bytes_per_cluster(512)
        .volume_id(volume_id);
    fatfs::format_volume(Cursor::new(&mut bytes), format).context("formatting the stick")?;
    // The partition's place, which the crate leaves at 0.
    bytes[0x1c..0x20].copy_from_slice(&u32::try_from(FIRST_SECTOR)?.to_le_bytes());
    let folder = tempfile::tempdir().context("a folder for the stick's partition")?;
    let (partition, staged) = (folder.path().join("partition"), folder.path().join("file"));
    fs::write(&partition, bytes).with_context(|| partition.display().to_string())?;
    let folders = FOLDERS.iter().map(|folder| format!("::/{folder}"));
    run(Command::new("mmd").arg("-i").arg(&partition).args(folders))?;
    for (path, content) in contents {
        fs::write(&staged, content).with_context(|| staged.display().to_string())?;
        let target = format!("::/{path}");
        run(Command::new("mcopy")
            .arg("-i")
            .arg(&partition)
            .arg(&staged)
            .arg(target))?;
    }
    // It writes its boot sector and its map of `ldlinux.sys` itself.
    run(Command::new(syslinux)
        .args(["--install", "--directory", "/syslinux"])
        .arg(&partition))?;
    let mut bytes = read(&partition)?;
    // FAT32 keeps a copy of the boot sector in sector 6.
    bytes.copy_within(0..512, 6 * 512);
    Ok(bytes)
}

/// FAT32's least, or what the files take with a tenth on top for the tables, in whole MiB.
fn partition_bytes(contents: &Contents) -> usize {
    let files: usize = contents.iter().map(|(_, bytes)| bytes.len()).sum();
    (files + files / 10)
        .next_multiple_of(1 << 20)
        .max(MIN_PARTITION_BYTES)
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .env("SOURCE_DATE_EPOCH", DOS_EPOCH)
        .env("TZ", "UTC")
        .env("MTOOLSRC", "/dev/null")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{program}: sticks are made with the package mtools; install it"))?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{program}: {}; is the package mtools installed?",
        words.trim().replace('\n', "; ")
    );
    Ok(())
}

/// The whole disk: boot code, GPT and its copy, the partition between them.
fn partition_table(partition: &[u8], boot_code: &[u8], identity: &[u8; 32]) -> anyhow::Result<Vec<u8>> {
    let sectors = u64::try_from(partition.len())? / SECTOR;
    let size = (FIRST_SECTOR + sectors + TAIL_SECTORS) * SECTOR;
    let mut disk = Cursor::new(vec![0; usize::try_from(size)?]);
    let mut code = [0; 440];
    let room = code
        .get_mut(..boot_code.len())
        .context("gptmbr.bin is too long")?;
    room.copy_from_slice(boot_code);
    let mut mbr = ProtectiveMBR::with_lb_size(u32::try_from(size / SECTOR - 1)?);
    mbr.set_bootcode(code);
    mbr.overwrite_lba0(&mut disk).context("protective MBR")?;
    let [disk_guid, partition_guid] = [4, 16].map(|at| guid(&identity[at..]));
    let mut table = GptConfig::new()
        .writable(true)
        .logical_block_size(LogicalBlockSize::Lb512)
        .create_from_device(disk, None)
        .context("partition table")?;
    table.update_guid(Some(disk_guid.parse()?));
    let mut partitions = std::collections::BTreeMap::new();
    partitions.insert(
        1,
        gpt::partition::Partition {
            part_type_guid: partition_types::EFI,
            part_guid: partition_guid.parse()?,
            first_lba: FIRST_SECTOR,
            last_lba: FIRST_SECTOR + sectors - 1,
            // By this flag gptmbr.bin finds it.
            flags: gpt::partition::PartitionAttributes::BOOTABLE.bits(),
            name: "CID".into(),
        },
    );
    table.update_partitions(partitions).context("partition table")?;
    let mut bytes = table.write().context("partition table")?.into_inner();
    let start = usize::try_from(FIRST_SECTOR * SECTOR)?;
    bytes[start..start + partition.len()].copy_from_slice(partition);
    Ok(bytes)
}

/// A GUID of version 8 (RFC 9562 5.8: whatever one likes) from 12 bytes.
fn guid(bytes: &[u8]) -> String {
    let digits = hex(&bytes[..14]);
    format!(
        "{}-{}-8{}-8{}-{}",
        &digits[..8],
        &digits[8..12],
        &digits[12..15],
        &digits[15..18],
        &digits[16..28]
    )
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(file).with_context(|| file.display().to_string())
}

/// In the order in which they are made.
const FOLDERS: [&str; 6] = ["EFI", "EFI/BOOT", "grub", "bios", "syslinux", "image"];
const ASK_IPXE: &str = include_str!("usb/ask.ipxe");
const ASK_GRUB: &str = include_str!("usb/ask.grub.cfg");
/// iPXE takes the script as the initrd of what it thinks is a kernel: itself.
const SYSLINUX_CFG: &[u8] =
    b"DEFAULT cid\nPROMPT 0\nTIMEOUT 0\nLABEL cid\n  LINUX /bios/ipxe.lkrn\n  INITRD /bios/ask.ipxe\n";
/// 1980-01-01, the first day that FAT knows.
const DOS_EPOCH: &str = "315532800";
const SECTOR: u64 = 512;
/// 1 MiB, where partition tools align to.
const FIRST_SECTOR: u64 = 2048;
/// FAT32 needs 65,525 clusters, which are 32 MiB of the smallest.
const MIN_PARTITION_BYTES: usize = 40 << 20;
/// Cards that the stick's GRUB asks over.
const MAX_CARDS: u8 = 8;
const LOADERS: [(&str, &str); 3] = [
    ("efi/shimx64.efi", "EFI/BOOT/BOOTX64.EFI"),
    ("efi/grubx64.efi", "EFI/BOOT/grubx64.efi"),
    ("efi/mmx64.efi", "EFI/BOOT/mmx64.efi"),
];
const KERNEL: [(&str, &str); 2] = [("vmlinuz", "image/vmlinuz"), ("initrd.img", "image/initrd.img")];
/// Room for the copy of the table.
const TAIL_SECTORS: u64 = 2048;
