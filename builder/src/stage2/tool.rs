//! `mkfs.erofs` of the recipe's suite, run with the suite's own C library, so that an image is the same whatever the machine that builds
//! it has installed. Fetched like every package; never anything but a child process with our arguments.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use super::{COMPRESSION, UUID};
use crate::apt::Apt;
use crate::cache::Cache;
use crate::deb;
use crate::progress::Progress;

/// Debian's name of the package.
const PACKAGE: &str = "erofs-utils";
/// Where shared libraries lie below a package's folder.
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
const LOADER: &str = "ld-linux-x86-64.so.2";
/// How erofs-utils begin a line that tells of an error.
const ERROR_MARK: &[u8] = b"<E>";

/// What a file system is put onto.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Onto {
    /// A new file.
    Nothing,
    /// The file is a file system already, whose data stays where it is.
    Existing,
}

/// The tool with what it is linked to.
#[derive(Debug)]
pub(crate) struct Tool {
    loader: PathBuf,
    libraries: String,
    programs: PathBuf,
    identity: String,
}

impl Tool {
    /// Fetches what is not in the cache yet.
    pub(super) fn of_suite(apt: &mut Apt<'_>, cache: &Cache, progress: &Progress) -> anyhow::Result<Self> {
        let packages = apt
            .with_dependencies(PACKAGE, progress)
            .with_context(|| format!("{PACKAGE}, which makes root.img"))?;
        let (mut folders, mut identity) = (Vec::new(), String::new());
        let mut programs = None;
        for package in &packages {
            let tree = deb::unpacked(cache, package, progress)?;
            identity.push_str(&format!("{} {}\n", package.name, package.sha256));
            let own = tree.join("usr/bin");
            if package.name == PACKAGE {
                programs = Some(own);
            }
            folders.extend(
                LIBRARIES
                    .iter()
                    .map(|folder| tree.join(folder))
                    .filter(|folder| folder.is_dir()),
            );
        }
        let loader = folders
            .iter()
            .map(|folder| folder.join(LOADER))
            .find(|file| file.is_file())
            .with_context(|| format!("{PACKAGE}: none of its dependencies brings {LOADER}"))?;
        let folders: Vec<String> = folders
            .iter()
            .map(|folder| folder.display().to_string())
            .collect();
        Ok(Tool {
            loader,
            libraries: folders.join(":"),
            programs: programs.with_context(|| format!("{PACKAGE}: not among its own packages"))?,
            identity,
        })
    }

    /// Names and digests of everything that it is made of.
    pub(super) fn identity(&self) -> &str {
        &self.identity
    }

    /// Writes the file system of `tar` to `image`.
    pub(super) fn make(&self, image: &Path, tar: &Path, epoch: u64, onto: Onto) -> anyhow::Result<()> {
        // The bytes do not depend on the number of workers, but on there being any.
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let mut command = self.command("mkfs.erofs");
        command
            .args(["--quiet", "--tar=f", "--mkfs-time"])
            .arg(format!("-T{epoch}"))
            .arg(format!("-U{UUID}"))
            .arg(format!("--workers={workers}"))
            .args(COMPRESSION)
            .args((onto == Onto::Existing).then_some("--incremental=data"))
            .args([image, tar]);
        run(&mut command)
            .with_context(|| format!("mkfs.erofs of {}", tar.display()))
            .map(drop)
    }

    /// What another program of the package says of `image`.
    pub(super) fn read(&self, program: &str, arguments: &[String], image: &Path) -> anyhow::Result<Vec<u8>> {
        let mut command = self.command(program);
        command.args(arguments).arg(image);
        run(&mut command).with_context(|| format!("{program} of {}", image.display()))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(&self.loader);
        command
            .arg("--library-path")
            .arg(&self.libraries)
            .arg(self.programs.join(program))
            // SOURCE_DATE_EPOCH and the like would be heard.
            .env_clear()
            .stdin(Stdio::null());
        command
    }
}

/// What it printed, or the last line that it had to say.
fn run(command: &mut Command) -> anyhow::Result<Vec<u8>> {
    let output = command
        .output()
        .context("programs of the suite run on amd64 machines only")?;
    // dump.erofs 1.8 says on stderr that there is no such file, and then exits with 0.
    let complains = output.stderr.starts_with(ERROR_MARK);
    if output.status.success() && !complains {
        return Ok(output.stdout);
    }
    let words = [output.stdout, output.stderr].concat();
    let words = String::from_utf8_lossy(&words);
    let line = words.lines().rev().find(|line| !line.trim().is_empty());
    bail!("{}", line.unwrap_or("failed without a word"));
}
