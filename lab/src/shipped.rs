//! The shipped recipes with a test's programs in them: built by the real `cidbuild` from a recipe that includes the shipped one. The
//! programs get figures of the test's own, and the test computes what they must say.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::rooted::{PROBE, run_cidbuild};
use crate::run::run;

/// Figures that the programs find as `values.NAME`.
pub type Values = BTreeMap<&'static str, String>;

/// Where `cidbuild`'s recipes lie in the tree.
fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../images")
}

/// Builds the shipped recipe `name` as it is, below `dir`. Returns the folder of images.
///
/// # Errors
/// When `cidbuild` or the node programs are missing, or the build fails.
pub fn build_shipped(dir: &Path, name: &str) -> Result<PathBuf> {
    let (recipes, images) = (recipes(dir)?, dir.join("images"));
    run_cidbuild(&recipes.join(format!("{name}.toml")), &images)?;
    Ok(images)
}

/// Builds the shipped recipe `name` with the programs of `lab/recipes/programs/NAME` in `/opt/programs` as `NAME-programs`: `run` is a
/// service of the user `ada`, the probe one of root. Returns the folder of images.
///
/// # Errors
/// As [`build_shipped`].
pub fn build_with_programs(dir: &Path, name: &str, values: &Values) -> Result<PathBuf> {
    build_programs(dir, name, name, "", values)
}

/// The same on another base, `oci:PATH`.
///
/// # Errors
/// As [`build_shipped`].
pub fn build_on_base(dir: &Path, name: &str, base: &str, values: &Values) -> Result<PathBuf> {
    build_programs(dir, name, "minimal", &format!("base = {base:?}\n"), values)
}

fn build_programs(dir: &Path, name: &str, include: &str, root: &str, values: &Values) -> Result<PathBuf> {
    let (recipes, images) = (recipes(dir)?, dir.join("images"));
    let folder = recipes.join("programs/opt/programs");
    fs::create_dir_all(&folder)?;
    let programs = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("recipes/programs")
        .join(name);
    for entry in fs::read_dir(&programs).with_context(|| format!("reading {}", programs.display()))? {
        let entry = entry?;
        fs::copy(entry.path(), folder.join(entry.file_name()))?;
    }
    let probe = folder.join("probe");
    fs::write(&probe, PROBE)?;
    fs::set_permissions(&probe, fs::Permissions::from_mode(0o755))?;
    let values: String = values
        .iter()
        .map(|(name, value)| format!("{name} = {value}\n"))
        .collect();
    let recipe = recipes.join(format!("{name}-programs.toml"));
    fs::write(
        &recipe,
        format!(
            "include = {include:?}\nname = \"{name}-programs\"\n[root]\n{root}overlays = [\"programs\"]\n[root.values]\n{values}\
             [[root.users]]\nname = \"ada\"\nshell = \"/bin/sh\"\n\
             [[root.services]]\nname = \"probe\"\ncommand = [\"/opt/programs/probe\"]\nrestart = \"never\"\n\
             [[root.services]]\nname = \"programs\"\ncommand = [\"/opt/programs/run\"]\nuser = \"ada\"\nrestart = \"never\"\n"
        ),
    )?;
    run_cidbuild(&recipe, &images)?;
    Ok(images)
}

/// A copy of the shipped recipes below `dir`: their locks are written beside them.
fn recipes(dir: &Path) -> Result<PathBuf> {
    let recipes = dir.join("recipes");
    if !recipes.exists() {
        run(Command::new("cp").args(["-r", "--"]).arg(shipped()).arg(&recipes))?;
    }
    // Whoever built them before has a lock: the same packages then.
    if let Some(locks) = std::env::var_os("CID_RECIPE_LOCKS") {
        for entry in fs::read_dir(locks)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "lock") {
                fs::copy(&path, recipes.join(path.file_name().unwrap_or_default()))?;
            }
        }
    }
    Ok(recipes)
}
