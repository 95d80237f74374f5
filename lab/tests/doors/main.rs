//! Every door by which a PC comes in, in each kind of network: booted for real, to `up` and home again by itself.
//! `ci/test` runs the covering subset; `ci/night doors-*` runs the rest, one slice per network.

mod refused;
mod stick;
mod stranger;
mod table;

use anyhow::Result;
use cidlab::{Campus, Machine};
use table::{DOORS, Door, NETWORKS, Network, Passage, STICKS, WITH_SITE_IPXE, pass, print};

/// One network: the doors one after the other in one room; the table in the end, whatever failed before.
fn go_through(name: &str, network: Network, doors: &[Door]) -> Result<()> {
    let (lab, campus) = network.lab(name)?;
    let mut passages: Vec<Passage> = Vec::new();
    let mut failures = Vec::new();
    for door in doors {
        match pass(&lab, network, *door) {
            Ok(passage) => passages.push(passage),
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    print(&passages);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    drop(campus);
    lab.succeeded();
    Ok(())
}

/// What CI sees: each loader chain once, and each network at least once.
mod some {
    use super::*;

    #[test]
    fn plain_rom_in_our_own_network() -> Result<()> {
        go_through("some-plain", Network::Full, &[Door::BiosPlain])
    }

    #[test]
    fn secure_http_in_our_own_network() -> Result<()> {
        go_through("some-http", Network::Full, &[Door::HttpSecure])
    }

    #[test]
    fn secure_pxe_beside_dnsmasq() -> Result<()> {
        go_through("some-proxy", Network::ProxyDnsmasq, &[Door::UefiSecure])
    }

    #[test]
    fn bios_beside_kea() -> Result<()> {
        go_through("some-kea", Network::ProxyKea, &[Door::BiosIpxe])
    }

    #[test]
    fn secure_stick_in_our_own_network() -> Result<()> {
        go_through("some-stick", Network::Full, &[Door::UsbSecure])
    }

    #[test]
    fn sent_by_dnsmasq() -> Result<()> {
        go_through("some-off", Network::OffDnsmasq, &[Door::Uefi, Door::BiosIpxe])
    }
}

/// Every door in every network.
mod all {
    use super::*;

    #[test]
    fn full() -> Result<()> {
        go_through("all-full", Network::Full, &DOORS)
    }

    #[test]
    fn proxy_dnsmasq() -> Result<()> {
        go_through("all-dnsmasq", Network::ProxyDnsmasq, &DOORS)
    }

    #[test]
    fn proxy_kea() -> Result<()> {
        go_through("all-kea", Network::ProxyKea, &DOORS)
    }

    #[test]
    fn off_dnsmasq() -> Result<()> {
        go_through("all-off", Network::OffDnsmasq, &DOORS)
    }

    #[test]
    fn off_site_ipxe() -> Result<()> {
        go_through("all-site", Network::OffSiteIpxe, &WITH_SITE_IPXE)
    }

    #[test]
    fn sticks_of_strangers() -> Result<()> {
        for (name, door) in [
            ("stranger-bios", Door::UsbBios),
            ("stranger-uefi", Door::UsbUefi),
            ("stranger-secure", Door::UsbSecure),
        ] {
            stranger::is_sent_home(name, door)?;
        }
        Ok(())
    }

    #[test]
    fn sticks_left_in() -> Result<()> {
        stick::is_left_in("left-bios", Door::UsbBios)?;
        stick::is_left_in("left-secure", Door::UsbSecure)
    }

    #[test]
    fn sticks_without_a_head() -> Result<()> {
        stick::has_no_head("alone-bios", Door::UsbBios, None)?;
        stick::has_no_head("alone-secure", Door::UsbSecure, None)?;
        stick::has_no_head("headless-bios", Door::UsbBios, Some(Campus::Dnsmasq))?;
        stick::has_no_head("headless-secure", Door::UsbSecure, Some(Campus::Dnsmasq))
    }

    #[test]
    fn sticks_behind_the_wrong_card() -> Result<()> {
        stick::finds_the_card("cards-bios", Door::UsbBios)?;
        stick::finds_the_card("cards-secure", Door::UsbSecure)
    }

    #[test]
    fn sticks_with_an_image() -> Result<()> {
        stick::holds_an_image("image-secure", Machine::uefi_secure_boot)
    }

    #[test]
    fn sticks() -> Result<()> {
        go_through("all-usb-full", Network::Full, &STICKS)?;
        go_through("all-usb-proxy", Network::ProxyDnsmasq, &STICKS)?;
        go_through("all-usb-kea", Network::ProxyKea, &STICKS)?;
        go_through("all-usb-off", Network::OffDnsmasq, &STICKS)
    }
}

/// The documents name every door and every network that is tried here, in these words.
#[test]
fn the_page_names_every_door() {
    let page = include_str!("../../../docs/doors.md");
    let titles = DOORS
        .map(Door::title)
        .into_iter()
        .chain(NETWORKS.map(Network::title));
    let missing: Vec<&str> = titles.filter(|title| !page.contains(title)).collect();
    assert!(missing.is_empty(), "docs/doors.md does not name {missing:?}");
}
