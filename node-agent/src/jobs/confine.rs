//! What a job sees as its file systems: the node's root image where there is one, else what the node booted from; its own `/proc`,
//! `/tmp` and `/dev`. Must leave it no device but the harmless ones, and no file of the agent's.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

use crate::root::mount::{ROOT, is_mounted_root};

const TAME: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);
/// All that is left of `/dev`.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Makes it so for this process, which lives in a mount namespace of its own, and for all that it starts. It stands in `/tmp` then.
///
/// # Errors
/// The step that failed: nothing may be started.
pub(crate) fn enter() -> Result<()> {
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).context("keep mounts to ourselves")?;
    if is_mounted_root() {
        let root = Path::new(ROOT);
        attach("proc", &root.join("proc"), "")?;
        attach("tmpfs", &root.join("tmp"), "mode=1777,size=25%")?;
        attach("tmpfs", &root.join("dev/shm"), "mode=1777,size=50%")?;
        move_to(root)?;
    } else {
        attach("proc", Path::new("/proc"), "")?;
        devices().context("devices")?;
        for (folder, mode) in [("/run", "0755"), ("/tmp", "1777")] {
            attach("tmpfs", Path::new(folder), &format!("mode={mode},size=25%"))?;
        }
    }
    std::env::set_current_dir("/tmp").context("/tmp")
}

/// As for services (`cid_sys::root`): a node's first root cannot be left by `pivot_root(2)`.
fn move_to(root: &Path) -> Result<()> {
    std::env::set_current_dir(root).context("the root image")?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .context("move the root image to /")?;
    nix::unistd::chroot(".").context("change the root")?;
    std::env::set_current_dir("/").context("/")
}

fn attach(kind: &str, target: &Path, options: &str) -> Result<()> {
    let options = Some(options).filter(|options| !options.is_empty());
    mount(Some(kind), target, Some(kind), TAME, options)
        .with_context(|| format!("mount {kind} on {}", target.display()))
}

fn devices() -> Result<()> {
    let new = Path::new("/tmp");
    let size = Some("mode=0755,size=50%");
    mount(Some("tmpfs"), new, Some("tmpfs"), MsFlags::MS_NOSUID, size).context("mount tmpfs")?;
    for name in DEVICES {
        let old = Path::new("/dev").join(name);
        if !old.exists() {
            continue;
        }
        let place = new.join(name);
        fs::write(&place, "")?;
        mount(Some(&old), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .with_context(|| format!("show {}", old.display()))?;
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        std::os::unix::fs::symlink(target, new.join(name))?;
    }
    fs::create_dir(new.join("shm"))?;
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(new.join("shm"), fs::Permissions::from_mode(0o1777))?;
    mount(Some(new), "/dev", None::<&str>, MsFlags::MS_MOVE, None::<&str>).context("move it to /dev")
}
