//! Nodes that take no more work: before their group closes, and when an administrator says so. Must not end anything:
//! who goes home is `send_home`'s.

use cid_protocol::api::NodeState;
use cid_protocol::node::{Plan, ToNode};

use super::calendar::{later, moment, seconds};
use super::machine::Machine;
use super::{CommandError, Now, Output, Registry, tame};
use crate::hours::for_people;
use crate::mac::Mac;

/// Bytes of an administrator's reason.
const LONGEST_REASON: usize = 200;

/// Why a node takes no more work, and until when it has to finish.
struct Drain {
    reason: String,
    /// Unix seconds; `None` when nothing follows by itself.
    deadline: Option<u64>,
}

impl Registry {
    /// Whether new work may be placed on a machine. Whatever places work asks this, and nothing else.
    pub fn takes_work(&self, mac: Mac) -> bool {
        self.record(mac)
            .is_some_and(|record| record.state == NodeState::Up)
    }

    /// Nodes take no more work until `undrain`; they stay, and finish what they have.
    ///
    /// # Errors
    /// The node set's; nothing was changed.
    pub fn drain(&mut self, now: Now, nodeset: &str, reason: Option<&str>) -> Result<Vec<Mac>, CommandError> {
        let reason = match reason.map(|reason| tame(reason, LONGEST_REASON)) {
            Some(reason) if !reason.is_empty() => format!("drained by the administrator: {reason}"),
            _ => "drained by the administrator".to_owned(),
        };
        self.set_drain(now, nodeset, Some(reason))
    }

    /// Undoes `drain`.
    ///
    /// # Errors
    /// The node set's; nothing was changed.
    pub fn undrain(&mut self, now: Now, nodeset: &str) -> Result<Vec<Mac>, CommandError> {
        self.set_drain(now, nodeset, None)
    }

    fn set_drain(
        &mut self,
        now: Now,
        nodeset: &str,
        drain: Option<String>,
    ) -> Result<Vec<Mac>, CommandError> {
        let macs = self.resolve(nodeset)?;
        for mac in &macs {
            let Some(machine) = self.machines.get_mut(mac) else {
                continue;
            };
            if machine.record.drain == drain {
                continue;
            }
            machine.record.drain.clone_from(&drain);
            match &drain {
                Some(reason) => self.event(now, *mac, "drained", reason.clone()),
                None => self.event(
                    now,
                    *mac,
                    "undrained",
                    "the administrator lets it take work again".to_owned(),
                ),
            }
            self.settle(now, *mac);
            self.persist(*mac);
        }
        Ok(macs)
    }

    /// A node is in the cluster: it takes work, or it does not and says why.
    pub(super) fn come_up(&mut self, now: Now, mac: Mac, reason: String) {
        let machine = self.machines.get(&mac);
        if let Some(fetches) = machine.and_then(|machine| machine.fetches.clone()) {
            return self.change_state(now, mac, NodeState::Joining, fetches);
        }
        let drain = machine.and_then(|machine| self.drain_of(now, machine));
        match drain {
            Some(drain) => self.start_draining(now, mac, drain),
            // Another reason for what it is already would be a line in everybody's history: of the whole room, when a head comes back.
            None if self
                .record(mac)
                .is_some_and(|record| record.state == NodeState::Up) => {}
            None => self.change_state(now, mac, NodeState::Up, reason),
        }
    }

    /// Nodes whose group closes within their patience take no more work; those that may again, do.
    pub(super) fn handle_draining(&mut self, now: Now) {
        let in_cluster = self.machines.values().filter(|machine| machine.is_in());
        let macs: Vec<Mac> = in_cluster.map(|machine| machine.record.mac).collect();
        for mac in macs {
            if self.settle(now, mac) {
                self.persist(mac);
            }
        }
    }

    /// Brings one node's state in line with the reasons there are; whether that changed it.
    fn settle(&mut self, now: Now, mac: Mac) -> bool {
        let Some(machine) = self.machines.get(&mac) else {
            return false;
        };
        if !machine.is_in() || machine.leaving.is_some() {
            return false;
        }
        let before = (machine.record.state, machine.record.reason.clone());
        match (self.drain_of(now, machine), machine.record.state) {
            (Some(drain), _) => self.start_draining(now, mac, drain),
            (None, NodeState::Draining) => {
                self.change_state(now, mac, NodeState::Up, "takes work again".to_owned());
            }
            (None, _) => {}
        }
        self.record(mac)
            .is_some_and(|record| (record.state, &record.reason) != (before.0, &before.1))
    }

    fn start_draining(&mut self, now: Now, mac: Mac, drain: Drain) {
        self.change_state(now, mac, NodeState::Draining, drain.reason);
        if let Some(machine) = self.machines.get_mut(&mac) {
            machine.step_until = drain.deadline;
        }
    }

    /// The closing of its group comes before an administrator's wish: it has a deadline.
    fn drain_of(&self, now: Now, machine: &Machine) -> Option<Drain> {
        let closing = self.group_of(&machine.record).and_then(|(name, group)| {
            let leave = self.leave(now, name)?;
            let begins = later(moment(now), group.patience);
            (leave <= begins).then(|| {
                let time = for_people(&self.zone, leave);
                let time = time.get(15..).unwrap_or_default();
                Drain {
                    reason: format!("its group {name} closes at {time}"),
                    deadline: Some(seconds(leave)),
                }
            })
        });
        let asked = machine.record.drain.clone().map(|reason| Drain {
            reason,
            deadline: None,
        });
        closing.or(asked)
    }

    /// Tells connected nodes when they go home, if that is not what they were told last.
    pub(super) fn tell_plans(&mut self, now: Now) {
        let moved = self.machines.values().filter_map(|machine| {
            // First, because strangers without one may be many.
            let connection = machine.connection?;
            let (group, _) = self.group_of(&machine.record)?;
            let home_at_unix_ms = self.closes_at(now, group);
            (machine.told != home_at_unix_ms).then(|| {
                let until = self.open_until(now, group);
                let plan = Plan {
                    until,
                    home_at_unix_ms,
                };
                (machine.record.mac, connection, plan)
            })
        });
        for (mac, connection, plan) in moved.collect::<Vec<_>>() {
            if let Some(machine) = self.machines.get_mut(&mac) {
                machine.told = plan.home_at_unix_ms;
            }
            let message = ToNode::Pulse {
                time_unix_ms: now.unix_ms,
                plan: Some(plan),
            };
            self.outputs.push_back(Output::Send { connection, message });
        }
    }
}
