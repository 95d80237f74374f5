//! What there is to boot: groups, their images, the templates. Watches the image folder; decides nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bytes::Bytes;
use cid_protocol::{NODE_PORT, cmdline};

use crate::images::{self, Image};
use crate::machine::MacAddress;
use crate::policy::{BiosLoader, Boot, GroupOffer, ImageFault, Site};
use crate::templates::{self, TemplateError, Templates, Values};
use crate::windows;

/// A group as the head's configuration has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupSettings {
    /// Image name: one path component.
    pub image: String,
    /// Words behind ours on the kernel command line.
    pub kernel_args: String,
    /// Seconds without the head after which a node goes home.
    pub bail_out_secs: u64,
    /// Seconds that draining may take.
    pub patience_secs: u64,
}

/// Which version of which image is booted, `minimal@2`; what is not named here boots what head.toml names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Assigned {
    /// By group.
    pub groups: BTreeMap<String, String>,
    /// What single machines boot, or may be in the middle of booting.
    pub also: BTreeSet<String>,
}

/// Where images lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folders {
    /// `NAME/manifest.json`, as `cidbuild` leaves them.
    pub built: PathBuf,
    /// `NAME/VERSION/manifest.json`, which never change.
    pub versions: PathBuf,
}

impl Folders {
    /// The folder of `minimal` or of `minimal@2`.
    pub fn of(&self, image: &str) -> PathBuf {
        match image.rsplit_once('@') {
            Some((name, version)) => self.versions.join(name).join(version),
            None => self.built.join(image),
        }
    }
}

type Stamp = Option<(std::time::SystemTime, u64, PathBuf)>;

/// Groups, images and templates of one head.
pub struct Offers {
    head: Ipv4Addr,
    folders: Folders,
    groups: BTreeMap<String, GroupSettings>,
    templates: Result<Templates, TemplateError>,
    assigned: Mutex<Assigned>,
    stamps: Mutex<BTreeMap<String, Stamp>>,
    current: RwLock<Arc<Current>>,
}

/// One consistent view.
#[derive(Default)]
pub struct Current {
    /// For the policy.
    pub site: Site,
    images: BTreeMap<String, Arc<Image>>,
    faults: BTreeMap<String, ImageFault>,
}

impl Offers {
    /// Loads templates (a file in `overrides` replaces a built-in one) and every group's image. Blocks.
    pub fn load(
        head: Ipv4Addr,
        images_dir: PathBuf,
        overrides: Option<PathBuf>,
        groups: BTreeMap<String, GroupSettings>,
    ) -> Self {
        let folders = Folders {
            versions: images_dir.join(".versions"),
            built: images_dir,
        };
        Self::load_assigned(head, folders, overrides, groups, Assigned::default())
    }

    /// The same where groups boot versions. Blocks.
    pub fn load_assigned(
        head: Ipv4Addr,
        folders: Folders,
        overrides: Option<PathBuf>,
        groups: BTreeMap<String, GroupSettings>,
        assigned: Assigned,
    ) -> Self {
        let offers = Self {
            head,
            folders,
            groups,
            templates: Templates::load(overrides.as_deref()),
            assigned: Mutex::new(assigned),
            stamps: Mutex::default(),
            current: RwLock::default(),
        };
        offers.refresh();
        offers
    }

    /// Our first address.
    pub fn head(&self) -> Ipv4Addr {
        self.head
    }

    /// The view of this moment.
    pub fn current(&self) -> Arc<Current> {
        // A poisoned lock holds a whole view all the same: it is replaced in one assignment.
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks whether an image was built anew (or broken) and loads it. Blocks: call it off the event loop, every few
    /// seconds. Returns whether anything changed.
    pub fn refresh(&self) -> bool {
        let assigned = self.assigned.lock().unwrap_or_else(PoisonError::into_inner);
        self.bring_up_to_date(&assigned, false)
    }

    /// Boots these versions from here on, and lets go of others. Blocks.
    pub fn assign(&self, assigned: Assigned) {
        let mut current = self.assigned.lock().unwrap_or_else(PoisonError::into_inner);
        if *current != assigned {
            self.bring_up_to_date(&assigned, true);
            *current = assigned;
        }
    }

    /// Has an image ready that is about to be assigned. Blocks.
    ///
    /// # Errors
    /// It cannot be booted by anybody.
    pub fn hold(&self, image: &str) -> Result<(), ImageFault> {
        let mut assigned = self.assigned.lock().unwrap_or_else(PoisonError::into_inner);
        if assigned.also.insert(image.to_owned()) {
            self.bring_up_to_date(&assigned, true);
        }
        match self.current().faults.get(image) {
            Some(fault) => Err(fault.clone()),
            None => Ok(()),
        }
    }

    fn bring_up_to_date(&self, assigned: &Assigned, changed: bool) -> bool {
        let mut stamps = self.stamps.lock().unwrap_or_else(PoisonError::into_inner);
        let of_groups = self
            .groups
            .iter()
            .map(|(name, group)| image_of(assigned, name, group));
        let names: BTreeSet<String> = of_groups.chain(assigned.also.iter().cloned()).collect();
        let fresh: BTreeMap<String, Stamp> = names
            .iter()
            .map(|name| (name.clone(), images::stamp(&self.folders.of(name))))
            .collect();
        if *stamps == fresh && !changed {
            return false;
        }
        let mut images = BTreeMap::new();
        let mut faults = BTreeMap::new();
        let old = self.current();
        for name in &names {
            let unchanged = stamps
                .get(name)
                .is_some_and(|stamp| fresh.get(name) == Some(stamp));
            if let (true, Some(image)) = (unchanged, old.images.get(name)) {
                images.insert(name.clone(), Arc::clone(image));
                continue;
            }
            match images::load_folder(&self.folders.of(name), name) {
                Ok(image) => {
                    images.insert(name.clone(), Arc::new(image));
                }
                Err(fault) => {
                    faults.insert(name.clone(), fault);
                }
            }
        }
        let site = self.site(assigned, &images, &faults);
        let current = Current { site, images, faults };
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(current);
        *stamps = fresh;
        true
    }

    fn site(
        &self,
        assigned: &Assigned,
        images: &BTreeMap<String, Arc<Image>>,
        faults: &BTreeMap<String, ImageFault>,
    ) -> Site {
        let mut templates_broken = self.templates.as_ref().err().map(ToString::to_string);
        let (mut groups, mut versions) = (BTreeMap::new(), BTreeMap::new());
        for (name, group) in &self.groups {
            let offer = |image: &str| {
                let loaded = images.get(image);
                let image_fault = match (loaded, faults.get(image)) {
                    (_, Some(fault)) => Some(fault.clone()),
                    (Some(loaded), None) => loaded.uefi_fault(),
                    (None, None) => Some(ImageFault::Missing(format!("image {image} is not there"))),
                };
                GroupOffer {
                    image: image.to_owned(),
                    image_fault,
                    bios_loader: loaded.map_or(BiosLoader::Absent, |loaded| loaded.bios_loader()),
                    cmdline: cmdline(group, image, loaded.map_or("", |loaded| &loaded.manifest.cmdline)),
                }
            };
            let of_group = offer(&image_of(assigned, name, group));
            // Rendered now, so that a word no script can carry is a reason to stay at home, not a broken boot.
            if let Err(error) = templates::check_words("kernel command line", &of_group.cmdline) {
                templates_broken.get_or_insert(format!("group {name}: {error}"));
            }
            groups.insert(name.clone(), of_group);
            let others = images.keys().chain(faults.keys());
            let others = others.map(|image| (image.clone(), offer(image))).collect();
            versions.insert(name.clone(), others);
        }
        Site {
            groups,
            versions,
            templates_broken,
        }
    }

    /// A file for Windows administrators.
    pub fn windows_file(&self, name: &str, head: Ipv4Addr) -> Option<Bytes> {
        windows::render(name, head)
    }

    /// A loader script that boots `boot` on the machine. `words` are for this boot alone, behind all others.
    pub fn boot_script(
        &self,
        template: &str,
        boot: &Boot,
        mac: MacAddress,
        machine: &str,
        head: Ipv4Addr,
        words: &str,
    ) -> Result<String, TemplateError> {
        let cmdline = format!("{} {words}", full_cmdline(boot, mac, head));
        self.render(template, head, &boot.image, cmdline, machine, "")
    }

    /// A script that sends the machine home.
    pub fn home_script(
        &self,
        template: &str,
        machine: &str,
        reason: &str,
        head: Ipv4Addr,
    ) -> Result<String, TemplateError> {
        self.render(template, head, "", String::new(), machine, reason)
    }

    fn render(
        &self,
        template: &str,
        head: Ipv4Addr,
        image: &str,
        cmdline: String,
        machine: &str,
        reason: &str,
    ) -> Result<String, TemplateError> {
        let digest = self
            .current()
            .images
            .get(image)
            .and_then(|image| image.manifest.boot_digest())
            .unwrap_or_default();
        let values = Values {
            head: head.to_string(),
            image: image.to_owned(),
            digest,
            cmdline,
            machine: machine.to_owned(),
            reason: reason.to_owned(),
        };
        self.templates
            .as_ref()
            .map_err(Clone::clone)?
            .render(template, &values)
    }
}

impl Current {
    /// What a loaded image holds.
    pub fn manifest(&self, image: &str) -> Option<&cid_protocol::manifest::Manifest> {
        self.image(image).map(|image| &image.manifest)
    }

    /// A file of an image by the last component of its path.
    pub fn file(&self, image: &str, name: &str) -> Option<Bytes> {
        self.image(image)?.file_named(name)
    }

    /// `minimal@2`; or `minimal`, of which the newest that is loaded is meant.
    fn image(&self, image: &str) -> Option<&Arc<Image>> {
        let newest = || {
            let versions = self.images.iter().filter_map(|(loaded, held)| {
                let (name, version) = loaded.rsplit_once('@')?;
                (name == image).then_some((version.parse::<u32>().ok()?, held))
            });
            versions.max_by_key(|(version, _)| *version).map(|(_, held)| held)
        };
        self.images.get(image).or_else(newest)
    }
}

/// What a group boots.
fn image_of(assigned: &Assigned, name: &str, group: &GroupSettings) -> String {
    assigned.groups.get(name).unwrap_or(&group.image).clone()
}

/// The image's words, those that always stand, ours, the group's: later ones win in the kernel.
fn cmdline(group: &GroupSettings, image: &str, of_image: &str) -> String {
    let words = [
        of_image.to_owned(),
        "panic=10 oops=panic".to_owned(),
        format!("{}={image}", cmdline::IMAGE),
        format!("{}={}", cmdline::BAIL_OUT, group.bail_out_secs),
        format!("{}={}", cmdline::PATIENCE, group.patience_secs),
        group.kernel_args.clone(),
    ];
    words
        .iter()
        .filter(|word| !word.trim().is_empty())
        .map(|word| word.trim())
        .collect::<Vec<_>>()
        .join(" ")
}

/// The whole kernel command line of a boot on one machine that asks us at `head`.
pub fn full_cmdline(boot: &Boot, mac: MacAddress, head: Ipv4Addr) -> String {
    let bootif = mac.to_string().replace(':', "-");
    format!(
        "{} {}={head}:{NODE_PORT} {}={} {}=01-{bootif}",
        boot.cmdline,
        cmdline::HEAD,
        cmdline::DOOR,
        boot.loader.door(),
        cmdline::BOOTIF
    )
}
