//! Lock files: every package of a root with version and digest. What stands in one is what is built, or the build is
//! refused; never changes a lock without being told to.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;
use cid_initramfs::digest::sha256_hex;
use serde::Deserialize;

use crate::apt::Package;
use crate::cache::write_atomically;
use crate::recipe::root::RootRecipe;

/// A lock file's content.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    version: u32,
    /// Suite of the packages.
    pub suite: String,
    /// Digest of what the recipe asked for: by it a recipe that asks for other packages is known.
    pub asked: String,
    /// When the archive wrote the index that they are from, seconds since 1970: the image's `SOURCE_DATE_EPOCH`.
    pub date: u64,
    /// Sorted by name.
    pub packages: Vec<Package>,
}

impl Lock {
    /// For what `root` asks for.
    pub fn new(suite: &str, root: &RootRecipe, date: u64, packages: Vec<Package>) -> Self {
        Lock {
            version: VERSION,
            suite: suite.to_owned(),
            asked: asked(suite, root),
            date,
            packages,
        }
    }

    /// None when there is no such file.
    pub fn read(file: &Path) -> anyhow::Result<Option<Self>> {
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| file.display().to_string()),
        };
        let broken = |problem: &str| {
            let problem = problem.replace('\n', " ");
            anyhow::anyhow!("{}: {problem}; make it anew with --update", file.display())
        };
        let lock: Lock = toml::from_str(&text).map_err(|error| broken(error.message()))?;
        let digest = |text: &str| {
            text.len() == 64
                && text
                    .bytes()
                    .all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
        };
        let word = |text: &str| {
            !text.is_empty()
                && !text.starts_with('-')
                && text
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "+-.:~".contains(c))
        };
        if lock.version != VERSION {
            return Err(broken(&format!(
                "version {} of lock files is not known",
                lock.version
            )));
        }
        match lock
            .packages
            .iter()
            .find(|p| !digest(&p.sha256) || !word(&p.name) || !word(&p.version))
        {
            Some(bad) => Err(broken(&format!(
                "package {:?} has no proper name, version or SHA-256",
                bad.name
            ))),
            None => Ok(Some(lock)),
        }
    }

    /// Whether it was made for what `root` asks for.
    pub fn fits(&self, suite: &str, root: &RootRecipe) -> bool {
        self.suite == suite && self.asked == asked(suite, root)
    }

    /// Writes it, one line for each package, so that version control shows what changed.
    pub fn write(&self, file: &Path) -> anyhow::Result<()> {
        let mut text = String::from(
            "# Written by cidbuild: every package of the root. `cidbuild image NAME --update` makes it anew.\n",
        );
        let _ = writeln!(
            text,
            "version = {}\nsuite = {:?}\nasked = {:?}\ndate = {}\npackages = [",
            self.version, self.suite, self.asked, self.date
        );
        for Package {
            name,
            version,
            sha256,
            size,
        } in &self.packages
        {
            let _ = writeln!(
                text,
                "    {{ name = {name:?}, version = {version:?}, size = {size}, sha256 = {sha256:?} }},"
            );
        }
        text.push_str("]\n");
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        write_atomically(file, text.as_bytes())
    }
}

fn asked(suite: &str, root: &RootRecipe) -> String {
    let mut names: Vec<&str> = root.packages.iter().map(|name| name.value.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    sha256_hex(format!("{suite}\n{}", names.join("\n")).as_bytes())
}

const VERSION: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_and_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.lock");
        assert_eq!(Lock::read(&file).unwrap(), None);
        let package = Package {
            name: "libstdc++6".into(),
            version: "1:14.2.0-19~x".into(),
            sha256: "ab".repeat(32),
            size: 7,
        };
        let lock = Lock {
            version: VERSION,
            suite: "trixie".into(),
            asked: String::new(),
            date: 12,
            packages: vec![package],
        };
        lock.write(&file).unwrap();
        assert_eq!(Lock::read(&file).unwrap(), Some(lock));
        let text = std::fs::read_to_string(&file).unwrap();
        for (from, to) in [
            ("abab", "../"),
            ("libstdc++6", "-o"),
            ("version = 1", "version = 2"),
            ("\ndate", "\ndates"),
        ] {
            std::fs::write(&file, text.replacen(from, to, 1)).unwrap();
            let error = Lock::read(&file).expect_err(to).to_string();
            assert!(error.contains("--update") && !error.contains('\n'), "{error}");
        }
    }
}
