use super::*;

/// A sysfs and a proc with one disk `sdx` (8:16) with a partition, and what a test changes of it.
fn tree(change: impl FnOnce(&Path)) -> anyhow::Result<(tempfile::TempDir, Places)> {
    let root = tempfile::tempdir()?;
    let disk = root.path().join("sys/devices/usb1/block/sdx");
    for folder in ["device", "holders", "sdx1/holders"] {
        fs::create_dir_all(disk.join(folder))?;
    }
    fs::create_dir_all(root.path().join("sys/dev/block"))?;
    fs::create_dir_all(root.path().join("proc/self"))?;
    for (file, text) in [
        ("dev", "8:16\n"),
        ("size", "60063744\n"),
        ("removable", "1\n"),
        ("device/vendor", "SanDisk \n"),
        ("device/model", "Ultra\n"),
        ("sdx1/dev", "8:17\n"),
        ("sdx1/partition", "1\n"),
        ("sdx1/size", "2048\n"),
    ] {
        fs::write(disk.join(file), text)?;
    }
    std::os::unix::fs::symlink(&disk, root.path().join("sys/dev/block/8:16"))?;
    std::os::unix::fs::symlink(disk.join("sdx1"), root.path().join("sys/dev/block/8:17"))?;
    fs::write(
        root.path().join("proc/self/mountinfo"),
        "22 1 254:0 / / rw - ext4 /dev/vda rw\n",
    )?;
    change(root.path());
    let places = Places {
        sys: root.path().join("sys"),
        proc: root.path().join("proc"),
    };
    Ok((root, places))
}

fn mount(root: &Path, number: &str, point: &str) {
    let line = format!("22 1 {number} / {point} rw - vfat /dev/sdx1 rw\n");
    fs::write(root.join("proc/self/mountinfo"), line).unwrap();
}

fn put(root: &Path, file: &str, text: &str) {
    fs::write(root.join("sys/devices/usb1/block/sdx").join(file), text).unwrap();
}

fn said(change: impl FnOnce(&Path), allowed: &[Objection]) -> String {
    let (_root, places) = tree(change).unwrap();
    let device = examine("8:16", &places).unwrap();
    match device.check(allowed) {
        Ok(()) => device.to_string(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn only_a_spare_stick_is_taken_without_words() {
    use Objection::{InUse, Large, NotRemovable};
    let stick = "/dev/sdx (SanDisk Ultra, 30.8 GB)";
    assert_eq!(said(|_| (), &[]), stick);
    let mounted = |root: &Path| mount(root, "8:17", "/media/me/STICK");
    assert_eq!(
        said(mounted, &[]),
        format!(
            "{stick}: in use (mounted on /media/me/STICK); unmount it first (umount), or say --allow in-use to erase it all the same"
        )
    );
    let fixed = |root: &Path| put(root, "removable", "0\n");
    assert!(said(fixed, &[]).contains("not a removable device; see lsblk"));
    let large = |root: &Path| put(root, "size", "1953525168\n");
    assert!(said(large, &[InUse, NotRemovable]).contains("larger than 274 GB"));
    let held = |root: &Path| {
        let disk = root.join("sys/devices/usb1/block/sdx/sdx1/holders");
        std::os::unix::fs::symlink("/nowhere", disk.join("dm-0")).unwrap();
    };
    assert!(said(held, &[]).contains("in use (part of dm-0)"));
    // The controls: named, each objection is gone, and none takes another with it.
    assert!(!said(mounted, &[InUse]).contains("--allow"));
    assert!(!said(fixed, &[NotRemovable]).contains("--allow"));
    assert!(!said(large, &[Large]).contains("--allow"));
    assert!(said(fixed, &[InUse, Large]).contains("--allow not-removable"));
}

#[test]
fn a_disk_of_the_system_is_never_taken() {
    use Objection::{InUse, Large, NotRemovable};
    let all = [InUse, NotRemovable, Large];
    for point in SYSTEM {
        let said = said(|root| mount(root, "8:17", point), &all);
        assert!(said.contains("never written to"), "{point}: {said}");
    }
    // The control: the same partition, mounted elsewhere.
    assert!(!said(|root| mount(root, "8:17", "/mnt"), &all).contains("never"));
}

#[test]
fn partitions_and_files_are_no_sticks() {
    let (root, places) = tree(|_| ()).unwrap();
    let error = examine("8:17", &places).unwrap_err().to_string();
    assert!(error.contains("is a partition; name the whole stick"), "{error}");
    let file = root.path().join("proc/self/mountinfo");
    assert!(
        number(&file)
            .unwrap_err()
            .to_string()
            .contains("no block device; write an image file with --out")
    );
    assert!(
        number(&root.path().join("sdz"))
            .unwrap_err()
            .to_string()
            .contains("no such device")
    );
}
