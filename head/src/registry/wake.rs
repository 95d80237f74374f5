//! When a machine that is off is called, and called again. Must not know how it is called: that is [`crate::wake`].

use std::time::Duration;

use cid_protocol::api::NodeState;

use super::{Now, Output, Registry};
use crate::config::Subnet;
use crate::mac::Mac;
use crate::wake::Target;

/// After the first call: packets are lost, and a PC that was just switched off needs some seconds before its card listens.
const AGAIN: [Duration; 4] = [
    Duration::from_secs(5),
    Duration::from_secs(20),
    Duration::from_secs(60),
    Duration::from_secs(180),
];
/// A wake command that did its work is not run again within this time: the PC is starting, and some tools would switch it off again.
const STARTING: Duration = Duration::from_secs(600);

impl Registry {
    /// Calls a machine now, and again until it is heard of: the administrator asked.
    pub(super) fn call_again_and_again(&mut self, now: Now, mac: Mac) {
        if let Some(machine) = self.machines.get_mut(&mac) {
            machine.calls = AGAIN.map(|after| now.monotonic + after).into();
            machine.commanded = None;
        }
        self.call(now, mac);
    }

    /// Makes the calls that are due. Call it every second.
    pub fn handle_calls(&mut self, now: Now) {
        let mut due = Vec::new();
        for machine in self.machines.values_mut() {
            let record = &machine.record;
            let here = matches!(
                record.state,
                NodeState::Joining
                    | NodeState::Up
                    | NodeState::Suspect
                    | NodeState::Draining
                    | NodeState::Booting
            );
            if here || record.hold.is_some() {
                machine.calls.clear();
            } else if machine.calls.front().is_some_and(|at| now.monotonic >= *at) {
                machine.calls.pop_front();
                due.push(record.mac);
            }
        }
        for mac in due {
            self.call(now, mac);
        }
    }

    /// Calls a machine once.
    pub(super) fn call(&mut self, now: Now, mac: Mac) {
        let Some(machine) = self.machines.get(&mac) else {
            return;
        };
        if machine.commanded.is_some_and(|at| now.monotonic < at + STARTING) {
            return;
        }
        let record = &machine.record;
        let group = self.group_of(record);
        let links = record.hardware.iter().flat_map(|hardware| &hardware.links);
        let target = Target {
            mac,
            name: record.label(),
            group: group.map_or_else(String::new, |(name, _)| name.to_owned()),
            address: record.address,
            subnets: links.filter_map(|link| subnet(&link.address)).collect(),
            command: group.and_then(|(_, group)| group.wake_command.clone()),
        };
        self.outputs.push_back(Output::Wake(Box::new(target)));
    }

    /// What came of a call: a text for people, or why nothing came of it.
    pub fn handle_wake_outcome(&mut self, now: Now, mac: Mac, outcome: Result<String, String>) {
        let Some(machine) = self.machines.get_mut(&mac) else {
            return;
        };
        if outcome.is_ok() {
            machine.commanded = Some(now.monotonic);
        }
        let kind = if outcome.is_ok() { "wake" } else { "wake-failed" };
        let (Ok(text) | Err(text)) = outcome;
        self.event(now, mac, kind, text);
    }
}

/// `10.77.0.130/24`.
fn subnet(text: &str) -> Option<Subnet> {
    let (address, prefix) = text.split_once('/')?;
    Some(Subnet {
        address: address.parse().ok()?,
        prefix: prefix.parse().ok().filter(|prefix| *prefix <= 32)?,
    })
}

#[cfg(test)]
mod tests;
