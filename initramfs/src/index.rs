//! The modules of one kernel by name and by alias, and the index files that modprobe and PID 1 read. Made from the
//! module files themselves, since Debian's kernel packages bring no index; never written for modules left out.

use std::collections::{BTreeMap, BTreeSet};

use crate::alias;
use crate::module::{ModuleFacts, modinfo, module_name, normal_name};

/// Every module of a kernel, and what is built into it.
#[derive(Debug, Clone, Default)]
pub struct ModuleIndex {
    modules: BTreeMap<String, ModuleFacts>,
    builtin: BTreeSet<String>,
    builtin_aliases: Vec<String>,
    builtin_paths: Vec<String>,
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup<'a> {
    /// A module of that name.
    Module(&'a ModuleFacts),
    /// Part of the kernel itself: nothing to do.
    Builtin,
    /// An alias of these modules.
    Alias(Vec<&'a ModuleFacts>),
    /// Nothing has that name.
    Unknown,
}

impl ModuleIndex {
    /// From facts and the package's `modules.builtin` and `modules.builtin.modinfo` (empty when there are none).
    pub fn new(facts: Vec<ModuleFacts>, builtin: &str, builtin_modinfo: &[u8]) -> Self {
        let mut index = ModuleIndex::default();
        for module in facts {
            index.modules.insert(module.name.clone(), module);
        }
        for line in builtin.lines() {
            if let Some(name) = module_name(line.trim()) {
                index.builtin.insert(name);
                index.builtin_paths.push(line.trim().to_owned());
            }
        }
        for (key, value) in modinfo(builtin_modinfo) {
            if key.ends_with(".alias") {
                index.builtin_aliases.push(value.to_owned());
            }
        }
        index
    }

    /// What `name` stands for: a module, else something built in, else whatever carries it as an alias.
    pub fn lookup(&self, name: &str) -> Lookup<'_> {
        let normal = normal_name(name);
        if let Some(module) = self.modules.get(&normal) {
            return Lookup::Module(module);
        }
        if self.builtin.contains(&normal) {
            return Lookup::Builtin;
        }
        let carriers: Vec<&ModuleFacts> = self
            .modules
            .values()
            .filter(|module| module.aliases.iter().any(|pattern| alias::matches(pattern, name)))
            .collect();
        if !carriers.is_empty() {
            return Lookup::Alias(carriers);
        }
        if self
            .builtin_aliases
            .iter()
            .any(|pattern| alias::matches(pattern, name))
        {
            return Lookup::Builtin;
        }
        Lookup::Unknown
    }

    /// All modules, by name.
    pub fn modules(&self) -> impl Iterator<Item = &ModuleFacts> {
        self.modules.values()
    }

    /// The module of this name.
    pub fn module(&self, name: &str) -> Option<&ModuleFacts> {
        self.modules.get(&normal_name(name))
    }

    /// Lines of `modules.builtin`.
    pub fn builtin_paths(&self) -> &[String] {
        &self.builtin_paths
    }
}

/// The index files for exactly `names`, as `depmod` writes them: file name and content. `stored` gives the path under
/// which a module lies in the image (it may have been unpacked on the way).
pub fn index_files(
    index: &ModuleIndex,
    names: &BTreeSet<String>,
    stored: impl Fn(&ModuleFacts) -> String,
) -> Vec<(&'static str, String)> {
    let modules: Vec<&ModuleFacts> = names.iter().filter_map(|name| index.module(name)).collect();
    let mut dependencies = String::new();
    let mut aliases = String::from("# Aliases extracted from modules themselves.\n");
    let mut softdeps = String::from("# Soft dependencies extracted from modules themselves.\n");
    let mut sorted = modules.clone();
    sorted.sort_by(|a, b| a.path.cmp(&b.path));
    for module in sorted {
        dependencies.push_str(&stored(module));
        dependencies.push(':');
        for needed in load_order(index, module).iter().rev() {
            dependencies.push(' ');
            dependencies.push_str(&stored(needed));
        }
        dependencies.push('\n');
    }
    for module in modules {
        for pattern in &module.aliases {
            aliases.push_str(&format!("alias {pattern} {}\n", module.name));
        }
        if !module.soft_before.is_empty() || !module.soft_after.is_empty() {
            let mut line = format!("softdep {}", module.name);
            for (label, list) in [("pre:", &module.soft_before), ("post:", &module.soft_after)] {
                if !list.is_empty() {
                    line.push_str(&format!(" {label} {}", list.join(" ")));
                }
            }
            softdeps.push_str(&line);
            softdeps.push('\n');
        }
    }
    let builtin: String = index
        .builtin_paths
        .iter()
        .map(|path| format!("{path}\n"))
        .collect();
    vec![
        ("modules.alias", aliases),
        ("modules.builtin", builtin),
        ("modules.dep", dependencies),
        ("modules.softdep", softdeps),
    ]
}

/// Everything `module` needs, each after what it needs itself. `modules.dep` lists it backwards.
fn load_order<'a>(index: &'a ModuleIndex, module: &'a ModuleFacts) -> Vec<&'a ModuleFacts> {
    fn visit<'a>(
        index: &'a ModuleIndex,
        module: &'a ModuleFacts,
        seen: &mut BTreeSet<&'a str>,
        done: &mut Vec<&'a ModuleFacts>,
    ) {
        for name in &module.depends {
            if let Some(needed) = index.module(name)
                && seen.insert(&needed.name)
            {
                visit(index, needed, seen, done);
                done.push(needed);
            }
        }
    }
    let mut done = Vec::new();
    visit(
        index,
        module,
        &mut BTreeSet::from([module.name.as_str()]),
        &mut done,
    );
    done
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn facts(name: &str, depends: &[&str]) -> ModuleFacts {
        ModuleFacts {
            path: format!("kernel/{name}.ko.xz"),
            sha256: String::new(),
            name: normal_name(name),
            release: "6.12".into(),
            depends: depends.iter().map(|name| normal_name(name)).collect(),
            soft_before: vec![],
            soft_after: vec![],
            aliases: vec![],
            firmware: vec![],
            block_symbols: vec![],
        }
    }

    #[test]
    fn lookup_order() {
        let mut crc = facts("crc32c-intel", &[]);
        crc.aliases = vec!["crc32c".into(), "cpu:type:*".into()];
        let index = ModuleIndex::new(
            vec![crc, facts("mii", &[])],
            "kernel/lib/crc16.ko\n",
            b"md5.alias=crypto-md5\0x.name=y\0",
        );
        assert!(matches!(index.lookup("mii"), Lookup::Module(_)));
        assert!(matches!(index.lookup("crc32c-intel"), Lookup::Module(_)));
        assert_eq!(index.lookup("crc16"), Lookup::Builtin);
        assert_eq!(index.lookup("crypto-md5"), Lookup::Builtin);
        assert!(matches!(index.lookup("crc32c"), Lookup::Alias(list) if list.len() == 1));
        assert_eq!(index.lookup("nothing"), Lookup::Unknown);
    }

    #[test]
    fn dependencies_are_listed_like_depmod_does() {
        let index = ModuleIndex::new(
            vec![facts("a", &["b", "c"]), facts("b", &["c"]), facts("c", &[])],
            "",
            b"",
        );
        let names = ["a", "b", "c"].map(String::from).into();
        let files: BTreeMap<_, _> = index_files(&index, &names, |module| module.path.clone())
            .into_iter()
            .collect();
        assert_eq!(
            files["modules.dep"],
            "kernel/a.ko.xz: kernel/b.ko.xz kernel/c.ko.xz\nkernel/b.ko.xz: kernel/c.ko.xz\nkernel/c.ko.xz:\n"
        );
    }

    #[test]
    fn a_ring_of_dependencies_ends() {
        let index = ModuleIndex::new(vec![facts("a", &["b"]), facts("b", &["a"])], "", b"");
        let names = ["a", "b"].map(String::from).into();
        assert_eq!(index_files(&index, &names, |module| module.path.clone()).len(), 4);
    }
}
