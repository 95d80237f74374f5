//! A kernel with its modules, wherever it comes from: a package, the running machine, or files given by hand. Never
//! trusts a name: the release is read from the kernel file itself.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// A kernel on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// The `bzImage`.
    pub vmlinuz: PathBuf,
    /// `…/lib/modules/RELEASE`.
    pub modules: PathBuf,
    /// `uname -r`.
    pub release: String,
    /// The kernel's configuration, where it is known.
    pub config: Option<PathBuf>,
}

impl Kernel {
    /// From an unpacked kernel package (`/usr` merged or not).
    pub fn in_package(tree: &Path) -> anyhow::Result<Self> {
        let boot = tree.join("boot");
        let vmlinuz = fs::read_dir(&boot)
            .with_context(|| format!("{}: no /boot: not a kernel package", tree.display()))?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| {
                path.file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
            })
            .with_context(|| format!("{}: no /boot/vmlinuz-*: not a kernel package", tree.display()))?;
        let release = release_of(&vmlinuz)?;
        let modules = ["usr/lib/modules", "lib/modules"]
            .map(|folder| tree.join(folder).join(&release))
            .into_iter()
            .find(|folder| folder.is_dir())
            .with_context(|| {
                format!(
                    "{}: no modules of kernel {release} in this package",
                    tree.display()
                )
            })?;
        let config = Some(boot.join(format!("config-{release}"))).filter(|file| file.is_file());
        Ok(Kernel {
            vmlinuz,
            modules,
            release,
            config,
        })
    }

    /// The newest installed kernel that has its modules.
    pub fn installed() -> anyhow::Result<Self> {
        let mut folders: Vec<PathBuf> = fs::read_dir("/lib/modules")
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect();
        folders.sort();
        for modules in folders.into_iter().rev() {
            let release = modules
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let vmlinuz = PathBuf::from(format!("/boot/vmlinuz-{release}"));
            if vmlinuz.is_file() && modules.join("kernel").is_dir() {
                let config =
                    Some(PathBuf::from(format!("/boot/config-{release}"))).filter(|file| file.is_file());
                return Ok(Kernel {
                    release: release_of(&vmlinuz)?,
                    vmlinuz,
                    modules,
                    config,
                });
            }
        }
        bail!(
            "no installed kernel: /boot/vmlinuz-* with modules in /lib/modules; install one or name a package"
        )
    }

    /// `--kernel FILE --modules DIR`; DIR is `…/RELEASE` itself or a folder above it.
    pub fn from_files(vmlinuz: &Path, modules: &Path) -> anyhow::Result<Self> {
        let release = release_of(vmlinuz)?;
        let candidates = [
            "",
            &release,
            &format!("lib/modules/{release}"),
            &format!("usr/lib/modules/{release}"),
        ]
        .map(|below| modules.join(below));
        let modules_dir = candidates
            .into_iter()
            .find(|folder| folder.join("kernel").is_dir())
            .with_context(|| {
                format!(
                    "{}: no folder 'kernel' with modules of {release} in it",
                    modules.display()
                )
            })?;
        let beside = vmlinuz.with_file_name(format!("config-{release}"));
        Ok(Kernel {
            vmlinuz: vmlinuz.to_owned(),
            modules: modules_dir,
            config: Some(beside).filter(|f| f.is_file()),
            release,
        })
    }

    /// Whether this kernel unpacks compressed modules itself (`CONFIG_MODULE_DECOMPRESS`). Unknown counts as no.
    pub fn unpacks_modules(&self) -> bool {
        let Some(config) = &self.config else { return false };
        fs::read_to_string(config)
            .is_ok_and(|text| text.lines().any(|line| line == "CONFIG_MODULE_DECOMPRESS=y"))
    }
}

/// `uname -r` out of a bzImage: Linux' Documentation/arch/x86/boot.rst, `kernel_version` at 0x20e.
fn release_of(vmlinuz: &Path) -> anyhow::Result<String> {
    let image = fs::read(vmlinuz).with_context(|| format!("kernel {}", vmlinuz.display()))?;
    release_in(&image).with_context(|| format!("kernel {}: not a bzImage with a version", vmlinuz.display()))
}

fn release_in(image: &[u8]) -> Option<String> {
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let pointer: [u8; 2] = image.get(0x20e..0x210)?.try_into().ok()?;
    let text = image.get(usize::from(u16::from_le_bytes(pointer)) + 0x200..)?;
    let release: Vec<u8> = text
        .iter()
        .copied()
        .take(128)
        .take_while(|byte| *byte != b' ' && *byte != 0)
        .collect();
    let release = String::from_utf8(release).ok()?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "._+-~".contains(c);
    (!release.is_empty() && release.chars().all(plain) && !release.contains("..")).then_some(release)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn release_from_the_header() {
        let mut image = vec![0; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        image[0x300..0x320].copy_from_slice(b"6.12.107+deb13-amd64 (debian-ker");
        assert_eq!(release_in(&image).as_deref(), Some("6.12.107+deb13-amd64"));
        image[0x300..0x306].copy_from_slice(b"../../");
        assert_eq!(release_in(&image), None);
        assert_eq!(release_in(b"MZ"), None);
    }

    #[test]
    fn what_is_missing_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let error = format!(
            "{:#}",
            Kernel::from_files(Path::new("/nonexistent/vmlinuz"), folder.path()).unwrap_err()
        );
        assert!(
            error.starts_with("kernel /nonexistent/vmlinuz: No such file"),
            "{error}"
        );
        let file = folder.path().join("vmlinuz");
        std::fs::write(&file, b"text").unwrap();
        let error = format!("{:#}", Kernel::from_files(&file, folder.path()).unwrap_err());
        assert!(error.contains("not a bzImage"), "{error}");
    }
}
