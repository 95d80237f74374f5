//! The kernel file systems, as a table.

use std::fs;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

/// When a mount is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    Always,
    /// Only where the firmware is UEFI.
    Uefi,
}

struct Mount {
    target: &'static str,
    kind: &'static str,
    flags: MsFlags,
    options: &'static str,
    when: When,
}

const PLAIN: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NOEXEC)
    .union(MsFlags::MS_NODEV);
const DEVICES: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC);
const TEMPORARY: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

/// Firmware variables are mounted read-only: BootOrder belongs to the PC.
const MOUNTS: [Mount; 8] = [
    Mount {
        target: "/proc",
        kind: "proc",
        flags: PLAIN,
        options: "",
        when: When::Always,
    },
    Mount {
        target: "/sys",
        kind: "sysfs",
        flags: PLAIN,
        options: "",
        when: When::Always,
    },
    Mount {
        target: "/dev",
        kind: "devtmpfs",
        flags: DEVICES,
        options: "mode=0755",
        when: When::Always,
    },
    Mount {
        target: "/dev/pts",
        kind: "devpts",
        flags: DEVICES,
        options: "mode=0620,ptmxmode=0666",
        when: When::Always,
    },
    Mount {
        target: "/run",
        kind: "tmpfs",
        flags: TEMPORARY,
        options: "mode=0755,size=16m",
        when: When::Always,
    },
    Mount {
        target: "/tmp",
        kind: "tmpfs",
        flags: TEMPORARY,
        options: "mode=1777",
        when: When::Always,
    },
    Mount {
        target: "/sys/fs/cgroup",
        kind: "cgroup2",
        flags: PLAIN,
        options: "",
        when: When::Always,
    },
    Mount {
        target: "/sys/firmware/efi/efivars",
        kind: "efivarfs",
        flags: PLAIN.union(MsFlags::MS_RDONLY),
        options: "",
        when: When::Uefi,
    },
];

/// Mounts the table. Only what nothing works without is an error; the rest is returned for the log.
pub(crate) fn mount_all() -> Result<Vec<String>, String> {
    let mut troubles = Vec::new();
    for entry in &MOUNTS {
        if entry.when == When::Uefi && !Path::new("/sys/firmware/efi").exists() {
            continue;
        }
        // Fails for directories inside sysfs, which exist already.
        let _ = fs::create_dir_all(entry.target);
        let result = mount(
            Some(entry.kind),
            entry.target,
            Some(entry.kind),
            entry.flags,
            Some(entry.options),
        );
        match result {
            // EBUSY: the kernel mounted devtmpfs by itself (CONFIG_DEVTMPFS_MOUNT).
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(error) if matches!(entry.target, "/proc" | "/sys" | "/dev") => {
                return Err(format!(
                    "cannot mount {} on {}: {error}",
                    entry.kind, entry.target
                ));
            }
            Err(error) => troubles.push(format!(
                "cannot mount {} on {}: {error}",
                entry.kind, entry.target
            )),
        }
    }
    Ok(troubles)
}
