//! The USB stick as independent tools see it: GPT fdisk, dosfstools, mtools.

mod common;

use std::process::Command;

use common::{build, cidbuild, refusal, stand_ins, text};

/// What a tool says of the file; it must find nothing wrong.
fn checked(tool: &str, arguments: &[&str], file: &std::path::Path) -> String {
    let output = Command::new(tool)
        .args(arguments)
        .arg(file)
        .output()
        .expect("ci/prepare installs it");
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{tool}: {said}");
    said
}

#[test]
fn twice_the_same_and_nothing_wrong_with_it() {
    let folder = tempfile::tempdir().expect("folder");
    let programs = stand_ins(folder.path(), 1000);
    build("minimal", folder.path(), &programs);
    let sticks = ["one.img", "two.img"].map(|name| {
        let file = folder.path().join(name);
        let output = cidbuild(&["usb", "minimal", "--quiet", "--head", "10.77.0.1", "--images"])
            .arg(folder.path())
            .arg("--out")
            .arg(&file)
            .output()
            .expect("cidbuild runs");
        assert!(output.status.success(), "{}", text(&output.stderr));
        file
    });
    let bytes = std::fs::read(&sticks[0]).expect("stick");
    assert!(bytes == std::fs::read(&sticks[1]).expect("stick"));
    let said = checked("sgdisk", &["--verify"], &sticks[0]);
    assert!(
        said.contains("No problems found") && !said.contains("invalid"),
        "{said}"
    );
    // The attribute by which the boot code finds its partition.
    assert!(checked("sgdisk", &["--info=1"], &sticks[0]).contains("Attribute flags: 0000000000000004"));
    let partition = folder.path().join("partition");
    std::fs::write(&partition, &bytes[1 << 20..41 << 20]).expect("partition");
    checked("fsck.fat", &["-n"], &partition);
    let listing = checked("mdir", &["-/", "-b", "-i"], &partition);
    for path in [
        "EFI/BOOT/BOOTX64.EFI",
        "EFI/BOOT/grubx64.efi",
        "grub/grub.cfg",
        "bios/ipxe.lkrn",
    ] {
        assert!(listing.contains(path), "{listing}");
    }
    // A control: the checkers do see a damaged stick. One bit of a GUID, which a checksum covers.
    let mut damaged = bytes;
    damaged[512 + 60] ^= 1;
    std::fs::write(&sticks[1], damaged).expect("stick");
    assert!(checked("sgdisk", &["--verify"], &sticks[1]).contains("invalid main GPT header"));
}

#[test]
fn an_image_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().expect("folder");
    let output = cidbuild(&["usb", "nightly", "--out", "/dev/null/x", "--images"])
        .arg(folder.path())
        .output()
        .expect("cidbuild runs");
    let line = refusal(&output);
    assert!(
        line.contains("nightly") && line.contains("cidbuild image nightly"),
        "{line}"
    );
}
