//! From an image in memory to a root: EROFS, read-only, below an overlay in memory, with the few other file systems that programs
//! expect. Must never use a block device, nor show one inside.
//!
//! EROFS is mounted from the file itself (Linux 6.12): no block device comes into being at all. That takes a file whose pages are the
//! page cache, as ramfs has them; the same file on tmpfs is refused with `ENOTBLK`.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use cid_content::manifest::Format;
use cid_protocol::root::RootFile;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

/// All that belongs to the root lies here, and is root's alone.
pub(crate) const FOLDER: &str = "/run/cid-root";
/// What programs of the root see as `/`.
pub(crate) const ROOT: &str = "/run/root";

/// No devices but ours, and nobody becomes more than they were started as: set-user-ID programs of an image have no effect.
const TAME: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);
const PLAIN: MsFlags = TAME.union(MsFlags::MS_NOEXEC);
const DEVICES: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC);

/// Files below `/proc` by which root could change the kernel that serves the PC's owner in the morning.
const PROTECTED: [&str; 5] = ["sys", "sysrq-trigger", "irq", "bus", "fs"];
/// Name, major, minor, mode.
const NODES: [(&str, u64, u64, u32); 6] = [
    ("null", 1, 3, 0o666),
    ("zero", 1, 5, 0o666),
    ("full", 1, 7, 0o666),
    ("random", 1, 8, 0o666),
    ("urandom", 1, 9, 0o666),
    ("tty", 5, 0, 0o666),
];
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Makes the place for the image's file, in memory, unless an agent before this one did. Returns the folder.
///
/// # Errors
/// What `mount(2)` says.
pub(crate) fn place_for_image() -> Result<PathBuf> {
    let folder = Path::new(FOLDER).join("image");
    make_folder(&folder)?;
    if !is_mounted(&folder) {
        attach("cid-image", &folder, "ramfs", PLAIN, "mode=0700")?;
    }
    Ok(folder)
}

/// Whether an agent before this one mounted the root.
pub(crate) fn is_mounted_root() -> bool {
    is_mounted(Path::new(ROOT))
}

/// Mounts `image` and all that belongs to a root at [`ROOT`]. `scratch_bytes` is all that programs may write in it, `/tmp` and
/// `/dev/shm` included.
///
/// # Errors
/// The step that failed, with what the kernel said. What was mounted until then stays: the PC is restarted anyway.
pub(crate) fn mount_root(image: &Path, format: Format, scratch_bytes: u64) -> Result<()> {
    let folder = Path::new(FOLDER);
    let (lower, scratch, root) = (folder.join("lower"), folder.join("scratch"), Path::new(ROOT));
    for path in [&lower, &scratch, root] {
        // A second one on top would hide what programs have open below.
        if is_mounted(path) {
            bail!("an agent before this one ended while it mounted a root: restart the PC");
        }
        make_folder(path)?;
    }
    let flags = TAME | MsFlags::MS_RDONLY;
    attach_from(image, &lower, format.word(), flags, "")?;
    let size = format!("mode=0755,size={scratch_bytes}");
    attach("cid-scratch", &scratch, "tmpfs", TAME, &size)?;
    for (name, mode) in [
        ("upper", 0o755),
        ("work", 0o700),
        ("tmp", 0o1777),
        ("run", 0o755),
        ("shm", 0o1777),
    ] {
        make_folder(&scratch.join(name))?;
        set_mode(&scratch.join(name), mode)?;
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        scratch.join("upper").display(),
        scratch.join("work").display()
    );
    attach("cid-root", root, "overlay", TAME, &options)?;
    inside(root, &scratch)
}

/// What every root has, whatever its image holds.
fn inside(root: &Path, scratch: &Path) -> Result<()> {
    for name in ["proc", "sys", "dev", "tmp", "run", "etc"] {
        let path = root.join(name);
        make_folder(&path)?;
        // A link of the image would lead to a folder of this node.
        if !fs::symlink_metadata(&path).is_ok_and(|data| data.is_dir()) {
            bail!("/{name} of the image is no folder");
        }
    }
    let proc = root.join("proc");
    attach("proc", &proc, "proc", PLAIN, "")?;
    for name in PROTECTED {
        let path = proc.join(name);
        if path.exists() {
            bind(&path, &path)?;
            make_read_only(&path)?;
        }
    }
    attach(
        "sysfs",
        &root.join("sys"),
        "sysfs",
        PLAIN | MsFlags::MS_RDONLY,
        "",
    )?;
    bind(&scratch.join("tmp"), &root.join("tmp"))?;
    bind(&scratch.join("run"), &root.join("run"))?;
    devices(&root.join("dev"), &scratch.join("shm"))?;
    // The kernel's memory is nobody's business. Not every kernel shows it.
    let memory = proc.join("kcore");
    if memory.exists() {
        bind(&root.join("dev/null"), &memory)?;
    }
    Ok(())
}

fn devices(dev: &Path, shm: &Path) -> Result<()> {
    attach("cid-dev", dev, "tmpfs", DEVICES, "mode=0755,size=64k")?;
    for (name, major, minor, mode) in NODES {
        let path = dev.join(name);
        mknod(
            &path,
            SFlag::S_IFCHR,
            Mode::from_bits_truncate(mode),
            makedev(major, minor),
        )
        .with_context(|| format!("make {}", path.display()))?;
        // Whatever the umask says.
        set_mode(&path, mode)?;
    }
    for (name, target) in LINKS {
        symlink(target, dev.join(name)).with_context(|| format!("link {name} in {}", dev.display()))?;
    }
    for name in ["pts", "shm"] {
        make_folder(&dev.join(name))?;
    }
    let options = "newinstance,gid=5,mode=0620,ptmxmode=0666";
    attach("devpts", &dev.join("pts"), "devpts", DEVICES, options)?;
    bind(shm, &dev.join("shm"))
}

fn attach(source: &str, target: &Path, kind: &str, flags: MsFlags, options: &str) -> Result<()> {
    attach_from(Path::new(source), target, kind, flags, options)
}

fn attach_from(source: &Path, target: &Path, kind: &str, flags: MsFlags, options: &str) -> Result<()> {
    let options = Some(options).filter(|options| !options.is_empty());
    mount(Some(source), target, Some(kind), flags, options)
        .with_context(|| format!("mount {kind} on {}", target.display()))
}

fn bind(source: &Path, target: &Path) -> Result<()> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("bind {} on {}", source.display(), target.display()))
}

fn make_read_only(target: &Path) -> Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | PLAIN;
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("make {} read-only", target.display()))
}

fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("mode of {}", path.display()))
}

/// Whether something is mounted exactly here. Paths of ours hold no character that `/proc/mounts` writes differently.
fn is_mounted(path: &Path) -> bool {
    let path = path.to_string_lossy();
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    mounts
        .lines()
        .any(|line| line.split(' ').nth(1) == Some(path.as_ref()))
}

/// Mounts what the image's recipe lists.
///
/// # Errors
/// The kernel's, and a target that is not a folder of the root.
pub(crate) fn mount_listed(entry: &cid_protocol::services::Mount) -> Result<()> {
    let path = Path::new(ROOT).join(entry.target.trim_start_matches('/'));
    let target = path
        .canonicalize()
        .with_context(|| format!("the image has no folder {}", entry.target))?;
    // A link in the image leads where this program is, not where the image is.
    if !target.starts_with(ROOT) || !target.is_dir() {
        bail!("{} of the image is no folder of it", entry.target);
    }
    if is_mounted(&target) {
        // By an agent before this one.
        return Ok(());
    }
    attach(&entry.source, &target, &entry.kind, TAME, &entry.options)
        .with_context(|| format!("mount {} as the image's recipe says", entry.source))
}

/// Puts a file that the head made for this node into the root. Folders on its way are made; a link on its way is not followed out of the
/// root, and a link at its place is replaced.
///
/// # Errors
/// The file system's, and a path that leads nowhere below the root.
pub(crate) fn write_file(file: &RootFile) -> Result<()> {
    let mut folder = PathBuf::from(ROOT);
    let mut parts: Vec<&str> = file.path.split('/').collect();
    let name = parts.pop().unwrap_or_default();
    let write = || -> Result<()> {
        for part in parts.iter().chain([&name]) {
            if part.is_empty() || matches!(*part, "." | "..") {
                bail!("this is no path below the root");
            }
        }
        for part in parts {
            folder.push(part);
            make_folder(&folder)?;
            // A link such as /var/run leads where this program is, not where the image is.
            if !fs::symlink_metadata(&folder)?.is_dir() {
                bail!("{part} is no folder of the image");
            }
        }
        let (new, path) = (folder.join(format!(".{name}.cid")), folder.join(name));
        let _ = fs::remove_file(&new);
        fs::write(&new, &file.text)?;
        set_mode(&new, file.mode & 0o777)?;
        Ok(fs::rename(&new, &path)?)
    };
    write().with_context(|| format!("write /{} of the root", file.path))
}

/// Puts a text into the root's `/etc`, in the place of whatever was there: a link of the image is replaced, not followed.
///
/// # Errors
/// The file system's.
pub(crate) fn write_etc(name: &str, text: &str) -> Result<()> {
    let folder = Path::new(ROOT).join("etc");
    let (new, path) = (folder.join(format!(".{name}.cid")), folder.join(name));
    let write = || -> std::io::Result<()> {
        if !fs::symlink_metadata(&folder)?.is_dir() {
            return Err(ErrorKind::NotADirectory.into());
        }
        let _ = fs::remove_file(&new);
        fs::write(&new, text)?;
        fs::rename(&new, &path)
    };
    write().with_context(|| format!("write /etc/{name} of the root"))
}
