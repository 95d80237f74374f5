//! The head as the Debian package installs it, under a real systemd, boots a PC and sends it home (Show 11). The root with
//! the package in it is made by `packaging/test-install SUITE`; `CID_PACKAGE_ROOT` names it. Root only: a container is started.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cidlab::windows::Windows;
use cidlab::{Control, Machine, Pc, Room, UP_LIMIT, WINDOWS_LIMIT};
use rustix::process::{Pid, Signal, kill_process};

/// systemd as process 1 in the package's root, with the room's network.
struct Installed {
    nspawn: Child,
    control: Control,
}

impl Installed {
    fn start(root: &Path, room: &Room) -> Result<Self> {
        let configuration = root.join("etc/cid/head.toml");
        let text = std::fs::read_to_string(&configuration)
            .with_context(|| format!("{}: run packaging/test-install", configuration.display()))?;
        // The lab's PCs are known beforehand, so that one boot shows all of it.
        let known = "image = \"minimal\"\nmatch = [\"52:54:00:c1:00:*\"]";
        if !text.contains(known) {
            std::fs::write(&configuration, text.replace("image = \"minimal\"", known))?;
        }
        let mut command = Command::new("systemd-nspawn");
        command.args([
            "--quiet",
            "--register=no",
            "--keep-unit",
            "--console=pipe",
            "--boot",
        ]);
        command.arg("--setenv=SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1");
        command.arg(format!("--directory={}", root.display()));
        command.arg(format!("--network-namespace-path=/proc/{}/ns/net", room.target()));
        let console = std::fs::File::create(room.dir().join("systemd.log"))?;
        let nspawn = command
            .stdin(Stdio::null())
            .stdout(console.try_clone()?)
            .stderr(console)
            .spawn();
        let nspawn = nspawn.context("starting systemd-nspawn (ci/prepare package installs it)")?;
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            ensure!(Instant::now() < deadline, "the installed head does not answer");
            std::thread::sleep(Duration::from_millis(200));
            let children = children_of(nspawn.id());
            let Some(leader) = children.split_whitespace().next() else {
                continue;
            };
            let control = Control::at(format!("/proc/{leader}/root/run/cid/head.sock").into())?;
            if control.ask(&["status"]).is_ok() {
                return Ok(Self { nspawn, control });
            }
        }
    }
}

fn children_of(process: u32) -> String {
    std::fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default()
}

impl Drop for Installed {
    fn drop(&mut self) {
        // The container's first process: systemd-nspawn, when it is killed, leaves it running.
        let children = children_of(self.nspawn.id());
        let leader = children
            .split_whitespace()
            .next()
            .and_then(|pid| pid.parse().ok());
        match leader.and_then(Pid::from_raw) {
            Some(leader) => drop(kill_process(leader, Signal::KILL)),
            None => drop(self.nspawn.kill()),
        }
        let _ = self.nspawn.wait();
    }
}

#[test]
fn a_head_from_the_package_boots_a_pc_and_sends_it_home() -> Result<()> {
    let root = std::env::var_os("CID_PACKAGE_ROOT").context("CID_PACKAGE_ROOT is not set")?;
    let room = Arc::new(Room::start("package")?);
    let installed = Installed::start(&PathBuf::from(root), &room)?;
    let windows = Windows::build(&room.dir().join("windows"))?;
    let mut pc = Pc::build(&room, &windows, Machine::uefi_secure_boot(), 1)?.under(installed.control.clone());
    pc.power_on()?;
    let node = pc.wait_up(UP_LIMIT)?;
    installed.control.ask(&["release", &node.name])?;
    pc.wait_windows(WINDOWS_LIMIT)?;
    pc.power_off()?;
    pc.assert_disk_untouched()?;
    drop((pc, installed));
    room.succeeded();
    Ok(())
}
