//! Sets of packages: what a list of names comes to with its dependencies, and fetching all of it. Installs nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, bail};

use super::{Apt, Package, run, sha256_file};
use crate::progress::Progress;

/// The essential packages, `names`, and what they depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Sorted by name; never a package of another architecture than amd64 or all.
    pub packages: Vec<Package>,
    /// When the archive wrote its index, seconds since 1970.
    pub date: u64,
}

impl Apt<'_> {
    /// What installing `names` on an empty machine comes to, without recommended packages.
    pub fn resolve(&mut self, names: &[&str], progress: &Progress) -> anyhow::Result<Resolved> {
        self.update(progress)?;
        let phase = progress.spinner("resolving packages");
        let mut command = self.client("apt-get");
        command.args(["-qq", "--print-uris", "--no-install-recommends", "-y"]);
        command.args(["-o", "Acquire::ForceHash=SHA256", "install", "?essential"]);
        command.args(names);
        let text = run(&mut command)?;
        phase.finish();
        let mut packages = Vec::new();
        for line in text.lines().filter(|line| line.starts_with('\'')) {
            packages.push(printed(line).with_context(|| format!("apt-get: cannot read {line:?}"))?);
        }
        packages.sort_by(|one, other| one.name.cmp(&other.name));
        if packages.is_empty() {
            bail!("suite {}: apt-get found nothing to install", self.suite);
        }
        Ok(Resolved {
            packages,
            date: self.date()?,
        })
    }

    /// The `Date` of the suite's signed index.
    fn date(&self) -> anyhow::Result<u64> {
        let lists = self.folder().join("lists");
        let entries = fs::read_dir(&lists).with_context(|| lists.display().to_string())?;
        for entry in entries.flatten() {
            if !entry.file_name().to_string_lossy().ends_with("Release") {
                continue;
            }
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            if let Some(date) = text
                .lines()
                .find_map(|line| line.strip_prefix("Date: "))
                .and_then(seconds)
            {
                return Ok(date);
            }
        }
        bail!(
            "{}: no index with a date; run again with --refresh",
            lists.display()
        )
    }

    /// Puts those of `packages` into the cache that are not there, a few at a time: an interrupted build goes on where it
    /// was. Gives the packages that the archive has no more.
    pub fn fetch(&mut self, packages: &[Package], progress: &Progress) -> anyhow::Result<Vec<Package>> {
        let missing: Vec<&Package> = packages
            .iter()
            .filter(|package| !package.file(self.cache).is_file())
            .collect();
        if missing.is_empty() {
            return Ok(Vec::new());
        }
        self.update(progress)?;
        let known = self.versions()?;
        let (there, gone): (Vec<&Package>, Vec<&Package>) = missing.into_iter().partition(|package| {
            known
                .get(&package.sha256)
                .is_some_and(|name| *name == package.name)
        });
        if !gone.is_empty() {
            return Ok(gone.into_iter().cloned().collect());
        }
        let phase = progress.bytes(
            "fetching packages",
            there.iter().map(|package| package.size).sum(),
        );
        let mut done = 0;
        for batch in there.chunks(BATCH) {
            self.fetch_batch(batch)?;
            done += batch.iter().map(|package| package.size).sum::<u64>();
            phase.at(done);
        }
        phase.finish();
        Ok(Vec::new())
    }

    fn fetch_batch(&self, batch: &[&Package]) -> anyhow::Result<()> {
        let workshop = self.cache.workshop()?;
        let mut command = self.client("apt-get");
        command.arg("download").current_dir(workshop.path());
        command.args(
            batch
                .iter()
                .map(|package| format!("{}={}", package.name, package.version)),
        );
        run(&mut command)?;
        for entry in fs::read_dir(workshop.path())? {
            let file = entry?.path();
            let digest = sha256_file(&file)?;
            if let Some(package) = batch.iter().find(|package| package.sha256 == digest) {
                fs::rename(&file, package.file(self.cache)).with_context(|| file.display().to_string())?;
            }
        }
        match batch.iter().find(|package| !package.file(self.cache).is_file()) {
            Some(package) => bail!(
                "{} {}: what came has not the SHA-256 {} of the index; run again",
                package.name,
                package.version,
                package.sha256
            ),
            None => Ok(()),
        }
    }

    /// Every package of the index: SHA-256 to name.
    fn versions(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let mut command = self.client("apt-cache");
        command.arg("dumpavail");
        let text = run(&mut command)?;
        let mut name = "";
        let mut known = BTreeMap::new();
        for line in text.lines() {
            if let Some(found) = line.strip_prefix("Package: ") {
                name = found;
            } else if let Some(digest) = line.strip_prefix("SHA256: ") {
                known.insert(digest.to_owned(), name.to_owned());
            }
        }
        Ok(known)
    }
}

/// One line of `--print-uris`: `'URI' NAME_VERSION_ARCH.deb SIZE SHA256:DIGEST`.
fn printed(line: &str) -> Option<Package> {
    let mut words = line.split_whitespace().skip(1);
    let file = words.next()?.strip_suffix(".deb")?;
    let size = words.next()?.parse().ok()?;
    let sha256 = words.next()?.strip_prefix("SHA256:")?;
    let mut parts = file.split('_');
    let (name, version) = (parts.next()?, parts.next()?);
    if sha256.len() != 64 || !sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    Some(Package {
        name: name.to_owned(),
        version: version.replace("%3a", ":"),
        sha256: sha256.to_ascii_lowercase(),
        size,
    })
}

/// Seconds since 1970 of a date as indexes have it: `Sat, 06 Sep 2025 08:12:31 UTC`.
fn seconds(text: &str) -> Option<u64> {
    let mut words = text.split_whitespace().skip(1);
    let day: u64 = words.next()?.parse().ok()?;
    let month = words.next()?;
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let year: u64 = words
        .next()?
        .parse()
        .ok()
        .filter(|year| (1970..10_000).contains(year))?;
    let mut clock = words.next()?.split(':').map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    // Days since 1 March of year 0, in which leap days stand last.
    let (shifted_year, shifted_month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = 365 * shifted_year + shifted_year / 4 - shifted_year / 100
        + shifted_year / 400
        + (153 * shifted_month + 2) / 5
        + day
        - 1;
    days.checked_sub(DAYS_TO_1970)
        .map(|days| days * 86_400 + hour * 3600 + minute * 60 + second)
}

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];
/// From 1 March of year 0 to 1 January 1970.
const DAYS_TO_1970: u64 = 719_468;
/// Packages fetched by one call of the client.
const BATCH: usize = 24;

/// Name, version and architecture from a package file's own control file, and that file's text.
pub fn control(file: &Path) -> anyhow::Result<String> {
    let shown = || file.display().to_string();
    let mut members = ar::Archive::new(fs::File::open(file).with_context(shown)?);
    while let Some(member) = members.next_entry() {
        let member = member.with_context(shown)?;
        if !member.header().identifier().starts_with(b"control.tar") {
            continue;
        }
        let plain = cid_initramfs::decompressor(std::io::BufReader::new(member)).with_context(shown)?;
        let mut archive = tar::Archive::new(plain);
        for entry in archive.entries().with_context(shown)? {
            let mut entry = entry.with_context(shown)?;
            let is_control =
                entry.path_bytes().as_ref() == b"./control" || entry.path_bytes().as_ref() == b"control";
            if is_control {
                let mut text = String::new();
                std::io::Read::read_to_string(&mut entry, &mut text).with_context(shown)?;
                return Ok(text);
            }
        }
    }
    bail!("{}: no control file in it: not a Debian package", file.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_client() {
        let digest = "ab".repeat(32);
        let line = format!("'http://archive/pool/x' libfoo_1%3a2.0-1+b1_amd64.deb 123 SHA256:{digest}");
        let package = printed(&line).unwrap();
        assert_eq!(
            (package.name.as_str(), package.version.as_str(), package.size),
            ("libfoo", "1:2.0-1+b1", 123)
        );
        assert!(printed("'x' y 1 SHA256:zz").is_none());
    }

    #[test]
    fn dates_as_date_has_them() {
        // date -u -d '...' +%s
        assert_eq!(seconds("Sat, 06 Sep 2025 08:12:31 UTC"), Some(1_757_146_351));
        assert_eq!(seconds("Thu, 29 Feb 2024 00:00:00 UTC"), Some(1_709_164_800));
        assert_eq!(seconds("Thu, 01 Jan 1970 00:00:00 UTC"), Some(0));
        assert_eq!(seconds("now"), None);
    }
}
