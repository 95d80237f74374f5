//! An image with a small root, built by the real `cidbuild`: what the tests of root images boot.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::head::program;
use crate::image::node_programs;
use crate::run::run;

/// What a program with the rights of root finds out inside. Each line is a word and what it found.
const PROBE: &str = r#"#!/bin/sh
say() { echo "probe $*"; }
say partitions "[$(tail -n +3 /proc/partitions | tr '\n' ';')]"
say modules "[$(cut -d' ' -f1 /proc/modules | tr '\n' ' ')]"
mount -t tmpfs x /tmp 2>/dev/null && say bad mount
mknod /tmp/sda b 8 0 2>/dev/null && say bad mknod
umount -l / 2>/dev/null && say bad umount
echo b >/proc/sysrq-trigger && say bad sysrq
echo x >/proc/sys/kernel/modprobe && say bad sysctl
ls /proc/1/root/ >/dev/null 2>&1 && say bad outside
ls -d /dev/sd* /dev/nvme* /dev/loop* /dev/mem 2>/dev/null && say bad device
touch /etc/written && say writes
say hosts "$(grep -c . /etc/hosts)"
say done
sleep 100000
"#;

/// Builds an image with a small root: a static busybox, a probe as its service, and `filler` bytes that do not compress. Returns the
/// folder of images.
///
/// # Errors
/// When `cidbuild`, the node programs or busybox are missing, or the build fails.
pub fn build_rooted(dir: &Path, name: &str, filler: usize) -> Result<PathBuf> {
    let service = "[[root.services]]\nname = \"probe\"\ncommand = [\"/bin/probe\"]\nrestart = \"never\"\n";
    build(dir, name, filler, service)
}

/// The same without a service: for the rig, whose PCs are this machine.
///
/// # Errors
/// As [`build_rooted`].
pub fn build_silent(dir: &Path, name: &str, filler: usize) -> Result<PathBuf> {
    build(dir, name, filler, "")
}

fn build(dir: &Path, name: &str, filler: usize, service: &str) -> Result<PathBuf> {
    let recipes = dir.join("recipes");
    let base = recipes.join("base");
    for folder in ["bin", "etc", "proc", "sys", "dev", "tmp", "run", "root", "var"] {
        fs::create_dir_all(base.join(folder))?;
    }
    fs::copy("/bin/busybox", base.join("bin/busybox")).context("package busybox-static is needed")?;
    for applet in [
        "sh", "ls", "cat", "tr", "cut", "tail", "grep", "mount", "umount", "mknod", "touch", "sleep", "id",
    ] {
        let link = base.join("bin").join(applet);
        if fs::symlink_metadata(&link).is_err() {
            symlink("busybox", link)?;
        }
    }
    fs::write(base.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(base.join("etc/group"), "root:x:0:\n")?;
    let probe = base.join("bin/probe");
    fs::write(&probe, PROBE)?;
    fs::set_permissions(&probe, fs::Permissions::from_mode(0o755))?;
    let noise: Vec<u8> = (0..filler as u64)
        .map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 ^ (n.wrapping_mul(n) >> 16) as u8)
        .collect();
    fs::write(base.join("var/filler"), noise)?;
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../images/minimal.toml");
    fs::copy(shipped, recipes.join("minimal.toml"))?;
    let recipe = format!("include = \"minimal\"\nname = {name:?}\n[root]\nbase = \"dir:base\"\n{service}");
    let path = recipes.join(format!("{name}.toml"));
    fs::write(&path, recipe)?;
    let images = dir.join("images");
    run(Command::new(program("cidbuild")?)
        .arg("image")
        .arg(&path)
        .arg("--out")
        .arg(&images)
        .arg("--node-programs")
        .arg(node_programs()?))?;
    Ok(images)
}
