//! Machines that were only seen: how one is met, and which makes room. Must never hold more than [`MAX_STRANGERS`], nor forget a
//! machine that somebody adopted.

use cid_protocol::api::NodeState;

use super::{LOST_AFTER, MAX_STRANGERS, Machine, Now, Output, Record, Registry};
use crate::mac::Mac;

impl Registry {
    /// Finds or adds a machine that was heard of; whether it is new. When there are too many strangers and all of
    /// them are connected, it is not added.
    pub(super) fn meet(&mut self, now: Now, mac: Mac) -> bool {
        if let Some(machine) = self.machines.get_mut(&mac) {
            machine.record.last_seen = now.unix_secs();
            machine.stale = true;
            if machine.record.state == NodeState::Seen {
                self.welcome_stranger(now, mac);
            }
            return false;
        }
        if self.strangers >= MAX_STRANGERS && !self.evict_stranger() {
            return false;
        }
        let record = Record::seen(mac, now.unix_secs());
        self.machines
            .insert(mac, Machine::new(record, now.monotonic, LOST_AFTER));
        self.strangers += 1;
        self.welcome_stranger(now, mac);
        true
    }

    /// A machine that a group's `match` or `unknown = "boot"` takes in needs no adoption.
    fn welcome_stranger(&mut self, now: Now, mac: Mac) {
        let group = self
            .machines
            .get(&mac)
            .and_then(|machine| self.group_of(&machine.record));
        if let Some(reason) = group.map(|(group, _)| format!("head.toml puts it into group {group}")) {
            self.change_state(now, mac, NodeState::Known, reason);
        }
    }

    fn evict_stranger(&mut self) -> bool {
        let Some(mac) = self.quietest_stranger() else {
            return false;
        };
        if let Some(id) = self.machines.remove(&mac).and_then(|gone| gone.record.node_id) {
            self.ids.remove(&id);
        }
        self.timelines.forget(mac);
        self.forget_credential(mac);
        self.strangers -= 1;
        self.outputs.push_back(Output::Forget(mac));
        true
    }

    /// The one not heard for longest. One look at all of them lasts for as many evictions: whoever was heard since that
    /// look is younger than everybody it found and who was not, so a flood of made-up MACs does not cost a look each.
    fn quietest_stranger(&mut self) -> Option<Mac> {
        let leaves = |machine: &Machine| machine.is_stranger() && machine.connection.is_none();
        for looked in [false, true] {
            while let Some((last_seen, mac)) = self.quiet.pop_front() {
                let still = |machine: &&Machine| leaves(machine) && machine.record.last_seen == last_seen;
                if self.machines.get(&mac).filter(still).is_some() {
                    return Some(mac);
                }
            }
            if looked {
                break;
            }
            let strangers = self.machines.iter().filter(|(_, machine)| leaves(machine));
            let mut quiet: Vec<(u64, Mac)> = strangers
                .map(|(mac, machine)| (machine.record.last_seen, *mac))
                .collect();
            quiet.sort_unstable();
            self.quiet = quiet.into();
        }
        None
    }
}
