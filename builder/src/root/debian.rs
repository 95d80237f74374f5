//! A base of Debian packages: resolve or take the lock, fetch through the machine's package client, install with
//! mmdebstrap from a repository on this disk that holds just the locked packages. Needs no network once they are cached.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use super::lock::Lock;
use super::tree::{Tree, Whiteouts};
use crate::apt::resolve::control;
use crate::apt::{Apt, Freshness};
use crate::cache::Cache;
use crate::progress::Progress;
use crate::recipe::Recipe;
use crate::recipe::root::RootRecipe;

/// The packages to install, all of them in the cache. Writes the lock when there is none, or with `--update`.
pub(super) fn locked(
    recipe: &Recipe,
    root: &RootRecipe,
    suite: &str,
    freshness: Freshness,
    cache: &Cache,
    progress: &Progress,
) -> anyhow::Result<Lock> {
    let mut apt = Apt::new(cache, suite, freshness);
    let lock = match (freshness, Lock::read(&root.lock)?) {
        (Freshness::Pinned, Some(lock)) if lock.fits(suite, root) => lock,
        (Freshness::Pinned, Some(_)) => {
            let line = root.packages.first().map_or(root.line, |name| name.line);
            let problem = format!(
                "suite or packages are others than those {} was made for: run cidbuild image with --update",
                root.lock.display()
            );
            return Err(recipe.error(line, problem).into());
        }
        _ => {
            let names: Vec<&str> = root.packages.iter().map(|name| name.value.as_str()).collect();
            let resolved = apt.resolve(&names, progress).map_err(|error| {
                // The client names the package that it does not find.
                let text = format!("{error:#}");
                let words: Vec<&str> = text.split([' ', '\'', ',']).collect();
                let guilty = root
                    .packages
                    .iter()
                    .find(|name| words.contains(&name.value.as_str()));
                let line = guilty.map_or(root.base.line, |name| name.line);
                recipe.error(line, format!("{text}; correct the name or the suite {suite}"))
            })?;
            let lock = Lock::new(suite, root, resolved.date, resolved.packages);
            lock.write(&root.lock).with_context(|| {
                format!(
                    "lock file {}: name one that can be written with [root] lock",
                    root.lock.display()
                )
            })?;
            lock
        }
    };
    let gone = apt.fetch(&lock.packages, progress)?;
    match gone.first() {
        None => Ok(lock),
        Some(first) => {
            let others = match gone.len() {
                1 => String::new(),
                count => format!(" and {} others", count - 1),
            };
            bail!(
                "{}: {} {}{others}: the archive has this version no more; run cidbuild image with --update",
                root.lock.display(),
                first.name,
                first.version
            )
        }
    }
}

/// Installs `lock` into a fresh tree. The tree's contents stay in `tar`, which lies in `workshop`.
pub(super) fn install(
    lock: &Lock,
    cache: &Cache,
    workshop: &Path,
    progress: &Progress,
) -> anyhow::Result<Tree> {
    let repository = workshop.join("repository");
    make_repository(lock, cache, &repository)?;
    let tar = workshop.join("base.tar");
    let mut command = mmdebstrap("essential", lock.date, workshop);
    let names: Vec<&str> = lock
        .packages
        .iter()
        .map(|package| package.name.as_str())
        .collect();
    command.arg(format!("--include={}", names.join(",")));
    // The tree is packed when it is done: nothing is lost when the machine stops before.
    command.arg("--dpkgopt=force-unsafe-io");
    command.arg("").arg(&tar);
    command.arg(format!("deb [trusted=yes] copy:{} ./", repository.display()));
    run(command, &format!("installing {} packages", names.len()), progress)?;
    fs::remove_dir_all(&repository)?;
    let mut tree = Tree::default();
    tree.read_tar(File::open(&tar)?, Whiteouts::Keep)?;
    clean(&mut tree);
    Ok(tree)
}

/// mmdebstrap with what is the same for every call. Its tree grows in `workshop`, which the next builder removes if this one is killed.
pub(super) fn mmdebstrap(variant: &str, epoch: u64, workshop: &Path) -> Command {
    let mut command = contained("mmdebstrap");
    command.arg(format!("--variant={variant}"));
    command.args(["--mode=auto", "--format=tar", "--architectures=amd64"]);
    if rustix::process::geteuid().is_root() {
        // Root's client drops to a user who may not read the cache.
        command.arg("--aptopt=APT::Sandbox::User \"root\"");
        // Others install as a user who may not look in here, and take /tmp; and what is removed later must hold no mounts.
        if has_own() {
            command.env("TMPDIR", workshop);
        }
    }
    command.env("SOURCE_DATE_EPOCH", epoch.to_string());
    // Neither the language nor the umask of who builds shows in the tree.
    command.env("LC_ALL", "C.UTF-8").env("TZ", "UTC");
    command
}

/// A program that is gone with all it has started and mounted when it ends, and when this one does: mmdebstrap that is killed leaves
/// `/proc`, `/sys` and `/dev` mounted in a tree that somebody will want to remove.
fn contained(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    if has_own() {
        command.arg("unshare").args(OWN);
    }
    command.arg(program);
    command
}

/// Mounts and processes of its own.
const OWN: [&str; 5] = ["--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"];

/// Whether [`OWN`] can be had: other users than root get both from mmdebstrap itself, and a container may give neither.
fn has_own() -> bool {
    let mut attempt = Command::new("unshare");
    attempt.args(OWN).arg("true").stdin(Stdio::null());
    let status = attempt.stdout(Stdio::null()).stderr(Stdio::null()).status();
    rustix::process::geteuid().is_root() && status.is_ok_and(|status| status.success())
}

/// Runs to the end with its last words on the progress line; an error is its last error line.
pub(super) fn run(mut command: Command, what: &str, progress: &Progress) -> anyhow::Result<()> {
    let phase = progress.spinner(what);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("setpriv, of the package util-linux")?;
    let mut last = Vec::new();
    if let Some(output) = child.stderr.take() {
        for line in BufReader::new(output).lines() {
            let Ok(line) = line else { break };
            if let Some(step) = line.strip_prefix("I: ") {
                phase.say(&format!("{what}: {step}"));
            }
            last.push(line);
            if last.len() > LAST_WORDS {
                last.remove(0);
            }
        }
    }
    let status = child.wait().context("mmdebstrap")?;
    phase.finish();
    if status.success() {
        return Ok(());
    }
    if status.code() == Some(NOT_FOUND) {
        bail!("mmdebstrap: a Debian base and hooks need it; run apt-get install mmdebstrap");
    }
    // The words of what failed, or else mmdebstrap's first; after them it only says what it takes down.
    let first = last
        .iter()
        .position(|line| line.starts_with("E: "))
        .unwrap_or(last.len());
    let said = |line: &&String| !line.starts_with("I: ") && !line.trim().is_empty();
    let words = last[..first].iter().rev().find(said).or(last.get(first));
    bail!(
        "mmdebstrap, while {what}: {}",
        words.map_or("failed without a word", |line| line.trim())
    )
}

/// A flat repository: the package files, and an index made of their own control files.
fn make_repository(lock: &Lock, cache: &Cache, folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder)?;
    let mut index = std::io::BufWriter::new(File::create(folder.join("Packages"))?);
    for package in &lock.packages {
        let file = package.file(cache);
        let name = format!("{}.deb", package.sha256);
        let place = folder.join(&name);
        fs::hard_link(&file, &place).or_else(|_| fs::copy(&file, &place).map(drop))?;
        let text = control(&file)?;
        write!(
            index,
            "{}\nFilename: ./{name}\nSize: {}\nSHA256: {}\n\n",
            text.trim_end(),
            package.size,
            package.sha256
        )?;
    }
    index.flush()?;
    Ok(())
}

/// Takes out what belongs to the machine that built, to one moment, or to nobody but one node.
pub(super) fn clean(tree: &mut Tree) {
    tree.retain(|name| {
        let inside = |folder: &str| {
            name.strip_prefix(folder)
                .is_some_and(|rest| rest.starts_with('/'))
        };
        !(EMPTIED.iter().any(|folder| inside(folder))
            || LEFT_OUT.iter().any(|pattern| super::tree::covers(pattern, name)))
    });
}

/// Folders that stay, empty.
const EMPTIED: &[&str] = &[
    "var/log",
    "var/cache/apt",
    "var/cache/ldconfig",
    "var/lib/apt/lists",
    "boot",
];

/// Host keys and a cluster's key would be secrets in an image; names and addresses are the building machine's; the
/// others are made anew or only say when they were made.
const LEFT_OUT: &[&str] = &[
    "etc/ssh/ssh_host_*",
    "etc/munge/munge.key",
    "etc/hostname",
    "etc/resolv.conf",
    "etc/machine-id",
    "var/lib/dbus/machine-id",
    "var/lib/systemd/random-seed",
    "etc/apt/sources.list",
    "etc/apt/apt.conf.d/*mmdebstrap",
    "etc/dpkg/dpkg.cfg.d/*mmdebstrap",
    "etc/passwd-",
    "etc/group-",
    "etc/shadow-",
    "etc/gshadow-",
    "var/lib/dpkg/*-old",
    "var/lib/dpkg/lock*",
    "var/cache/debconf/*-old",
];

/// What setpriv and unshare end with when there is no such program.
const NOT_FOUND: i32 = 127;
/// Lines kept for the error message.
const LAST_WORDS: usize = 30;

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn until(what: &str, is: impl Fn() -> bool) {
        let began = Instant::now();
        while !is() {
            assert!(began.elapsed() < Duration::from_secs(20), "{what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn nothing_is_left_of_what_was_contained() {
        let folder = tempfile::tempdir().unwrap();
        let (place, ready) = (folder.path().join("place"), folder.path().join("ready"));
        fs::create_dir(&place).unwrap();
        // Mounts only where it may; a child that would outlive it.
        let script = format!(
            "mount -t tmpfs inside {0} 2>/dev/null && touch {0}/mounted; sleep 4711 & echo >{1}; wait",
            place.display(),
            ready.display()
        );
        let inner = contained("sh");
        // A shell between, so that there is somebody to kill.
        let mut killed = Command::new("sh")
            .args(["-c", "\"$@\"; true", "sh"])
            .arg(inner.get_program())
            .args(inner.get_args())
            .args(["-c", &script])
            .spawn()
            .unwrap();
        until("it starts", || ready.exists());
        let sleeps = || {
            let all = fs::read_dir("/proc").unwrap().flatten();
            let mut lines = all.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
            lines.any(|line| line == b"sleep\x004711\x00")
        };
        until("its child starts", sleeps);
        assert!(!place.join("mounted").exists());
        killed.kill().unwrap();
        killed.wait().unwrap();
        if rustix::process::geteuid().is_root() {
            until("all of it ends", || !sleeps());
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(place.to_str().unwrap()), "{mounts}");
    }
}
