//! The stand-in for Windows: a disk that holds one for BIOS (boot sector) and one for UEFI (`bootmgfw.efi`), and
//! the key that Secure Boot is taught to accept. The programs report their boot on port 0x504 and write nothing.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::run::run;

/// Size of a lab PC's disk, in bytes.
const DISK_BYTES: u64 = 64 << 20;
/// First sector of the EFI system partition.
const ESP_START: u64 = 2048;
/// Sectors of the EFI system partition: the smallest that is FAT32 beyond doubt at one sector per cluster.
const ESP_SECTORS: u64 = 40 * 2048;
/// Only the first 440 bytes of a master boot record are code; the disk's identity and the table follow.
const BOOT_CODE_BYTES: usize = 440;

/// Programs of the stand-in and the key of this run.
#[derive(Debug)]
pub struct Windows {
    boot_sector: Vec<u8>,
    dir: PathBuf,
}

impl Windows {
    /// A master boot record with the BIOS stand-in and nothing else, built in `dir`: 512 bytes.
    ///
    /// # Errors
    /// When `as` or `ld` is missing or fails.
    pub fn boot_record(dir: &Path) -> Result<Vec<u8>> {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        let mut record = assemble(
            dir,
            "boot_sector",
            include_str!("windows/boot_sector.s"),
            "32",
            "0x7c00",
        )?;
        record.resize(510, 0);
        record.extend([0x55, 0xaa]);
        Ok(record)
    }

    /// Assembles the programs in `dir`, makes a key there and signs the UEFI program with it.
    ///
    /// # Errors
    /// When `as`, `ld`, `openssl` or `sbsign` is missing or fails.
    pub fn build(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        let boot_sector = assemble(
            dir,
            "boot_sector",
            include_str!("windows/boot_sector.s"),
            "32",
            "0x7c00",
        )?;
        anyhow::ensure!(
            boot_sector.len() <= BOOT_CODE_BYTES,
            "the boot sector's code does not fit"
        );
        assemble(dir, "bootmgfw", include_str!("windows/bootmgfw.s"), "64", "0")?;
        let file = |name: &str| dir.join(name);
        run(Command::new("openssl")
            .args([
                "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-sha256", "-days", "30",
            ])
            .args([
                "-subj",
                "/CN=CID lab, stand-in for the maker of Windows/",
                "-keyout",
            ])
            .arg(file("lab.key"))
            .arg("-out")
            .arg(file("lab.pem")))?;
        run(Command::new("openssl")
            .args(["x509", "-outform", "DER", "-in"])
            .arg(file("lab.pem"))
            .arg("-out")
            .arg(file("lab.der")))?;
        run(Command::new("sbsign")
            .arg("--key")
            .arg(file("lab.key"))
            .arg("--cert")
            .arg(file("lab.pem"))
            .arg("--output")
            .arg(file("bootmgfw.efi"))
            .arg(file("bootmgfw.bin")))?;
        Ok(Self {
            boot_sector,
            dir: dir.to_owned(),
        })
    }

    /// The certificate (DER) that has to be in `db` for the UEFI program to start under Secure Boot.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn certificate(&self) -> Result<Vec<u8>> {
        let path = self.dir.join("lab.der");
        fs::read(&path).with_context(|| format!("reading {}", path.display()))
    }

    /// Writes a disk: GPT with an EFI system partition, boot code in the protective record, and everything else
    /// filled with noise from `seed`, so that a byte changed anywhere is noticed.
    ///
    /// # Errors
    /// When the file cannot be written or `sgdisk` or mtools fail.
    pub fn write_disk(&self, path: &Path, seed: u64) -> Result<PartitionIdentity> {
        let what = || format!("writing the disk {}", path.display());
        let mut disk = File::create_new(path).with_context(what)?;
        fill_with_noise(&mut disk, seed).with_context(what)?;
        let partition = PartitionIdentity {
            guid: guid_from_seed(seed),
            start: ESP_START,
            sectors: ESP_SECTORS,
        };
        let text = crate::firmware_variables::guid_text(&partition.guid);
        run(Command::new("sgdisk")
            .args(["--clear", "--set-alignment=2048"])
            .arg(format!("--new=1:{ESP_START}:{}", ESP_START + ESP_SECTORS - 1))
            .args(["--typecode=1:ef00", "--change-name=1:EFI system partition"])
            .arg(format!("--partition-guid=1:{text}"))
            .args(["--new=2:0:0", "--typecode=2:0700", "--change-name=2:Windows"])
            .arg(path))?;
        disk.seek(SeekFrom::Start(0))
            .and_then(|_| disk.write_all(&self.boot_sector))
            .with_context(what)?;
        drop(disk);

        let volume = format!("{}@@{}", path.display(), ESP_START * 512);
        let sectors = ESP_SECTORS.to_string();
        run(Command::new("mformat")
            .args([
                "-i", &volume, "-F", "-c", "1", "-h", "64", "-s", "32", "-T", &sectors,
            ])
            .arg("::"))?;
        for folder in ["::/EFI", "::/EFI/Microsoft", "::/EFI/Microsoft/Boot"] {
            run(Command::new("mmd").args(["-i", &volume, folder]))?;
        }
        run(Command::new("mcopy")
            .args(["-i", &volume])
            .arg(self.dir.join("bootmgfw.efi"))
            .arg("::/EFI/Microsoft/Boot/bootmgfw.efi"))?;
        Ok(partition)
    }
}

/// What a short-form boot entry says about the partition its file is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionIdentity {
    /// Unique GUID in the bytes of the partition table.
    pub guid: [u8; 16],
    /// First sector.
    pub start: u64,
    /// Size in sectors.
    pub sectors: u64,
}

/// SHA-256 of a whole file by coreutils: a judge that shares no code with us.
///
/// # Errors
/// When `sha256sum` fails.
pub fn sha256(path: &Path) -> Result<String> {
    let text = run(Command::new("sha256sum").arg("--").arg(path))?;
    text.split_whitespace()
        .next()
        .map(str::to_owned)
        .context("sha256sum printed nothing")
}

fn assemble(dir: &Path, name: &str, source: &str, bits: &str, address: &str) -> Result<Vec<u8>> {
    let path = |suffix: &str| dir.join(format!("{name}.{suffix}"));
    fs::write(path("s"), source).with_context(|| format!("writing {}", path("s").display()))?;
    run(Command::new("as")
        .arg(format!("--{bits}"))
        .arg("-o")
        .arg(path("o"))
        .arg(path("s")))?;
    let emulation = if bits == "32" { "elf_i386" } else { "elf_x86_64" };
    run(Command::new("ld")
        .args(["-m", emulation, "-Ttext", address, "--oformat", "binary", "-o"])
        .arg(path("bin"))
        .arg(path("o")))?;
    fs::read(path("bin")).with_context(|| format!("reading {}", path("bin").display()))
}

/// Noise everywhere but in the first and last MiB, where `sgdisk` would take it for a broken table.
fn fill_with_noise(disk: &mut File, seed: u64) -> std::io::Result<()> {
    disk.set_len(DISK_BYTES)?;
    disk.seek(SeekFrom::Start(1 << 20))?;
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut block = vec![0_u8; 1 << 20];
    for _ in 0..(DISK_BYTES >> 20) - 2 {
        for word in block.chunks_exact_mut(8) {
            word.copy_from_slice(&next_noise(&mut state).to_le_bytes());
        }
        disk.write_all(&block)?;
    }
    Ok(())
}

/// Marsaglia's xorshift64: enough for noise.
fn next_noise(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn guid_from_seed(seed: u64) -> [u8; 16] {
    let mut guid = *b"cid lab PC\0\0\0\0\0\0";
    guid[8..].copy_from_slice(&seed.to_le_bytes());
    guid
}
