//! Wired links: which there are, up, addresses and routes (netlink), what sysfs says of them.

use std::path::Path;
use std::{fs, io};

use anyhow::Context;

use crate::core::Link;
use crate::dhcp::Lease;
use crate::netlink;

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

/// What the kernel calls a link's card; of a virtio card, the PCI device that it is on.
pub(crate) fn modalias(name: &str) -> String {
    let device = Path::new("/sys/class/net").join(name).join("device");
    let own = read(&device, "modalias");
    if own.starts_with("virtio:") {
        return read(&device.join(".."), "modalias");
    }
    own
}

/// PCI vendor and device, as `8086:15f3`, of each Ethernet card that no driver took: PID 1 shows them on the screen, and where another link
/// works the head hears of them.
pub(crate) fn cards_without_driver() -> Vec<String> {
    let devices = fs::read_dir("/sys/bus/pci/devices")
        .into_iter()
        .flatten()
        .flatten();
    let mut found: Vec<String> = devices
        .map(|device| device.path())
        // PCI class 02.00: an Ethernet controller.
        .filter(|path| read(path, "class").starts_with("0x0200") && !path.join("driver").exists())
        .filter_map(|path| {
            let (vendor, device) = (read(&path, "vendor"), read(&path, "device"));
            Some(format!(
                "{}:{}",
                vendor.strip_prefix("0x")?,
                device.strip_prefix("0x")?
            ))
        })
        .take(MAX_LINKS)
        .collect();
    found.sort();
    found.dedup();
    found
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
pub(crate) async fn up(index: u32) -> anyhow::Result<()> {
    blocking(move || netlink::up(index))
        .await
        .with_context(|| format!("bring link {index} up"))
}

/// Takes all IPv4 addresses off a link: those of a lease that ended, or of an agent before this one.
pub(crate) async fn flush(index: u32) {
    if let Err(error) = blocking(move || netlink::flush(index)).await {
        log!("cid-agent: take the addresses off link {index}: {error}");
    }
}

/// Puts a lease on a link: address, route to the router, name servers.
pub(crate) async fn configure(index: u32, lease: &Lease) -> anyhow::Result<()> {
    let (address, prefix) = (lease.address, lease.prefix);
    blocking(move || netlink::add_address(index, address, prefix))
        .await
        .with_context(|| format!("give link {index} the address {address}/{prefix}"))?;
    if let Some(router) = lease.router.filter(|router| *router != lease.address) {
        // Two links may both have a router; the first is preferred.
        blocking(move || netlink::default_route(index, router, 1000 + index))
            .await
            .with_context(|| format!("set the default route over link {index} to {router}"))?;
    }
    write_resolv_conf(lease);
    Ok(())
}

/// On a thread of its own: the kernel makes who asks wait while a card comes up, and the heartbeat must not.
async fn blocking(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}

/// What DHCP said of name servers.
pub(crate) const RESOLV_CONF: &str = "/etc/resolv.conf";

fn write_resolv_conf(lease: &Lease) {
    let mut text = lease
        .domain
        .iter()
        .map(|domain| format!("search {domain}\n"))
        .collect::<String>();
    text.extend(lease.dns.iter().map(|server| format!("nameserver {server}\n")));
    if !text.is_empty() {
        // Nothing of the agent's own needs names; jobs may.
        let _ = fs::write(RESOLV_CONF, text);
    }
}
