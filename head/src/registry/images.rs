//! Which version of an image each group and each machine boots. Must not read an image: what versions there are is told.
//!
//! A group that was never set follows: it boots the newest version of the image that head.toml names. One that was set, rolled or rolled
//! back stays at that version until it is set again. `image = "minimal@2"` in head.toml is the administrator's last word.

use std::collections::{BTreeMap, BTreeSet};

use cid_bootserver::site::Assigned;
use cid_protocol::api::NodeState;
use cid_protocol::images::{GroupImageRow, ImageRow, RollPhase};
use serde::{Deserialize, Serialize};

use super::roll::Roll;
use super::{CommandError, Now, Output, Record, Registry};
use crate::mac::Mac;
use crate::versions::{Version, split};

/// What is kept of images in the database.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ImagesRecord {
    /// The last sequence that was given; rises for ever.
    pub sequence: u64,
    /// Under which sequence each version was promised last.
    pub promised: BTreeMap<String, u64>,
    /// What groups boot.
    pub groups: BTreeMap<String, GroupImage>,
    /// Machines that boot something else than their group, by MAC.
    pub pins: BTreeMap<String, String>,
    /// The update under way, or the last one.
    pub roll: Option<Roll>,
}

/// What a group boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupImage {
    /// What head.toml named when this was decided; another word there undoes it.
    pub configured: String,
    /// `minimal@2`.
    pub image: String,
    /// What it booted before.
    pub previous: Option<String>,
    /// It boots each newer version.
    pub follows: bool,
}

/// Why an image cannot be set or rolled; nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// There is no such version.
    #[error(
        "there is no version {0}; `cidctl image list` shows what there is, `cidctl image import DIR` takes a built image in"
    )]
    NoVersion(String),
    /// There is no version of this image.
    #[error(
        "there is no version of image {0}; build it with `cidbuild image`, then `cidctl image import DIR`"
    )]
    NoImage(String),
    /// head.toml names a version.
    #[error(
        "head.toml says {image} for group {group}; write `image = \"{name}\"` there to set versions by command"
    )]
    Pinned {
        /// Group.
        group: String,
        /// As configured.
        image: String,
        /// Without the version.
        name: String,
    },
    /// There is nothing to go back to.
    #[error("group {0} has booted nothing else that is still there; `cidctl image set` names a version")]
    NothingBefore(String),
    /// One update at a time.
    #[error("an update to {0} is under way; `cidctl image roll --stop` ends it")]
    Rolling(String),
    /// None is under way.
    #[error("no update is under way; `cidctl image roll NODESET` begins one")]
    NotRolling,
    /// Its machines boot different things.
    #[error(
        "these nodes boot different images ({0}); name the one to roll: `cidctl image roll NODESET NAME@VERSION`"
    )]
    Several(String),
    /// Nobody can be begun.
    #[error(
        "{keep_up} nodes are to stay up, and there are {nodes}: none could be begun; name a smaller --keep-up"
    )]
    KeepsAll {
        /// To stay up.
        keep_up: u32,
        /// In the set.
        nodes: usize,
    },
    /// Nobody.
    #[error("none of these machines is adopted; `cidctl adopt` takes them in")]
    Nobody,
    /// The group or node set.
    #[error(transparent)]
    Command(#[from] CommandError),
}

impl Registry {
    /// Takes over what the database kept. What head.toml has overruled since is dropped.
    pub fn restore_images(&mut self, mut record: ImagesRecord) {
        let groups = &self.groups;
        record.groups.retain(|name, kept| {
            groups
                .get(name)
                .is_some_and(|group| group.image == kept.configured)
        });
        self.images = record;
    }

    /// What versions there are now. Groups that follow go on to the newest.
    pub fn set_versions(&mut self, now: Now, versions: Vec<Version>) {
        self.versions = versions;
        let names: Vec<(String, String)> = self
            .groups
            .iter()
            .map(|(name, group)| (name.clone(), group.image.clone()))
            .collect();
        for (group, configured) in names {
            let kept = self.images.groups.get(&group);
            let wanted = match split(&configured) {
                Some(_) => Some(configured.clone()),
                None if kept.is_none_or(|kept| kept.follows) => self.newest(&configured),
                None => None,
            };
            if let Some(image) = wanted
                && kept.is_none_or(|kept| kept.image != image)
                && self.has_version(&image)
            {
                let first = kept.is_none();
                self.assign_group(now, &group, image.clone(), true);
                if !first {
                    self.note(
                        "image",
                        format!("group {group} boots {image} from its next boot on"),
                    );
                }
            }
        }
    }

    fn has_version(&self, image: &str) -> bool {
        self.versions.iter().any(|version| version.image() == image)
    }

    /// `minimal@3`, the newest version of `minimal`.
    pub fn newest(&self, name: &str) -> Option<String> {
        let of_name = self.versions.iter().filter(|version| version.name == name);
        of_name.max_by_key(|version| version.number).map(Version::image)
    }

    /// What a person typed, with its number.
    ///
    /// # Errors
    /// There is no such version.
    pub fn resolve_image(&self, image: &str) -> Result<String, ImageError> {
        match split(image) {
            Some(_) if self.has_version(image) => Ok(image.to_owned()),
            Some(_) => Err(ImageError::NoVersion(image.to_owned())),
            None => self
                .newest(image)
                .ok_or_else(|| ImageError::NoImage(image.to_owned())),
        }
    }

    /// What a group boots: `minimal@2`, or as configured while there is no version of it.
    pub fn group_image(&self, name: &str) -> Option<&str> {
        let kept = self.images.groups.get(name).map(|kept| kept.image.as_str());
        kept.or_else(|| self.groups.get(name).map(|group| group.image.as_str()))
    }

    /// What a machine boots if it boots now.
    pub fn image_for(&self, record: &Record) -> Option<&str> {
        let pin = self.images.pins.get(&record.mac.to_string());
        match pin {
            Some(pin) => Some(pin),
            None => self.group_image(self.group_of(record)?.0),
        }
    }

    /// Everything that may be asked for at the moment.
    pub fn assigned(&self) -> Assigned {
        let groups = self.groups.keys();
        let groups = groups.filter_map(|name| Some((name.clone(), self.group_image(name)?.to_owned())));
        let mut also: BTreeSet<String> = self.images.pins.values().cloned().collect();
        also.extend(
            self.images
                .groups
                .values()
                .filter_map(|kept| kept.previous.clone()),
        );
        if let Some(roll) = self.images.roll.as_ref().filter(|roll| !roll.is_over()) {
            also.insert(roll.image.clone());
        }
        // In the middle of its boot it fetches what its script named.
        let booting = self.records().filter(|record| record.state == NodeState::Booting);
        also.extend(booting.filter_map(|record| record.image.clone()));
        also.retain(|image| self.has_version(image));
        Assigned {
            groups: groups.collect(),
            also,
        }
    }

    fn group_named(&self, group: &str) -> Result<String, ImageError> {
        let configured = self.groups.get(group).map(|found| found.image.clone());
        configured.ok_or_else(|| {
            let known: Vec<&str> = self.groups.keys().map(String::as_str).collect();
            CommandError::UnknownGroup {
                group: group.to_owned(),
                known: known.join(", "),
            }
            .into()
        })
    }

    fn may_change(&self, group: &str) -> Result<(), ImageError> {
        let image = self.group_named(group)?;
        match split(&image) {
            Some((name, _)) => Err(ImageError::Pinned {
                group: group.to_owned(),
                name: name.to_owned(),
                image,
            }),
            None => Ok(()),
        }
    }

    /// A group boots this version from its next boot on.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub fn set_image(&mut self, now: Now, group: &str, image: &str, follow: bool) -> Result<(), ImageError> {
        self.may_change(group)?;
        self.not_while_rolling()?;
        let image = self.resolve_image(image)?;
        self.unpin_group(group);
        self.assign_group(now, group, image.clone(), follow);
        self.note(
            "image",
            format!("the administrator has group {group} boot {image} from its next boot on"),
        );
        Ok(())
    }

    /// A group boots what it booted before; again, and it is undone.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub fn rollback_image(&mut self, now: Now, group: &str) -> Result<String, ImageError> {
        self.may_change(group)?;
        self.not_while_rolling()?;
        let before = self.image_before(group);
        let before = before.ok_or_else(|| ImageError::NothingBefore(group.to_owned()))?;
        self.unpin_group(group);
        self.assign_group(now, group, before.clone(), false);
        self.note(
            "image",
            format!("group {group} goes back to {before} at its next boot"),
        );
        Ok(before)
    }

    pub(super) fn image_before(&self, group: &str) -> Option<String> {
        let before = self.images.groups.get(group)?.previous.clone()?;
        self.has_version(&before).then_some(before)
    }

    pub(super) fn not_while_rolling(&self) -> Result<(), ImageError> {
        match &self.images.roll {
            Some(roll) if !roll.is_over() => Err(ImageError::Rolling(roll.image.clone())),
            _ => Ok(()),
        }
    }

    /// What is promised under a sequence is on disk before anybody hears of it: the write goes before every answer.
    pub(super) fn assign_group(&mut self, _now: Now, group: &str, image: String, follows: bool) {
        let Some(configured) = self.groups.get(group).map(|group| group.image.clone()) else {
            return;
        };
        let before = self.images.groups.remove(group);
        let previous = match before {
            Some(before) if before.image == image => before.previous,
            Some(before) => Some(before.image),
            None => None,
        };
        self.promise(&image);
        let kept = GroupImage {
            configured,
            image,
            previous,
            follows,
        };
        self.images.groups.insert(group.to_owned(), kept);
        self.persist_images();
    }

    /// Gives a version the next sequence.
    pub(super) fn promise(&mut self, image: &str) {
        self.images.sequence += 1;
        self.images
            .promised
            .insert(image.to_owned(), self.images.sequence);
    }

    /// Under which sequence nodes are promised this version; `None` when they never were.
    pub fn sequence_of(&self, image: &str) -> Option<u64> {
        self.images.promised.get(image).copied()
    }

    /// Every version that was ever promised and is still there, with its sequence.
    pub fn sequences(&self) -> Vec<(String, u64)> {
        let promised = self.images.promised.iter();
        promised
            .filter(|(image, _)| self.has_version(image))
            .map(|(image, sequence)| (image.clone(), *sequence))
            .collect()
    }

    fn unpin_group(&mut self, group: &str) {
        let members: BTreeSet<String> = self
            .records()
            .filter(|record| self.group_of(record).is_some_and(|(name, _)| name == group))
            .map(|record| record.mac.to_string())
            .collect();
        self.images.pins.retain(|mac, _| !members.contains(mac));
    }

    /// All of a group boot this by a pin of their own: it is the group's.
    pub(super) fn settle_group(&mut self, now: Now, group: &str, image: &str) {
        let members: Vec<&Record> = self
            .records()
            .filter(|record| self.group_of(record).is_some_and(|(name, _)| name == group))
            .collect();
        let all = members.iter().all(|record| self.image_for(record) == Some(image));
        if !all || self.may_change(group).is_err() {
            return;
        }
        if self.group_image(group) != Some(image) {
            self.assign_group(now, group, image.to_owned(), false);
            self.note(
                "image",
                format!("group {group} boots {image}: all of it was updated"),
            );
        }
        self.unpin_group(group);
        self.persist_images();
    }

    pub(super) fn pin(&mut self, mac: Mac, image: Option<&str>) {
        match image {
            Some(image) => drop(self.images.pins.insert(mac.to_string(), image.to_owned())),
            None => drop(self.images.pins.remove(&mac.to_string())),
        }
    }

    pub(super) fn persist_images(&mut self) {
        self.outputs
            .push_back(Output::PersistImages(Box::new(self.images.clone())));
    }

    /// What must stay, by image, with the reason.
    pub fn needed_images(&self) -> BTreeMap<String, String> {
        let mut needed = BTreeMap::new();
        let mut keep = |image: &str, reason: String| {
            needed.entry(image.to_owned()).or_insert(reason);
        };
        for name in self.groups.keys() {
            if let Some(image) = self.group_image(name) {
                keep(image, format!("group {name} boots it"));
            }
        }
        for (mac, image) in &self.images.pins {
            let name = mac
                .parse()
                .ok()
                .and_then(|mac| self.record(mac))
                .map(Record::label);
            keep(image, format!("{} boots it", name.as_ref().unwrap_or(mac)));
        }
        for record in self.records() {
            if let (true, Some(image)) = (runs(record.state), &record.image) {
                keep(image, format!("{} runs it", record.label()));
            }
        }
        if let Some(roll) = self.images.roll.as_ref().filter(|roll| !roll.is_over()) {
            keep(&roll.image, "an update to it is under way".to_owned());
            for node in &roll.nodes {
                if let Some(from) = &node.from {
                    keep(from, "an update may have to go back to it".to_owned());
                }
            }
        }
        for (name, kept) in &self.images.groups {
            if let Some(previous) = &kept.previous {
                keep(previous, format!("`image rollback {name}` goes back to it"));
            }
        }
        needed
    }

    /// Rows of the API.
    pub fn image_rows(&self) -> Vec<ImageRow> {
        let needed = self.needed_images();
        let running = self.count_by_image();
        let row = |version: &Version| {
            let image = version.image();
            let groups = self.groups.keys();
            let groups = groups.filter(|name| self.group_image(name) == Some(&image));
            ImageRow {
                name: version.name.clone(),
                version: version.number,
                bytes: version.bytes,
                imported_unix: version.imported_unix,
                digest: version.digest.clone(),
                groups: groups.cloned().collect(),
                nodes: running.get(&image).copied().unwrap_or(0),
                sequence: self.sequence_of(&image).unwrap_or(0),
                needed: needed.get(&image).cloned().unwrap_or_default(),
                image,
            }
        };
        self.versions.iter().map(row).collect()
    }

    /// Rows of the API.
    pub fn group_image_rows(&self) -> Vec<GroupImageRow> {
        let row = |(name, group): (&String, &crate::config::Group)| {
            let kept = self.images.groups.get(name);
            GroupImageRow {
                group: name.clone(),
                image: self.group_image(name).unwrap_or_default().to_owned(),
                configured: group.image.clone(),
                follows: kept.is_none_or(|kept| kept.follows) && split(&group.image).is_none(),
                previous: self.image_before(name),
            }
        };
        self.groups.iter().map(row).collect()
    }

    /// How many nodes run each image.
    pub fn count_by_image(&self) -> BTreeMap<String, u32> {
        let mut counts = BTreeMap::new();
        for record in self.records().filter(|record| runs(record.state)) {
            if let Some(image) = &record.image {
                *counts.entry(image.clone()).or_default() += 1;
            }
        }
        counts
    }

    /// A machine's place in the update under way.
    pub(super) fn roll_phase(&self, mac: Mac) -> Option<RollPhase> {
        let roll = self.images.roll.as_ref().filter(|roll| !roll.is_over())?;
        roll.nodes
            .iter()
            .find(|node| node.mac == mac.to_string())
            .map(|node| node.phase)
    }
}

/// Its software is that of the image in its record.
fn runs(state: NodeState) -> bool {
    matches!(
        state,
        NodeState::Booting | NodeState::Joining | NodeState::Up | NodeState::Suspect | NodeState::Draining
    )
}
