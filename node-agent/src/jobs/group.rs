//! Control groups of jobs: one each, below one that bounds them all together. Without cgroup v2 there is none.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::root::memory::Memory;

const TOP: &str = "/sys/fs/cgroup";
const JOBS: &str = "/sys/fs/cgroup/cid-jobs";
/// Processes and threads of one job: a fork bomb stops here.
const MOST_PROCESSES: &str = "8192";
/// Of the memory, what all jobs together leave to the node's own software, in sixteenths.
const LEFT: u64 = 1;

/// Where a job's group is; `serial` tells it from another job of that number.
pub(crate) fn folder(job: u32, serial: u64) -> PathBuf {
    Path::new(JOBS).join(format!("{job}-{serial}"))
}

/// Makes a job's group; `false` where there are none to be had.
pub(crate) fn make(folder: &Path) -> bool {
    if fs::metadata(format!("{TOP}/cgroup.controllers")).is_err() {
        return false;
    }
    // What a kernel does not have is not set; the others are.
    for controller in ["+pids", "+memory", "+cpu"] {
        let _ = fs::write(format!("{TOP}/cgroup.subtree_control"), controller);
    }
    if fs::metadata(JOBS).is_err() {
        let _ = fs::create_dir(JOBS);
        for controller in ["+pids", "+memory", "+cpu"] {
            let _ = fs::write(format!("{JOBS}/cgroup.subtree_control"), controller);
        }
        let total = Memory::look().total;
        let _ = fs::write(
            format!("{JOBS}/memory.max"),
            ((total / 16 * (16 - LEFT)) << 10).to_string(),
        );
        let _ = fs::write(format!("{JOBS}/cpu.weight"), "50");
    }
    // An agent before this one may have left it.
    kill(folder);
    if fs::create_dir_all(folder).is_err() {
        return false;
    }
    let _ = fs::write(folder.join("pids.max"), MOST_PROCESSES);
    true
}

/// What a process writes itself into to enter it.
///
/// # Errors
/// The file system's.
pub(crate) fn entrance(folder: &Path) -> Result<File> {
    let path = folder.join("cgroup.procs");
    OpenOptions::new()
        .write(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))
}

/// Kills all that is in it.
pub(crate) fn kill(folder: &Path) {
    let _ = fs::write(folder.join("cgroup.kill"), "1");
}

/// Removes it once it is empty. One that does not become so is left, and written down: a process that cannot be killed is in it.
pub(crate) async fn remove(folder: &Path) {
    for _ in 0..50 {
        match fs::remove_dir(folder) {
            Ok(()) => return,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    log!("cid-agent: {} does not become empty", folder.display());
}
