//! Writes a stick's image to a device, and looks first whether that device is a stick. Must never write to what it has not
//! examined, nor without leave to anything that holds the running system.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use rustix::fs::{Advice, OFlags, fadvise, major, minor};

use crate::progress::Progress;

/// What speaks against a device. An administrator who means it names it on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Objection {
    /// It or a part of it is mounted, used for swapping, or held by LVM, RAID or encryption.
    InUse,
    /// The kernel does not call it removable: a built-in disk, or a disk in a USB case.
    NotRemovable,
    /// More than 256 GiB: rather a disk with data than a stick.
    Large,
}

impl Objection {
    fn word(self) -> &'static str {
        match self {
            Self::InUse => "in-use",
            Self::NotRemovable => "not-removable",
            Self::Large => "large",
        }
    }
}

/// A device as sysfs and the mount table show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its number, `8:16`.
    pub number: String,
    /// Name in `/dev`.
    pub name: String,
    /// Maker and model, for people.
    pub model: String,
    /// Bytes.
    pub size: u64,
    /// What speaks against it, each with its facts.
    pub objections: Vec<(Objection, String)>,
    /// Why it is a disk of the running system; such a disk is never written to.
    pub system: Option<String>,
}

/// Where facts come from; tests give trees of their own.
#[derive(Debug, Clone)]
pub struct Places {
    /// `/sys`.
    pub sys: PathBuf,
    /// `/proc`.
    pub proc: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            sys: "/sys".into(),
            proc: "/proc".into(),
        }
    }
}

/// The number of a block device, as sysfs writes it.
pub fn number(path: &Path) -> anyhow::Result<String> {
    let metadata =
        fs::metadata(path).with_context(|| format!("{}: no such device; see lsblk", path.display()))?;
    ensure!(
        metadata.file_type().is_block_device(),
        "{}: is no block device; write an image file with --out",
        path.display()
    );
    let number = metadata.rdev();
    Ok(format!("{}:{}", major(number), minor(number)))
}

/// Looks at the device with this number.
pub fn examine(number: &str, places: &Places) -> anyhow::Result<Device> {
    let link = places.sys.join("dev/block").join(number);
    let folder = fs::canonicalize(&link).with_context(|| link.display().to_string())?;
    let name = folder
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    ensure!(
        !folder.join("partition").exists(),
        "/dev/{name}: is a partition; name the whole stick, as lsblk shows it"
    );
    let fact = |file: &str| {
        let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
        text.trim().to_owned()
    };
    let size = fact("size").parse::<u64>().unwrap_or(0) * 512;
    ensure!(size > 0, "/dev/{name}: holds no medium; plug the stick in again");
    let model = format!("{} {}", fact("device/vendor"), fact("device/model"));
    let mut objections = Vec::new();
    let (uses, system) = uses(&folder, places)?;
    if !uses.is_empty() {
        objections.push((Objection::InUse, format!("in use ({})", uses.join(", "))));
    }
    if fact("removable") != "1" {
        objections.push((Objection::NotRemovable, "not a removable device".to_owned()));
    }
    if size > LARGEST {
        objections.push((
            Objection::Large,
            format!("larger than {} GB", LARGEST / 1_000_000_000),
        ));
    }
    let model = match model.trim() {
        "" => "no model named".to_owned(),
        model => model.to_owned(),
    };
    Ok(Device {
        number: number.to_owned(),
        name,
        model,
        size,
        objections,
        system,
    })
}

/// Where the device, its partitions and what is built upon them are used; and the use that makes it a disk of the system.
fn uses(folder: &Path, places: &Places) -> anyhow::Result<(Vec<String>, Option<String>)> {
    let mut numbers = BTreeSet::new();
    let mut uses = Vec::new();
    let mut waiting = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = waiting.pop() {
        if depth > 8
            || !numbers.insert(
                fs::read_to_string(folder.join("dev"))
                    .unwrap_or_default()
                    .trim()
                    .to_owned(),
            )
        {
            continue;
        }
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.path().join("partition").exists() {
                waiting.push((entry.path(), depth + 1));
            }
        }
        for holder in fs::read_dir(folder.join("holders"))
            .into_iter()
            .flatten()
            .flatten()
        {
            uses.push(format!("part of {}", holder.file_name().to_string_lossy()));
            waiting.extend(fs::canonicalize(holder.path()).map(|path| (path, depth + 1)));
        }
    }
    let mounts = places.proc.join("self/mountinfo");
    let mounts = fs::read_to_string(&mounts).with_context(|| mounts.display().to_string())?;
    let mut system = None;
    for line in mounts.lines() {
        // proc_pid_mountinfo(5): number, parent, major:minor, root, mount point.
        let words: Vec<&str> = line.split(' ').collect();
        let (Some(number), Some(point)) = (words.get(2), words.get(4)) else {
            continue;
        };
        if numbers.contains(*number) {
            uses.push(format!("mounted on {point}"));
            if SYSTEM.contains(point) {
                system.get_or_insert(format!("{point} of this system is on it"));
            }
        }
    }
    let swaps = fs::read_to_string(places.proc.join("swaps")).unwrap_or_default();
    for line in swaps.lines().skip(1) {
        let path = line.split_whitespace().next().unwrap_or_default();
        if number(Path::new(path)).is_ok_and(|number| numbers.contains(&number)) {
            uses.push(format!("swap {path}"));
            system.get_or_insert(format!("this system swaps to {path}"));
        }
    }
    Ok((uses, system))
}

impl Device {
    /// Refuses what is no stick beyond doubt; `allowed` are the objections that the administrator named.
    pub fn check(&self, allowed: &[Objection]) -> anyhow::Result<()> {
        if let Some(why) = &self.system {
            bail!("{self}: {why}, so it is never written to; name a stick, see lsblk");
        }
        let standing: Vec<_> = self
            .objections
            .iter()
            .filter(|(kind, _)| !allowed.contains(kind))
            .collect();
        let Some((first, _)) = standing.first() else {
            return Ok(());
        };
        let facts: Vec<&str> = standing.iter().map(|(_, fact)| fact.as_str()).collect();
        let remedy = match first {
            Objection::InUse => "unmount it first (umount)",
            Objection::NotRemovable | Objection::Large => "see lsblk for the name of your stick",
        };
        let words: Vec<String> = standing
            .iter()
            .map(|(kind, _)| format!("--allow {}", kind.word()))
            .collect();
        bail!(
            "{self}: {}; {remedy}, or say {} to erase it all the same",
            facts.join(", "),
            words.join(" ")
        );
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let gigabytes = self.size as f64 / 1e9;
        write!(f, "/dev/{} ({}, {gigabytes:.1} GB)", self.name, self.model)
    }
}

/// Writes the image, clears the end of the device, and reads everything back from the device itself.
pub fn write(path: &Path, device: &Device, image: &[u8], progress: &Progress) -> anyhow::Result<()> {
    let what = || format!("{}", path.display());
    let length = u64::try_from(image.len())?;
    ensure!(
        length + TAIL <= device.size,
        "{device}: too small: the stick takes {} MB; use a larger one",
        (length + TAIL).div_ceil(1_000_000)
    );
    // With O_EXCL the kernel refuses a device that is mounted or held, whatever was seen a moment ago.
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(i32::try_from(OFlags::EXCL.bits())?)
        .open(path)
        .with_context(|| {
            format!(
                "{}: cannot be opened for writing; is it mounted? run as root",
                path.display()
            )
        })?;
    // Asked again of what was opened: another device may have taken the name since.
    let opened = file.metadata().with_context(what)?.rdev();
    ensure!(
        device.number == format!("{}:{}", major(opened), minor(opened)),
        "{}: is another device now; run again",
        path.display()
    );
    let phase = progress.bytes("writing the stick", length);
    for (number, block) in image.chunks(BLOCK).enumerate() {
        file.write_all(block).with_context(what)?;
        // Now, so that the bar tells of the stick and not of memory.
        file.sync_data().with_context(what)?;
        phase.at(u64::try_from(number * BLOCK + block.len())?);
    }
    phase.finish();
    // A partition table of earlier days may have its copy at the end.
    let tail = vec![0; usize::try_from(TAIL)?];
    file.seek(SeekFrom::Start(device.size - TAIL))
        .with_context(what)?;
    file.write_all(&tail).with_context(what)?;
    file.sync_all().with_context(what)?;
    // From the stick, not from memory.
    fadvise(&file, 0, None, Advice::DontNeed).with_context(what)?;
    file.seek(SeekFrom::Start(0)).with_context(what)?;
    let phase = progress.bytes("reading it back", length);
    let mut back = vec![0; BLOCK];
    for (number, block) in image.chunks(BLOCK).enumerate() {
        let back = &mut back[..block.len()];
        file.read_exact(back).with_context(what)?;
        ensure!(
            back == block,
            "{device}: differs from what was written at byte {}; the stick is broken, use another",
            number * BLOCK
        );
        phase.at(u64::try_from(number * BLOCK + block.len())?);
    }
    phase.finish();
    Ok(())
}

/// Largest device that is taken for a stick without being told, in bytes.
const LARGEST: u64 = 256 << 30;
/// What is cleared at a device's end, in bytes.
const TAIL: u64 = 1 << 20;
const BLOCK: usize = 1 << 20;
/// Who is mounted here is the running system's.
const SYSTEM: [&str; 7] = ["/", "/boot", "/boot/efi", "/efi", "/usr", "/var", "/home"];

#[cfg(test)]
mod tests;
