//! From a recipe's `[root]` to a root tree: base, packages, hooks, overlays, users, services. Ends at tar streams in the
//! cache; what file system they become is not decided here. Never runs anything of a base outside a chroot.

mod debian;
mod facts;
mod hooks;
pub mod lock;
mod oci;
mod shelf;
mod top;
pub mod tree;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;

use cid_protocol::manifest::Template;
use cid_protocol::services::Process;
use serde::{Deserialize, Serialize};

use crate::apt::{Freshness, sha256_file};
use crate::cache::Cache;
use crate::progress::Progress;
use crate::recipe::root::{Base, RootRecipe};
use crate::recipe::{Recipe, RecipeError};
use shelf::Stored;
use tree::{Tree, Whiteouts, covers};

/// A finished root tree: what `root.img` is made from.
///
/// The layers are one tree, bottom first: a file of a later layer takes the place of the file of that name below it; no
/// later layer removes anything, and a folder that a later layer repeats has the owner and mode that it has below. The
/// bottom layer is large and seldom changes (base, packages, hooks); the top one is small and changes often (overlays,
/// users, services). Whoever makes a file system of them keeps what it made of the bottom by [`Layer::sha256`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootTree {
    /// One or two layers.
    pub layers: Vec<Layer>,
    /// What is installed, sorted by name; empty when the base has no package database.
    pub packages: Vec<PackageFacts>,
    /// Latest modification time of any entry, seconds since 1970: `SOURCE_DATE_EPOCH` for whoever packs it.
    pub epoch: u64,
    /// What an OCI image says of its process.
    pub process: Option<Process>,
    /// Files that the head renders for each node.
    pub templates: Vec<Template>,
    /// What the recipe has for them; empty without templates.
    pub values: BTreeMap<String, serde_json::Value>,
}

/// One tar stream: GNU or PAX headers, sorted by path (`./` is not written before names), numeric owners only, no times
/// later than the tree's `epoch`; regular files, folders, symbolic links, hard links within the same layer, FIFOs and
/// character devices, extended attributes as `SCHILY.xattr.*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// `base` or `top`.
    pub name: &'static str,
    /// The file, in the cache: read it, never change it.
    pub tar: PathBuf,
    /// SHA-256 of that file, lower-case hex.
    pub sha256: String,
    /// Its size.
    pub bytes: u64,
}

/// One line of `packages.json`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackageFacts {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// Architecture, e.g. `amd64` or `all`.
    pub architecture: String,
    /// Licences named in the package's machine-readable copyright file, sorted, joined with ` and `; else
    /// `see copyright`.
    pub licence: String,
}

/// What is asked of the machine that builds.
#[derive(Debug, Clone, Copy)]
pub struct Tools<'a> {
    /// Where packages and finished trees are kept.
    pub cache: &'a Cache,
    /// Whether a lock file is kept or made anew.
    pub freshness: Freshness,
    /// For people.
    pub progress: &'a Progress,
}

/// The tree that `recipe` describes; None when it has no `[root]`.
pub fn build(recipe: &Recipe, tools: Tools<'_>) -> anyhow::Result<Option<RootTree>> {
    let Some(root) = &recipe.root else {
        return Ok(None);
    };
    let mut base = base(recipe, root, tools)?;
    if !root.hooks.is_empty() {
        let mut words = vec!["hooks".to_owned(), RULES.to_owned(), base.sha256.clone()];
        for hook in &root.hooks {
            words.push(hooks::key(recipe, hook)?);
        }
        let under = base;
        base = shelf::stage(tools, &words, |workshop| {
            let mut tree = hooks::apply(
                recipe,
                &root.hooks,
                &under.tar,
                under.epoch,
                workshop,
                tools.progress,
            )?;
            leave_out(&mut tree, root);
            Ok((tree, under.epoch, under.process.clone()))
        })?;
    }
    let mut tree = Tree::default();
    tree.read_tar(File::open(&base.tar)?, Whiteouts::Keep)?;
    top::lay(&mut tree, recipe, root, base.process.as_ref(), base.epoch)?;
    let templates =
        top::node_templates(&tree).map_err(|error| recipe.error(root.line, format!("{error:#}")))?;
    let values = match templates.is_empty() {
        true => BTreeMap::new(),
        false => serde_json::from_value(serde_json::to_value(&root.values)?)?,
    };
    let touched = tree.touched();
    let mut layers = vec![base.layer("base")];
    if touched.entries().next().is_some() {
        layers.push(shelf::keep_top(tools, &touched, base.epoch)?);
    }
    Ok(Some(RootTree {
        layers,
        packages: base.packages,
        epoch: base.epoch,
        process: base.process,
        templates,
        values,
    }))
}

/// The bottom layer before hooks: from the cache, or made.
fn base(recipe: &Recipe, root: &RootRecipe, tools: Tools<'_>) -> anyhow::Result<Stored> {
    let at = |error: anyhow::Error| match error.downcast::<RecipeError>() {
        Ok(located) => located.into(),
        Err(error) => {
            anyhow::Error::new(recipe.error(root.base.line, format!("base {}: {error:#}", root.base.value)))
        }
    };
    let drop_rules = || root.drop.iter().map(|pattern| pattern.value.clone());
    match &root.base.value {
        Base::Debian(suite) => {
            let lock = debian::locked(recipe, root, suite, tools.freshness, tools.cache, tools.progress)?;
            let mut words = vec!["debian".to_owned(), RULES.to_owned(), lock.date.to_string()];
            words.extend(lock.packages.iter().map(|package| package.sha256.clone()));
            words.extend(drop_rules());
            shelf::stage(tools, &words, |workshop| {
                let mut tree = debian::install(&lock, tools.cache, workshop, tools.progress)?;
                leave_out(&mut tree, root);
                Ok((tree, lock.date, None))
            })
        }
        Base::Oci(path) => {
            let opening = tools.cache.workshop()?;
            let image = oci::Image::open(path, opening.path()).map_err(at)?;
            let mut words = vec!["oci".to_owned(), RULES.to_owned(), image.identity.clone()];
            words.extend(drop_rules());
            let made = shelf::stage(tools, &words, |workshop| {
                let mut tree = image.tree(workshop, tools.progress)?;
                leave_out(&mut tree, root);
                let newest = newest(&tree);
                Ok((tree, newest, Some(image.process.clone())))
            });
            made.map_err(at)
        }
        Base::Tar(path) => {
            let digest = sha256_file(path).map_err(at)?;
            let mut words = vec!["tar".to_owned(), RULES.to_owned(), digest];
            words.extend(drop_rules());
            let made = shelf::stage(tools, &words, |workshop| {
                let mut tree = Tree::default();
                tree.read_tar(oci::plain(path, workshop)?, Whiteouts::Keep)?;
                leave_out(&mut tree, root);
                let newest = newest(&tree);
                Ok((tree, newest, None))
            });
            made.map_err(at)
        }
        Base::Folder(path) => {
            let mut tree = Tree::default();
            tree.read_folder(path, false).map_err(at)?;
            leave_out(&mut tree, root);
            let mut words = vec!["dir".to_owned(), RULES.to_owned()];
            words.extend(tree.facts().map_err(at)?);
            shelf::stage(tools, &words, |_| Ok((tree, FOLDER_EPOCH, None))).map_err(at)
        }
    }
}

/// What the recipe drops, and what only a running system has. Copyright files stay whatever the recipe says.
fn leave_out(tree: &mut Tree, root: &RootRecipe) {
    tree.retain(|name| {
        let path = format!("/{name}");
        let live = LIVE.iter().any(|folder| path.starts_with(folder));
        let dropped = root.drop.iter().any(|pattern| covers(&pattern.value, &path));
        !live && (!dropped || is_copyright(&path))
    });
}

/// A package's copyright file, or the folder or link by which it is found.
fn is_copyright(path: &str) -> bool {
    let rest = path
        .strip_prefix("/usr/share/doc/")
        .map(|rest| rest.split_once('/'));
    matches!(rest, Some(None | Some((_, "copyright"))))
}

fn newest(tree: &Tree) -> u64 {
    tree.entries().map(|(_, entry)| entry.mtime).max().unwrap_or(0)
}

/// Raised when the same inputs come to another tree than before: kept trees are made anew.
const RULES: &str = "rules 1";
/// Times of files in a folder say when somebody copied it: all of them get this, 2025-01-01.
const FOLDER_EPOCH: u64 = 1_735_689_600;
/// Folders that stay, empty.
const LIVE: &[&str] = &["/dev/", "/proc/", "/sys/", "/run/", "/tmp/"];

#[cfg(test)]
mod tests;
