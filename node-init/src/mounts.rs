//! The kernel file systems, as a table.

use std::fs;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

struct Mount {
    target: &'static str,
    kind: &'static str,
    flags: MsFlags,
    options: &'static str,
}

const PLAIN: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NOEXEC)
    .union(MsFlags::MS_NODEV);
const DEVICES: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC);
const TEMPORARY: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

const MOUNTS: [Mount; 8] = [
    Mount {
        target: "/proc",
        kind: "proc",
        flags: PLAIN,
        options: "",
    },
    Mount {
        target: "/sys",
        kind: "sysfs",
        flags: PLAIN,
        options: "",
    },
    Mount {
        target: "/dev",
        kind: "devtmpfs",
        flags: DEVICES,
        options: "mode=0755",
    },
    Mount {
        target: "/dev/pts",
        kind: "devpts",
        flags: DEVICES,
        options: "mode=0620,ptmxmode=0666",
    },
    Mount {
        target: "/run",
        kind: "tmpfs",
        flags: TEMPORARY,
        options: "mode=0755,size=16m",
    },
    Mount {
        target: "/tmp",
        kind: "tmpfs",
        flags: TEMPORARY,
        options: "mode=1777",
    },
    // For the report whether the kernel is locked down.
    Mount {
        target: "/sys/kernel/security",
        kind: "securityfs",
        flags: PLAIN,
        options: "",
    },
    Mount {
        target: "/sys/fs/cgroup",
        kind: "cgroup2",
        flags: PLAIN,
        options: "",
    },
];

/// Mounted read-only: BootOrder belongs to the PC. Where a group says `way_home = "boot-next"`, the agent makes it writable for the moment
/// in which it writes BootNext.
const FIRMWARE_VARIABLES: Mount = Mount {
    target: "/sys/firmware/efi/efivars",
    kind: "efivarfs",
    flags: PLAIN.union(MsFlags::MS_RDONLY),
    options: "",
};

/// Mounts the table. Only what nothing works without is an error; the rest is returned for the log.
pub(crate) fn mount_all() -> Result<Vec<String>, String> {
    let mut troubles = Vec::new();
    for entry in &MOUNTS {
        match entry.mount() {
            Err(trouble) if matches!(entry.target, "/proc" | "/sys" | "/dev") => return Err(trouble),
            Err(trouble) => troubles.push(trouble),
            Ok(()) => {}
        }
    }
    Ok(troubles)
}

/// Whether the firmware is UEFI.
pub(crate) fn is_uefi() -> bool {
    Path::new("/sys/firmware/efi").exists()
}

/// Shows the firmware's variables, for the report whether Secure Boot is enforced. Its driver is a module.
pub(crate) fn mount_firmware_variables() -> Result<(), String> {
    FIRMWARE_VARIABLES.mount()
}

impl Mount {
    fn mount(&self) -> Result<(), String> {
        // Fails for directories inside sysfs, which exist already.
        let _ = fs::create_dir_all(self.target);
        match mount(
            Some(self.kind),
            self.target,
            Some(self.kind),
            self.flags,
            Some(self.options),
        ) {
            // EBUSY: the kernel mounted devtmpfs by itself (CONFIG_DEVTMPFS_MOUNT).
            Ok(()) | Err(Errno::EBUSY) => Ok(()),
            Err(error) => Err(format!("cannot mount {} on {}: {error}", self.kind, self.target)),
        }
    }
}
