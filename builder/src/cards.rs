//! `--for nodes.json`: the network cards that a head has seen against what an image can drive. Every card must find a driver among the
//! image's modules, and every firmware file that this driver may ask for; what is missing is said with the recipe's lines. Reads
//! `cidctl nodes --json`, knows nothing else of running nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, bail};
use cid_initramfs::ModuleIndex;
use cid_initramfs::index::Lookup;
use serde::Deserialize;

use crate::modules::Selection;

/// What of `cidctl nodes --json` matters here; the rest is another reader's.
#[derive(Debug, Deserialize)]
struct Inventory {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    name: String,
    hardware: Option<Hardware>,
}

#[derive(Debug, Deserialize)]
struct Hardware {
    links: Vec<Link>,
    /// Cards that no driver took, by what the kernel calls them.
    #[serde(default)]
    cards_without_driver: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Link {
    /// `8086:15f3`; empty when it is not on that bus.
    #[serde(default)]
    id: String,
    #[serde(default)]
    modalias: String,
    driver: String,
}

/// A kind of network card, and who has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// What the kernel calls it, `pci:v00008086d000015F3sv…`; none from a node that tells neither this nor a PCI number.
    pub modalias: Option<String>,
    /// Driver that served it; empty where none did.
    pub driver: String,
    /// Names of the nodes.
    pub nodes: BTreeSet<String>,
}

impl std::fmt::Display for Card {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = self.modalias.as_deref().map_or_else(
            || self.driver.clone(),
            |alias| pci_number(alias).unwrap_or_else(|| alias.to_owned()),
        );
        let mut names = self.nodes.iter();
        write!(f, "{what} of {}", names.next().map_or("nobody", String::as_str))?;
        match names.count() {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// What an inventory proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Every kind of card once.
    pub cards: Vec<Card>,
    /// Machines that never told what they have.
    pub silent: Vec<String>,
}

/// Reads an inventory.
pub fn read(file: &Path) -> anyhow::Result<Seen> {
    let text = std::fs::read(file).with_context(|| file.display().to_string())?;
    let inventory: Inventory = serde_json::from_slice(&text)
        .with_context(|| format!("{}: is this what `cidctl nodes --json` prints?", file.display()))?;
    let mut cards: BTreeMap<(Option<String>, String), BTreeSet<String>> = BTreeMap::new();
    let mut silent = Vec::new();
    for node in inventory.nodes {
        let Some(hardware) = node.hardware else {
            silent.push(node.name);
            continue;
        };
        let mut saw = |modalias: Option<String>, driver: String| {
            cards
                .entry((modalias, driver))
                .or_default()
                .insert(node.name.clone());
        };
        for link in hardware.links {
            let told = Some(link.modalias).filter(|alias| !alias.is_empty());
            saw(told.or_else(|| modalias_of(&link.id)), link.driver);
        }
        for card in hardware.cards_without_driver {
            let modalias = modalias_of(&card).unwrap_or(card);
            saw(Some(modalias), String::new());
        }
    }
    if cards.is_empty() {
        bail!(
            "{}: no node in it ever told its network cards; boot one PC of each kind once, then ask again",
            file.display()
        );
    }
    let cards = cards.into_iter().map(|((modalias, driver), nodes)| Card {
        modalias,
        driver,
        nodes,
    });
    Ok(Seen {
        cards: cards.collect(),
        silent,
    })
}

/// What the kernel calls an Ethernet card of which only `8086:15f3` is known.
fn modalias_of(id: &str) -> Option<String> {
    let (vendor, device) = id.split_once(':')?;
    let number = |text: &str| u16::from_str_radix(text, 16).ok().filter(|_| text.len() == 4);
    let (vendor, device) = (number(vendor)?, number(device)?);
    Some(format!(
        "pci:v0000{vendor:04X}d0000{device:04X}sv00000000sd00000000bc02sc00i00"
    ))
}

/// `8086:15f3` of a card on PCI.
fn pci_number(modalias: &str) -> Option<String> {
    let rest = modalias.strip_prefix("pci:v0000")?;
    let (vendor, rest) = rest.split_at_checked(4)?;
    let device = rest.strip_prefix("d0000")?.get(..4)?;
    Some(format!("{vendor}:{device}").to_ascii_lowercase())
}

/// Proves that the image drives every card. Otherwise one line for each that it does not, and at the end what to add to the recipe.
/// `firmware` is every name that the image's modules may ask for, and whether it is inside.
pub fn prove(
    seen: &Seen,
    index: &ModuleIndex,
    selection: &Selection,
    firmware: &BTreeMap<String, bool>,
) -> Result<(), Vec<String>> {
    let (mut lines, mut modules, mut packages) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    for card in &seen.cards {
        let wanted = card.modalias.as_deref().unwrap_or(&card.driver);
        let carriers = match index.lookup(wanted) {
            Lookup::Builtin => continue,
            Lookup::Module(module) => vec![module],
            Lookup::Alias(carriers) => carriers,
            Lookup::Unknown => {
                lines.push(format!(
                    "{card}: this kernel has no driver for it; try a newer kernel"
                ));
                continue;
            }
        };
        let Some(module) = carriers
            .iter()
            .find(|module| selection.closure.contains_key(&module.name))
        else {
            let names: Vec<&str> = carriers.iter().map(|module| module.name.as_str()).collect();
            lines.push(format!(
                "{card}: its driver {} is not in the image",
                names.join(" or ")
            ));
            modules.extend(names.first().map(|name| (*name).to_owned()));
            continue;
        };
        let missing: Vec<&String> = module
            .firmware
            .iter()
            .filter(|name| firmware.get(*name) != Some(&true))
            .collect();
        if let Some(first) = missing.first() {
            let more = missing.len() - 1;
            lines.push(format!(
                "{card}: its driver {} may ask for firmware {first}{}, which is not in the image",
                module.name,
                if more == 0 {
                    String::new()
                } else {
                    format!(" and {more} more files")
                }
            ));
            packages.extend(missing.iter().map(|name| package_of(name)));
        }
    }
    if lines.is_empty() {
        return Ok(());
    }
    let quoted = |names: &BTreeSet<String>| {
        let names: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
        names.join(", ")
    };
    if !modules.is_empty() {
        lines.push(format!(
            "add to the recipe's [modules]: nic = [{}]",
            quoted(&modules)
        ));
    }
    let packages: BTreeSet<String> = packages.into_iter().map(str::to_owned).collect();
    if !packages.is_empty() {
        lines.push(format!(
            "add to the recipe: [firmware] packages = [{}]",
            quoted(&packages)
        ));
    }
    Err(lines)
}

/// Debian's package with this file.
fn package_of(firmware: &str) -> &'static str {
    FIRMWARE_PACKAGES
        .iter()
        .find(|(start, _)| firmware.starts_with(start))
        .map_or("firmware-misc-nonfree", |(_, package)| package)
}

/// How the names of firmware files of wired cards begin, and Debian 13's package for them (section non-free-firmware).
const FIRMWARE_PACKAGES: &[(&str, &str)] = &[
    ("rtl_nic/", "firmware-realtek"),
    ("bnx2/", "firmware-bnx2"),
    ("bnx2x", "firmware-bnx2x"),
    ("intel/ice/", "firmware-intel-misc"),
    ("cxgb", "firmware-netxen"),
    ("phanfw", "firmware-netxen"),
    ("qed/", "firmware-qlogic"),
    ("myri10ge", "firmware-myricom"),
    ("netronome/", "firmware-netronome"),
];

#[cfg(test)]
mod tests;
