//! What there is to boot: groups, their images, the templates. Watches the image folder; decides nothing.

use std::collections::BTreeMap;
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

type Stamp = Option<(std::time::SystemTime, u64, PathBuf)>;

/// Groups, images and templates of one head.
pub struct Offers {
    head: Ipv4Addr,
    images_dir: PathBuf,
    groups: BTreeMap<String, GroupSettings>,
    templates: Result<Templates, TemplateError>,
    stamps: Mutex<BTreeMap<String, Stamp>>,
    current: RwLock<Arc<Current>>,
}

/// One consistent view.
#[derive(Default)]
pub struct Current {
    /// For the policy.
    pub site: Site,
    images: BTreeMap<String, Arc<Image>>,
}

impl Offers {
    /// Loads templates (a file in `overrides` replaces a built-in one) and every group's image. Blocks.
    pub fn load(
        head: Ipv4Addr,
        images_dir: PathBuf,
        overrides: Option<PathBuf>,
        groups: BTreeMap<String, GroupSettings>,
    ) -> Self {
        let offers = Self {
            head,
            images_dir,
            groups,
            templates: Templates::load(overrides.as_deref()),
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
        let mut stamps = self.stamps.lock().unwrap_or_else(PoisonError::into_inner);
        let names: std::collections::BTreeSet<&String> =
            self.groups.values().map(|group| &group.image).collect();
        let fresh: BTreeMap<String, Stamp> = names
            .iter()
            .map(|name| ((*name).clone(), images::stamp(&self.images_dir, name)))
            .collect();
        if *stamps == fresh {
            return false;
        }
        let mut images = BTreeMap::new();
        let mut faults = BTreeMap::new();
        let old = self.current();
        for name in names {
            let unchanged = stamps
                .get(name)
                .is_some_and(|stamp| fresh.get(name) == Some(stamp));
            if let (true, Some(image)) = (unchanged, old.images.get(name)) {
                images.insert(name.clone(), Arc::clone(image));
                continue;
            }
            match images::load(&self.images_dir, name) {
                Ok(image) => {
                    images.insert(name.clone(), Arc::new(image));
                }
                Err(fault) => {
                    faults.insert(name.clone(), fault);
                }
            }
        }
        let site = self.site(&images, &faults);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Current { site, images });
        *stamps = fresh;
        true
    }

    fn site(&self, images: &BTreeMap<String, Arc<Image>>, faults: &BTreeMap<String, ImageFault>) -> Site {
        let mut templates_broken = self.templates.as_ref().err().map(ToString::to_string);
        let mut groups = BTreeMap::new();
        for (name, group) in &self.groups {
            let image = images.get(&group.image);
            let image_fault = match (image, faults.get(&group.image)) {
                (_, Some(fault)) => Some(fault.clone()),
                (Some(image), None) => image.uefi_fault(),
                (None, None) => Some(ImageFault::Missing(format!("image {} is not there", group.image))),
            };
            let cmdline = self.cmdline(group, image.map_or("", |image| &image.manifest.cmdline));
            // Rendered now, so that a word no script can carry is a reason to stay at home, not a broken boot.
            if let Err(error) = templates::check_words("kernel command line", &cmdline) {
                templates_broken.get_or_insert(format!("group {name}: {error}"));
            }
            groups.insert(
                name.clone(),
                GroupOffer {
                    image: group.image.clone(),
                    image_fault,
                    bios_loader: image.map_or(BiosLoader::Absent, |image| image.bios_loader()),
                    cmdline,
                },
            );
        }
        Site {
            groups,
            templates_broken,
        }
    }

    /// The image's words, those that always stand, ours, the group's: later ones win in the kernel.
    fn cmdline(&self, group: &GroupSettings, of_image: &str) -> String {
        let words = [
            of_image.to_owned(),
            "panic=10 oops=panic".to_owned(),
            format!("{}={}", cmdline::IMAGE, group.image),
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
        self.images.get(image).map(|image| &image.manifest)
    }

    /// A file of an image by the last component of its path.
    pub fn file(&self, image: &str, name: &str) -> Option<Bytes> {
        self.images.get(image)?.file_named(name)
    }
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
