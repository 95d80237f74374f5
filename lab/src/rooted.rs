//! Images with a root, built by the real `cidbuild`, and what a program in them finds out: what the tests of root images boot.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use cid_protocol::manifest::Manifest;

use crate::head::program;
use crate::image::node_programs;
use crate::pc::Pc;
use crate::run::run;

/// What a program with the rights of root finds out inside. Each line is a word and what it found.
pub(crate) const PROBE: &str = r#"#!/bin/sh
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

/// What is special about an image with a small root.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rooted<'a> {
    /// Bytes in it that do not compress.
    pub filler: usize,
    /// Further lines of its `[root]`.
    pub lines: &'a str,
    /// Files of an overlay, by path below the root; executable.
    pub overlay: &'a [(&'a str, &'a str)],
    /// Few drivers, packed fast: several PCs boot it at once.
    pub few_drivers: bool,
    /// Without a service.
    pub silent: bool,
    /// A shell script in the place of the agent; the agent is `/sbin/cid-agent.real`.
    pub wrapper: Option<&'a str>,
}

/// Stage 1 for virtual PCs: quicker to unpack than that of `minimal`.
const FEW_DRIVERS: &str = r#"suite = "trixie"
cmdline = ""
[kernel]
package = "linux-image-amd64"
[busybox]
package = "busybox-static"
[compression]
format = "zstd"
level = 1
[modules]
nic = ["virtio_net", "e1000", "e1000e"]
other = ["evdev", "button", "iTCO_wdt", "i6300esb"]
"#;

/// Builds an image with a small root: a static busybox, a probe as its service, and `filler` bytes that do not compress. Returns the
/// folder of images.
///
/// # Errors
/// When `cidbuild`, the node programs or busybox are missing, or the build fails.
pub fn build_rooted(dir: &Path, name: &str, filler: usize) -> Result<PathBuf> {
    let plain = Rooted {
        filler,
        ..Rooted::default()
    };
    build_rooted_with(dir, name, &plain)
}

/// The same without a service: for the rig, whose PCs are this machine.
///
/// # Errors
/// As [`build_rooted`].
pub fn build_silent(dir: &Path, name: &str, filler: usize) -> Result<PathBuf> {
    let silent = Rooted {
        filler,
        silent: true,
        ..Rooted::default()
    };
    build_rooted_with(dir, name, &silent)
}

/// The same, with what is special about it. Called again with the same `name`, it is the next build of this image.
///
/// # Errors
/// As [`build_rooted`].
pub fn build_rooted_with(dir: &Path, name: &str, rooted: &Rooted<'_>) -> Result<PathBuf> {
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
    let noise: Vec<u8> = (0..rooted.filler as u64)
        .map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 ^ (n.wrapping_mul(n) >> 16) as u8)
        .collect();
    fs::write(base.join("var/filler"), noise)?;
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../images/minimal.toml");
    fs::copy(shipped, recipes.join("minimal.toml"))?;
    fs::write(recipes.join("few.toml"), FEW_DRIVERS)?;
    let overlay = recipes.join("overlay");
    for (file, text) in rooted.overlay {
        let file = overlay.join(file);
        fs::create_dir_all(file.parent().context("it lies in the overlay")?)?;
        fs::write(&file, text)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
    }
    fs::create_dir_all(&overlay)?;
    let include = if rooted.few_drivers { "few" } else { "minimal" };
    let mut programs = node_programs()?;
    let mut wrapped = "";
    if let Some(script) = rooted.wrapper {
        let folder = recipes.join("programs");
        fs::create_dir_all(&folder)?;
        fs::copy(programs.join("cid-init"), folder.join("cid-init")).context("copying cid-init")?;
        fs::copy(programs.join("cid-agent"), recipes.join("cid-agent.real")).context("copying cid-agent")?;
        fs::write(folder.join("cid-agent"), script)?;
        fs::set_permissions(folder.join("cid-agent"), fs::Permissions::from_mode(0o755))?;
        programs = folder;
        wrapped = "[[file]]\npath = \"/sbin/cid-agent.real\"\nsource = \"cid-agent.real\"\nmode = \"0755\"\n";
    }
    let lines = rooted.lines;
    let service = match rooted.silent {
        true => "",
        false => "[[root.services]]\nname = \"probe\"\ncommand = [\"/bin/probe\"]\nrestart = \"never\"\n",
    };
    let recipe = format!(
        "include = {include:?}\nname = {name:?}\n{wrapped}[root]\nbase = \"dir:base\"\noverlays = [\"overlay\"]\n{lines}\n{service}"
    );
    let path = recipes.join(format!("{name}.toml"));
    fs::write(&path, recipe)?;
    let images = dir.join("images");
    run_cidbuild_with(&path, &images, &programs)?;
    Ok(images)
}

/// `cidbuild image` of a recipe.
///
/// # Errors
/// When `cidbuild` or the node programs are missing, or the build fails.
pub(crate) fn run_cidbuild(recipe: &Path, images: &Path) -> Result<()> {
    run_cidbuild_with(recipe, images, &node_programs()?)
}

fn run_cidbuild_with(recipe: &Path, images: &Path, programs: &Path) -> Result<()> {
    run(Command::new(program("cidbuild")?)
        .arg("image")
        .arg(recipe)
        .arg("--out")
        .arg(images)
        .arg("--node-programs")
        .arg(programs))
    .map(drop)
}

/// Modules that a root needs in stage 1, on top of what the same PC loads without one.
const OF_THE_ROOT: [&str; 5] = ["erofs", "overlay", "libcrc32c", "crc32c_generic", "crc32c_intel"];

/// What a service said behind `words`, the first time.
#[must_use]
pub fn told(pc: &Pc, service: &str, words: &str) -> Option<String> {
    let serial = pc.serial();
    let at = serial.split(&format!("service {service}: {words} ")).nth(1)?;
    Some(at.lines().next()?.trim().to_owned())
}

/// What the probe in a root found: no block device, nothing that it could do to the PC, and no module that stage 1 of `image` (a folder)
/// would not have had.
///
/// # Errors
/// When it is not so, or the probe is not through.
pub fn sees_no_disk(pc: &Pc, image: &Path) -> Result<()> {
    let probed = |word: &str| told(pc, "probe", &format!("probe {word}"));
    let partitions = probed("partitions").context("no partitions told")?;
    ensure!(partitions == "[]", "/proc/partitions has {partitions}");
    ensure!(probed("bad").is_none(), "{:?}: {}", probed("bad"), pc.serial());
    let manifest = fs::read_to_string(image.join("manifest.json"))?;
    let modules = probed("modules").context("no modules told")?;
    ensure!(modules.ends_with(']'), "the list of modules was cut: {modules}");
    for module in modules.trim_matches(['[', ']']).split_whitespace() {
        let in_stage_1 = manifest.contains(&format!("{}.ko", module.replace('_', "-")))
            || manifest.contains(&format!("{module}.ko"));
        ensure!(
            in_stage_1 || OF_THE_ROOT.contains(&module),
            "{module} is not of stage 1"
        );
        ensure!(module != "loop", "EROFS is mounted from its file");
    }
    Ok(())
}

/// How far the build's figure may be from what was measured.
const PEAK_PERCENT: u64 = 10;

/// The most that was in use until the root was mounted, as the build of `image` (a folder) said and as the node measured it; printed.
///
/// # Errors
/// When they differ by more than a tenth, or one of them is missing.
pub fn peak_is_as_predicted(pc: &Pc, image: &Path) -> Result<()> {
    let manifest: Manifest = serde_json::from_slice(&fs::read(image.join("manifest.json"))?)?;
    let root = manifest.root.context("no root")?;
    let measured = pc
        .node()?
        .context("no node")?
        .memory_peak_kib
        .context("no peak reported")?
        * 1024;
    println!(
        "{}: root.img {:.1} MB; peak predicted {:.1} MB, measured {:.1} MB; a PC must have {:.1} MB",
        manifest.name,
        root.bytes as f64 / 1e6,
        root.peak_ram_bytes as f64 / 1e6,
        measured as f64 / 1e6,
        manifest.needed_ram_bytes as f64 / 1e6
    );
    let off = measured.abs_diff(root.peak_ram_bytes);
    ensure!(
        off * 100 <= measured * PEAK_PERCENT,
        "off by {:.1} %",
        off as f64 * 100.0 / measured as f64
    );
    Ok(())
}
