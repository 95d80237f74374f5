//! One node of a rolling update: where it is by what the registry knows of it, and how it is sent to boot again. Must not begin or end an
//! update.

use std::time::Duration;

use cid_protocol::api::NodeState;
use cid_protocol::images::RollPhase;
use cid_protocol::node::{Ending, ToNode};

use super::super::{
    BOOT_PATIENCE, ConnectionId, LEAVING_TIME, Now, Output, REBOOT_PATIENCE, Record, Registry,
};
use super::{Roll, RollNode};
use crate::mac::Mac;

/// A node that fetches its root image has so long from its boot on.
const JOINING_TIME: Duration = Duration::from_secs(3_600);
/// A node that goes back has so long until it is given up.
const RETURN_TIME: Duration = Duration::from_secs(1_800);

/// What a look at one node came to.
pub(super) enum Step {
    Stay,
    Go(RollPhase, String),
    Fail(String),
}

impl Registry {
    pub(super) fn look(&self, now: Now, roll: &Roll, node: &RollNode) -> Step {
        let record = node.mac.parse().ok().and_then(|mac| self.record(mac));
        let Some(record) = record else {
            return match node.phase {
                RollPhase::Waiting | RollPhase::Leaving => {
                    Step::Go(RollPhase::Skipped, "it was forgotten".to_owned())
                }
                phase if phase.is_under_way() => Step::Fail("it was forgotten".to_owned()),
                RollPhase::Returning => Step::Go(RollPhase::Failed, "it was forgotten".to_owned()),
                _ => Step::Stay,
            };
        };
        let waited = now.unix_secs().saturating_sub(node.since_unix);
        let booted = record.boot_id.is_some() && record.boot_id != node.boot_id;
        let back = booted && is_back(record);
        match node.phase {
            RollPhase::Leaving => self.look_leaving(roll, record, back, waited),
            RollPhase::Booting => look_booting(roll, record, back, waited),
            RollPhase::Checking if back && waited >= roll.healthy_secs => {
                Step::Go(RollPhase::Done, String::new())
            }
            // What its peers doubt for a moment may be nothing; the time counts from the beginning.
            RollPhase::Checking if back || record.state == NodeState::Suspect => Step::Stay,
            RollPhase::Checking => Step::Fail(format!("was up for {waited} s, then: {}", record.reason)),
            RollPhase::Returning if back && record.image.as_ref() != Some(&roll.image) => {
                Step::Go(RollPhase::Returned, node.reason.clone())
            }
            RollPhase::Returning if waited > RETURN_TIME.as_secs() => {
                let reason = format!("{}; has not come back: {}", node.reason, record.reason);
                Step::Go(RollPhase::Failed, reason)
            }
            _ => Step::Stay,
        }
    }

    fn look_leaving(&self, roll: &Roll, record: &Record, back: bool, waited: u64) -> Step {
        // Nothing of the new image has run yet: what keeps it away is not the image's fault.
        if let Some(hold) = &record.hold {
            return Step::Go(RollPhase::Skipped, hold.clone());
        }
        let patience = self
            .group_of(record)
            .map_or(Duration::from_secs(60), |(_, group)| group.patience);
        let limit = patience + LEAVING_TIME + REBOOT_PATIENCE;
        match record.state {
            NodeState::Booting | NodeState::Joining => Step::Go(RollPhase::Booting, String::new()),
            _ if back && record.image.as_ref() == Some(&roll.image) => {
                Step::Go(RollPhase::Checking, String::new())
            }
            _ if back => Step::Fail(came_up_with(record)),
            NodeState::Home | NodeState::Lost | NodeState::Refused => Step::Fail(record.reason.clone()),
            _ if waited > limit.as_secs() => {
                Step::Fail(format!("its firmware has not asked for a boot within {waited} s"))
            }
            _ => Step::Stay,
        }
    }

    /// Restarts a machine into what it had before; not one that a person may have taken. Whether it was.
    pub(super) fn go_back(&mut self, now: Now, mac: Mac, image: &str) -> bool {
        let Some(machine) = self.machines.get_mut(&mac) else {
            return false;
        };
        let record = &mut machine.record;
        if record.held_as_unfit() {
            // By what it measured under the new image.
            record.set_hold(None, None);
        }
        if record.hold_when_asking().is_some() && machine.connection.is_none() || record.hold.is_some() {
            return false;
        }
        // They were the new image's.
        record.failed_boots = 0;
        self.boot_again(
            now,
            mac,
            format!("goes back: {image} did not become healthy on it"),
        );
        true
    }

    /// Restarts a machine, and lets it boot again afterwards.
    pub(super) fn boot_again(&mut self, now: Now, mac: Mac, reason: String) {
        let patience = self.patience_of(mac);
        let Some(machine) = self.machines.get_mut(&mac) else {
            return;
        };
        machine.record.boot_again = Some(reason.clone());
        let (drains, connection) = (machine.is_in(), machine.connection);
        self.event(now, mac, "restarted", reason.clone());
        match connection {
            Some(connection) => {
                if drains {
                    self.change_state(now, mac, NodeState::Draining, reason.clone());
                    if let Some(machine) = self.machines.get_mut(&mac) {
                        machine.leaving = Some(now.monotonic + patience);
                        machine.step_until = Some(now.unix_secs() + patience.as_secs());
                    }
                } else {
                    self.enter_going_home(now, mac, reason.clone());
                }
                self.persist(mac);
                self.tell_to_come_again(mac, connection, reason);
            }
            None => {
                self.persist(mac);
                let state = self.record(mac).map(|record| record.state);
                let off = matches!(state, Some(NodeState::Home | NodeState::Known | NodeState::Lost));
                if off {
                    self.call_again_and_again(now, mac);
                }
            }
        }
    }

    pub(in super::super) fn tell_to_come_again(
        &mut self,
        mac: Mac,
        connection: ConnectionId,
        reason: String,
    ) {
        let message = ToNode::Release {
            patience_secs: self.patience_of(mac).as_secs(),
            reason,
            ending: Ending::Reboot,
            again: true,
        };
        self.outputs.push_back(Output::Send { connection, message });
    }
}

fn look_booting(roll: &Roll, record: &Record, back: bool, waited: u64) -> Step {
    let limit = match record.state {
        NodeState::Joining => JOINING_TIME,
        _ => BOOT_PATIENCE,
    };
    match record.state {
        _ if back && record.image.as_ref() == Some(&roll.image) => {
            Step::Go(RollPhase::Checking, String::new())
        }
        _ if back => Step::Fail(came_up_with(record)),
        NodeState::Refused | NodeState::Home | NodeState::Lost | NodeState::GoingHome => {
            Step::Fail(record.reason.clone())
        }
        _ if waited > limit.as_secs() => {
            Step::Fail(format!("has not come up within {waited} s: {}", record.reason))
        }
        _ => Step::Stay,
    }
}

fn came_up_with(record: &Record) -> String {
    let image = record.image.as_deref().unwrap_or("another image");
    format!("came up with {image}")
}

/// It is in the cluster, and drains for nobody's sake but an administrator's.
fn is_back(record: &Record) -> bool {
    match record.state {
        NodeState::Up => true,
        NodeState::Draining => record.boot_again.is_none() && record.hold.is_none(),
        _ => false,
    }
}
