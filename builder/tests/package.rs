//! The shipped recipes against the real kernel package, judged by others' tools: `find`, `modinfo`, GNU cpio,
//! `lsinitramfs`, `depmod`.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use common::{build, kernel_tree, stand_ins, text};

/// What the size budgets of the two recipes leave at least for cid-init and cid-agent, compressed. With the real
/// programs the recipes' own `max_initrd_bytes` holds, at every build.
const RESERVED_FOR_PROGRAMS: usize = 1_100_000;

fn shell(script: &str, folder: &Path) -> String {
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", script])
        .current_dir(folder)
        .output()
        .expect("bash");
    assert!(output.status.success(), "{script}: {}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "", "{script} complains");
    text(&output.stdout)
}

fn manifest(image: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(image.join("manifest.json")).expect("manifest")).expect("JSON")
}

#[test]
fn both_recipes_stay_within_their_budgets() {
    let folder = tempfile::tempdir().unwrap();
    let programs = stand_ins(folder.path(), RESERVED_FOR_PROGRAMS);
    for (recipe, budget) in [("minimal", 10_000_000), ("pc", 4_000_000)] {
        let image = build(recipe, folder.path(), &programs);
        let size = std::fs::metadata(image.join("initrd.img")).unwrap().len();
        assert!(size <= budget, "{recipe}: {size} bytes, at most {budget}");
    }
}

#[test]
fn an_independent_find_agrees_on_the_nic_drivers() {
    let folder = tempfile::tempdir().unwrap();
    let image = build("minimal", folder.path(), &stand_ins(folder.path(), 1000));
    let tree = kernel_tree(&image);
    // Everything in the kernel's folders of wired NICs, less what images/minimal.toml leaves out with its reasons.
    let found = shell(
        "cd usr/lib/modules/*/kernel/drivers/net; \
         { find ethernet mdio pcs phy usb -name '*.ko.xz' ! -name '*_cs.ko.xz'; ls sungem_phy.ko.xz virtio_net.ko.xz vmxnet3/*.ko.xz; } \
         | sed 's|.*/||; s|\\.ko\\.xz$||' | tr - _ \
         | grep -vxE 'sfc|sfc_falcon|sfc_siena|b44|bnx2x|qede?|dwmac_generic|cnic' \
         | grep -vxE 'cdc_mbim|cdc_phonet|hso|huawei_cdc_ncm|ipheth|kalmia|lg_vl600|qmi_wwan|sierra_net' | LC_ALL=C sort -u",
        &tree,
    );
    let found: Vec<&str> = found.lines().collect();
    let manifest = manifest(&image);
    let drivers: Vec<&str> = manifest["nic_drivers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n.as_str().unwrap())
        .collect();
    assert_eq!(drivers, found);
    // And each of them is a file of the image.
    let inside: BTreeSet<String> = manifest["files"]
        .as_object()
        .unwrap()
        .keys()
        .filter_map(|path| Some(path.rsplit('/').next()?.split_once(".ko")?.0.replace('-', "_")))
        .collect();
    for driver in drivers {
        assert!(inside.contains(driver), "{driver} is not in the image");
    }
}

#[test]
fn foreign_tools_list_it_without_complaint() {
    let folder = tempfile::tempdir().unwrap();
    let image = build("pc", folder.path(), &stand_ins(folder.path(), 1000));
    let by_cpio = shell("xz -dc initrd.img | cpio -t --quiet", &image);
    let by_lsinitramfs = shell("lsinitramfs initrd.img", &image);
    assert_eq!(by_cpio, by_lsinitramfs);
    assert_eq!(by_cpio.lines().last(), Some("etc/cid/complete"));
    let manifest = manifest(&image);
    let listed: BTreeSet<String> = by_cpio.lines().map(|line| format!("/{line}")).collect();
    let planned: BTreeSet<String> = manifest["files"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(listed, planned);
}

#[test]
fn depmod_finds_the_same_dependencies() {
    let folder = tempfile::tempdir().unwrap();
    let image = build("pc", folder.path(), &stand_ins(folder.path(), 1000));
    let unpacked = folder.path().join("unpacked");
    std::fs::create_dir(&unpacked).unwrap();
    // No device nodes: they need root.
    shell("xz -dc ../pc/initrd.img | cpio -id --quiet 'lib/*'", &unpacked);
    let release = manifest(&image)["kernel_release"].as_str().unwrap().to_owned();
    let ours = index_lines(&unpacked.join(format!("lib/modules/{release}/modules.dep")));
    let our_aliases = alias_lines(&unpacked.join(format!("lib/modules/{release}/modules.alias")));
    // Without `modules.order` and `modules.builtin.modinfo` depmod warns; it still makes the index.
    let output = Command::new("depmod")
        .arg("-b")
        .arg(&unpacked)
        .arg(&release)
        .output()
        .expect("depmod (kmod)");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(
        ours,
        index_lines(&unpacked.join(format!("lib/modules/{release}/modules.dep")))
    );
    assert_eq!(
        our_aliases,
        alias_lines(&unpacked.join(format!("lib/modules/{release}/modules.alias")))
    );
}

/// Module path to the set of what it needs: depmod sorts independent dependencies its own way.
fn index_lines(file: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let text = std::fs::read_to_string(file).expect("index file");
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines
        .map(|(path, needed)| {
            (
                path.to_owned(),
                needed.split_whitespace().map(str::to_owned).collect(),
            )
        })
        .collect()
}

fn alias_lines(file: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(file).expect("index file");
    text.lines()
        .filter(|line| line.starts_with("alias "))
        .map(str::to_owned)
        .collect()
}
