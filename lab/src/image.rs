//! Images that misbehave, for tests: built by the real `cidbuild` from recipes of the lab, or cut short afterwards. What
//! goes wrong is in the image; no program of ours knows of it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use cid_protocol::manifest::Manifest;

use crate::head::program;
use crate::run::run;
use crate::windows::sha256;

/// What is wrong with an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Drivers for disks are inside, and the agent's wrapper writes one byte to the first disk.
    WritesOneByte,
    /// The agent is killed some seconds after each start.
    AgentDies,
    /// The agent is stopped (SIGSTOP) some seconds after its start.
    AgentStops,
    /// PID 1 is frozen some seconds after the agent's start.
    InitHangs,
    /// The kernel stands still some seconds after the agent's start.
    KernelHangs,
}

impl Fault {
    fn recipe(self) -> (&'static str, &'static str, &'static str) {
        let plain = include_str!("../recipes/wrapped-agent.toml");
        match self {
            Self::WritesOneByte => (
                "writes-one-byte",
                include_str!("../recipes/writes-one-byte.toml"),
                include_str!("../recipes/writes-one-byte.sh"),
            ),
            Self::AgentDies => ("agent-dies", plain, include_str!("../recipes/agent-dies.sh")),
            Self::AgentStops => ("agent-stops", plain, include_str!("../recipes/agent-stops.sh")),
            Self::InitHangs => ("init-hangs", plain, include_str!("../recipes/init-hangs.sh")),
            Self::KernelHangs => ("kernel-hangs", plain, include_str!("../recipes/kernel-hangs.sh")),
        }
    }
}

/// Builds an image with this fault below `dir`; returns the images folder and the image's name.
///
/// # Errors
/// When `cidbuild` or the node programs are not built, or the build fails.
pub fn build_with(fault: Fault, dir: &Path) -> Result<(PathBuf, String)> {
    let (name, recipe, script) = fault.recipe();
    let (work, programs, images) = (
        dir.join("recipe"),
        dir.join("recipe/programs"),
        dir.join("images"),
    );
    fs::create_dir_all(&programs)?;
    let real = node_programs()?;
    // `cid-agent` of the image is the script; the real one stands beside it, by a line of the recipe.
    fs::copy(real.join("cid-init"), programs.join("cid-init")).context("copying cid-init")?;
    fs::copy(real.join("cid-agent"), work.join("cid-agent.real")).context("copying cid-agent")?;
    let wrapper = programs.join("cid-agent");
    fs::write(&wrapper, script)?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    let file = work.join(format!("{name}.toml"));
    fs::write(&file, recipe)?;
    run(Command::new(program("cidbuild")?)
        .arg("image")
        .arg(&file)
        .arg("--out")
        .arg(&images)
        .arg("--node-programs")
        .arg(&programs))?;
    Ok((images, name.to_owned()))
}

/// A copy of an image, below another name.
fn copy(image: &Path, dir: &Path, name: &str) -> Result<(PathBuf, PathBuf)> {
    let images = dir.join("images");
    let target = images.join(name);
    fs::create_dir_all(&images)?;
    run(Command::new("cp").args(["-a", "--"]).arg(image).arg(&target))?;
    Ok((images, target))
}

/// A copy of an image whose shim has lost its signature; the manifest agrees with it.
///
/// # Errors
/// When files cannot be read or written, or `sbattach` is missing.
pub fn unsigned(image: &Path, dir: &Path) -> Result<(PathBuf, String)> {
    let (images, target) = copy(image, dir, "unsigned")?;
    run(Command::new("sbattach")
        .arg("--remove")
        .arg(target.join("efi/shimx64.efi")))?;
    agree(&target, "unsigned", "efi/shimx64.efi")?;
    Ok((images, "unsigned".to_owned()))
}

/// An image that can drive one kind of network card only; a PC with another never speaks.
///
/// # Errors
/// When `cidbuild` or the node programs are not built, or the build fails.
pub fn build_for_nic(driver: &str, dir: &Path) -> Result<(PathBuf, String)> {
    let (images, recipe) = (dir.join("images"), dir.join("one-nic.toml"));
    fs::write(
        &recipe,
        include_str!("../recipes/one-nic.toml").replace("@DRIVER@", driver),
    )?;
    run(Command::new(program("cidbuild")?)
        .arg("image")
        .arg(&recipe)
        .arg("--out")
        .arg(&images)
        .arg("--node-programs")
        .arg(node_programs()?))?;
    Ok((images, "one-nic".to_owned()))
}

/// Enters a changed file into the manifest beside it.
fn agree(target: &Path, name: &str, changed: &str) -> Result<()> {
    let path = target.join("manifest.json");
    let mut manifest: Manifest = serde_json::from_slice(&fs::read(&path)?).context("reading the manifest")?;
    name.clone_into(&mut manifest.name);
    let file = target.join(changed);
    let artifact = manifest
        .artifacts
        .get_mut(changed)
        .with_context(|| format!("the manifest names no {changed}"))?;
    artifact.size = fs::metadata(&file)?.len();
    artifact.sha256 = sha256(&file)?;
    fs::write(&path, serde_json::to_vec_pretty(&manifest)?)?;
    Ok(())
}

/// A copy of an image below `dir`, under its own name, with further words on its kernel command line: another version of it. Called
/// again, it takes the place of the copy before.
///
/// # Errors
/// When files cannot be read or written.
pub fn with_words(image: &Path, dir: &Path, words: &str) -> Result<PathBuf> {
    let name = image
        .file_name()
        .context("the image has no name")?
        .to_string_lossy();
    let images = dir.join("images");
    if images.join(&*name).exists() {
        fs::remove_dir_all(images.join(&*name))?;
    }
    let (images, target) = copy(image, dir, &name)?;
    let path = target.join("manifest.json");
    let mut manifest: Manifest = serde_json::from_slice(&fs::read(&path)?).context("reading the manifest")?;
    manifest.cmdline = format!("{} {words}", manifest.cmdline);
    // Whoever looks meanwhile sees the whole of it or nothing new.
    fs::write(path.with_extension("new"), serde_json::to_vec_pretty(&manifest)?)?;
    fs::rename(path.with_extension("new"), &path)?;
    Ok(images)
}

/// A copy of an image whose initramfs lacks its last part; the manifest agrees with it.
///
/// # Errors
/// When files cannot be read or written.
pub fn truncated(image: &Path, dir: &Path) -> Result<(PathBuf, String)> {
    let (images, target) = copy(image, dir, "truncated")?;
    let initrd = target.join("initrd.img");
    let size = fs::metadata(&initrd)?.len() * 9 / 10;
    fs::File::options().write(true).open(&initrd)?.set_len(size)?;
    agree(&target, "truncated", "initrd.img")?;
    Ok((images, "truncated".to_owned()))
}

/// Folder with `cid-init` and `cid-agent` as they go into images (`ci/node-programs` makes it).
pub(crate) fn node_programs() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("CID_NODE_PROGRAMS") {
        return Ok(dir.into());
    }
    let cidbuild = program("cidbuild")?;
    let found = cidbuild
        .ancestors()
        .skip(1)
        .map(|dir| dir.join("node-programs"))
        .find(|dir| dir.is_dir());
    found.context("no folder node-programs in the target folder: run ci/node-programs")
}
