//! What follows when a node that asks to join is unfit for its group. The verdict itself is [`crate::judge`]'s.

use std::net::Ipv4Addr;

use cid_protocol::api::{Judged, NodeState};
use cid_protocol::measure::Measured;
use cid_protocol::node::Hardware;
use cid_protocol::trace::What;

use super::{ConnectionId, Now, Record, Registry};
use crate::judge::{self, Reason};
use crate::mac::Mac;

/// How the hold begins that a refusal leaves; the next verdict takes it back.
const UNFIT: &str = "it was refused: ";

impl Record {
    /// It is kept at home for what it measured, and for nothing else.
    pub(super) fn held_as_unfit(&self) -> bool {
        self.hold.as_deref().is_some_and(|hold| hold.starts_with(UNFIT))
    }
}

impl Registry {
    /// Judges what a node reported when it asked to join. Whether it may; if not, it is told, and its machine is kept at home until
    /// its group opens the next time, `cidctl wake`, or the verdict on a later attempt of this boot.
    ///
    /// `welcomed` is a node that was in the cluster in this boot already: judging comes before joining, and never throws out.
    pub(super) fn admit(&mut self, now: Now, mac: Mac, connection: ConnectionId, welcomed: bool) -> bool {
        let Some(record) = self.record(mac) else {
            return false;
        };
        // Who is to go home is not asked what it is worth.
        if welcomed || (record.hold.is_some() && !record.held_as_unfit()) {
            return true;
        }
        let (Some((_, group)), Some(hardware)) = (self.group_of(record), record.hardware.as_deref()) else {
            return true;
        };
        match judge::judge(&group.requires, hardware) {
            Ok(()) => {
                if let Some(machine) = self.machines.get_mut(&mac)
                    && machine.record.held_as_unfit()
                {
                    machine.record.set_hold(None, None);
                }
                true
            }
            Err(reason) => {
                self.turn_away(now, mac, connection, &reason);
                false
            }
        }
    }

    fn turn_away(&mut self, now: Now, mac: Mac, connection: ConnectionId, reason: &Reason) {
        *self.refusals.entry(reason.figure.word()).or_default() += 1;
        let text = reason.to_string();
        let ends = self.record(mac).and_then(|record| self.hold_ends(now, record));
        self.change_state(now, mac, NodeState::Refused, text.clone());
        if let Some(machine) = self.machines.get_mut(&mac) {
            // Else it would be booted, measured and sent home again all night long.
            machine.record.set_hold(Some(format!("{UNFIT}{text}")), ends);
        }
        let reason = text.clone();
        self.trace(now, Some(mac), What::Refused { reason });
        self.persist(mac);
        self.refuse(connection, text);
    }

    /// Figures of a machine beside what its group requires; empty until it reported.
    pub fn judged(&self, mac: Mac) -> Vec<Judged> {
        let record = self.record(mac);
        let group = record.and_then(|record| self.group_of(record));
        let hardware = record.and_then(|record| record.hardware.as_deref());
        match (group, hardware) {
            (Some((_, group)), Some(hardware)) => judge::table(&group.requires, hardware),
            _ => Vec::new(),
        }
    }

    /// Addresses of the nodes that are in.
    pub fn addresses_up(&self) -> Vec<Ipv4Addr> {
        let up = self.machines.values().filter(|machine| machine.is_in());
        up.filter_map(|machine| machine.record.address).collect()
    }

    /// Refusals by reason since start.
    pub fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.refusals.iter().map(|(reason, count)| (*reason, *count))
    }
}

/// Keeps what was measured of this boot's ways when it is not measured again: a node must not get in because the head was busy
/// the second time.
pub(super) fn carry_over(before: Option<&Hardware>, after: &mut Hardware) {
    let before = before.and_then(|hardware| hardware.measured.as_ref());
    let (Some(before), Some(after)) = (before, &mut after.measured) else {
        return;
    };
    let Measured { cpu_speed, head, .. } = before;
    after.cpu_speed = after.cpu_speed.or(*cpu_speed);
    let path = &mut after.head;
    if path.to_node_kbit.is_none() && path.from_node_kbit.is_none() {
        (path.to_node_kbit, path.from_node_kbit) = (head.to_node_kbit, head.from_node_kbit);
    }
}
