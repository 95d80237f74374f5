//! Wired links: which there are, up, addresses and routes (rtnetlink), what sysfs says of them.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use anyhow::Context;
use futures_lite::StreamExt;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::route::RouteAttribute;
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use crate::core::Link;
use crate::dhcp::Lease;

/// ARPHRD_ETHER of linux/if_arp.h.
const ETHERNET: &str = "1";
/// Links looked at; more is no PC.
const MAX_LINKS: usize = 32;

/// All wired links: Ethernet with a device behind it, no radio.
pub(crate) fn wired() -> Vec<Link> {
    let mut links = Vec::new();
    for entry in fs::read_dir("/sys/class/net")
        .into_iter()
        .flatten()
        .flatten()
        .take(MAX_LINKS)
    {
        let path = entry.path();
        let is_radio = path.join("wireless").exists() || path.join("phy80211").exists();
        if read(&path, "type") != ETHERNET || is_radio || !path.join("device").exists() {
            continue;
        }
        let Some(mac) = parse_mac(&read(&path, "address")) else {
            continue;
        };
        let Ok(index) = read(&path, "ifindex").parse() else {
            continue;
        };
        // Reading `carrier` of a link that is down is an error.
        let carrier = read(&path, "carrier") == "1";
        links.push(Link {
            index,
            name: entry.file_name().to_string_lossy().into_owned(),
            mac,
            carrier,
        });
    }
    links.sort_by_key(|link| link.index);
    links
}

/// A link's driver and negotiated speed in Mbit/s (0 when unknown).
pub(crate) fn driver_and_speed(name: &str) -> (String, u32) {
    let path = Path::new("/sys/class/net").join(name);
    let driver = fs::read_link(path.join("device/driver")).unwrap_or_default();
    let driver = driver
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    // -1 when unknown.
    let speed = read(&path, "speed")
        .parse::<i64>()
        .ok()
        .and_then(|speed| u32::try_from(speed).ok());
    // virtio says 4294967295 or -1 when the host does not tell.
    (driver, speed.filter(|speed| *speed < u32::MAX).unwrap_or(0))
}

/// PCI vendor and device of a link's card as `8086:15f3`; empty when it is not on that bus.
pub(crate) fn pci_id(name: &str) -> String {
    let device = Path::new("/sys/class/net").join(name).join("device");
    // virtio cards sit one step below their PCI device.
    for place in [device.clone(), device.join("..")] {
        let (vendor, number) = (read(&place, "vendor"), read(&place, "device"));
        // The virtio bus has files of the same names with numbers of its own, and no `class`.
        if let (Some(vendor), Some(number), true) = (
            vendor.strip_prefix("0x"),
            number.strip_prefix("0x"),
            place.join("class").exists(),
        ) {
            return format!("{vendor}:{number}");
        }
    }
    String::new()
}

fn read(path: &Path, name: &str) -> String {
    fs::read_to_string(path.join(name))
        .unwrap_or_default()
        .trim()
        .to_owned()
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|part| u8::from_str_radix(part, 16).ok())
        .collect::<Option<_>>()?;
    bytes.try_into().ok()
}

/// Kernel settings before any link is up: no IPv6 chatter from a PC that is guest in somebody's network, and
/// links of one subnet answer ARP for their own address only.
pub(crate) fn settings() {
    for (path, value) in [
        ("net/ipv6/conf/all/disable_ipv6", "1"),
        ("net/ipv6/conf/default/disable_ipv6", "1"),
        ("net/ipv4/conf/all/arp_ignore", "1"),
        ("net/ipv4/conf/all/arp_announce", "2"),
    ] {
        // Without one of them the node works all the same.
        let _ = fs::write(Path::new("/proc/sys").join(path), value);
    }
}

/// Brings a link up.
pub(crate) async fn up(handle: &Handle, index: u32) -> anyhow::Result<()> {
    let message = LinkUnspec::new_with_index(index).up().build();
    handle
        .link()
        .set(message)
        .execute()
        .await
        .with_context(|| format!("bring link {index} up"))
}

/// Takes all IPv4 addresses off a link: those of a lease that ended, or of an agent before this one.
pub(crate) async fn flush(handle: &Handle, index: u32) {
    let mut addresses = handle.address().get().set_link_index_filter(index).execute();
    while let Some(Ok(message)) = addresses.next().await {
        let is_v4 =
            |attribute: &AddressAttribute| matches!(attribute, AddressAttribute::Address(IpAddr::V4(_)));
        if message.header.index == index && message.attributes.iter().any(is_v4) {
            // Gone already is as good.
            let _ = handle.address().del(message).execute().await;
        }
    }
}

/// Puts a lease on a link: address, route to the router, name servers.
pub(crate) async fn configure(handle: &Handle, index: u32, lease: &Lease) -> anyhow::Result<()> {
    let add = handle
        .address()
        .add(index, lease.address.into(), lease.prefix)
        .replace();
    add.execute()
        .await
        .with_context(|| format!("give link {index} the address {}/{}", lease.address, lease.prefix))?;
    if let Some(router) = lease.router.filter(|router| *router != lease.address) {
        let mut route = RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(router)
            .output_interface(index)
            .build();
        // Two links may both have a router; the first is preferred.
        route.attributes.push(RouteAttribute::Priority(1000 + index));
        let result = handle.route().add(route).replace().execute().await;
        result.with_context(|| format!("set the default route over link {index} to {router}"))?;
    }
    write_resolv_conf(lease);
    Ok(())
}

fn write_resolv_conf(lease: &Lease) {
    let mut text = lease
        .domain
        .iter()
        .map(|domain| format!("search {domain}\n"))
        .collect::<String>();
    text.extend(lease.dns.iter().map(|server| format!("nameserver {server}\n")));
    if !text.is_empty() {
        // Nothing of the agent's own needs names; jobs may.
        let _ = fs::write("/etc/resolv.conf", text);
    }
}
