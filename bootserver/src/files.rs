//! The one name space of TFTP and HTTP: what a path means, and what the asking machine gets for it.
//!
//! Loaders look for their files in many places (pxe.md rows 38-41: shim beside itself and at the root, GRUB by UUID,
//! MAC and address), so a file is known by the last component of its path, whatever folder is put before it.

use std::net::Ipv4Addr;
use std::sync::Arc;

use bytes::Bytes;

use crate::addresses::Addresses;
use crate::counters::Counters;
use crate::dhcp::server::Observation;
use crate::directory::Directory;
use crate::machine::{Client, MacAddress, Platform};
use crate::policy::{Action, Facts, Stage, Transport};
use crate::roots::RootDoor;
use crate::site::Offers;
use crate::{templates, windows};

/// Longest path that is looked at, in bytes.
const MAX_PATH: usize = 255;

/// What a path means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// The iPXE script of the asking machine.
    IpxeScript,
    /// GRUB's configuration for the asking machine, under any of the names GRUB tries.
    GrubConfig,
    /// The iPXE script of the asking machine, which started from a USB stick.
    StickIpxe,
    /// The same for GRUB.
    StickGrub,
    /// shim, GRUB, MokManager or iPXE for plain ROMs of the asking machine's image.
    Loader(&'static str),
    /// A file of a named image. Images hold no secret: anybody may have them.
    Image {
        /// Image.
        image: String,
        /// `vmlinuz` or `initrd.img`.
        file: &'static str,
    },
    /// A script for Windows administrators, or the page that names them.
    Windows(&'static str),
}

/// Why a path means nothing or its asker gets nothing. The name is the counter's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// No such name. The usual case: shim and GRUB probe for files that need not exist.
    #[error("file-unknown-name")]
    UnknownName,
    /// Too long, not printable, or with `..` in it.
    #[error("file-bad-path")]
    BadPath,
    /// The asker's address is none that we gave out.
    #[error("file-unknown-client")]
    UnknownClient,
    /// The policy says that this machine does not boot now.
    #[error("file-not-to-boot")]
    NotToBoot,
    /// The image is not loaded or lacks the file.
    #[error("file-not-in-image")]
    NotInImage,
    /// A script could not be rendered.
    #[error("file-template-broken")]
    TemplateBroken,
    /// The attempt could not be written to disk.
    #[error("file-not-committed")]
    NotCommitted,
}

/// Reads a path. `\` is a separator, doubled and leading separators do not matter, nor does the case of a letter (firmware
/// thinks in FAT's names), but for an image's name, which is one on our disk.
pub fn parse(path: &str) -> Result<Wanted, Refusal> {
    if path.len() > MAX_PATH || path.chars().any(char::is_control) {
        return Err(Refusal::BadPath);
    }
    let lower_case = path.to_ascii_lowercase();
    let parts = split(&lower_case);
    if parts.contains(&"..") {
        return Err(Refusal::BadPath);
    }
    match parts.as_slice() {
        ["images", _, file @ ("vmlinuz" | "initrd.img")] => {
            let file = if *file == "vmlinuz" {
                "vmlinuz"
            } else {
                "initrd.img"
            };
            let image = split(path).get(1).copied().unwrap_or_default().to_owned();
            Ok(Wanted::Image { image, file })
        }
        ["windows"] => Ok(Wanted::Windows(windows::INDEX)),
        ["windows", name] => windows::known(name)
            .map(Wanted::Windows)
            .ok_or(Refusal::UnknownName),
        [.., "boot.ipxe"] => Ok(Wanted::IpxeScript),
        [.., "usb.ipxe"] => Ok(Wanted::StickIpxe),
        [.., "usb.cfg"] => Ok(Wanted::StickGrub),
        [.., "shimx64.efi"] => Ok(Wanted::Loader("shimx64.efi")),
        [.., "grubx64.efi"] => Ok(Wanted::Loader("grubx64.efi")),
        [.., "mmx64.efi"] => Ok(Wanted::Loader("mmx64.efi")),
        [.., "undionly.kpxe"] => Ok(Wanted::Loader("undionly.kpxe")),
        [.., last] if *last == "grub.cfg" || last.starts_with("grub.cfg-") => Ok(Wanted::GrubConfig),
        _ => Err(Refusal::UnknownName),
    }
}

fn split(path: &str) -> Vec<&str> {
    path.split(['/', '\\'])
        .filter(|part| !part.is_empty() && *part != ".")
        .collect()
}

/// The machine that a path names as its own: a folder `m/52-54-00-12-34-56` in it (we write it into boot file names in proxy
/// mode; an administrator's DHCP server or iPXE's `${netX/mac:hexhyp}` may), or the name GRUB makes of the card it booted
/// from, `grub.cfg-01-52-54-00-12-34-56`. Zeros may be missing (ISC dhcpd's `binary-to-ascii` leaves them out).
pub fn machine_in_path(path: &str) -> Option<MacAddress> {
    let mut parts = path.split(['/', '\\']).filter(|part| !part.is_empty()).peekable();
    while let Some(part) = parts.next() {
        let named = match (part, parts.peek()) {
            ("m", Some(folder)) => Some(*folder),
            (last, None) => last.strip_prefix("grub.cfg-01-"),
            _ => None,
        };
        if let Some(mac) = named.and_then(loose_mac) {
            return Some(mac);
        }
    }
    None
}

/// A MAC address whose bytes may be written with one digit.
fn loose_mac(text: &str) -> Option<MacAddress> {
    let padded: Vec<String> = text
        .split(['-', ':'])
        .take(7)
        .map(|part| format!("{part:0>2}"))
        .collect();
    padded.join("-").parse().ok()
}

/// How the head learns that a boot begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootBegins {
    /// Firmware asks by DHCP, and we hear it.
    WithDhcp,
    /// We hear no DHCP (mode `off`): firmware fetches the first file of a chain.
    WithFirstFile,
}

/// Answers paths for machines.
pub struct Files<D> {
    directory: Arc<D>,
    offers: Arc<Offers>,
    addresses: Arc<Addresses>,
    counters: Arc<Counters>,
    head: Ipv4Addr,
    transport: Transport,
    begins: BootBegins,
    roots: Option<RootDoor>,
}

impl<D> Clone for Files<D> {
    fn clone(&self) -> Self {
        Self {
            directory: Arc::clone(&self.directory),
            offers: Arc::clone(&self.offers),
            addresses: Arc::clone(&self.addresses),
            counters: Arc::clone(&self.counters),
            head: self.head,
            transport: self.transport,
            begins: self.begins,
            roots: self.roots.clone(),
        }
    }
}

impl<D: Directory> Files<D> {
    /// Answers from these.
    pub fn new(
        directory: Arc<D>,
        offers: Arc<Offers>,
        addresses: Arc<Addresses>,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            directory,
            head: offers.head(),
            offers,
            addresses,
            counters,
            transport: Transport::Tftp,
            begins: BootBegins::WithDhcp,
            roots: None,
        }
    }

    /// The same files where a boot begins in this way (with DHCP, if nothing is said).
    #[must_use]
    pub fn beginning(self, begins: BootBegins) -> Self {
        Self { begins, ..self }
    }

    /// The same files, and root images for agents beside them.
    #[must_use]
    pub fn with_roots(self, roots: RootDoor) -> Self {
        Self {
            roots: Some(roots),
            ..self
        }
    }

    /// Root images, where there are any.
    pub fn roots(&self) -> Option<&RootDoor> {
        self.roots.as_ref()
    }

    /// The same files as they are asked for at `head`, one of our addresses, over `transport`.
    #[must_use]
    pub fn at(&self, head: Ipv4Addr, transport: Transport) -> Self {
        Self {
            head,
            transport,
            ..self.clone()
        }
    }

    /// The content of `path` for whoever holds `client`. A loader script counts as an attempt to boot, which is on
    /// disk before the script leaves.
    pub async fn open(&self, client: Ipv4Addr, path: &str) -> Result<Bytes, Refusal> {
        let result = self.resolve(client, path).await;
        match &result {
            Ok(bytes) => {
                tracing::debug!(%client, path, bytes = bytes.len(), "file served");
                let mac = self.addresses.holder(client, machine_in_path(path));
                self.directory.file_served(client, mac, path);
            }
            Err(refusal) => {
                tracing::debug!(%client, path, reason = %refusal, "file refused");
                self.counters.count(refusal);
            }
        }
        result
    }

    /// Counts a drop that a shell decided on before a path was looked at.
    pub fn count(&self, reason: &impl std::fmt::Display) {
        self.counters.count(reason);
    }

    async fn resolve(&self, client: Ipv4Addr, path: &str) -> Result<Bytes, Refusal> {
        let wanted = parse(path)?;
        if let Wanted::Image { image, file } = &wanted {
            return self.offers.current().file(image, file).ok_or(Refusal::NotInImage);
        }
        if let Wanted::Windows(name) = wanted {
            return self
                .offers
                .windows_file(name, self.head)
                .ok_or(Refusal::TemplateBroken);
        }
        let said = machine_in_path(path);
        let mac = self
            .addresses
            .holder(client, said)
            .ok_or(Refusal::UnknownClient)?;
        let uefi = match self.transport {
            Transport::Tftp => Client::PxeFirmware,
            Transport::Http => Client::HttpFirmware,
        };
        match wanted {
            Wanted::StickIpxe => {
                let facts = self.stick(mac, Platform::Bios);
                self.script(&facts, templates::IPXE, templates::STICK_IPXE_HOME)
                    .await
            }
            Wanted::StickGrub => {
                let facts = self.stick(mac, Platform::UefiX64);
                self.script(&facts, templates::GRUB, templates::STICK_GRUB_HOME)
                    .await
            }
            Wanted::IpxeScript => {
                let facts = self.first(facts(mac, Client::Ipxe));
                // An iPXE of the PC's own takes a refusal as the end of this way and goes on to its disk, and nothing of ours
                // ran. Where our own iPXE runs, the policy says [`Action::Restart`] instead.
                if self.directory.decide(&facts).action == Action::LocalDisk {
                    return Err(Refusal::NotToBoot);
                }
                self.script(&facts, templates::IPXE, templates::IPXE_HOME).await
            }
            Wanted::GrubConfig => {
                self.script(&facts(mac, uefi), templates::GRUB, templates::GRUB_HOME)
                    .await
            }
            Wanted::Loader(name) => self.loader(mac, uefi, name),
            Wanted::Image { .. } | Wanted::Windows(_) => Err(Refusal::UnknownName),
        }
    }

    fn loader(&self, mac: MacAddress, client: Client, name: &str) -> Result<Bytes, Refusal> {
        let mut facts = facts(mac, client);
        match name {
            "undionly.kpxe" => {
                (facts.client, facts.platform) = (Client::PxeFirmware, Platform::Bios);
                facts = self.first(facts);
            }
            "shimx64.efi" => facts = self.first(facts),
            // The others are asked for by a loader that runs already.
            _ => {}
        }
        match self.directory.decide(&facts).action {
            Action::Boot(boot) => self
                .offers
                .current()
                .file(&boot.image, name)
                .ok_or(Refusal::NotInImage),
            Action::LocalDisk | Action::Restart | Action::NoBootAnswer => Err(Refusal::NotToBoot),
        }
    }

    /// The facts of who asks for the first file of a chain.
    fn first(&self, facts: Facts) -> Facts {
        match self.begins {
            BootBegins::WithDhcp => facts,
            BootBegins::WithFirstFile => self.begin(facts),
        }
    }

    /// A boot from a stick begins here: nobody saw it before, since it did not ask by PXE.
    fn stick(&self, mac: MacAddress, platform: Platform) -> Facts {
        self.begin(Facts {
            platform,
            ..facts(mac, Client::Stick)
        })
    }

    /// With this request a boot begins.
    fn begin(&self, facts: Facts) -> Facts {
        let facts = Facts {
            stage: Stage::Asking,
            ..facts
        };
        let mac = facts.mac;
        let decision = self.directory.decide(&facts);
        self.directory
            .observe(mac, Observation::FirmwareAsked(facts.clone()));
        self.directory.observe(mac, Observation::Decided(decision));
        facts
    }

    /// A machine that has come this far always gets a script: GRUB without one stays at its prompt for ever.
    async fn script(&self, facts: &Facts, boot: &str, home: &str) -> Result<Bytes, Refusal> {
        let mac = facts.mac;
        let decision = self.directory.decide(facts);
        let machine = self
            .directory
            .standing(facts)
            .name
            .unwrap_or_else(|| mac.to_string());
        let text = match &decision.action {
            Action::Boot(plan) => {
                let text = self.offers.boot_script(
                    boot,
                    plan,
                    mac,
                    &machine,
                    self.head,
                    &self.directory.boot_words(mac),
                );
                if text.is_ok() {
                    let commit = self.directory.script_handed_out(mac, plan.image.clone()).await;
                    commit.map_err(|_| Refusal::NotCommitted)?;
                }
                text
            }
            Action::LocalDisk | Action::Restart | Action::NoBootAnswer => {
                self.offers
                    .home_script(home, &machine, &decision.reason.to_string(), self.head)
            }
        };
        text.map(Bytes::from).map_err(|error| {
            tracing::error!(%mac, %error, "no loader script");
            Refusal::TemplateBroken
        })
    }
}

/// Facts of a file request: which loader asks tells the firmware.
fn facts(mac: MacAddress, client: Client) -> Facts {
    let platform = match client {
        Client::Ipxe => Platform::Bios,
        Client::HttpFirmware => Platform::UefiX64Http,
        Client::PxeFirmware | Client::OperatingSystem | Client::Stick => Platform::UefiX64,
    };
    Facts {
        mac,
        uuid: None,
        client,
        platform,
        stage: Stage::Fetching,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_firmware_and_loaders_ask_for() {
        let image = |file| {
            Ok(Wanted::Image {
                image: "minimal".into(),
                file,
            })
        };
        for (path, expected) in [
            ("/windows/", Ok(Wanted::Windows("index.html"))),
            (
                "/windows/enable-cidwake.ps1",
                Ok(Wanted::Windows("Enable-CidWake.ps1")),
            ),
            ("/windows/x.ps1", Err(Refusal::UnknownName)),
            ("boot.ipxe", Ok(Wanted::IpxeScript)),
            ("/boot.ipxe", Ok(Wanted::IpxeScript)),
            ("shimx64.efi", Ok(Wanted::Loader("shimx64.efi"))),
            ("//grubx64.efi", Ok(Wanted::Loader("grubx64.efi"))),
            ("\\efi\\grubx64.efi", Ok(Wanted::Loader("grubx64.efi"))),
            ("/grub/x86_64-efi/grub.cfg", Ok(Wanted::GrubConfig)),
            ("/grub/grub.cfg-01-52-54-00-12-34-56", Ok(Wanted::GrubConfig)),
            ("/grub.cfg-0A4D0064", Ok(Wanted::GrubConfig)),
            ("/images/minimal/vmlinuz", image("vmlinuz")),
            ("images//minimal/initrd.img", image("initrd.img")),
            ("\\EFI\\BOOT\\GRUBX64.EFI", Ok(Wanted::Loader("grubx64.efi"))),
            ("SHIMX64.EFI", Ok(Wanted::Loader("shimx64.efi"))),
            ("/Grub/GRUB.CFG", Ok(Wanted::GrubConfig)),
            ("/IMAGES/minimal/VMLINUZ", image("vmlinuz")),
            ("/images/minimal/manifest.json", Err(Refusal::UnknownName)),
            ("revocations_sku.efi", Err(Refusal::UnknownName)),
            ("", Err(Refusal::UnknownName)),
            ("/images/../shimx64.efi", Err(Refusal::BadPath)),
            ("..\\grub.cfg", Err(Refusal::BadPath)),
            ("a\u{0}b/grub.cfg", Err(Refusal::BadPath)),
        ] {
            assert_eq!(parse(path), expected, "{path}");
        }
        assert_eq!(parse(&"x".repeat(300)), Err(Refusal::BadPath));
    }

    #[test]
    fn a_path_may_name_its_machine() {
        let mac = Some(MacAddress([0x52, 0x54, 0, 0, 0, 0x1a]));
        for (path, expected) in [
            ("m/52-54-00-00-00-1a/shimx64.efi", mac),
            ("/m/52:54:0:0:0:1A/boot.ipxe", mac),
            ("\\m\\52-54-00-00-00-1a\\grubx64.efi", mac),
            ("/grub/grub.cfg-01-52-54-00-00-00-1a", mac),
            ("grub.cfg-01-52-54-00-00-00-1a/x", None),
            ("m/52-54-00-00-00/shimx64.efi", None),
            ("m/ff-ff-ff-ff-ff-ff/shimx64.efi", None),
            ("m/52-54-00-00-00-1a-1b/shimx64.efi", None),
            ("m", None),
            ("shimx64.efi", None),
        ] {
            assert_eq!(machine_in_path(path), expected, "{path}");
        }
    }
}
