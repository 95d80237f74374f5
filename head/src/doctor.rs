//! The head looks at itself: what of it would keep PCs from booting, with a remedy each. Reads only; must never mend.
//! What needs another user's rights (the firewall) is `cidctl doctor`'s own work.

mod hours;
mod ports;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use cid_bootserver::images;
use cid_bootserver::policy::ImageFault;
use cid_protocol::api::{DhcpStatus, RivalRow};
use cid_protocol::doctor::{Checkup, Finding};
use nix::sys::statvfs::statvfs;

use crate::api::Api;
use crate::config::Config;
use crate::interface::{self, Interface};

/// Free space below which writing fails soon, and below which somebody should look; in MiB.
const LITTLE_SPACE: (u64, u64) = (64, 1_024);
/// Part of the address range in use above which somebody should look, in percent.
const CROWDED: usize = 90;

/// Looks at everything. Blocks: reads files and checks digests.
pub fn examine(api: &Api) -> Checkup {
    let config = &api.config;
    let mut findings = Vec::new();
    findings.push(Finding::ok(
        "head",
        format!(
            "cidhead {} serves {} as {}",
            env!("CARGO_PKG_VERSION"),
            api.interface,
            api.address
        ),
    ));
    findings.push(link(config, &api.address));
    findings.extend(ports::examine(config.dhcp.mode));
    findings.push(dhcp(&api.boot.dhcp()));
    findings.extend(rivals(&api.boot.dhcp(), &api.boot.rivals()));
    findings.extend(range(config, api.boot.leases()));
    findings.extend(templates(config));
    findings.extend(groups(
        config,
        &api.core.read(|registry| registry.assigned().groups),
    ));
    findings.extend(hours::examine(api));
    findings.push(clock(crate::wall::lab_clock()));
    findings.push(space("state-space", &config.state_dir));
    findings.push(space("image-space", &config.images_dir));
    findings.push(database(api));
    Checkup { findings }
}

/// Is the interface as it was when the head started?
fn link(config: &Config, served: &str) -> Finding {
    let name = &config.interface;
    match interface::read(name) {
        Err(error) => {
            let text = error.to_string();
            let (what, remedy) = text.split_once("; ").unwrap_or((&text, ""));
            Finding::fail("interface", what, remedy)
        }
        Ok(Interface { subnet, .. }) if subnet.address.to_string() != served => Finding::fail(
            "interface",
            format!(
                "{name} has the address {} now; the head serves {served}",
                subnet.address
            ),
            "restart cidhead (`systemctl restart cidhead`)",
        ),
        Ok(Interface { subnet, .. }) => {
            let file = Path::new("/sys/class/net").join(name).join("carrier");
            if std::fs::read_to_string(file).is_ok_and(|text| text.trim() == "0") {
                let remedy = "plug the cable in; look at the switch port";
                return Finding::fail("interface", format!("{name} has no link"), remedy);
            }
            let text = format!("{name} is up with {}/{}", subnet.address, subnet.prefix);
            Finding::ok("interface", text)
        }
    }
}

fn dhcp(status: &DhcpStatus) -> Finding {
    match status {
        DhcpStatus::Serving => Finding::ok("dhcp", "DHCP is answered; no other server was heard"),
        DhcpStatus::Proxy => Finding::ok("dhcp", "boot answers are given beside another DHCP server"),
        DhcpStatus::Off => Finding::ok(
            "dhcp",
            "this head answers no DHCP; `cidhead dhcp-snippet` prints what the other server needs",
        ),
        DhcpStatus::Suspended { rival } => Finding::fail(
            "dhcp",
            format!("another DHCP server answers at {rival}: this head keeps silent beside it"),
            "switch it off on this network, or set `mode = \"proxy\"` in [dhcp]",
        ),
    }
}

/// Others who answer DHCP or PXE here. Without any, proxy mode has nobody to stand beside.
fn rivals(status: &DhcpStatus, rivals: &[RivalRow]) -> Vec<Finding> {
    if *status == DhcpStatus::Proxy && !rivals.iter().any(|rival| rival.role == "dhcp") {
        return vec![Finding::warn(
            "dhcp",
            "no DHCP server was heard on this wire: PCs get no address, and boot from their disks",
            "look at the site's DHCP server; if there is none, set `mode = \"full\"` in [dhcp]",
        )];
    }
    let told = |rival: &&RivalRow| rival.role != "dhcp" || !rival.boot_file.is_empty();
    rivals
        .iter()
        .filter(told)
        .map(|rival| {
            let file = match rival.boot_file.as_str() {
                "" => String::new(),
                file => format!(" with the boot file {file}"),
            };
            Finding::warn(
                "rivals",
                format!("{} gives boot answers too{file}", rival.server),
                "a PC takes the one it likes best: have it answer other machines only, or switch it off",
            )
        })
        .collect()
}

fn range(config: &Config, leases: usize) -> Option<Finding> {
    let (first, last) = config.dhcp.range?;
    let size = (last.to_bits().saturating_sub(first.to_bits()) as usize).saturating_add(1);
    let text = format!("{leases} of {size} addresses of {first}-{last} are in use");
    Some(if leases * 100 >= size * CROWDED {
        let remedy = "widen `range` in [dhcp], or shorten `lease`";
        Finding::warn("addresses", text, remedy)
    } else {
        Finding::ok("addresses", text)
    })
}

/// Loads the templates as a start would.
fn templates(config: &Config) -> Vec<Finding> {
    let broken = crate::offers::broken_templates(config);
    if broken.is_empty() {
        return vec![Finding::ok("templates", "the loader scripts can be rendered")];
    }
    let remedy = "mend the template and restart cidhead";
    broken
        .into_iter()
        .map(|what| Finding::fail("templates", what, remedy))
        .collect()
}

/// Every group's image, each file against its digest.
fn groups(config: &Config, assigned: &BTreeMap<String, String>) -> Vec<Finding> {
    if config.groups.is_empty() {
        let remedy = "add a group to head.toml ([groups.lab-a]), then restart cidhead";
        return vec![Finding::fail(
            "groups",
            "head.toml has no group: nobody can be adopted",
            remedy,
        )];
    }
    let groups = config.groups.iter();
    let mut names: Vec<&String> = groups
        .map(|(name, group)| assigned.get(name).unwrap_or(&group.image))
        .collect();
    names.sort();
    names.dedup();
    names.into_iter().map(|name| image(config, name)).collect()
}

fn image(config: &Config, name: &str) -> Finding {
    let recipe = crate::versions::split(name).map_or(name, |(recipe, _)| recipe);
    let build = format!("`cidbuild image {recipe} --out {}`", config.images_dir.display());
    match images::load_folder(&crate::offers::folders(config).of(name), name) {
        Ok(image) => {
            if let Some(fault) = image.uefi_fault() {
                let what = match fault {
                    ImageFault::BrokenChain(what) => format!("in image {name} {what}"),
                    _ => format!("image {name} holds no shim and GRUB"),
                };
                return Finding::warn("image", format!("{what}: UEFI PCs cannot boot it"), build);
            }
            let size: u64 = image.manifest.artifacts.values().map(|file| file.size).sum();
            let text = format!(
                "image {name}: {} files, {} MiB, every digest right; kernel {}, {} drivers of network cards",
                image.manifest.artifacts.len(),
                size >> 20,
                image.manifest.kernel_release,
                image.manifest.nic_drivers.len()
            );
            Finding::ok("image", text)
        }
        Err(ImageFault::Missing(what) | ImageFault::Damaged(what)) => Finding::fail("image", what, build),
        Err(ImageFault::NoUefiLoader | ImageFault::BrokenChain(_)) => {
            Finding::warn("image", format!("image {name} cannot boot UEFI PCs"), build)
        }
    }
}

/// Leases and hours hang on it.
fn clock(lab: Option<Duration>) -> Finding {
    if let Some(ahead) = lab {
        return Finding::fail(
            "clock",
            format!(
                "the wall clock is a virtual lab's, {} s ahead: real PCs would compute outside their hours",
                ahead.as_secs()
            ),
            format!(
                "unset {} and restart cidhead, if there are real PCs",
                crate::wall::VARIABLE
            ),
        );
    }
    match cid_sys::clock::is_unsynchronised() {
        Ok(false) => Finding::ok("clock", "the clock is kept right by a time service"),
        Ok(true) => Finding::warn(
            "clock",
            "the kernel does not know of a time service that keeps this clock right: opening hours follow it all the same",
            "install chrony, or `timedatectl set-ntp true`; in a container the host keeps the clock",
        ),
        Err(error) => Finding::warn("clock", format!("the clock cannot be asked: {error}"), ""),
    }
}

fn space(check: &str, folder: &Path) -> Finding {
    let shown = folder.display();
    let free = match statvfs(folder) {
        Ok(found) => found.blocks_available().saturating_mul(found.fragment_size()) >> 20,
        Err(error) => {
            let remedy = "make the folder, or correct head.toml";
            return Finding::fail(check, format!("{shown}: {error}"), remedy);
        }
    };
    let text = format!("{shown}: {free} MiB free");
    let remedy = "make room there";
    match free {
        free if free < LITTLE_SPACE.0 => Finding::fail(check, text, remedy),
        free if free < LITTLE_SPACE.1 => Finding::warn(check, text, remedy),
        _ => Finding::ok(check, text),
    }
}

fn database(api: &Api) -> Finding {
    let store = api.core.store();
    let checked = store.check().and_then(|()| store.submit(Vec::new())?.wait());
    match checked {
        Ok(()) => Finding::ok("database", "the database is whole and takes writes"),
        Err(error) => Finding::fail(
            "database",
            error.to_string(),
            "look at the disk under `state_dir`; `journalctl -u cidhead` has the first error",
        ),
    }
}

#[cfg(test)]
mod tests;
