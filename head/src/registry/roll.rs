//! Rolling updates: nodes are restarted into another version, a few at a time, and the first that does not become healthy ends it.
//! Must not be lost with the head: each step is written in the commit of what follows from it.
//!
//! A node that is restarted for this leaves with the word to come again (`boot_again` in its record): its next boot is not taken for a
//! person's wish. That word counts once; the rule of two boots without `up` stands as it does for everybody.

mod step;

use cid_protocol::api::NodeState;
use cid_protocol::images::{RollPhase, RollReport, RollRequest, RollRow, RollState};
use serde::{Deserialize, Serialize};

use super::images::ImageError;
use super::{LEAVING_TIME, Now, Record, Registry};
use crate::mac::Mac;
use step::Step;

/// An update.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Roll {
    /// Nodes are restarted into this.
    pub image: String,
    /// As asked for.
    pub nodeset: String,
    /// Unix seconds.
    pub begun_unix: u64,
    /// Unix seconds.
    pub ended_unix: Option<u64>,
    /// Nodes on their way at once.
    pub at_a_time: u32,
    /// Nodes that stay up.
    pub keep_up: u32,
    /// How long a node stays up until it is healthy, in seconds.
    pub healthy_secs: u64,
    /// How it stands.
    pub state: RollState,
    /// Why, or what it waits for.
    pub reason: String,
    /// In their order.
    pub nodes: Vec<RollNode>,
}

/// A node of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RollNode {
    /// Which.
    pub mac: String,
    /// What it ran.
    pub from: Option<String>,
    /// The boot that it is to leave behind.
    pub boot_id: Option<String>,
    /// Where it is.
    pub phase: RollPhase,
    /// Since when, Unix seconds.
    pub since_unix: u64,
    /// Why.
    pub reason: String,
}

impl Roll {
    /// Nothing more will happen.
    pub fn is_over(&self) -> bool {
        self.ended_unix.is_some()
    }

    fn count(&self, is: impl Fn(RollPhase) -> bool) -> usize {
        self.nodes.iter().filter(|node| is(node.phase)).count()
    }
}

impl Registry {
    /// Begins an update.
    ///
    /// # Errors
    /// See [`ImageError`]; nothing was changed.
    pub fn begin_roll(&mut self, now: Now, asked: &RollRequest) -> Result<(), ImageError> {
        self.not_while_rolling()?;
        let macs: Vec<Mac> = self
            .resolve(&asked.nodeset)?
            .into_iter()
            .filter(|mac| {
                self.record(*mac)
                    .is_some_and(|record| self.group_of(record).is_some())
            })
            .collect();
        if macs.is_empty() {
            return Err(ImageError::Nobody);
        }
        if asked.keep_up as usize >= macs.len() {
            return Err(ImageError::KeepsAll {
                keep_up: asked.keep_up,
                nodes: macs.len(),
            });
        }
        let image = match &asked.image {
            Some(image) => self.resolve_image(image)?,
            None => self.image_of_all(&macs)?,
        };
        self.promise(&image);
        let node = |mac: &Mac| RollNode {
            mac: mac.to_string(),
            from: self.record(*mac).and_then(|record| record.image.clone()),
            boot_id: None,
            phase: RollPhase::Waiting,
            since_unix: now.unix_secs(),
            reason: String::new(),
        };
        let roll = Roll {
            nodes: macs.iter().map(node).collect(),
            nodeset: asked.nodeset.clone(),
            begun_unix: now.unix_secs(),
            ended_unix: None,
            at_a_time: asked.at_a_time.max(1),
            keep_up: asked.keep_up,
            healthy_secs: asked.healthy_secs,
            state: RollState::Running,
            reason: String::new(),
            image,
        };
        self.note(
            "roll",
            format!("an update of {} nodes to {} begins", roll.nodes.len(), roll.image),
        );
        self.images.roll = Some(roll);
        self.persist_images();
        self.handle_roll(now);
        Ok(())
    }

    fn image_of_all(&self, macs: &[Mac]) -> Result<String, ImageError> {
        let of_groups = macs.iter().filter_map(|mac| {
            let (name, _) = self.group_of(self.record(*mac)?)?;
            self.group_image(name).map(str::to_owned)
        });
        let mut images: Vec<String> = of_groups.collect();
        images.sort();
        images.dedup();
        match images.as_slice() {
            [image] => self.resolve_image(image),
            _ => Err(ImageError::Several(images.join(", "))),
        }
    }

    /// No further node is begun.
    ///
    /// # Errors
    /// None is under way.
    pub fn stop_roll(&mut self, now: Now) -> Result<(), ImageError> {
        let running = |roll: &&mut Roll| !roll.is_over();
        let roll = self
            .images
            .roll
            .as_mut()
            .filter(running)
            .ok_or(ImageError::NotRolling)?;
        if roll.state == RollState::Running {
            roll.state = RollState::Stopping;
            "stopped by the administrator".clone_into(&mut roll.reason);
        }
        self.persist_images();
        self.handle_roll(now);
        Ok(())
    }

    /// The update under way, or the last one, for the API.
    pub fn roll_report(&self) -> Option<RollReport> {
        let roll = self.images.roll.as_ref()?;
        let row = |node: &RollNode| RollRow {
            name: match node.mac.parse().ok().and_then(|mac| self.record(mac)) {
                Some(record) => record.label(),
                None => node.mac.clone(),
            },
            mac: node.mac.clone(),
            phase: node.phase,
            since_unix: node.since_unix,
            from: node.from.clone().unwrap_or_default(),
            reason: node.reason.clone(),
        };
        Some(RollReport {
            image: roll.image.clone(),
            nodeset: roll.nodeset.clone(),
            begun_unix: roll.begun_unix,
            ended_unix: roll.ended_unix,
            state: roll.state,
            reason: roll.reason.clone(),
            nodes: roll.nodes.iter().map(row).collect(),
        })
    }

    /// Looks at every node on its way, and begins the next. Call it every second.
    pub fn handle_roll(&mut self, now: Now) {
        let Some(mut roll) = self.images.roll.take_if(|roll| !roll.is_over()) else {
            return;
        };
        let before = roll.clone();
        for at in 0..roll.nodes.len() {
            let Some(node) = roll.nodes.get(at) else { break };
            match self.look(now, &roll, node) {
                Step::Stay => {}
                Step::Go(phase, reason) => enter(now, &mut roll, at, phase, reason),
                Step::Fail(reason) => self.fail(now, &mut roll, at, &reason),
            }
        }
        if roll.state == RollState::Running {
            self.begin_next(now, &mut roll);
        }
        self.finish(now, &mut roll);
        let changed = roll != before;
        self.images.roll = Some(roll);
        if changed {
            self.persist_images();
        }
    }

    /// A node did not become healthy: it goes back, and so does everybody on the way; nobody else is begun.
    fn fail(&mut self, now: Now, roll: &mut Roll, at: usize, reason: &str) {
        let Some(node) = roll.nodes.get(at) else { return };
        let name = match node.mac.parse().ok().and_then(|mac| self.record(mac)) {
            Some(record) => record.label(),
            None => node.mac.clone(),
        };
        if matches!(roll.state, RollState::Running | RollState::Stopping) {
            roll.state = RollState::Failed;
            roll.reason = format!("{name}: {reason}");
            self.note(
                "roll-failed",
                format!("the update to {} stops: {name}: {reason}", roll.image),
            );
            self.give_up(now, roll);
        }
        for other in 0..roll.nodes.len() {
            let Some(node) = roll.nodes.get(other) else { break };
            if !node.phase.is_under_way() {
                continue;
            }
            let why = if other == at {
                reason
            } else {
                "the update was stopped"
            };
            let Some(mac) = node.mac.parse::<Mac>().ok() else {
                continue;
            };
            let returns = self.go_back(now, mac, &roll.image);
            let phase = if returns {
                RollPhase::Returning
            } else {
                RollPhase::Failed
            };
            enter(now, roll, other, phase, why.to_owned());
            let boot_id = self.record(mac).and_then(|record| record.boot_id.clone());
            if let Some(node) = roll.nodes.get_mut(other) {
                node.boot_id = boot_id;
            }
        }
    }

    /// Whoever boots from here on boots what there was before.
    fn give_up(&mut self, now: Now, roll: &Roll) {
        let macs: Vec<Mac> = roll
            .nodes
            .iter()
            .filter_map(|node| node.mac.parse().ok())
            .collect();
        let mut groups: Vec<String> = Vec::new();
        for mac in macs {
            if self.images.pins.get(&mac.to_string()) == Some(&roll.image) {
                self.pin(mac, None);
            }
            let group = self.record(mac).and_then(|record| self.group_of(record));
            groups.extend(group.map(|(name, _)| name.to_owned()));
        }
        groups.sort();
        groups.dedup();
        for group in groups {
            if self.group_image(&group) == Some(&roll.image)
                && let Some(before) = self.image_before(&group)
            {
                self.assign_group(now, &group, before.clone(), false);
                self.note(
                    "image",
                    format!("group {group} goes back to {before}: {} failed", roll.image),
                );
            } else if let Some(image) = self.group_image(&group).map(str::to_owned) {
                self.promise(&image);
            }
        }
    }

    fn begin_next(&mut self, now: Now, roll: &mut Roll) {
        roll.reason.clear();
        for at in 0..roll.nodes.len() {
            if roll.count(RollPhase::is_under_way) >= roll.at_a_time as usize {
                return;
            }
            let Some(mac) = roll
                .nodes
                .get(at)
                .filter(|node| node.phase == RollPhase::Waiting)
                .and_then(|node| node.mac.parse::<Mac>().ok())
            else {
                continue;
            };
            let Some(machine) = self.machines.get(&mac) else {
                continue;
            };
            let record = &machine.record;
            if machine.is_in() && record.image.as_ref() == Some(&roll.image) {
                self.pin_unless_groups(mac, &roll.image);
                enter(now, roll, at, RollPhase::Done, "ran it already".to_owned());
                continue;
            }
            if !machine.is_in() || machine.leaving.is_some() || machine.connection.is_none() {
                if machine.is_here() {
                    // Its peers doubt it, or it is about to leave: its turn comes when that is decided.
                    continue;
                }
                let reason = "is not up; boots it when it boots next".to_owned();
                self.pin_unless_groups(mac, &roll.image);
                enter(now, roll, at, RollPhase::Skipped, reason);
                continue;
            }
            if let Some(wait) = self.must_wait(now, roll, record) {
                roll.reason = wait;
                return;
            }
            let (boot_id, from) = (record.boot_id.clone(), record.image.clone());
            self.pin_unless_groups(mac, &roll.image);
            if let Some(node) = roll.nodes.get_mut(at) {
                (node.boot_id, node.from) = (boot_id, from);
            }
            enter(now, roll, at, RollPhase::Leaving, String::new());
            self.boot_again(now, mac, format!("restarts into image {}", roll.image));
        }
    }

    fn pin_unless_groups(&mut self, mac: Mac, image: &str) {
        let group = self.record(mac).and_then(|record| self.group_of(record));
        let of_group = group.and_then(|(name, _)| self.group_image(name));
        let differs = of_group != Some(image);
        self.pin(mac, Some(image).filter(|_| differs));
    }

    /// Why no node may be begun now.
    fn must_wait(&self, now: Now, roll: &Roll, next: &Record) -> Option<String> {
        let records = roll
            .nodes
            .iter()
            .filter_map(|node| self.record(node.mac.parse().ok()?));
        let up = records.filter(|record| record.state == NodeState::Up).count();
        let left = up - usize::from(next.state == NodeState::Up).min(up);
        if left < roll.keep_up as usize {
            let keep_up = roll.keep_up;
            return Some(format!(
                "waits: {up} of its nodes are up, and {keep_up} are to stay so"
            ));
        }
        let (name, group) = self.group_of(next)?;
        let mut then = now;
        then.unix_ms += u64::try_from((group.patience + LEAVING_TIME).as_millis()).unwrap_or(0);
        (self.hours(then, name) != cid_bootserver::policy::Hours::Open)
            .then(|| format!("waits: group {name} is closed, or too near its closing for a restart"))
    }

    fn finish(&mut self, now: Now, roll: &mut Roll) {
        let open = |phase: RollPhase| phase.is_under_way() || phase == RollPhase::Returning;
        let waits = roll.state == RollState::Running && roll.count(|phase| phase == RollPhase::Waiting) > 0;
        if waits || roll.count(open) > 0 {
            return;
        }
        roll.ended_unix = Some(now.unix_secs());
        let done = roll.count(|phase| phase == RollPhase::Done);
        let text = match roll.state {
            RollState::Running => {
                roll.state = RollState::Done;
                format!("the update to {} is through: {done} nodes run it", roll.image)
            }
            RollState::Stopping => {
                roll.state = RollState::Stopped;
                format!("the update to {} was stopped: {done} nodes run it", roll.image)
            }
            _ => format!("the update to {} has failed: {}", roll.image, roll.reason),
        };
        self.note("roll", text);
        if roll.state == RollState::Done {
            let macs = roll.nodes.iter().filter_map(|node| node.mac.parse().ok());
            let groups = macs.filter_map(|mac| {
                let (name, _) = self.group_of(self.record(mac)?)?;
                Some(name.to_owned())
            });
            let groups: std::collections::BTreeSet<String> = groups.collect();
            for group in groups {
                self.settle_group(now, &group, &roll.image);
            }
        }
    }

    /// Firmware of a machine asks for a boot: one that was given the new image before and never came up with it has failed with it, and
    /// this very boot is to be the old one's.
    pub(super) fn roll_sees_boot(&mut self, now: Now, mac: Mac) {
        if self.roll_phase(mac) != Some(RollPhase::Booting) {
            return;
        }
        let Some(mut roll) = self.images.roll.take() else {
            return;
        };
        if let Some(at) = roll.nodes.iter().position(|node| node.mac == mac.to_string()) {
            self.fail(now, &mut roll, at, "its PC restarted before it was up");
        }
        self.images.roll = Some(roll);
        self.persist_images();
    }
}

fn enter(now: Now, roll: &mut Roll, at: usize, phase: RollPhase, reason: String) {
    if let Some(node) = roll.nodes.get_mut(at) {
        node.phase = phase;
        node.since_unix = now.unix_secs();
        node.reason = reason;
    }
}
