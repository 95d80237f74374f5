use super::*;
use cid_initramfs::ModuleFacts;

fn module(name: &str, alias: &str, firmware: &[&str]) -> ModuleFacts {
    ModuleFacts {
        path: format!("kernel/{name}.ko"),
        sha256: String::new(),
        name: name.into(),
        release: "6.12".into(),
        depends: vec![],
        soft_before: vec![],
        soft_after: vec![],
        aliases: vec![alias.into()],
        firmware: firmware.iter().map(|name| (*name).to_owned()).collect(),
        block_symbols: vec![],
    }
}

fn seen(text: &str) -> anyhow::Result<Seen> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, text).unwrap();
    read(file.path())
}

/// What is said of `inventory` by an image that has e1000e and r8169, the latter without its firmware.
fn check(inventory: &str, firmware: &[(&str, bool)], expected: &[&str]) {
    let index = ModuleIndex::new(
        vec![
            module("e1000e", "pci:v00008086d000015F3sv*sd*bc*sc*i*", &[]),
            module(
                "r8169",
                "pci:v000010ECd00008168sv*sd*bc*sc*i*",
                &["rtl_nic/rtl8168g-3.fw"],
            ),
            module("tg3", "pci:v000014E4d00001681sv*sd*bc*sc*i*", &[]),
            module("ax88179_178a", "usb:v0B95p1790d*dc*dsc*dp*ic*isc*ip*in*", &[]),
        ],
        "",
        b"",
    );
    let selection = Selection {
        closure: ["e1000e", "r8169"]
            .map(|name| (name.to_owned(), String::new()))
            .into(),
        nic: BTreeSet::new(),
    };
    let firmware = firmware
        .iter()
        .map(|(name, inside)| ((*name).to_owned(), *inside))
        .collect();
    let result = prove(&seen(inventory).unwrap(), &index, &selection, &firmware);
    assert_eq!(result.err().unwrap_or_default(), expected);
}

/// An inventory of one node with these links.
fn node(links: &str, without: &str) -> String {
    format!(
        r#"{{"nodes": [{{"name": "lab-a01", "group": "a", "hardware": {{"uuid": "x", "links": [{links}], "cards_without_driver": [{without}]}}}}]}}"#
    )
}

#[test]
fn a_card_with_driver_and_firmware_passes_and_each_lack_has_its_line() {
    let intel = r#"{"name": "eth0", "id": "8086:15f3", "driver": "e1000e"}"#;
    let realtek = r#"{"name": "eth0", "id": "10ec:8168", "driver": "r8169"}"#;
    check(&node(intel, ""), &[], &[]);
    check(&node(realtek, ""), &[("rtl_nic/rtl8168g-3.fw", true)], &[]);
    check(
        &node(realtek, ""),
        &[("rtl_nic/rtl8168g-3.fw", false)],
        &[
            "10ec:8168 of lab-a01: its driver r8169 may ask for firmware rtl_nic/rtl8168g-3.fw, which is not in the image",
            "add to the recipe: [firmware] packages = [\"firmware-realtek\"]",
        ],
    );
    check(
        &node(intel, r#""14e4:1681""#),
        &[],
        &[
            "14e4:1681 of lab-a01: its driver tg3 is not in the image",
            "add to the recipe's [modules]: nic = [\"tg3\"]",
        ],
    );
    check(
        &node(intel, r#""1234:5678""#),
        &[],
        &["1234:5678 of lab-a01: this kernel has no driver for it; try a newer kernel"],
    );
    let usb = r#"{"name": "eth0", "id": "", "modalias": "usb:v0B95p1790d0100dcFFdscFFdp00icFFiscFFip00in00", "driver": "ax88179_178a"}"#;
    check(
        &node(usb, ""),
        &[],
        &[
            "usb:v0B95p1790d0100dcFFdscFFdp00icFFiscFFip00in00 of lab-a01: its driver ax88179_178a is not in the image",
            "add to the recipe's [modules]: nic = [\"ax88179_178a\"]",
        ],
    );
}

#[test]
fn an_inventory_that_proves_nothing_is_refused() {
    let nobody = seen(r#"{"nodes": [{"name": "a", "hardware": null}]}"#).unwrap_err();
    assert!(nobody.to_string().contains("no node in it ever told"), "{nobody}");
    let other = seen("[]").unwrap_err();
    assert!(other.to_string().contains("cidctl nodes --json"), "{other}");
    let partly = node(r#"{"driver": "e1000e"}"#, "").replace(
        r#"{"nodes": ["#,
        r#"{"nodes": [{"name": "new", "hardware": null}, "#,
    );
    assert_eq!(seen(&partly).unwrap().silent, ["new"]);
}
