//! Bytes of boot entries and signature lists. Layouts: UEFI 2.10, 3.1.3 (load option), 10.3 (device paths), 32.4.1 (signatures).

use super::Guid;
use crate::windows::PartitionIdentity;

/// `LOAD_OPTION_ACTIVE`
const ACTIVE: u32 = 1;
/// `EFI_CERT_X509_GUID`
const X509: Guid = [
    0xa1, 0x59, 0xc0, 0xa5, 0xe4, 0x94, 0xa7, 0x4a, 0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72,
];
/// Owner of the lab's signature: made up, only has to be constant.
const LAB: Guid = *b"cid lab signer\0\0";

/// "PXE over IPv4 from the NIC at PCI device `slot` on the root bus": what firmware setup lists for an integrated NIC.
#[must_use]
pub fn network_entry(description: &str, slot: u8, mac: [u8; 6]) -> Vec<u8> {
    load_option(description, network_path(slot, mac))
}

/// "HTTP over IPv4 from that NIC", the URL by DHCP.
#[must_use]
pub fn http_entry(description: &str, slot: u8, mac: [u8; 6]) -> Vec<u8> {
    let mut path = network_path(slot, mac);
    // URI, empty.
    node(&mut path, 3, 24, &[]);
    load_option(description, path)
}

/// "The stick in port `port` (from 0) of the USB controller at PCI device `slot`": firmware looks for the boot file itself.
#[must_use]
pub fn usb_entry(description: &str, slot: u8, port: u8) -> Vec<u8> {
    let mut path = pci_path(slot);
    node(&mut path, 3, 5, &[port, 0]);
    load_option(description, path)
}

fn pci_path(slot: u8) -> Vec<u8> {
    let mut path = Vec::new();
    // ACPI PNP0A03 number 0: the PCI root.
    node(&mut path, 2, 1, &[0xd0, 0x41, 0x03, 0x0a, 0, 0, 0, 0]);
    node(&mut path, 1, 1, &[0, slot]);
    path
}

fn network_path(slot: u8, mac: [u8; 6]) -> Vec<u8> {
    let mut path = pci_path(slot);
    let mut address = [0_u8; 33];
    address[..6].copy_from_slice(&mac);
    address[32] = 1; // Ethernet
    node(&mut path, 3, 11, &address);
    // IPv4, everything zero: addresses by DHCP.
    node(&mut path, 3, 12, &[0; 23]);
    path
}

/// "This file on that partition", in the short form that Windows and Linux installers write.
#[must_use]
pub fn hard_disk_entry(description: &str, partition: &PartitionIdentity, file: &str) -> Vec<u8> {
    let mut disk = 1_u32.to_le_bytes().to_vec();
    disk.extend(partition.start.to_le_bytes());
    disk.extend(partition.sectors.to_le_bytes());
    disk.extend(partition.guid);
    disk.extend([2, 2]); // GPT, identified by its GUID
    let mut path = Vec::new();
    node(&mut path, 4, 1, &disk);
    node(&mut path, 4, 4, &utf16(file));
    load_option(description, path)
}

/// A signature list with one X.509 certificate.
#[must_use]
pub fn signature_list(certificate: &[u8]) -> Vec<u8> {
    let signature = u32::try_from(certificate.len() + 16).unwrap_or(u32::MAX);
    let mut list = X509.to_vec();
    list.extend((signature + 28).to_le_bytes());
    list.extend(0_u32.to_le_bytes());
    list.extend(signature.to_le_bytes());
    list.extend(LAB);
    list.extend(certificate);
    list
}

fn load_option(description: &str, mut path: Vec<u8>) -> Vec<u8> {
    node(&mut path, 0x7f, 0xff, &[]);
    let mut option = ACTIVE.to_le_bytes().to_vec();
    option.extend(u16::try_from(path.len()).unwrap_or(u16::MAX).to_le_bytes());
    option.extend(utf16(description));
    option.extend(path);
    option
}

fn node(path: &mut Vec<u8>, kind: u8, subkind: u8, data: &[u8]) {
    path.extend([kind, subkind]);
    path.extend(u16::try_from(data.len() + 4).unwrap_or(u16::MAX).to_le_bytes());
    path.extend(data);
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16()
        .chain([0])
        .flat_map(u16::to_le_bytes)
        .collect()
}

/// The description in a boot entry.
#[must_use]
pub fn description(entry: &[u8]) -> String {
    let units = entry
        .get(6..)
        .unwrap_or_default()
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    String::from_utf16_lossy(&units.take_while(|unit| *unit != 0).collect::<Vec<_>>())
}
