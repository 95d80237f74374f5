//! The modules of a kernel on disk: facts of every file (kept in the cache, since reading 4,000 files takes seconds),
//! and what a recipe picks from them. A kept fact is only used for a file with the same digest.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, bail};
use cid_initramfs::closure::{Closure, ClosureError, prove_no_block_driver};
use cid_initramfs::digest::sha256_hex;
use cid_initramfs::module::{BLOCK_SYMBOLS, module_name};
use cid_initramfs::{ModuleFacts, ModuleIndex, alias, close};

use crate::cache::{Cache, write_atomically};
use crate::kernel::Kernel;
use crate::progress::Progress;
use crate::recipe::{Located, Recipe, nearest};

/// The index of `kernel`'s modules.
pub fn index(cache: &Cache, kernel: &Kernel, progress: &Progress) -> anyhow::Result<ModuleIndex> {
    let files = list(&kernel.modules)?;
    if files.is_empty() {
        bail!("{}: no kernel module in it", kernel.modules.display());
    }
    let kept = cache
        .path("facts")
        .join(format!("{}.json", fingerprint(&kernel.modules, &files)));
    let facts = match read_kept(&kept) {
        Some(facts) => facts,
        None => {
            let facts = scan(&kernel.modules, &files, progress)?;
            write_atomically(&kept, &serde_json::to_vec(&facts)?)?;
            facts
        }
    };
    if let Some(stranger) = facts.iter().find(|module| module.release != kernel.release) {
        bail!(
            "{}: is a module of kernel {}, but the kernel is {}: give a matching pair",
            kernel.modules.join(&stranger.path).display(),
            stranger.release,
            kernel.release
        );
    }
    let builtin = fs::read_to_string(kernel.modules.join("modules.builtin")).unwrap_or_default();
    let builtin_modinfo = fs::read(kernel.modules.join("modules.builtin.modinfo")).unwrap_or_default();
    Ok(ModuleIndex::new(facts, &builtin, &builtin_modinfo))
}

/// Path below the modules folder, with what tells that the file is the one seen before.
type FileSeen = (String, u64, i64, i64, u64);

fn list(modules: &Path) -> anyhow::Result<Vec<FileSeen>> {
    let mut files = Vec::new();
    let mut open = vec!["kernel".to_owned(), "extra".to_owned(), "updates".to_owned()];
    while let Some(folder) = open.pop() {
        let Ok(entries) = fs::read_dir(modules.join(&folder)) else {
            continue;
        };
        for entry in entries {
            let entry = entry.with_context(|| format!("{}/{folder}", modules.display()))?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let path = format!("{folder}/{name}");
            let kind = entry.file_type().with_context(|| path.clone())?;
            if kind.is_dir() {
                open.push(path);
            } else if kind.is_file() && module_name(&path).is_some() {
                let seen = entry.metadata().with_context(|| path.clone())?;
                files.push((path, seen.len(), seen.mtime(), seen.mtime_nsec(), seen.ino()));
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Facts are kept under a name made of everything they depend on: the files, and what we look for in them.
fn fingerprint(modules: &Path, files: &[FileSeen]) -> String {
    let mut text = format!(
        "{FACTS_VERSION}\n{}\n{}\n",
        BLOCK_SYMBOLS.join(","),
        modules.display()
    );
    for (path, size, seconds, nanoseconds, inode) in files {
        text.push_str(&format!("{path} {size} {seconds} {nanoseconds} {inode}\n"));
    }
    sha256_hex(text.as_bytes())
}

/// Raised whenever [`ModuleFacts`] or its reader changes.
const FACTS_VERSION: u32 = 1;

fn read_kept(file: &Path) -> Option<Vec<ModuleFacts>> {
    serde_json::from_slice(&fs::read(file).ok()?).ok()
}

/// Reads every module, on all cores. The order of the result does not depend on them.
fn scan(modules: &Path, files: &[FileSeen], progress: &Progress) -> anyhow::Result<Vec<ModuleFacts>> {
    let phase = progress.count("reading kernel modules", files.len() as u64);
    let next = AtomicUsize::new(0);
    let results: Mutex<BTreeMap<usize, anyhow::Result<ModuleFacts>>> = Mutex::new(BTreeMap::new());
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some((at, (path, ..))) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, files.get(at)?)))
                {
                    let result = read_one(modules, path);
                    phase.one();
                    if let Ok(mut results) = results.lock() {
                        results.insert(at, result);
                    }
                }
            });
        }
    });
    phase.finish();
    let results = results
        .into_inner()
        .map_err(|_| anyhow::anyhow!("a thread that read modules failed"))?;
    results.into_values().collect()
}

fn read_one(modules: &Path, path: &str) -> anyhow::Result<ModuleFacts> {
    let bytes = fs::read(modules.join(path)).with_context(|| modules.join(path).display().to_string())?;
    ModuleFacts::read(path, &bytes).with_context(|| modules.display().to_string())
}

/// PCI vendors and devices that these modules name, as `8086:15f3`, sorted. Modules that take a whole class name none.
pub fn pci_ids(index: &ModuleIndex, names: &BTreeSet<String>) -> Vec<String> {
    let modules = names.iter().filter_map(|name| index.module(name));
    let ids: BTreeSet<String> = modules
        .flat_map(|module| module.aliases.iter())
        .filter_map(|alias| pci_id(alias))
        .collect();
    ids.into_iter().collect()
}

/// `pci:v00008086d000015F3sv*…` as `8086:15f3`.
fn pci_id(alias: &str) -> Option<String> {
    let rest = alias.strip_prefix("pci:v0000")?;
    let (vendor, rest) = rest.split_at_checked(4)?;
    let device = rest.strip_prefix("d0000")?.get(..4)?;
    let hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    (hex(vendor) && hex(device)).then(|| format!("{vendor}:{device}").to_ascii_lowercase())
}

/// What a recipe picks.
#[derive(Debug)]
pub struct Selection {
    /// Every module of the image, with the module that asked for it.
    pub closure: Closure,
    /// The NIC drivers among them, as the recipe's `nic` list picked them.
    pub nic: BTreeSet<String>,
}

/// Picks and closes; proves that no module can make a block device. `more` are modules that the builder itself needs.
pub fn select(recipe: &Recipe, more: &[&str], index: &ModuleIndex) -> anyhow::Result<Selection> {
    let excluded = pick(recipe, index, &recipe.exclude)?;
    let nic: BTreeSet<String> = pick(recipe, index, &recipe.nic)?
        .difference(&excluded)
        .cloned()
        .collect();
    let other = pick(recipe, index, &recipe.other)?;
    let wanted = nic
        .union(&other.difference(&excluded).cloned().collect())
        .cloned()
        .chain(more.iter().map(|name| (*name).to_owned()))
        .collect();
    let closure = close(index, &wanted, &excluded).map_err(|error| recipe.error(1, error.to_string()))?;
    for line in &recipe.allow_block_drivers {
        if index.module(&line.value).is_none() {
            return Err(unknown(recipe, index, line).into());
        }
    }
    let allowed = recipe
        .allow_block_drivers
        .iter()
        .map(|name| cid_initramfs::module::normal_name(&name.value))
        .collect();
    prove_no_block_driver(index, &closure, &allowed).map_err(|error| {
        let ClosureError::BlockDriver { module, .. } = &error else {
            return recipe.error(1, error.to_string());
        };
        let remedy = format!("{error}; exclude what brings it, or say allow_block_drivers = [\"{module}\"]");
        recipe.error(line_that_picks(recipe, index, &closure, module), remedy)
    })?;
    Ok(Selection { closure, nic })
}

/// Names of the modules that the selectors stand for. Each must stand for at least one, or for something built in.
fn pick(
    recipe: &Recipe,
    index: &ModuleIndex,
    selectors: &[Located<String>],
) -> anyhow::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for selector in selectors {
        let before = names.len();
        if selector.value.contains('/') {
            let mut any = false;
            for module in index
                .modules()
                .filter(|module| path_matches(&selector.value, &module.path))
            {
                names.insert(module.name.clone());
                any = true;
            }
            if !any {
                let folders = index
                    .modules()
                    .filter_map(|module| Some(module.path.strip_prefix("kernel/")?.rsplit_once('/')?.0));
                let near = nearest(selector.value.trim_end_matches("/*"), folders).unwrap_or_default();
                return Err(recipe
                    .error(
                        selector.line,
                        format!(
                            "{:?} picks no module of this kernel; the nearest folder is \"{near}/*\"",
                            selector.value
                        ),
                    )
                    .into());
            }
        } else {
            match index.lookup(&selector.value) {
                cid_initramfs::index::Lookup::Module(module) => {
                    names.insert(module.name.clone());
                }
                cid_initramfs::index::Lookup::Alias(carriers) => {
                    names.extend(carriers.iter().map(|module| module.name.clone()));
                }
                cid_initramfs::index::Lookup::Builtin => {}
                cid_initramfs::index::Lookup::Unknown => return Err(unknown(recipe, index, selector).into()),
            }
        }
        debug_assert!(names.len() >= before);
    }
    Ok(names)
}

/// `drivers/net/usb/*` against `kernel/drivers/net/usb/asix.ko.xz`; `*` crosses `/`.
fn path_matches(selector: &str, path: &str) -> bool {
    let below = path.strip_prefix("kernel/").unwrap_or(path);
    let stem = below.rsplit_once(".ko").map_or(below, |(stem, _)| stem);
    alias::matches(selector, stem)
}

fn unknown(recipe: &Recipe, index: &ModuleIndex, name: &Located<String>) -> crate::recipe::RecipeError {
    let near = nearest(&name.value, index.modules().map(|module| module.name.as_str())).unwrap_or_default();
    recipe.error(
        name.line,
        format!(
            "no module {:?} in this kernel; the nearest is {near:?}",
            name.value
        ),
    )
}

/// The line whose selector is at the start of the chain that brought `module`.
fn line_that_picks(recipe: &Recipe, index: &ModuleIndex, closure: &Closure, module: &str) -> usize {
    let mut first = module;
    while let Some(because) = closure.get(first).filter(|because| !because.is_empty()) {
        first = because;
    }
    let picks = |selector: &&Located<String>| {
        selector.value == first
            || index
                .module(first)
                .is_some_and(|module| path_matches(&selector.value, &module.path))
            || cid_initramfs::module::normal_name(&selector.value) == first
    };
    recipe
        .nic
        .iter()
        .chain(&recipe.other)
        .find(picks)
        .map_or(1, |selector| selector.line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pci_alias_names_vendor_and_device() {
        let name = |alias| pci_id(alias);
        assert_eq!(
            name("pci:v00008086d000015F3sv*sd*bc*sc*i*").as_deref(),
            Some("8086:15f3")
        );
        assert_eq!(
            name("pci:v000010ECd00008168sv*sd*bc*sc*i*").as_deref(),
            Some("10ec:8168")
        );
        for other in [
            "pci:v*d*sv*sd*bc02sc00i*",
            "usb:v0BDAp8153d*",
            "pci:v00008086",
            "",
        ] {
            assert_eq!(name(other), None, "{other}");
        }
    }
}
