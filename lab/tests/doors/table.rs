//! Every door in every network, as data; and the one way all of them are gone through.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use cid_protocol::api::NodeRow;
use cidlab::lab::images_dir;
use cidlab::run::run;
use cidlab::{Campus, CampusServer, DhcpMode, First, HeadOptions, Lab, Machine, Room, UP_LIMIT};

/// How a PC comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    BiosIpxe,
    BiosPlain,
    Uefi,
    UefiSecure,
    Http,
    HttpSecure,
    UsbBios,
    UsbUefi,
    UsbSecure,
}

/// Whose DHCP server it meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    Full,
    ProxyDnsmasq,
    ProxyKea,
    OffDnsmasq,
    OffSiteIpxe,
}

pub(crate) const DOORS: [Door; 6] = [
    Door::BiosIpxe,
    Door::BiosPlain,
    Door::Uefi,
    Door::UefiSecure,
    Door::Http,
    Door::HttpSecure,
];

/// One stick for all three.
pub(crate) const STICKS: [Door; 3] = [Door::UsbBios, Door::UsbUefi, Door::UsbSecure];

/// Who is sent to an iPXE that the site has: Secure Boot refuses what Debian packages of it.
pub(crate) const WITH_SITE_IPXE: [Door; 2] = [Door::BiosPlain, Door::Uefi];

pub(crate) const NETWORKS: [Network; 5] = [
    Network::Full,
    Network::ProxyDnsmasq,
    Network::ProxyKea,
    Network::OffDnsmasq,
    Network::OffSiteIpxe,
];

/// From the reset to Windows. A PC that nobody answers needs a minute; HTTP Boot has no word for "your own disk".
const HOME_LIMIT: Duration = Duration::from_secs(400);

impl Door {
    /// For people, as in docs/doors.md.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::BiosIpxe => "BIOS, iPXE ROM",
            Self::BiosPlain => "BIOS, plain ROM (synthesised)",
            Self::Uefi => "UEFI PXE",
            Self::UefiSecure => "UEFI PXE, Secure Boot",
            Self::Http => "UEFI HTTP",
            Self::HttpSecure => "UEFI HTTP, Secure Boot",
            Self::UsbBios => "USB, BIOS",
            Self::UsbUefi => "USB, UEFI",
            Self::UsbSecure => "USB, Secure Boot",
        }
    }

    /// What `cidctl nodes` must say.
    fn name(self) -> &'static str {
        match self {
            // What a plain ROM was sent to asks again, and comes in as any iPXE.
            Self::BiosIpxe | Self::BiosPlain => "pxe-bios",
            Self::Uefi | Self::UefiSecure => "pxe-uefi",
            Self::Http | Self::HttpSecure => "http-uefi",
            Self::UsbBios => "usb-bios",
            Self::UsbUefi | Self::UsbSecure => "usb-uefi",
        }
    }

    fn is_secure(self) -> bool {
        matches!(self, Self::UefiSecure | Self::HttpSecure | Self::UsbSecure)
    }

    fn is_usb(self) -> bool {
        matches!(self, Self::UsbBios | Self::UsbUefi | Self::UsbSecure)
    }

    pub(crate) fn machine(self, room: &Room) -> Result<Machine> {
        let machine = match self {
            Self::BiosIpxe | Self::UsbBios => Machine::bios(),
            Self::BiosPlain => Machine::bios().plain_rom(),
            Self::Uefi | Self::Http | Self::UsbUefi => Machine::uefi(),
            Self::UefiSecure | Self::HttpSecure | Self::UsbSecure => Machine::uefi_secure_boot(),
        };
        Ok(match self {
            Self::Http | Self::HttpSecure => machine.first(First::Http),
            _ if self.is_usb() => machine.first(First::Stick(stick(room)?)),
            _ => machine,
        })
    }
}

impl Network {
    /// For people, as in docs/doors.md.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::ProxyDnsmasq => "proxy beside dnsmasq",
            Self::ProxyKea => "proxy beside Kea",
            Self::OffDnsmasq => "off, dnsmasq points at us",
            Self::OffSiteIpxe => "off, the site's own iPXE",
        }
    }

    fn mode(self) -> DhcpMode {
        match self {
            Self::Full => DhcpMode::Full,
            Self::ProxyDnsmasq | Self::ProxyKea => DhcpMode::Proxy,
            Self::OffDnsmasq | Self::OffSiteIpxe => DhcpMode::Off,
        }
    }

    fn campus(self) -> Result<Option<Campus>> {
        Ok(match self {
            Self::Full => None,
            Self::ProxyDnsmasq => Some(Campus::Dnsmasq),
            Self::ProxyKea => Some(Campus::Kea),
            Self::OffDnsmasq => Some(Campus::DnsmasqWith(snippet()?)),
            Self::OffSiteIpxe => Some(Campus::DnsmasqWithIpxe {
                script: format!("http://{}/boot.ipxe", cidlab::room::HEAD_ADDRESS),
            }),
        })
    }

    /// A room with this network and a head in it.
    pub(crate) fn lab(self, name: &str) -> Result<(Lab, Option<CampusServer>)> {
        let room = Room::start(name)?;
        let campus = self.campus()?.map(|campus| campus.start(&room)).transpose()?;
        let options = HeadOptions {
            mode: self.mode(),
            ..HeadOptions::new(images_dir(), "minimal")
        };
        Ok((Lab::start_in(room, &options)?, campus))
    }
}

/// The lines that an administrator would copy into their own dnsmasq.
fn snippet() -> Result<String> {
    let mut cidhead = std::process::Command::new(cidlab::head::program("cidhead")?);
    run(cidhead.args(["dhcp-snippet", "dnsmasq", "--address", cidlab::room::HEAD_ADDRESS]))
}

/// A stick as `cidbuild usb` makes it.
fn stick(room: &Room) -> Result<std::path::PathBuf> {
    crate::stick::make(room, "stick.img", &[])
}

/// What was seen of one way in and home.
pub(crate) struct Passage {
    pub(crate) door: Door,
    pub(crate) network: Network,
    pub(crate) up: Duration,
    pub(crate) home: Duration,
}

/// In through a door to `up`, released, and home by itself; the disk is what it was.
pub(crate) fn pass(lab: &Lab, network: Network, door: Door) -> Result<Passage> {
    let stick_before = match door.is_usb() {
        true => Some(std::fs::read(stick(lab.room())?)?),
        false => None,
    };
    let mut pc = lab.power_on(door.machine(lab.room())?)?;
    let node = pc.wait_up(UP_LIMIT).with_context(|| what(network, door))?;
    let up = SystemTime::now().duration_since(pc.powered_on())?;
    check(&node, door).with_context(|| what(network, door))?;
    let plain = lab.fetched(&pc, "undionly.kpxe")?;
    ensure!(
        plain == (door == Door::BiosPlain && network != Network::OffSiteIpxe),
        "undionly.kpxe fetched: {plain}"
    );
    lab.release(&pc)?;
    let released = SystemTime::now();
    if door.is_usb() {
        let from = pc.serial().len();
        crate::stick::remove(&mut pc, from)?;
    }
    let windows = pc.wait_windows(HOME_LIMIT).with_context(|| what(network, door))?;
    let home = windows.duration_since(released)?;
    pc.power_off()?;
    pc.assert_disk_untouched()?;
    if let Some(before) = stick_before {
        ensure!(std::fs::read(stick(lab.room())?)? == before, "the stick changed");
    }
    Ok(Passage {
        door,
        network,
        up,
        home,
    })
}

fn what(network: Network, door: Door) -> String {
    format!("{}, {}", door.title(), network.title())
}

/// What the node says of itself.
fn check(node: &NodeRow, door: Door) -> Result<()> {
    ensure!(
        node.door.as_deref() == Some(door.name()),
        "came in by {:?}",
        node.door
    );
    let hardware = node.hardware.as_ref().context("no hardware reported")?;
    ensure!(
        hardware.block_devices.is_empty(),
        "sees {:?}",
        hardware.block_devices
    );
    let enforced = hardware.secure_boot == Some(true);
    ensure!(
        enforced == door.is_secure(),
        "Secure Boot: {:?}",
        hardware.secure_boot
    );
    let locked = hardware.lockdown == "integrity";
    ensure!(locked == door.is_secure(), "lockdown: {:?}", hardware.lockdown);
    Ok(())
}

/// For people.
pub(crate) fn print(passages: &[Passage]) {
    println!(
        "{:<30} {:<26} {:>13} {:>16}",
        "door", "network", "power-on>up", "release>Windows"
    );
    for passage in passages {
        println!(
            "{:<30} {:<26} {:>11.1} s {:>14.1} s",
            passage.door.title(),
            passage.network.title(),
            passage.up.as_secs_f64(),
            passage.home.as_secs_f64()
        );
    }
}
