//! Software emulation, unless a short trial proves that KVM runs a real-mode boot sector here.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::windows::Windows;

const SOFTWARE: &str = "tcg,thread=multi";
const KVM: &str = "kvm";
/// A boot sector on working KVM needs under a second.
const TRIAL: Duration = Duration::from_secs(4);

/// Value of QEMU's `-accel`. Tried once per process; `CID_LAB_ACCEL` decides without a trial.
pub fn choice() -> &'static str {
    static CHOICE: OnceLock<String> = OnceLock::new();
    CHOICE.get_or_init(|| match std::env::var("CID_LAB_ACCEL") {
        Ok(accelerator) if !accelerator.is_empty() => accelerator,
        _ if kvm_works().unwrap_or(false) => KVM.to_owned(),
        _ => SOFTWARE.to_owned(),
    })
}

/// Boots the stand-in Windows from its boot sector under KVM: `/dev/kvm` may exist and yet not run real mode.
fn kvm_works() -> Result<bool> {
    if fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_err()
    {
        return Ok(false);
    }
    let dir = std::env::temp_dir().join(format!("cid-kvm-{}", std::process::id()));
    let sector = Windows::boot_record(&dir)?;
    let (disk, verdict) = (dir.join("disk"), dir.join("verdict"));
    fs::write(&disk, sector)?;
    let mut qemu = Command::new("qemu-system-x86_64")
        .args([
            "-accel",
            KVM,
            "-machine",
            "q35,graphics=off",
            "-cpu",
            "qemu64",
            "-m",
            "64",
            "-nodefaults",
        ])
        .args([
            "-display",
            "none",
            "-drive",
            &format!("format=raw,file={}", disk.display()),
        ])
        .args(["-chardev", &format!("file,id=verdict,path={}", verdict.display())])
        .args(["-device", "isa-debugcon,iobase=0x504,chardev=verdict"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let started = Instant::now();
    let mut works = false;
    while !works && started.elapsed() < TRIAL && qemu.try_wait()?.is_none() {
        std::thread::sleep(Duration::from_millis(50));
        works = fs::read_to_string(&verdict).is_ok_and(|text| text == "windows\n");
    }
    qemu.kill()?;
    qemu.wait()?;
    fs::remove_dir_all(&dir)?;
    Ok(works)
}
