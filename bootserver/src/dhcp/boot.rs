//! What an answer says about booting, in each mode. Must not decide: it puts a [`Decision`] into the fields that the asking
//! firmware reads.

use std::net::Ipv4Addr;

use crate::dhcp::packet::{Packet, option};
use crate::dhcp::reply::{self, Body};
use crate::machine::{Client, MacAddress};
use crate::policy::{Action, Decision, Facts, Loader, Transport};
use crate::quirks::{BootFileOption, HttpClass, LocalBoot, ProxyStyle};

/// Whose answer it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Voice {
    /// The DHCP server that also gives the address.
    Server,
    /// A proxy beside somebody else's DHCP server: no address, option 60 marks the answer.
    Proxy,
    /// The same proxy on port 4011, asked for the boot file alone.
    BootServer,
}

/// Sub-options of option 43 (RFC 4578 2.4 leaves them to PXE 2.1, table 2-1).
const DISCOVERY_CONTROL: u8 = 6;
const END: u8 = 255;
/// Bit 3: the boot file of this answer is the boot file. Sub-option 6 without it means "boot from the local disk" to
/// EDK2, so it is never sent without it by accident.
const USE_BOOT_FILE: u8 = 8;
/// Sub-options of iPXE's option 175.
const IPXE_PRIORITY: u8 = 1;
const IPXE_NO_PROXY: u8 = 176;

/// Whether a proxy has anything to say.
pub fn has_words(facts: &Facts, decision: &Decision) -> bool {
    match &decision.action {
        Action::Boot(_) | Action::Restart => true,
        // UEFI HTTP Boot takes no answer without a URL, and goes on at once when nobody gives it one.
        Action::LocalDisk => {
            facts.client != Client::HttpFirmware && decision.manner.local_boot == LocalBoot::Menu
        }
        Action::NoBootAnswer => false,
    }
}

/// Fills `body` in. `head` is our address on the wire it came from.
pub fn fill(
    body: &mut Body,
    voice: Voice,
    head: Ipv4Addr,
    packet: &Packet,
    facts: &Facts,
    decision: &Decision,
) {
    if facts.client == Client::OperatingSystem {
        return;
    }
    body.boot_server = Some(head);
    // RFC 4578 2.3: returned as it came; GRUB looks for a configuration by it.
    if let Some(uuid) = packet.option(option::MACHINE_UUID) {
        body.options.push((option::MACHINE_UUID, uuid.to_vec()));
    }
    if facts.client == Client::Ipxe {
        body.options.push(match voice {
            // No proxy is coming: do not wait two seconds for one.
            Voice::Server => (option::IPXE, vec![IPXE_NO_PROXY, 1, 1]),
            // Of two proxies iPXE takes the one of higher priority, else the one that spoke last.
            Voice::Proxy | Voice::BootServer => (option::IPXE, vec![IPXE_PRIORITY, 1, 1]),
        });
    }
    match &decision.action {
        Action::Boot(boot) => name_file(body, voice, head, facts, decision, boot.loader),
        Action::LocalDisk if has_words(facts, decision) => {
            body.options.push((option::VENDOR_CLASS, b"PXEClient".to_vec()));
            body.options
                .push((option::VENDOR_SPECIFIC, reply::local_boot_menu()));
        }
        // The script that it is given under this name knows.
        Action::Restart => name_file(body, voice, head, facts, decision, Loader::IpxeScript),
        Action::LocalDisk | Action::NoBootAnswer => {}
    }
}

fn name_file(
    body: &mut Body,
    voice: Voice,
    head: Ipv4Addr,
    facts: &Facts,
    decision: &Decision,
    loader: Loader,
) {
    let file = boot_file(loader, voice, head, facts.mac);
    let with_nul = |text: &str| [text.as_bytes(), &[0]].concat();
    if loader == Loader::HttpShim {
        // EDK2 prefers option 67, shim and GRUB read the header field (pxe.md rows 8, 9, 26). GRUB compares option 60 as a
        // C string, zero byte included.
        let class = match decision.manner.http_class {
            HttpClass::NulTerminated => with_nul("HTTPClient"),
            HttpClass::Bare => b"HTTPClient".to_vec(),
        };
        body.options.push((option::VENDOR_CLASS, class));
        body.options.push((option::BOOT_FILE_NAME, with_nul(&file)));
    } else {
        if decision.manner.boot_file_option == BootFileOption::NulTerminated {
            body.options.push((option::BOOT_FILE_NAME, with_nul(&file)));
        }
        // A server says neither 60 nor 43: with them EDK2 would look for a menu or ask port 4011.
        if voice != Voice::Server {
            body.options.push((option::VENDOR_CLASS, b"PXEClient".to_vec()));
            if facts.client == Client::PxeFirmware && decision.manner.proxy_style == ProxyStyle::Pxe10 {
                let direct = vec![DISCOVERY_CONTROL, 1, USE_BOOT_FILE, END];
                body.options.push((option::VENDOR_SPECIFIC, direct));
            }
        }
    }
    body.file = Some(file);
}

/// The first file's name. Beside another DHCP server the path says whose boot it is: behind a router nothing else does.
fn boot_file(loader: Loader, voice: Voice, head: Ipv4Addr, mac: MacAddress) -> String {
    let folder = match voice {
        Voice::Server => String::new(),
        Voice::Proxy | Voice::BootServer => format!("{}/", machine_folder(mac)),
    };
    match loader.transport() {
        Transport::Http => format!("http://{head}/{folder}{}", loader.file()),
        Transport::Tftp => format!("{folder}{}", loader.file()),
    }
}

/// Folder that names a machine in a path; [`crate::files::machine_in_path`] reads it back.
pub fn machine_folder(mac: MacAddress) -> String {
    format!("m/{}", mac.to_string().replace(':', "-"))
}
