//! What a machine boots, and why: one pure function that DHCP, TFTP, HTTP and `cidctl explain` all ask.
//! Same facts, same answer; no side effect. Nothing else in this crate decides.

use std::collections::BTreeMap;
use std::fmt;

use crate::machine::{Client, MacAddress, Platform, Uuid};
use crate::quirks::{self, Manner};

/// Boots in a row without a join that send a machine to its own disk.
pub const MAX_FAILED_BOOTS: u32 = 2;

/// What a packet or a request says of its sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Boot NIC.
    pub mac: MacAddress,
    /// From option 97.
    pub uuid: Option<Uuid>,
    /// Who speaks.
    pub client: Client,
    /// From option 93.
    pub platform: Platform,
    /// Where in its boot it stands.
    pub stage: Stage,
}

/// Where in a boot a machine stands when it speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// It asks by DHCP: a boot begins, whatever became of the one before.
    Asking,
    /// Its loader fetches a file: the boot that was granted to it goes on.
    Fetching,
}

/// What the head knows of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Standing {
    /// Group, once adopted (or by `unknown = "boot"`, or by a `match` of the group).
    pub group: Option<String>,
    /// Name, once it has one.
    pub name: Option<String>,
    /// Why it must stay at home until `cidctl wake`.
    pub hold: Option<String>,
    /// Loader scripts handed out since it was last `up`, one per boot.
    pub failed_boots: u32,
    /// A loader script was handed out in the boot that is going on: its further files belong to a boot already granted.
    pub boot_in_progress: bool,
    /// A loader that we served runs on it: Windows must not follow that in the same boot.
    pub loader_running: bool,
    /// Quirk that the administrator forces on it, by name.
    pub quirk: Option<String>,
    /// Whether a boot of its group may begin now.
    pub hours: Hours,
    /// Version of an image that it boots, `minimal@2`; `None`: what its group boots.
    pub image: Option<String>,
}

/// The opening hours of a machine's group at this moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Hours {
    /// The group has none, so it never boots.
    #[default]
    Never,
    /// A boot would begin outside them.
    Closed {
        /// When they begin, for people; absent when that is nowhere in sight.
        opens: Option<String>,
    },
    /// A boot may begin.
    Open,
}

/// What the configuration and the image folder offer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Site {
    /// Groups by name.
    pub groups: BTreeMap<String, GroupOffer>,
    /// By group, what its machines can be given besides, by image.
    pub versions: BTreeMap<String, BTreeMap<String, GroupOffer>>,
    /// Why no loader script can be rendered, if so.
    pub templates_broken: Option<String>,
}

/// One group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupOffer {
    /// Its image's name.
    pub image: String,
    /// Why that image cannot be booted, if so.
    pub image_fault: Option<ImageFault>,
    /// Whether the image holds `undionly.kpxe` for PCs with a plain PXE ROM.
    pub bios_loader: BiosLoader,
    /// Command line of the image, then the words that always stand, then the group's.
    pub cmdline: String,
}

/// Whether there is a first stage for plain PXE ROMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BiosLoader {
    /// `bios/undionly.kpxe`.
    Present,
    /// None.
    Absent,
}

/// Why an image cannot be booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageFault {
    /// There is no such folder or no manifest in it.
    Missing(String),
    /// A file differs from the manifest.
    Damaged(String),
    /// It was built without boot loaders for UEFI.
    NoUefiLoader,
    /// Its chain of UEFI boot loaders ends before the kernel: names what is missing.
    BrokenChain(String),
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// Why.
    pub reason: Reason,
    /// How this machine's firmware wants to be told.
    pub manner: Manner,
}

/// What to do with a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Boot this image.
    Boot(Boot),
    /// Send it to its own disk, by the fastest answer its firmware understands.
    LocalDisk,
    /// It came too far for [`Action::LocalDisk`], a loader of ours is running: a script that restarts it, and the next boot
    /// is without us.
    Restart,
    /// It did not ask for a boot: an address, and nothing about booting.
    NoBootAnswer,
}

/// What to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// Image.
    pub image: String,
    /// Group.
    pub group: String,
    /// Loader that the DHCP answer names.
    pub loader: Loader,
    /// Kernel command line but for the words that depend on the machine.
    pub cmdline: String,
}

/// The first file a machine fetches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Loader {
    /// iPXE script over HTTP.
    IpxeScript,
    /// iPXE over TFTP for a plain PXE ROM; it then asks again and gets [`Loader::IpxeScript`].
    Undionly,
    /// Debian's signed shim over TFTP, then GRUB.
    Shim,
    /// The same over HTTP, for UEFI HTTP Boot.
    HttpShim,
    /// Script for the iPXE of a USB stick.
    StickIpxe,
    /// Configuration for the GRUB of a USB stick.
    StickGrub,
}

impl Loader {
    /// Name of the door for people and for the kernel command line.
    pub fn door(self) -> &'static str {
        match self {
            Self::IpxeScript => "pxe-bios",
            Self::Undionly => "pxe-bios-plain",
            Self::Shim => "pxe-uefi",
            Self::HttpShim => "http-uefi",
            Self::StickIpxe => "usb-bios",
            Self::StickGrub => "usb-uefi",
        }
    }

    /// File name.
    pub fn file(self) -> &'static str {
        match self {
            Self::IpxeScript => "boot.ipxe",
            Self::Undionly => "undionly.kpxe",
            Self::Shim | Self::HttpShim => "shimx64.efi",
            Self::StickIpxe => "usb.ipxe",
            Self::StickGrub => "usb.cfg",
        }
    }

    /// How it is fetched.
    pub fn transport(self) -> Transport {
        match self {
            Self::IpxeScript | Self::HttpShim | Self::StickIpxe | Self::StickGrub => Transport::Http,
            Self::Undionly | Self::Shim => Transport::Tftp,
        }
    }
}

/// What carries a file to a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// UDP port 69.
    Tftp,
    /// TCP port 80.
    Http,
}

/// Why. Each has a stable name, a line in plain words and, where there is one, the remedy in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The machine's group boots this image.
    InGroup {
        /// Group.
        group: String,
        /// Image.
        image: String,
    },
    /// The sender is an operating system.
    NotFirmware,
    /// Nobody accepted it.
    NotAdopted,
    /// The administrator, or a person at the PC, sent it home.
    Held(String),
    /// Its group's hours have not begun.
    OutsideHours {
        /// Group.
        group: String,
        /// When they begin, for people.
        opens: Option<String>,
    },
    /// Its group has no hours.
    NoHours(String),
    /// It was handed a loader twice and never joined.
    TwoFailedBoots,
    /// Its group is not in `head.toml` any more.
    UnknownGroup(String),
    /// Image missing.
    ImageMissing(String),
    /// Image damaged.
    ImageDamaged(String),
    /// Image has no UEFI loaders.
    NoUefiLoader(String),
    /// A loader template is broken.
    TemplateBroken(String),
    /// We have no loader for it.
    UnsupportedArchitecture(Platform),
    /// A plain PXE ROM, and no iPXE for it in the image.
    NoBiosLoader(String),
    /// The image's chain of UEFI boot loaders ends before the kernel.
    BrokenChain {
        /// Image.
        image: String,
        /// What is missing.
        what: String,
    },
}

impl Reason {
    /// Stable name, kebab-case.
    pub fn name(&self) -> &'static str {
        match self {
            Self::InGroup { .. } => "in-group",
            Self::NotFirmware => "not-firmware",
            Self::NotAdopted => "not-adopted",
            Self::Held(_) => "released",
            Self::OutsideHours { .. } => "outside-hours",
            Self::NoHours(_) => "no-hours",
            Self::TwoFailedBoots => "two-failed-boots",
            Self::UnknownGroup(_) => "unknown-group",
            Self::ImageMissing(_) => "image-missing",
            Self::ImageDamaged(_) => "image-damaged",
            Self::NoUefiLoader(_) => "no-uefi-loader",
            Self::TemplateBroken(_) => "template-broken",
            Self::UnsupportedArchitecture(_) => "unsupported-architecture",
            Self::NoBiosLoader(_) => "no-bios-loader",
            Self::BrokenChain { .. } => "broken-chain",
        }
    }
}

impl Reason {
    /// Name of its counter: the stable name, and for an architecture that we do not boot, which one. Numbers that nobody
    /// registered share one counter.
    pub fn counter(&self) -> String {
        match self {
            Self::UnsupportedArchitecture(platform) => {
                format!("{}/{}", self.name(), platform.name().unwrap_or("unregistered"))
            }
            _ => self.name().to_owned(),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InGroup { group, image } => write!(f, "group {group} boots image {image}"),
            Self::NotFirmware => {
                f.write_str("an operating system asked, not firmware: it gets an address only")
            }
            Self::NotAdopted => f.write_str("nobody has adopted it; `cidctl adopt` takes it in"),
            Self::Held(why) => write!(f, "{why}; `cidctl wake` lets it boot again"),
            Self::OutsideHours {
                group,
                opens: Some(opens),
            } => write!(f, "group {group} is outside its hours, which begin {opens}"),
            Self::OutsideHours { group, opens: None } => {
                write!(
                    f,
                    "group {group} is outside its hours; see `hours` in [groups.{group}]"
                )
            }
            Self::NoHours(group) => write!(
                f,
                "group {group} has no hours, so it never boots; add `hours = [\"Mon-Fri 20:00-06:30\"]` to [groups.{group}] and restart cidhead"
            ),
            Self::TwoFailedBoots => write!(
                f,
                "its last {MAX_FAILED_BOOTS} boots never joined; look at its screen, then `cidctl wake` lets it try again"
            ),
            Self::UnknownGroup(group) => write!(
                f,
                "its group {group} is not in head.toml; add [groups.{group}] or adopt it into another"
            ),
            Self::ImageMissing(what) => write!(f, "{what}; build it with `cidbuild image`"),
            Self::ImageDamaged(what) => write!(f, "{what}; build the image again with `cidbuild image`"),
            Self::NoUefiLoader(image) => write!(
                f,
                "image {image} holds no shim and GRUB for UEFI; build it again with `cidbuild image`"
            ),
            Self::TemplateBroken(what) => write!(f, "{what}; mend the template and restart cidhead"),
            Self::UnsupportedArchitecture(platform) => write!(f, "no image for {platform} machines"),
            Self::NoBiosLoader(image) => write!(
                f,
                "its BIOS has a plain PXE ROM, and image {image} holds no bios/undionly.kpxe for it; build the image again with `cidbuild image`"
            ),
            Self::BrokenChain { image, what } => write!(
                f,
                "the UEFI boot chain of image {image} would end before the kernel: {what}; build the image again with `cidbuild image`"
            ),
        }
    }
}

/// Decides. See the module's first lines.
pub fn decide(facts: &Facts, standing: &Standing, site: &Site) -> Decision {
    let manner = quirks::manner(facts, standing.quirk.as_deref());
    match refuse_or_boot(facts, &manner, standing, site) {
        Ok(boot) => {
            let reason = Reason::InGroup {
                group: boot.group.clone(),
                image: boot.image.clone(),
            };
            Decision {
                action: Action::Boot(boot),
                reason,
                manner,
            }
        }
        Err(reason) => {
            let action = match facts.client {
                Client::OperatingSystem => Action::NoBootAnswer,
                Client::Ipxe if standing.loader_running => Action::Restart,
                _ => Action::LocalDisk,
            };
            Decision {
                action,
                reason,
                manner,
            }
        }
    }
}

/// The reasons against, the machine's own first, then the site's, then the firmware's.
fn refuse_or_boot(facts: &Facts, manner: &Manner, standing: &Standing, site: &Site) -> Result<Boot, Reason> {
    if facts.client == Client::OperatingSystem {
        return Err(Reason::NotFirmware);
    }
    let group = standing.group.as_ref().ok_or(Reason::NotAdopted)?;
    if let Some(why) = &standing.hold {
        return Err(Reason::Held(why.clone()));
    }
    let granted = facts.stage == Stage::Fetching && standing.boot_in_progress;
    if standing.failed_boots >= MAX_FAILED_BOOTS && !granted {
        return Err(Reason::TwoFailedBoots);
    }
    let offer = site
        .groups
        .get(group)
        .ok_or_else(|| Reason::UnknownGroup(group.clone()))?;
    let offer = match &standing.image {
        Some(image) if *image != offer.image => site
            .versions
            .get(group)
            .and_then(|versions| versions.get(image))
            .ok_or_else(|| Reason::ImageMissing(format!("image {image} is not there")))?,
        _ => offer,
    };
    // A boot granted before closing goes on: a loader cut off in its middle hangs, a node that joins is sent home.
    match &standing.hours {
        Hours::Open => {}
        _ if granted => {}
        Hours::Never => return Err(Reason::NoHours(group.clone())),
        Hours::Closed { opens } => {
            return Err(Reason::OutsideHours {
                group: group.clone(),
                opens: opens.clone(),
            });
        }
    }
    if let Some(what) = &site.templates_broken {
        return Err(Reason::TemplateBroken(what.clone()));
    }
    let loader = loader(facts.client, manner.platform.unwrap_or(facts.platform))?;
    match &offer.image_fault {
        Some(ImageFault::Missing(what)) => return Err(Reason::ImageMissing(what.clone())),
        Some(ImageFault::Damaged(what)) => return Err(Reason::ImageDamaged(what.clone())),
        Some(fault) if matches!(loader, Loader::Shim | Loader::HttpShim) => {
            return Err(match fault {
                ImageFault::BrokenChain(what) => Reason::BrokenChain {
                    image: offer.image.clone(),
                    what: what.clone(),
                },
                _ => Reason::NoUefiLoader(offer.image.clone()),
            });
        }
        Some(_) | None => {}
    }
    if loader == Loader::Undionly && offer.bios_loader == BiosLoader::Absent {
        return Err(Reason::NoBiosLoader(offer.image.clone()));
    }
    Ok(Boot {
        image: offer.image.clone(),
        group: group.clone(),
        loader,
        cmdline: offer.cmdline.clone(),
    })
}

fn loader(client: Client, platform: Platform) -> Result<Loader, Reason> {
    match (client, platform) {
        (_, Platform::Other(_)) => Err(Reason::UnsupportedArchitecture(platform)),
        (Client::Stick, Platform::Bios) => Ok(Loader::StickIpxe),
        (Client::Stick, _) => Ok(Loader::StickGrub),
        (Client::Ipxe, Platform::Bios) => Ok(Loader::IpxeScript),
        (Client::PxeFirmware, Platform::Bios) => Ok(Loader::Undionly),
        (Client::HttpFirmware, Platform::UefiX64 | Platform::UefiX64Http) => Ok(Loader::HttpShim),
        (Client::HttpFirmware, Platform::Bios) => Err(Reason::UnsupportedArchitecture(Platform::Other(20))),
        // iPXE on UEFI fetches the same shim: its own boot of a kernel would end at Secure Boot.
        (_, Platform::UefiX64) => Ok(Loader::Shim),
        (_, Platform::UefiX64Http) => Ok(Loader::HttpShim),
        (Client::OperatingSystem, Platform::Bios) => Err(Reason::NotFirmware),
    }
}

#[cfg(test)]
mod tests;
