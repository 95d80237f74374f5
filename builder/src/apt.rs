//! Packages of a named suite through the machine's own package client, without root and without touching its state.
//! Signatures are the client's to check: nothing that it did not verify is ever used.

pub mod resolve;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use cid_initramfs::digest::hex;
use serde::{Deserialize, Serialize};

use crate::cache::{Cache, write_atomically};
use crate::progress::Progress;
use crate::sources::{Archive, configured_archive};

/// One package file in the cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// Name, e.g. `linux-image-6.12.107+deb13-amd64`.
    pub name: String,
    /// Version, e.g. `6.12.107-1`.
    pub version: String,
    /// SHA-256 that the signed index gives for the file, lower-case hex.
    pub sha256: String,
    /// Size in bytes.
    pub size: u64,
}

impl Package {
    /// Where the file lies in the cache.
    pub fn file(&self, cache: &Cache) -> PathBuf {
        cache.path("packages").join(format!("{}.deb", self.sha256))
    }
}

/// Whether known packages are used as they are or looked up again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// What was fetched before is used without asking: the same input until somebody refreshes.
    Pinned,
    /// The archive is asked for newer versions.
    Refresh,
}

/// The package client with a state folder of its own.
#[derive(Debug)]
pub struct Apt<'a> {
    cache: &'a Cache,
    suite: String,
    freshness: Freshness,
    updated: bool,
}

impl<'a> Apt<'a> {
    /// For one suite of the configured archive.
    pub fn new(cache: &'a Cache, suite: &str, freshness: Freshness) -> Self {
        Apt {
            cache,
            suite: suite.to_owned(),
            freshness,
            updated: false,
        }
    }

    /// The package `name`, its file in the cache. A meta-package that depends on `NAME-PREFIX…` packages is followed
    /// when `follow` gives that prefix (`linux-image-`).
    pub fn package(
        &mut self,
        name: &str,
        follow: Option<&str>,
        progress: &Progress,
    ) -> anyhow::Result<Package> {
        let pin = self
            .cache
            .path("pins")
            .join(format!("{}_{name}.json", self.suite));
        if self.freshness == Freshness::Pinned
            && let Some(package) = read_pin::<Package>(&pin)
            && package.file(self.cache).is_file()
        {
            return Ok(package);
        }
        self.update(progress)?;
        let mut shown = self.show(name)?;
        if let Some(prefix) = follow
            && let Some(real) = shown.depends_on(prefix)
        {
            shown = self.show(&real)?;
        }
        let package = shown.package;
        self.download(&package, progress)?;
        write_atomically(&pin, &serde_json::to_vec_pretty(&package)?)?;
        Ok(package)
    }

    /// The package `name` and everything that it depends on (of alternatives, the first), their files in the cache: what a program
    /// of the suite needs to run where nothing of the suite is installed.
    pub fn with_dependencies(&mut self, name: &str, progress: &Progress) -> anyhow::Result<Vec<Package>> {
        let pin = self
            .cache
            .path("pins")
            .join(format!("{}_{name}_all.json", self.suite));
        if self.freshness == Freshness::Pinned
            && let Some(packages) = read_pin::<Vec<Package>>(&pin)
            && packages.iter().all(|package| package.file(self.cache).is_file())
        {
            return Ok(packages);
        }
        self.update(progress)?;
        let mut packages: Vec<Package> = Vec::new();
        let mut open = vec![name.to_owned()];
        while let Some(next) = open.pop() {
            if packages.iter().any(|package| package.name == next) {
                continue;
            }
            let shown = self.show(&next)?;
            open.extend(shown.first_alternatives());
            self.download(&shown.package, progress)?;
            packages.push(shown.package);
        }
        packages.sort_by(|a, b| a.name.cmp(&b.name));
        write_atomically(&pin, &serde_json::to_vec_pretty(&packages)?)?;
        Ok(packages)
    }

    fn update(&mut self, progress: &Progress) -> anyhow::Result<()> {
        if self.updated {
            return Ok(());
        }
        let archive = configured_archive(Path::new("/etc/apt")).context(
            "no Debian archive among this machine's package sources (/etc/apt/sources.list, sources.list.d): \
             add one, or give --kernel, --modules, --shim, --grub, --mok and --ipxe",
        )?;
        let folder = self.folder();
        for part in ["lists/partial", "cache/archives/partial", "state"] {
            fs::create_dir_all(folder.join(part)).with_context(|| folder.display().to_string())?;
        }
        write_atomically(
            &folder.join("sources.list"),
            source_line(&archive, &self.suite).as_bytes(),
        )?;
        let phase = progress.spinner(&format!("asking the archive for suite {}", self.suite));
        let mut command = self.client("apt-get");
        command.arg("update");
        run(&mut command)?;
        phase.finish();
        self.updated = true;
        Ok(())
    }

    fn show(&self, name: &str) -> anyhow::Result<Shown> {
        let mut command = self.client("apt-cache");
        command.args(["--no-all-versions", "show", "--", name]);
        let text = run(&mut command).with_context(|| format!("package {name} of suite {}", self.suite))?;
        Shown::parse(&text)
            .with_context(|| format!("package {name} of suite {}: not in its index", self.suite))
    }

    fn download(&self, package: &Package, progress: &Progress) -> anyhow::Result<()> {
        let target = package.file(self.cache);
        if target.is_file() {
            return Ok(());
        }
        let workshop = self.cache.workshop()?;
        let phase = progress.growing(
            &format!("fetching {}", package.name),
            package.size,
            workshop.path(),
        );
        let mut command = self.client("apt-get");
        command
            .arg("download")
            .arg(format!("{}={}", package.name, package.version))
            .current_dir(workshop.path());
        run(&mut command)?;
        phase.finish();
        let file = fs::read_dir(workshop.path())?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("apt-get download {} left no file", package.name))?;
        // apt checked it; this catches a disk that lost bytes since, and binds the cache's name to the content.
        let found = sha256_file(&file)?;
        if found != package.sha256 {
            bail!(
                "{}: SHA-256 is {found}, the signed index says {}",
                package.name,
                package.sha256
            );
        }
        fs::rename(&file, &target).with_context(|| target.display().to_string())
    }

    fn folder(&self) -> PathBuf {
        self.cache.path("apt").join(&self.suite)
    }

    /// The client with everything that it would read or write of the machine's state turned to our folder. Its
    /// network settings (proxy, mirrors) stay those of the machine.
    fn client(&self, program: &str) -> Command {
        let folder = self.folder();
        let mut command = Command::new(program);
        let mut set = |key: &str, value: &dyn std::fmt::Display| {
            command.arg("-o").arg(format!("{key}={value}"));
        };
        set("Dir::Etc::sourcelist", &folder.join("sources.list").display());
        set("Dir::Etc::sourceparts", &"-");
        set("Dir::Etc::preferences", &"-");
        set("Dir::Etc::preferencesparts", &"-");
        set("Dir::State", &folder.join("state").display());
        set("Dir::State::lists", &folder.join("lists").display());
        set("Dir::State::status", &"/dev/null");
        set("Dir::Cache", &folder.join("cache").display());
        set("APT::Architecture", &"amd64");
        set("APT::Architectures", &"amd64");
        set("Acquire::Languages", &"none");
        // A desktop's configuration asks for icons and file lists as well.
        set("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", &"false");
        set(
            "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled",
            &"false",
        );
        if rustix::process::geteuid().is_root() {
            // Root's client drops to a user who may not write here.
            set("APT::Sandbox::User", &"root");
        }
        command.env("LC_ALL", "C.UTF-8");
        command
    }
}

/// What the index says of a package.
#[derive(Debug)]
struct Shown {
    package: Package,
    depends: String,
}

impl Shown {
    fn parse(text: &str) -> Option<Self> {
        let stanza = text.split("\n\n").next()?;
        let field = |key: &str| {
            stanza
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
                .map(str::to_owned)
        };
        let sha256 = field("SHA256")
            .filter(|digest| digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit()))?;
        Some(Shown {
            package: Package {
                name: field("Package")?,
                version: field("Version")?,
                sha256: sha256.to_ascii_lowercase(),
                size: field("Size")?.parse().ok()?,
            },
            depends: field("Depends").unwrap_or_default(),
        })
    }

    /// The first dependency whose name starts with `prefix`: what a meta-package stands for.
    fn depends_on(&self, prefix: &str) -> Option<String> {
        let names = self
            .depends
            .split([',', '|'])
            .filter_map(|item| item.split_whitespace().next());
        names
            .into_iter()
            .find(|name| name.starts_with(prefix))
            .map(str::to_owned)
    }
}

impl Shown {
    /// Of each dependency the package that is named first.
    fn first_alternatives(&self) -> impl Iterator<Item = String> {
        self.depends
            .split(',')
            .filter_map(|clause| clause.split(['|', '(', ':']).next())
            .map(|name| name.trim().to_owned())
            .filter(|name| !name.is_empty())
    }
}

fn source_line(archive: &Archive, suite: &str) -> String {
    format!(
        "deb [signed-by={}] {} {suite} main\n",
        archive.keyring, archive.uri
    )
}

fn read_pin<T: serde::de::DeserializeOwned>(file: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(file).ok()?).ok()
}

/// SHA-256 of a file, in bounded memory.
pub fn sha256_file(path: &Path) -> anyhow::Result<String> {
    use sha2::Digest;
    let mut file = fs::File::open(path).with_context(|| path.display().to_string())?;
    let mut digest = sha2::Sha256::new();
    std::io::copy(&mut file, &mut digest).with_context(|| path.display().to_string())?;
    Ok(hex(&digest.finalize()))
}

/// Runs to the end; its standard output, or its last error line as our error.
fn run(command: &mut Command) -> anyhow::Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| {
        format!("{program}: this needs Debian's package client on the machine that builds")
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let line = errors
        .lines()
        .rev()
        .find(|line| line.starts_with("E: "))
        .or(errors.lines().next_back());
    bail!("{program}: {}", line.unwrap_or("failed without a word"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_entries() {
        let text = format!(
            "Package: linux-image-amd64\nVersion: 6.12.107-1\nDepends: a (>= 1), linux-image-6.12.107+deb13-amd64 (= 6.12.107-1)\nSize: 1468\nSHA256: {}\n\nPackage: other\n",
            "ab".repeat(32)
        );
        let shown = Shown::parse(&text).unwrap();
        assert_eq!(
            shown.depends_on("linux-image-").as_deref(),
            Some("linux-image-6.12.107+deb13-amd64")
        );
        assert_eq!(
            (shown.package.size, shown.package.name.as_str()),
            (1468, "linux-image-amd64")
        );
        let shown = Shown {
            depends: "libc6 (>= 2.38), a | b, perl:any".into(),
            ..shown
        };
        assert_eq!(
            shown.first_alternatives().collect::<Vec<_>>(),
            ["libc6", "a", "perl"]
        );
        assert!(Shown::parse("").is_none());
        assert!(Shown::parse("Package: x\nVersion: 1\nSize: 1\nSHA256: ../../etc\n").is_none());
    }
}
