//! Drivers: for every device its modalias, for every modalias its modules, with what they need before them.
//! Nothing is loaded that is not in the image's own index.

mod index;
mod pattern;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use cid_sys::modules::{Content, load};

use crate::console::log;
use index::{Index, normal};

/// Passes over all devices; each finds the devices that the pass before brought up.
const MAX_PASSES: usize = 8;
/// Directories below `/sys/devices` that are looked at, far above any real PC.
const MAX_DIRECTORIES: usize = 100_000;

/// The index and what was tried.
#[derive(Default)]
pub(crate) struct Drivers {
    root: PathBuf,
    index: Index,
    /// Modaliases that were looked up before.
    seen: BTreeSet<String>,
    /// Modules that failed or loaded before.
    tried: BTreeSet<String>,
    cmdline: String,
}

/// PCI vendor and device, as `8086:15f3`, of each network card that no driver took.
pub(crate) fn cards_without_driver() -> Vec<String> {
    let devices = fs::read_dir("/sys/bus/pci/devices")
        .into_iter()
        .flatten()
        .flatten();
    let mut found: Vec<String> = devices
        .filter_map(|device| card_without_driver(&device.path()))
        .collect();
    found.sort();
    found.dedup();
    found
}

fn card_without_driver(device: &Path) -> Option<String> {
    let number = |name: &str| {
        let text = fs::read_to_string(device.join(name)).ok()?;
        text.trim().strip_prefix("0x").map(str::to_owned)
    };
    // PCI class 02.00: an Ethernet controller.
    let ethernet = number("class")?.starts_with("0200");
    (ethernet && !device.join("driver").exists())
        .then(|| Some(format!("{}:{}", number("vendor")?, number("device")?)))
        .flatten()
}

impl Drivers {
    /// Reads the index of the running kernel's modules.
    pub(crate) fn open() -> Result<Self, String> {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease")
            .map_err(|error| format!("osrelease: {error}"))?;
        let root = Path::new("/lib/modules").join(release.trim());
        let read = |name: &str| {
            let path = root.join(name);
            fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
        };
        let index = Index::parse(
            &read("modules.dep")?,
            &read("modules.alias")?,
            &read("modules.softdep").unwrap_or_default(),
        );
        let cmdline = fs::read_to_string("/proc/cmdline").unwrap_or_default();
        Ok(Self {
            root,
            index,
            seen: BTreeSet::new(),
            tried: BTreeSet::new(),
            cmdline,
        })
    }

    /// Loads drivers for all devices that are there, until a pass brings nothing new. Returns how many.
    pub(crate) fn coldplug(&mut self) -> usize {
        let mut loaded = 0;
        for _ in 0..MAX_PASSES {
            let new = modaliases()
                .iter()
                .map(|modalias| self.handle(modalias))
                .sum::<usize>();
            if new == 0 {
                break;
            }
            loaded += new;
        }
        loaded
    }

    /// Loads the drivers for one modalias. Returns how many modules were loaded.
    pub(crate) fn handle(&mut self, modalias: &str) -> usize {
        if !self.seen.insert(modalias.to_owned()) {
            return 0;
        }
        let denied = words_of(&self.cmdline, "modprobe.blacklist");
        let wanted = self.index.wanted_by(modalias);
        wanted
            .iter()
            .filter(|name| !denied.contains(name.as_str()))
            .map(|name| self.load(name))
            .sum()
    }

    /// Deletes module files that no present or pluggable device can need, and their lines in the index. Returns
    /// how many, and their size in bytes.
    pub(crate) fn prune(&mut self) -> (usize, u64) {
        // Only ever below the running kernel's module folder of the initramfs.
        if !self.root.starts_with("/lib/modules/") {
            return (0, 0);
        }
        let gone = self.index.prune(is_loaded);
        let mut bytes = 0;
        for path in &gone {
            let path = self.root.join(path);
            bytes += fs::symlink_metadata(&path).map_or(0, |data| data.len());
            if let Err(error) = fs::remove_file(&path) {
                log(&format!("{}: {error}", path.display()));
            }
        }
        for (name, text) in self.index.to_text() {
            let _ = fs::write(self.root.join(name), text);
        }
        // Modules that were not there would be looked up in vain.
        self.seen = BTreeSet::new();
        (gone.len(), bytes)
    }

    fn load(&mut self, name: &str) -> usize {
        let mut loaded = 0;
        let closure: Vec<(String, String)> = self
            .index
            .closure(name)
            .into_iter()
            .map(|(name, module)| (name.to_owned(), module.path.clone()))
            .collect();
        for (name, path) in closure {
            if !self.tried.insert(name.clone()) || is_loaded(&name) {
                continue;
            }
            match load_file(&self.root.join(&path), &parameters_of(&self.cmdline, &name)) {
                Ok(()) => loaded += 1,
                // A driver that fails is one device less, not the end of the boot.
                Err(error) => log(&format!("module {name} does not load: {error}")),
            }
        }
        loaded
    }
}

/// What the kernel calls modprobe for: loads the module of this name or alias. Returns how many were loaded.
pub(crate) fn load_by_name(name: &str) -> usize {
    Drivers::open().map_or(0, |mut drivers| drivers.handle(name))
}

fn load_file(path: &Path, parameters: &str) -> std::io::Result<()> {
    let plain = path.extension().is_some_and(|extension| extension == "ko");
    let content = if plain {
        Content::Plain
    } else {
        Content::Compressed
    };
    match load(&File::open(path)?, parameters, content) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

fn is_loaded(name: &str) -> bool {
    // `initstate` is there for loaded modules only, not for parameters of built-in ones.
    Path::new("/sys/module").join(name).join("initstate").exists()
}

/// `module.parameter=value` words of the kernel command line, as modprobe passes them on.
fn parameters_of(cmdline: &str, module: &str) -> String {
    let ours = cmdline.split_whitespace().filter_map(|word| {
        let (name, parameter) = word.split_once('.')?;
        (normal(name) == module).then_some(parameter)
    });
    ours.collect::<Vec<_>>().join(" ")
}

/// Names in `key=a,b` words of the kernel command line.
fn words_of(cmdline: &str, key: &str) -> BTreeSet<String> {
    let values = cmdline
        .split_whitespace()
        .filter_map(|word| word.split_once('='))
        .filter(|(name, _)| *name == key);
    values
        .flat_map(|(_, value)| value.split(','))
        .map(normal)
        .collect()
}

/// The modaliases of all devices.
fn modaliases() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![PathBuf::from("/sys/devices")];
    let mut directories = 0;
    while let Some(directory) = open.pop() {
        directories += 1;
        if directories > MAX_DIRECTORIES {
            log("too many devices; the rest is left out");
            break;
        }
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            // Symbolic links lead to other devices, which have their own place.
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => open.push(entry.path()),
                Ok(kind) if kind.is_file() && entry.file_name() == "modalias" => {
                    let text = fs::read_to_string(entry.path()).unwrap_or_default();
                    if !text.trim().is_empty() {
                        found.insert(text.trim().to_owned());
                    }
                }
                _ => {}
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_that_no_driver_took_is_named() {
        let folder = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("class", "0x020000\n"),
            ("vendor", "0x8086\n"),
            ("device", "0x15f3\n"),
        ] {
            fs::write(folder.path().join(file), text).unwrap();
        }
        assert_eq!(card_without_driver(folder.path()).as_deref(), Some("8086:15f3"));
        fs::create_dir(folder.path().join("driver")).unwrap();
        assert_eq!(card_without_driver(folder.path()), None);
        assert_eq!(card_without_driver(Path::new("/does/not/exist")), None);
    }

    #[test]
    fn the_command_line_reaches_modules() {
        let line = "quiet usb-storage.quirks=1:2:i e1000.debug=3 e1000.copybreak=0 modprobe.blacklist=a-b,c cid.hold";
        assert_eq!(parameters_of(line, "e1000"), "debug=3 copybreak=0");
        assert_eq!(parameters_of(line, "usb_storage"), "quirks=1:2:i");
        assert_eq!(
            words_of(line, "modprobe.blacklist")
                .into_iter()
                .collect::<Vec<_>>(),
            ["a_b", "c"]
        );
    }
}
