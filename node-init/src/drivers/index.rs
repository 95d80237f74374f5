//! The module index of the image: the text files of depmod, for exactly what the image holds.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::pattern;

/// A module file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Module {
    /// Below `/lib/modules/RELEASE/`.
    pub(crate) path: String,
    /// Names of what must be loaded before, last first (the order of modules.dep).
    dependencies: Vec<String>,
}

/// modules.dep, modules.alias and modules.softdep, parsed.
#[derive(Debug, Default)]
pub(crate) struct Index {
    modules: BTreeMap<String, Module>,
    /// Pattern and module name, as in the file.
    aliases: Vec<(String, String)>,
    /// Module name to what should be loaded before and after it.
    soft: BTreeMap<String, (Vec<String>, Vec<String>)>,
}

/// Aliases of these buses belong to devices that are there at boot or never come (Thunderbolt docks with PCI
/// network cards are the exception that is not served). A module with no other alias is needed now or not at all.
const FIXED_BUSES: [&str; 18] = [
    "pci",
    "virtio",
    "acpi",
    "dmi",
    "cpu",
    "pnp",
    "platform",
    "eisa",
    "isapnp",
    "isa",
    "vmbus",
    "xen",
    "auxiliary",
    "of",
    "mei",
    "ssb",
    "bcma",
    "devname",
];

impl Index {
    /// Parses the three files; lines that make no sense are passed over.
    pub(crate) fn parse(dep: &str, alias: &str, softdep: &str) -> Self {
        let mut index = Self::default();
        for line in dep.lines() {
            let Some((path, rest)) = line.split_once(':') else {
                continue;
            };
            let dependencies = rest.split_whitespace().map(name_of_path).collect();
            index.modules.insert(
                name_of_path(path),
                Module {
                    path: path.to_owned(),
                    dependencies,
                },
            );
        }
        for line in alias.lines() {
            let mut words = line.split_whitespace();
            if let (Some("alias"), Some(pattern), Some(module)) = (words.next(), words.next(), words.next()) {
                index.aliases.push((pattern.to_owned(), normal(module)));
            }
        }
        for line in softdep.lines() {
            let mut words = line.split_whitespace();
            let (Some("softdep"), Some(module)) = (words.next(), words.next()) else {
                continue;
            };
            let (before, after) = index.soft.entry(normal(module)).or_default();
            let mut list: Option<&mut Vec<String>> = None;
            for word in words {
                match word {
                    "pre:" => list = Some(&mut *before),
                    "post:" => list = Some(&mut *after),
                    _ => {
                        if let Some(list) = &mut list {
                            list.push(normal(word));
                        }
                    }
                }
            }
        }
        index
    }

    /// The files again, in the same format.
    pub(crate) fn to_text(&self) -> [(&'static str, String); 3] {
        let (mut dep, mut alias, mut softdep) = (String::new(), String::new(), String::new());
        for module in self.modules.values() {
            let _ = write!(dep, "{}:", module.path);
            for name in &module.dependencies {
                if let Some(other) = self.modules.get(name) {
                    let _ = write!(dep, " {}", other.path);
                }
            }
            dep.push('\n');
        }
        for (pattern, module) in &self.aliases {
            let _ = writeln!(alias, "alias {pattern} {module}");
        }
        for (module, (before, after)) in &self.soft {
            let _ = write!(softdep, "softdep {module}");
            for (word, list) in [("pre:", before), ("post:", after)] {
                if !list.is_empty() {
                    let _ = write!(softdep, " {word} {}", list.join(" "));
                }
            }
            softdep.push('\n');
        }
        [
            ("modules.dep", dep),
            ("modules.alias", alias),
            ("modules.softdep", softdep),
        ]
    }

    /// Names of the modules that a device of this modalias wants; a module's own name counts as its alias.
    pub(crate) fn wanted_by(&self, modalias: &str) -> Vec<String> {
        let name = normal(modalias);
        if self.modules.contains_key(&name) {
            return vec![name];
        }
        let hits = self
            .aliases
            .iter()
            .filter(|(pattern, _)| pattern::matches(pattern, modalias));
        let names: BTreeSet<&String> = hits.map(|(_, module)| module).collect();
        names.into_iter().cloned().collect()
    }

    /// The module with everything it needs, in the order of loading. Names that are not in the index (built into
    /// the kernel, or left out of the image) are passed over.
    pub(crate) fn closure(&self, name: &str) -> Vec<(&str, &Module)> {
        let (mut seen, mut order) = (BTreeSet::new(), Vec::new());
        self.visit(name, &mut seen, &mut order);
        order
    }

    fn visit<'a>(&'a self, name: &str, seen: &mut BTreeSet<&'a str>, order: &mut Vec<(&'a str, &'a Module)>) {
        let Some((name, module)) = self.modules.get_key_value(name) else {
            return;
        };
        if !seen.insert(name) {
            return;
        }
        let soft = self.soft.get(name);
        let before = soft.iter().flat_map(|(before, _)| before);
        for other in before.chain(module.dependencies.iter().rev()) {
            self.visit(other, seen, order);
        }
        order.push((name, module));
        for other in soft.iter().flat_map(|(_, after)| after) {
            self.visit(other, seen, order);
        }
    }

    /// Takes out what is loaded already, and what only devices of fixed buses could want and none did. Returns
    /// the paths taken out.
    pub(crate) fn prune(&mut self, is_loaded: impl Fn(&str) -> bool) -> Vec<String> {
        let mut keep = BTreeSet::new();
        for (pattern, module) in &self.aliases {
            if !is_fixed(pattern) && !keep.contains(module.as_str()) {
                keep.extend(self.closure(module).into_iter().map(|(name, _)| name.to_owned()));
            }
        }
        keep.retain(|name| !is_loaded(name));
        let mut gone = Vec::new();
        self.modules.retain(|name, module| {
            let kept = keep.contains(name);
            if !kept {
                gone.push(module.path.clone());
            }
            kept
        });
        self.aliases
            .retain(|(_, module)| self.modules.contains_key(module));
        self.aliases.shrink_to_fit();
        self.soft.retain(|name, _| self.modules.contains_key(name));
        gone
    }
}

/// Whether an alias can only ever match a device that was there at boot.
fn is_fixed(pattern: &str) -> bool {
    // Opening a device node is no reason to load a driver: nodes come with their drivers here.
    if pattern.starts_with("char-major-") || pattern.starts_with("char_major_") {
        return true;
    }
    let bus = pattern
        .split(':')
        .next()
        .unwrap_or_default()
        .trim_end_matches('*');
    pattern.contains(':') && FIXED_BUSES.contains(&bus)
}

/// `kernel/drivers/net/virtio-net.ko.xz` is the module `virtio_net`.
fn name_of_path(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    normal(file.split(".ko").next().unwrap_or(file))
}

/// The kernel writes names with `_` whatever the file is called.
pub(crate) fn normal(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/net/virtio_net.ko.xz: kernel/net/net_failover.ko.xz kernel/net/failover.ko.xz\n\
        kernel/net/net_failover.ko.xz: kernel/net/failover.ko.xz\nkernel/net/failover.ko.xz:\n\
        kernel/net/r8169.ko.xz: kernel/net/libphy.ko.xz\nkernel/net/libphy.ko.xz:\n\
        kernel/phy/realtek.ko.xz: kernel/net/libphy.ko.xz\nkernel/usb/asix-usb.ko: kernel/net/libphy.ko.xz\n\
        kernel/net/e1000.ko.xz:\n";
    const ALIAS: &str = "# Aliases\nalias virtio:d00000001v* virtio_net\nalias pci:v000010ECd00008168sv* r8169\n\
        alias usb:v0B95p* asix_usb\nalias pci:v00008086d0000100Esv* e1000\n";
    const SOFTDEP: &str = "# Soft\nsoftdep r8169 pre: realtek\n";

    fn names(index: &Index, name: &str) -> Vec<String> {
        index
            .closure(name)
            .into_iter()
            .map(|(name, _)| name.to_owned())
            .collect()
    }

    #[test]
    fn loads_dependencies_before_dependants() {
        let index = Index::parse(DEP, ALIAS, SOFTDEP);
        assert_eq!(index.wanted_by("virtio:d00000001v00001AF4"), ["virtio_net"]);
        assert_eq!(
            names(&index, "virtio_net"),
            ["failover", "net_failover", "virtio_net"]
        );
        assert_eq!(names(&index, "r8169"), ["libphy", "realtek", "r8169"]);
        assert_eq!(names(&index, "ext4"), Vec::<String>::new());
        assert_eq!(index.wanted_by("asix-usb"), ["asix_usb"]);
        assert_eq!(index.wanted_by("pci:v0"), Vec::<String>::new());
    }

    #[test]
    fn a_soft_dependency_circle_ends() {
        let index = Index::parse("a.ko:\nb.ko:\n", "", "softdep a pre: b\nsoftdep b post: a\n");
        assert_eq!(names(&index, "a"), ["b", "a"]);
    }

    #[test]
    fn pruning_keeps_what_can_be_plugged_in_and_its_dependencies() {
        let mut index = Index::parse(DEP, ALIAS, SOFTDEP);
        let gone = index.prune(|name| name.contains("failover") || name == "virtio_net");
        assert_eq!(gone.len(), 6, "{gone:?}");
        assert!(
            gone.iter()
                .all(|path| !path.contains("asix") && !path.contains("libphy"))
        );
        assert_eq!(names(&index, "asix_usb"), ["libphy", "asix_usb"]);
        let [(_, dep), (_, alias), (_, softdep)] = index.to_text();
        let again = Index::parse(&dep, &alias, &softdep);
        assert_eq!(names(&again, "asix_usb"), ["libphy", "asix_usb"]);
        assert_eq!(
            (alias.as_str(), softdep.as_str()),
            ("alias usb:v0B95p* asix_usb\n", "")
        );
    }

    #[test]
    fn fixed_buses_are_told_from_pluggable_ones() {
        for fixed in [
            "pci:v1",
            "virtio:d1",
            "acpi*:PNP:*",
            "char-major-10-130",
            "devname:watchdog",
        ] {
            assert!(is_fixed(fixed), "{fixed}");
        }
        for pluggable in [
            "usb:v1",
            "hid:b1",
            "input:b*",
            "mdio:000",
            "serio:ty",
            "rtnl-link-vlan",
        ] {
            assert!(!is_fixed(pluggable), "{pluggable}");
        }
    }
}
