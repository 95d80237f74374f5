//! The firmware's own entry for Windows, and the variable `BootNext` that has it started once. Must never write another
//! variable, and leaves the variables mounted read-only, as PID 1 did.
//!
//! Layouts: UEFI 2.10, 3.1.3 (load option), 3.3 (variables), 10.3 (device paths). In efivarfs four bytes of attributes come first.

use std::fmt;
use std::fs;
use std::io::Write;
use std::path::Path;

use nix::mount::{MsFlags, mount};

const VARIABLES: &str = "/sys/firmware/efi/efivars";
/// `EFI_GLOBAL_VARIABLE`
const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
/// Non-volatile, at boot and at run time.
const ATTRIBUTES: u32 = 7;
/// Where Windows puts its loader; EFI's file system knows no case.
const LOADER: &str = r"\efi\microsoft\boot\bootmgfw.efi";
const DESCRIPTION: &str = "Windows Boot Manager";
/// Entries looked at; firmware with more is not believed.
const MAX_ENTRIES: usize = 256;
/// Longest entry read, in bytes.
const MAX_BYTES: u64 = 16 * 1024;

/// An entry of the firmware's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    number: u16,
    description: String,
    is_windows: Match,
}

/// How sure it is that an entry starts Windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Match {
    No,
    /// By its name: some firmware writes paths of its own.
    Name,
    /// By the path of its loader.
    Path,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Boot{:04X} {}", self.number, self.description)
    }
}

/// The entry that starts Windows; `None` on BIOS and where there is none.
pub(crate) fn windows_entry() -> Option<Entry> {
    let order = read("BootOrder").map(|data| numbers(&data)).unwrap_or_default();
    let mut all: Vec<u16> = order;
    // What is not in the order comes behind it.
    let names = fs::read_dir(VARIABLES).into_iter().flatten().flatten();
    let mut others: Vec<u16> = names
        .filter_map(|entry| entry_number(&entry.file_name().to_string_lossy()))
        .filter(|number| !all.contains(number))
        .collect();
    others.sort_unstable();
    all.extend(others);
    let entries = all.into_iter().take(MAX_ENTRIES);
    choose(entries.filter_map(|number| parse(number, &read(&format!("Boot{number:04X}"))?)))
}

/// The surest; of several the first. Looks no further than it must: the kernel lets a user read a hundred variables a second.
fn choose(entries: impl Iterator<Item = Entry>) -> Option<Entry> {
    let mut named: Option<Entry> = None;
    for entry in entries {
        match entry.is_windows {
            Match::Path => return Some(entry),
            Match::Name => named = named.or(Some(entry)),
            Match::No => {}
        }
    }
    named
}

/// Has firmware start Windows at the next boot, and only then.
pub(crate) fn set() -> Result<Entry, String> {
    if !Path::new("/sys/firmware/efi").exists() {
        return Err("this PC has no UEFI".to_owned());
    }
    let entry = windows_entry().ok_or("the firmware's list has no entry for Windows")?;
    let written = remount(MsFlags::empty()).and_then(|()| write(entry.number));
    let sealed = remount(MsFlags::MS_RDONLY);
    written.and(sealed)?;
    match read("BootNext").map(|data| numbers(&data)) {
        Some(next) if next == [entry.number] => Ok(entry),
        _ => Err("the firmware did not keep it".to_owned()),
    }
}

fn remount(access: MsFlags) -> Result<(), String> {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV | access;
    mount(None::<&str>, VARIABLES, None::<&str>, flags, None::<&str>)
        .map_err(|error| format!("cannot remount {VARIABLES}: {error}"))
}

/// The kernel takes a variable in one write. BootNext is none of those that it protects with the immutable flag.
fn write(number: u16) -> Result<(), String> {
    let mut bytes = ATTRIBUTES.to_le_bytes().to_vec();
    bytes.extend(number.to_le_bytes());
    let file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path("BootNext"));
    file.and_then(|mut file| file.write_all(&bytes))
        .map_err(|error| format!("cannot write BootNext: {error}"))
}

fn path(name: &str) -> String {
    format!("{VARIABLES}/{name}-{GLOBAL}")
}

/// A variable's content; one that is too long is none.
fn read(name: &str) -> Option<Vec<u8>> {
    let path = path(name);
    if fs::metadata(&path).ok()?.len() > MAX_BYTES {
        return None;
    }
    fs::read(path).ok()?.get(4..).map(<[u8]>::to_vec)
}

/// `Boot0001-8be4…` is 1.
fn entry_number(file: &str) -> Option<u16> {
    let (name, guid) = file.split_once('-')?;
    let digits = name.strip_prefix("Boot")?;
    let is_number = digits.len() == 4 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_number && guid == GLOBAL).then(|| u16::from_str_radix(digits, 16).ok())?
}

fn numbers(data: &[u8]) -> Vec<u16> {
    let pairs = data.chunks_exact(2).take(MAX_ENTRIES);
    pairs.map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect()
}

/// Reads a load option; `None` for one that ends too early.
fn parse(number: u16, data: &[u8]) -> Option<Entry> {
    let path_bytes = usize::from(u16::from_le_bytes(data.get(4..6)?.try_into().ok()?));
    let units = data.get(6..)?.chunks_exact(2);
    let units = units.map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    let name: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    let start = 6 + (name.len() + 1) * 2;
    let path = data.get(start..start.checked_add(path_bytes)?)?;
    let description: String = String::from_utf16_lossy(&name)
        .chars()
        .filter(|c| !c.is_control())
        .take(64)
        .collect();
    let is_windows = if file_path(path).to_ascii_lowercase() == LOADER {
        Match::Path
    } else if description == DESCRIPTION {
        Match::Name
    } else {
        Match::No
    };
    Some(Entry {
        number,
        description,
        is_windows,
    })
}

/// The file path nodes of the first device path, together.
fn file_path(mut path: &[u8]) -> String {
    /// Media device path, file path node.
    const FILE: [u8; 2] = [4, 4];
    /// End of a path, and end of one of several.
    const END: u8 = 0x7f;
    let mut units: Vec<u16> = Vec::new();
    while let Some([kind, subkind, low, high]) = path.first_chunk::<4>().copied() {
        let length = usize::from(u16::from_le_bytes([low, high]));
        let Some(node) = path.get(4..length).filter(|_| kind != END) else {
            break;
        };
        if [kind, subkind] == FILE {
            let text = node.chunks_exact(2);
            let text = text.map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
            units.extend(text.take_while(|unit| *unit != 0));
        }
        path = path.get(length..).unwrap_or_default();
    }
    String::from_utf16_lossy(&units)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utf16(text: &str) -> Vec<u8> {
        text.encode_utf16()
            .chain([0])
            .flat_map(u16::to_le_bytes)
            .collect()
    }

    fn option(description: &str, file: &str) -> Vec<u8> {
        let mut path = vec![4, 1, 8, 0, 1, 2, 3, 4];
        let file = utf16(file);
        path.extend([4, 4]);
        path.extend(u16::try_from(file.len() + 4).expect("short").to_le_bytes());
        path.extend(file);
        path.extend([0x7f, 0xff, 4, 0]);
        let mut option = vec![1, 0, 0, 0];
        option.extend(u16::try_from(path.len()).expect("short").to_le_bytes());
        option.extend(utf16(description));
        option.extend(path);
        // What Windows puts behind it.
        option.extend(b"WINDOWS\0");
        option
    }

    #[test]
    fn the_path_decides_before_the_name_and_the_order_among_equals() {
        let file = r"\EFI\Microsoft\Boot\BOOTMGFW.EFI";
        let entries = [
            option("UEFI PXEv4", ""),
            option("Windows Boot Manager", r"\EFI\BOOT\BOOTX64.EFI"),
            option("Notebook", file),
            option("Windows Boot Manager", file),
        ];
        let parsed = |entries: &[Vec<u8>]| {
            let entries = entries.iter().zip(0..);
            choose(entries.filter_map(|(data, number)| parse(number, data))).map(|entry| entry.to_string())
        };
        assert_eq!(parsed(&entries).as_deref(), Some("Boot0002 Notebook"));
        assert_eq!(
            parsed(&entries[..2]).as_deref(),
            Some("Boot0001 Windows Boot Manager")
        );
        assert_eq!(parsed(&entries[..1]), None);
    }

    #[test]
    fn what_firmware_damaged_is_no_entry_and_no_panic() {
        let whole = option("Windows Boot Manager", r"\EFI\Microsoft\Boot\bootmgfw.efi");
        for length in 0..whole.len() {
            let _ = parse(0, &whole[..length]);
        }
        for position in 0..whole.len() {
            for byte in [0, 1, 0x7f, 0xff] {
                let mut damaged = whole.clone();
                damaged[position] = byte;
                let _ = parse(0, &damaged);
            }
        }
        // A node that says it is shorter than its own header.
        assert_eq!(file_path(&[4, 4, 0, 0, 4, 4, 0, 0]), "");
    }

    #[test]
    fn names_of_entries_are_told_from_others() {
        assert_eq!(entry_number(&format!("Boot00A1-{GLOBAL}")), Some(0xa1));
        for other in ["BootOrder", "BootNext", "Boot01", "Boot+001"] {
            assert_eq!(entry_number(&format!("{other}-{GLOBAL}")), None);
        }
        assert_eq!(entry_number("Boot0001-other"), None);
        assert_eq!(numbers(&[1, 0, 2]), [1]);
    }
}
