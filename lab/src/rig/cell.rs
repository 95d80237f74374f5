//! An agent's cell: its network, a root file system that is all memory but for the programs, the files that say which machine it is.
//! Runs inside the room as `cidlab cell`, and becomes the agent. Must not leave the agent a way to this machine's disk, clock or
//! power: what it can write is its own memory, and what it may do is network.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use cid_protocol::supervision::{AGENT_FD, FromAgent};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use super::firmware::{self, Boot};
use crate::run::run;

/// All an agent may do here, as `setpriv --bounding-set` reads it. It sets no clock and restarts nothing.
pub(super) const MAY: &str = "-all,+net_admin,+net_raw,+net_bind_service";
/// And what one may do besides that mounts a root image, in its own mount namespace and with a host name of its own: overlayfs works with
/// the rights of who mounts it, and its working folder is closed to everybody.
const MAY_MOUNT: &str =
    "-all,+net_admin,+net_raw,+net_bind_service,+sys_admin,+mknod,+dac_override,+fowner,+chown";
/// Rules for its own network, as nftables reads them, from the moment that its kernel starts: its firmware knows nothing of them.
pub(super) const KERNEL_RULES: &str = "kernel.nft";
/// The same of one that runs programs for others: it confines them in namespaces of their own, and becomes their users.
pub(super) const MAY_CONFINE: &str =
    "-all,+net_admin,+net_raw,+net_bind_service,+sys_admin,+setuid,+setgid,+setpcap,+kill,+chown,+sys_chroot";
/// What of a wire the agent reads in sysfs.
const LINK_FILES: [&str; 6] = ["type", "address", "ifindex", "carrier", "speed", "statistics"];

/// What an agent of the rig may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Rights {
    /// Its own network.
    Wire,
    /// And mount a root image.
    Mount,
    /// And run programs for others.
    Confine,
}

impl Rights {
    /// As the command line has it.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Rights::Wire => "wire",
            Rights::Mount => "mount",
            Rights::Confine => "confine",
        }
    }

    const fn bounding_set(self) -> &'static str {
        match self {
            Rights::Wire => MAY,
            Rights::Mount => MAY_MOUNT,
            Rights::Confine => MAY_CONFINE,
        }
    }
}

/// What `cidlab cell` is told.
#[derive(Debug, Clone, clap::Args)]
pub struct Cell {
    /// The agent's folder in the room.
    #[arg(long)]
    pub dir: PathBuf,
    /// Its machine's UUID.
    #[arg(long)]
    pub uuid: String,
    /// The machine was just switched on: firmware first.
    #[arg(long)]
    pub boot: bool,
    /// What the agent may do.
    #[arg(long, value_enum)]
    pub rights: Rights,
    /// Program to become.
    pub program: PathBuf,
    /// Its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<String>,
}

/// Builds the cell around this process, and becomes the program. Returns when the machine does not boot from the network; PID 1 has been told.
///
/// # Errors
/// When the kernel refuses a step.
pub fn enter(cell: &Cell) -> Result<()> {
    let supervision = cid_sys::descriptors::take_inherited(AGENT_FD, 1)
        .ok()
        .and_then(|mut taken| taken.pop())
        .context("no supervision socket: the rig starts this command, people do not")?;
    let supervision = UnixStream::from(supervision);
    let space = fs::File::open(cell.dir.join("net")).context("opening the network namespace")?;
    setns(space, CloneFlags::CLONE_NEWNET).context("entering the network namespace")?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS).context("making a mount namespace")?;
    let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).context("keeping mounts to ourselves")?;
    let root = cell.dir.join("root");
    // First, since firmware reads its card's address there.
    lay_root(cell, &root).context("laying the root file system")?;
    if cell.boot {
        let mac = fs::read_to_string(root.join("rig/class/net/eth0/address"))?;
        match firmware::start(mac.trim(), &cell.uuid)? {
            Boot::Kernel { command_line } => fs::write(cell.dir.join("cmdline"), command_line + "\n")?,
            Boot::OwnDisk { why } => return tell(&supervision, &FromAgent::Home(format!("own disk: {why}"))),
        }
    }
    let rules = cell.dir.join(KERNEL_RULES);
    if cell.boot && rules.exists() {
        run(Command::new("nft").arg("-f").arg(&rules)).context("laying its wire anew")?;
    }
    over(&cell.dir.join("cmdline"), &root.join("proc/cmdline"))?;
    tell(&supervision, &FromAgent::Status("the kernel starts".to_owned()))?;
    nix::unistd::pivot_root(&root, &root.join("old")).context("changing the root")?;
    std::env::set_current_dir("/")?;
    umount2("/old", MntFlags::MNT_DETACH).context("leaving this machine's files")?;
    let mut command = Command::new("/usr/bin/setpriv");
    command.args([
        "--no-new-privs",
        "--inh-caps",
        "-all",
        "--ambient-caps",
        "-all",
        "--bounding-set",
        cell.rights.bounding_set(),
    ]);
    let name = cell.program.file_name().context("a program")?;
    command.arg(if cell.arguments.is_empty() {
        Path::new("/program").join(name)
    } else {
        cell.program.clone()
    });
    cid_sys::descriptors::hand_on(&mut command, supervision.into(), AGENT_FD);
    let error = command
        .args(&cell.arguments)
        .env_clear()
        .env("PATH", "/usr/bin:/usr/sbin")
        .exec();
    Err(error).context("starting setpriv (ci/prepare installs what the lab needs)")
}

/// Speaks to PID 1 in the agent's place.
fn tell(mut supervision: &UnixStream, message: &FromAgent) -> Result<()> {
    supervision
        .write_all(format!("{}\n", message.to_line()).as_bytes())
        .context("telling PID 1")
}

fn lay_root(cell: &Cell, root: &Path) -> Result<()> {
    let none = MsFlags::empty();
    mount(Some("tmpfs"), root, Some("tmpfs"), none, Some("size=4m,mode=755"))?;
    for folder in [
        "usr",
        "proc",
        "rig",
        "run",
        "tmp",
        "etc",
        "dev",
        "old",
        "program",
        "sys/block",
        "sys/class/dmi/id",
    ] {
        fs::create_dir_all(root.join(folder))?;
    }
    for link in ["bin", "sbin", "lib", "lib64"] {
        symlink(Path::new("usr").join(link), root.join(link))?;
    }
    over(Path::new("/usr"), &root.join("usr"))?;
    read_only(&root.join("usr"))?;
    for device in ["null", "zero", "urandom"] {
        let place = root.join("dev").join(device);
        fs::write(&place, "")?;
        over(&Path::new("/dev").join(device), &place)?;
    }
    let name = cell.program.file_name().context("a program")?;
    if cell.arguments.is_empty() {
        let place = root.join("program").join(name);
        fs::write(&place, "")?;
        over(&cell.program, &place)?;
    }
    over(&cell.dir.join("run"), &root.join("run"))?;

    let proc = root.join("proc");
    mount(Some("proc"), &proc, Some("proc"), none, None::<&str>).context("mounting proc")?;
    // The agent's own network settings, and nothing else: `sysrq-trigger` is in here too.
    over(&proc.join("sys/net"), &proc.join("sys/net"))?;
    read_only(&proc)?;
    over(&cell.dir.join("boot_id"), &proc.join("sys/kernel/random/boot_id"))?;

    mount(
        Some("sysfs"),
        &root.join("rig"),
        Some("sysfs"),
        MsFlags::MS_RDONLY,
        None::<&str>,
    )
    .context("mounting sysfs")?;
    lay_sys(cell, root)
}

/// What `/sys` would show of a PC: one card with a device behind it (a veth has none), its wire being the real one; no disks.
fn lay_sys(cell: &Cell, root: &Path) -> Result<()> {
    let card = root.join("sys/class/net/eth0");
    fs::create_dir_all(card.join("device"))?;
    for file in LINK_FILES {
        symlink(Path::new("/rig/class/net/eth0").join(file), card.join(file))?;
    }
    symlink("/rig/bus/virtio/drivers/virtio_net", card.join("device/driver"))?;
    let dmi = root.join("sys/class/dmi/id");
    for (file, text) in [
        ("product_uuid", cell.uuid.as_str()),
        ("sys_vendor", "CID"),
        ("product_name", "rig"),
    ] {
        fs::write(dmi.join(file), format!("{text}\n"))?;
    }
    Ok(())
}

/// Shows `what` at `place`.
fn over(what: &Path, place: &Path) -> Result<()> {
    mount(Some(what), place, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("showing {} at {}", what.display(), place.display()))
}

fn read_only(place: &Path) -> Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, place, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("making {} read-only", place.display()))
}
