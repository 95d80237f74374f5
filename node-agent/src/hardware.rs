//! What this machine is, from `/proc` and `/sys`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cid_protocol::node::{Hardware, Link, Load};

use crate::{boot_next, leaving, links};

/// Everything the head is told at a hello. `in_use` is the index of the link that carries it; `addresses` are those of links, with
/// their prefix. Cards that can be woken are from now on: whatever ends this boot, the PC can be called.
pub(crate) fn report(in_use: u32, addresses: &BTreeMap<u32, String>) -> Hardware {
    let cpuinfo = read("/proc/cpuinfo");
    let meminfo = read("/proc/meminfo");
    let dmi = |name: &str| read(&format!("/sys/class/dmi/id/{name}"));
    let product = format!("{} {}", dmi("sys_vendor"), dmi("product_name"));
    let cpu_model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .unwrap_or_default();
    Hardware {
        uuid: dmi("product_uuid").to_lowercase(),
        product: product.trim().to_owned(),
        cpus: u32::try_from(
            cpuinfo
                .lines()
                .filter(|line| line.starts_with("processor"))
                .count(),
        )
        .unwrap_or(0),
        cpu_model: cpu_model.1.to_owned(),
        memory_kib: field_kib(&meminfo, "MemTotal:"),
        memory_available_kib: field_kib(&meminfo, "MemAvailable:"),
        memory_held_kib: memory_held_kib(),
        uptime_secs: read("/proc/uptime")
            .split(' ')
            .next()
            .and_then(|text| text.parse().ok())
            .unwrap_or(0.0),
        secure_boot: secure_boot(),
        lockdown: chosen(&read("/sys/kernel/security/lockdown")),
        block_devices: block_devices(),
        windows_entry: boot_next::windows_entry().map(|entry| entry.to_string()),
        links: links::wired()
            .into_iter()
            .map(|link| describe(&link, in_use, addresses))
            .collect(),
        cards_without_driver: links::cards_without_driver(),
        measured: None,
    }
}

/// The load, for a pulse.
pub(crate) fn load() -> Load {
    let load1 = read("/proc/loadavg")
        .split(' ')
        .next()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0.0);
    Load {
        load1,
        memory_available_kib: field_kib(&read("/proc/meminfo"), "MemAvailable:"),
    }
}

/// The SMBIOS UUID alone, for the node's identity.
pub(crate) fn uuid() -> String {
    read("/sys/class/dmi/id/product_uuid")
}

/// A file without the white space around it; empty when it cannot be read.
pub(crate) fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn describe(link: &crate::core::Link, in_use: u32, addresses: &BTreeMap<u32, String>) -> Link {
    let (driver, speed_mbit) = links::driver_and_speed(&link.name);
    let mac = link.mac.map(|byte| format!("{byte:02x}")).join(":");
    Link {
        name: link.name.clone(),
        mac,
        driver,
        carrier: link.carrier,
        in_use: link.index == in_use,
        speed_mbit,
        id: links::pci_id(&link.name),
        modalias: links::modalias(&link.name),
        address: addresses.get(&link.index).cloned().unwrap_or_default(),
        wake_on_lan: leaving::arm(&link.name),
    }
}

/// The UEFI variable `SecureBoot`: four bytes of attributes, then 1 when enforced. `None` on BIOS, and where the
/// variable cannot be read.
fn secure_boot() -> Option<bool> {
    let path = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
    fs::read(path).ok()?.get(4).map(|value| *value == 1)
}

/// The word in brackets: how the kernel shows which of several is in force.
fn chosen(text: &str) -> String {
    let word = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    word.map_or_else(String::new, |(word, _)| word.to_owned())
}

/// Block devices that are not memory; must be none.
fn block_devices() -> Vec<String> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let memory = |name: &String| {
        ["ram", "loop", "zram"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
    };
    let mut found: Vec<String> = names.filter(|name| !memory(name)).collect();
    found.sort();
    found
}

/// Files in memory, and what PID 1 and this program have allocated. Their text is files in memory already.
fn memory_held_kib() -> u64 {
    let files: u64 = ["/", "/run", "/tmp"]
        .iter()
        .map(|root| tree_kib(Path::new(root)))
        .sum();
    let programs: u64 = ["/proc/1/status", "/proc/self/status"]
        .iter()
        .map(|path| field_kib(&read(path), "RssAnon:"))
        .sum();
    files + programs
}

/// What the files of one file system below `root` occupy; other file systems are not entered.
fn tree_kib(root: &Path) -> u64 {
    let Ok(device) = fs::symlink_metadata(root).map(|data| data.dev()) else {
        return 0;
    };
    let mut blocks = 0;
    let mut open: Vec<PathBuf> = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let Ok(data) = fs::symlink_metadata(entry.path()) else {
                continue;
            };
            if data.dev() != device {
                continue;
            }
            if data.is_dir() {
                open.push(entry.path());
            }
            // ramfs says 0 blocks; whole pages it is then.
            blocks += if data.blocks() == 0 {
                data.len().div_ceil(4096) * 8
            } else {
                data.blocks()
            };
        }
    }
    blocks / 2
}

/// `Name:   123 kB` of files in `/proc`.
fn field_kib(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_can_be_described() {
        // Not `report`: it would walk this machine's whole root file system.
        assert!(load().memory_available_kib > 0);
        assert!(secure_boot().is_none() || Path::new("/sys/firmware/efi").exists());
        assert!(tree_kib(Path::new("/dev/shm")) < u64::MAX);
    }

    #[test]
    fn the_lockdown_in_force_is_the_word_in_brackets() {
        assert_eq!(chosen("none [integrity] confidentiality"), "integrity");
        assert_eq!(chosen(""), "");
    }

    #[test]
    fn fields_of_proc_are_found() {
        let text = "MemTotal:       466144 kB\nMemAvailable:   438676 kB\n";
        assert_eq!(field_kib(text, "MemAvailable:"), 438_676);
        assert_eq!(field_kib(text, "MemOther:"), 0);
    }

    #[test]
    fn a_tree_is_measured_without_other_file_systems() {
        assert_eq!(tree_kib(Path::new("/does/not/exist")), 0);
    }
}
