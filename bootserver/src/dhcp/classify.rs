//! What a packet is: facts for the policy. Must not know what will be answered.

use crate::dhcp::packet::{Packet, option};
use crate::machine::{Client, Platform};
use crate::policy::{Facts, Stage};

/// Who speaks, on what machine.
pub fn classify(packet: &Packet) -> Facts {
    Facts {
        mac: packet.mac,
        uuid: packet.uuid(),
        client: client(packet),
        platform: Platform::from_architectures(&packet.architectures()),
        stage: Stage::Asking,
    }
}

fn client(packet: &Packet) -> Client {
    let class = packet.option(option::VENDOR_CLASS).unwrap_or_default();
    let pxe = class.starts_with(b"PXEClient");
    // iPXE sends its name bare; RFC 3004 wants a length byte before it. Both are iPXE.
    let ipxe = matches!(packet.option(option::USER_CLASS), Some(b"iPXE" | b"\x04iPXE"));
    match (pxe, ipxe) {
        (_, true) => Client::Ipxe,
        (true, false) => Client::PxeFirmware,
        (false, false) if class.starts_with(b"HTTPClient") => Client::HttpFirmware,
        (false, false) => Client::OperatingSystem,
    }
}
