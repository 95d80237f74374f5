//! Hooks: scripts of the recipe, run in the tree by mmdebstrap's chroot, without a network. What they read beside the
//! tree is declared, so that they run again when it changes and only then.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::Context;
use cid_initramfs::digest::sha256_hex;

use super::debian::{clean, mmdebstrap, run};
use super::tree::{Kind, Tree, Whiteouts, covers};
use crate::apt::sha256_file;
use crate::progress::Progress;
use crate::recipe::Recipe;
use crate::recipe::root::{Hook, HookScript};

/// Names what a hook does: its text and the content of its inputs.
pub(super) fn key(recipe: &Recipe, hook: &Hook) -> anyhow::Result<String> {
    let mut words = vec![script(recipe, hook)?];
    for input in &hook.inputs {
        let at = |error: anyhow::Error| recipe.error(input.line, format!("{error:#}; correct the path"));
        words.push(name(&input.value));
        digests(&input.value, &mut words).map_err(at)?;
    }
    Ok(sha256_hex(words.join("\n").as_bytes()))
}

fn script(recipe: &Recipe, hook: &Hook) -> anyhow::Result<String> {
    match &hook.script {
        HookScript::Text(text) => Ok(text.clone()),
        HookScript::File(file) => fs::read_to_string(file).map_err(|error| {
            recipe
                .error(
                    hook.line,
                    format!("script {}: {error}; correct the path", file.display()),
                )
                .into()
        }),
    }
}

fn name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// Name, kind and content of everything below `path`.
fn digests(path: &Path, words: &mut Vec<String>) -> anyhow::Result<()> {
    let shown = || format!("input {}", path.display());
    if !path.is_dir() {
        words.push(sha256_file(path).with_context(shown)?);
        return Ok(());
    }
    let mut tree = Tree::default();
    tree.read_folder(path, true).with_context(shown)?;
    for (name, entry) in tree.entries() {
        let content = match &entry.kind {
            Kind::File(_) => sha256_file(&path.join(name)).with_context(shown)?,
            Kind::Link(target) => target.clone(),
            _ => String::new(),
        };
        words.push(format!("{name} {:o} {content}", entry.mode));
    }
    Ok(())
}

/// Runs all hooks in `tar`; the tree after them. Its contents stay in a file of `workshop`.
pub(super) fn apply(
    recipe: &Recipe,
    hooks: &[Hook],
    tar: &Path,
    epoch: u64,
    workshop: &Path,
    progress: &Progress,
) -> anyhow::Result<Tree> {
    let mut before = Tree::default();
    before.read_tar(File::open(tar)?, Whiteouts::Keep)?;
    let after = workshop.join("after.tar");
    let mut command = mmdebstrap("custom", epoch, workshop);
    command.arg("--skip=update");
    command.arg(format!("--setup-hook=tar-in {} /", quoted(tar)));
    for (number, hook) in hooks.iter().enumerate() {
        let folder = stage(recipe, hook, &workshop.join(format!("hook-{number}")))?;
        command.arg("--customize-hook=rm -rf \"$1/run/cid-inputs\"; mkdir -p \"$1/run\"");
        command.arg(format!("--customize-hook=copy-in {} /run", quoted(&folder)));
        command.arg("--customize-hook=unshare --net chroot \"$1\" /bin/sh -e /run/cid-inputs/.hook");
    }
    command
        .arg("")
        .arg(&after)
        .arg("deb [trusted=yes] copy:/nonexistent ./");
    let line = hooks.first().map_or(1, |hook| hook.line);
    run(command, &format!("running {} hooks", hooks.len()), progress)
        .map_err(|error| recipe.error(line, format!("{error:#}; run it by hand in a chroot to see more")))?;
    let mut tree = Tree::default();
    tree.read_tar(File::open(&after)?, Whiteouts::Keep)?;
    clean(&mut tree);
    // mmdebstrap's own preparations for a Debian tree, in one that is none.
    tree.retain(|name| before.get(name).is_some() || !PREPARED.iter().any(|pattern| covers(pattern, name)));
    // Its tar has no extended attributes: what no hook touched keeps those it had.
    tree.keep_attributes(&before);
    Ok(tree)
}

/// A folder `cid-inputs` with the script and the inputs.
fn stage(recipe: &Recipe, hook: &Hook, place: &Path) -> anyhow::Result<PathBuf> {
    let folder = place.join("cid-inputs");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(".hook"), script(recipe, hook)?)?;
    for input in &hook.inputs {
        copy(&input.value, &folder.join(name(&input.value)))
            .map_err(|error| recipe.error(input.line, format!("input {}: {error}", input.value.display())))?;
    }
    Ok(folder)
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    let facts = fs::symlink_metadata(from)?;
    if facts.is_symlink() {
        return std::os::unix::fs::symlink(fs::read_link(from)?, to);
    }
    if facts.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    fs::copy(from, to).map(drop)
}

/// As a shell word.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "'\\''"))
}

const PREPARED: &[&str] = &[
    "etc/apt*",
    "etc/dpkg*",
    "etc/fstab",
    "var/lib/dpkg*",
    "var/lib/apt*",
    "var/cache/apt*",
    "var/log/apt*",
];
