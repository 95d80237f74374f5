//! What the administrator asks for: adopt, release, wake. Must change nothing when a request is refused.

use std::collections::BTreeSet;
use std::time::Duration;

use cid_protocol::api::NodeState;
use cid_protocol::node::{Ending, ToNode};

use super::{Now, Output, Registry};
use crate::hours::UntilError;
use crate::mac::Mac;
use crate::nodeset::{self, Known, Nobody, NodeSetError};

/// Why a command was refused; nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The node set is wrong.
    #[error(transparent)]
    NodeSet(#[from] NodeSetError),
    /// A name that no machine has.
    #[error("there is no machine `{0}`; `cidctl nodes` lists them")]
    UnknownMachine(String),
    /// A MAC that no machine has.
    #[error("no machine with MAC {0} was ever seen; switch it on and look at `cidctl nodes`")]
    NeverSeen(Mac),
    /// No machine is waiting.
    #[error("no machine is waiting to be adopted; `cidctl nodes` lists them")]
    NobodySeen,
    /// Neither MAC nor `seen`.
    #[error("`{0}` is neither a MAC address nor the word `seen`")]
    NotAMac(String),
    /// A group that head.toml does not have.
    #[error("there is no group `{group}` in head.toml (there are: {known})")]
    UnknownGroup {
        /// Asked for.
        group: String,
        /// Groups there are.
        known: String,
    },
    /// A group that head.toml does not have; another is nearly called so.
    #[error("there is no group `{group}` in head.toml; the nearest is `{nearest}`")]
    NoGroup {
        /// Asked for.
        group: String,
        /// There is.
        nearest: String,
    },
    /// head.toml has none at all.
    #[error("head.toml has no group; add [groups.lab-a] and restart cidhead")]
    NoGroups,
    /// The end of an exception.
    #[error(transparent)]
    Until(#[from] UntilError),
    /// Exceptions end by themselves.
    #[error("until when is missing; write `until 23:00`, `until Mon 06:30` or `until 2026-11-24 06:30`")]
    NoUntil,
    /// `clear` counts at once.
    #[error("`clear` takes no time; leave it out")]
    ClearUntil,
    /// Fewer free names than machines.
    #[error("`{names}` has {free} free names for {machines} machines; name a larger set")]
    TooFewNames {
        /// The node set given.
        names: String,
        /// Names in it that no machine has.
        free: usize,
        /// Machines to name.
        machines: usize,
    },
    /// A name that cannot be a host name.
    #[error("`{0}` cannot be the name of a machine: letters, digits and inner hyphens, at most 63")]
    BadName(String),
}

impl Known for Registry {
    fn group(&self, name: &str) -> Option<Vec<String>> {
        let member = |record: &&super::Record| self.group_of(record).is_some_and(|(group, _)| group == name);
        self.groups.contains_key(name).then(|| {
            let mut names: Vec<String> = self.records().filter(member).map(super::Record::label).collect();
            names.sort();
            names
        })
    }

    fn everybody(&self) -> Vec<String> {
        let mut names: Vec<String> = self.records().map(super::Record::label).collect();
        names.sort();
        names
    }
}

impl Registry {
    pub(super) fn records(&self) -> impl Iterator<Item = &super::Record> {
        self.machines.values().map(|machine| &machine.record)
    }

    /// The machines a node set stands for, in its order.
    ///
    /// # Errors
    /// It is no node set, or names a machine that is not there.
    pub fn resolve(&self, nodeset: &str) -> Result<Vec<Mac>, CommandError> {
        let by_name: std::collections::BTreeMap<String, Mac> = self
            .records()
            .map(|record| (record.label(), record.mac))
            .collect();
        let find = |name: String| {
            let by_mac = || {
                name.parse::<Mac>()
                    .ok()
                    .filter(|mac| self.machines.contains_key(mac))
            };
            by_name
                .get(&name)
                .copied()
                .or_else(by_mac)
                .ok_or(CommandError::UnknownMachine(name.clone()))
        };
        nodeset::expand(nodeset, self)?.into_iter().map(find).collect()
    }

    /// Takes machines into a group and names them in order of MAC. All or none.
    ///
    /// # Errors
    /// The request's; nothing was changed.
    pub fn adopt(
        &mut self,
        now: Now,
        machines: &[String],
        group: &str,
        names: &str,
    ) -> Result<Vec<Mac>, CommandError> {
        if !self.groups.contains_key(group) {
            let known: Vec<&str> = self.groups.keys().map(String::as_str).collect();
            return Err(CommandError::UnknownGroup {
                group: group.to_owned(),
                known: known.join(", "),
            });
        }
        let chosen = self.chosen(machines)?;
        let wanted = nodeset::expand(names, &Nobody)?;
        if let Some(bad) = wanted.iter().find(|name| !is_host_name(name)) {
            return Err(CommandError::BadName(bad.clone()));
        }
        let others = self.records().filter(|record| !chosen.contains(&record.mac));
        let taken: BTreeSet<&str> = others.filter_map(|record| record.name.as_deref()).collect();
        let free: Vec<String> = wanted
            .into_iter()
            .filter(|name| !taken.contains(name.as_str()))
            .collect();
        if free.len() < chosen.len() {
            return Err(CommandError::TooFewNames {
                names: names.to_owned(),
                free: free.len(),
                machines: chosen.len(),
            });
        }
        // Names are unique in the database at every moment: give back before giving out.
        let renamed = chosen.iter().zip(&free).filter(|(mac, name)| {
            self.machines
                .get(mac)
                .and_then(|machine| machine.record.name.as_ref())
                .is_some_and(|old| old != *name)
        });
        for mac in renamed.map(|(mac, _)| *mac).collect::<Vec<_>>() {
            if let Some(machine) = self.machines.get_mut(&mac) {
                machine.record.name = None;
            }
            self.persist(mac);
        }
        for (mac, name) in chosen.iter().zip(free) {
            self.adopt_one(now, *mac, group, name);
        }
        Ok(chosen.into_iter().collect())
    }

    fn chosen(&self, machines: &[String]) -> Result<BTreeSet<Mac>, CommandError> {
        let mut chosen = BTreeSet::new();
        for word in machines {
            if word == "seen" {
                let seen =
                    |record: &&super::Record| record.group.is_none() && record.state == NodeState::Seen;
                chosen.extend(self.records().filter(seen).map(|record| record.mac));
                continue;
            }
            let mac: Mac = word
                .parse()
                .map_err(|_| CommandError::NotAMac(word.chars().take(64).collect()))?;
            if !self.machines.contains_key(&mac) {
                return Err(CommandError::NeverSeen(mac));
            }
            chosen.insert(mac);
        }
        if chosen.is_empty() {
            Err(CommandError::NobodySeen)
        } else {
            Ok(chosen)
        }
    }

    fn adopt_one(&mut self, now: Now, mac: Mac, group: &str, name: String) {
        let Some(machine) = self.machines.get_mut(&mac) else {
            return;
        };
        if machine.is_stranger() {
            self.strangers -= 1;
        }
        let record = &mut machine.record;
        record.name = Some(name.clone());
        record.group = Some(group.to_owned());
        record.set_hold(None, None);
        record.failed_boots = 0;
        self.event(now, mac, "adopted", format!("{mac} is {name} in group {group}"));
        let state = self.machines.get(&mac).map(|machine| machine.record.state);
        if matches!(
            state,
            Some(NodeState::Seen | NodeState::Refused | NodeState::Home)
        ) {
            let reason = "adopted; joins at its next network boot".to_owned();
            self.change_state(now, mac, NodeState::Known, reason);
        }
        self.persist(mac);
    }

    /// Sends machines back to their own systems and keeps them there until `wake`. A node that is connected is
    /// told to drain once the hold is on disk.
    ///
    /// # Errors
    /// The node set's; nothing was changed.
    pub fn release(&mut self, now: Now, nodeset: &str) -> Result<Vec<Mac>, CommandError> {
        let macs = self.resolve(nodeset)?;
        for mac in &macs {
            self.release_one(now, *mac);
        }
        Ok(macs)
    }

    fn release_one(&mut self, now: Now, mac: Mac) {
        let Some(machine) = self.machines.get_mut(&mac) else {
            return;
        };
        let reason = "released by the administrator".to_owned();
        machine.record.set_hold(Some(reason.clone()), None);
        machine.record.boot_again = None;
        let (drains, connection) = (machine.is_in(), machine.connection);
        let patience = self.patience_of(mac);
        let Some(connection) = connection.filter(|_| drains) else {
            return self.send_home(now, mac, "released", reason, patience);
        };
        // It finishes what it has, within its patience, and says when it goes.
        let bound = format!("{reason}: it has {} s to finish its work", patience.as_secs());
        self.event(now, mac, "released", bound);
        self.change_state(now, mac, NodeState::Draining, reason.clone());
        if let Some(machine) = self.machines.get_mut(&mac)
            && machine.leaving.is_none()
        {
            machine.leaving = Some(now.monotonic + patience);
            machine.step_until = Some(now.unix_secs() + patience.as_secs());
        }
        self.persist(mac);
        self.tell_to_go(mac, connection, reason, patience);
    }

    fn tell_to_go(&mut self, mac: Mac, connection: super::ConnectionId, reason: String, patience: Duration) {
        let group = self.record(mac).and_then(|record| self.group_of(record));
        let message = ToNode::Release {
            patience_secs: patience.as_secs(),
            reason,
            ending: group.map_or(Ending::Reboot, |(_, group)| group.at_close),
            again: false,
        };
        self.outputs.push_back(Output::Send { connection, message });
    }

    /// Tells a machine to go home within `patience`; whether it may come back is not decided here.
    pub(super) fn send_home(
        &mut self,
        now: Now,
        mac: Mac,
        kind: &'static str,
        reason: String,
        patience: Duration,
    ) {
        let Some(machine) = self.machines.get_mut(&mac) else {
            return;
        };
        let connection = machine.connection;
        let state = match machine.record.state {
            NodeState::Joining
            | NodeState::Up
            | NodeState::Suspect
            | NodeState::Draining
            | NodeState::Booting
            | NodeState::Lost
            | NodeState::GoingHome => NodeState::GoingHome,
            NodeState::Seen => NodeState::Seen,
            _ => NodeState::Home,
        };
        self.event(now, mac, kind, reason.clone());
        if state == NodeState::GoingHome {
            self.enter_going_home(now, mac, reason.clone());
        } else {
            self.change_state(now, mac, state, reason.clone());
        }
        self.persist(mac);
        if let Some(connection) = connection {
            self.tell_to_go(mac, connection, reason, patience);
        }
    }

    /// Undoes `release` and "two failed boots", and has machines switched on that are not up.
    ///
    /// # Errors
    /// The node set's; nothing was changed.
    pub fn wake(&mut self, now: Now, nodeset: &str) -> Result<Vec<Mac>, CommandError> {
        let macs = self.resolve(nodeset)?;
        for mac in &macs {
            let Some(machine) = self.machines.get_mut(mac) else {
                continue;
            };
            machine.record.set_hold(None, None);
            machine.record.failed_boots = 0;
            let state = machine.record.state;
            self.event(
                now,
                *mac,
                "woken",
                "the administrator lets it boot again".to_owned(),
            );
            if matches!(state, NodeState::Home | NodeState::Refused | NodeState::Lost) {
                let reason = "woken; joins at its next network boot".to_owned();
                self.change_state(now, *mac, NodeState::Known, reason);
            }
            self.persist(*mac);
            if !matches!(state, NodeState::Up | NodeState::Suspect | NodeState::Draining) {
                self.call_again_and_again(now, *mac);
            }
        }
        Ok(macs)
    }
}

/// A label of RFC 1123, with dots between labels.
fn is_host_name(name: &str) -> bool {
    name.len() <= 253
        && name.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        })
        // A name that reads as an address would be taken for one by everybody else.
        && name.parse::<std::net::Ipv4Addr>().is_err()
}
