//! Machines as members: which boot of which machine takes part, what the history says of it, what goes into the history. Must leave
//! the judgement of who answers to the history, and takes none of its changes for a boot that is not the latest.

use std::collections::BTreeMap;

use cid_discovery::history::{Change, State};
use cid_discovery::seal::GroupKey;
use cid_discovery::{Boot, NodeId};
use cid_protocol::api::NodeState;
use cid_protocol::node::{self, MemberTicket, ToNode};
use cid_trust::Fingerprint;

use super::{ConnectionId, Now, Output, Registry};
use crate::mac::Mac;

/// From one boot's incarnation to the next at the least: an agent that starts its membership again without the head adds one.
pub(super) const STEP: u64 = node::INCARNATION_STEP;

/// What every member is told of the group.
#[derive(Debug, Clone)]
pub(super) struct Ticket {
    head: Boot,
    key: node::GroupKey,
}

/// What a hello made of a machine.
pub(super) struct Assigned {
    pub(super) ticket: Option<MemberTicket>,
    /// It is the member that it was.
    pub(super) again: bool,
}

impl Registry {
    /// The head takes part in the membership, with what the history held of machines when it started.
    pub fn begin_membership(
        &mut self,
        _now: Now,
        head: Boot,
        key: &GroupKey,
        table: &BTreeMap<NodeId, Change>,
    ) {
        self.ticket = Some(Ticket {
            head,
            key: self.spoken(key, false),
        });
        for (id, change) in table {
            let Some(mac) = self.ids.get(id).copied() else {
                continue;
            };
            if let Some(machine) = self.machines.get_mut(&mac) {
                let incarnation = machine.record.incarnation.max(change.boot.incarnation);
                machine.record.incarnation = incarnation;
                machine.member = Some(Boot { id: *id, incarnation });
            }
            // Where they differ, the head ended between two decisions, and this is the later one.
            self.record_in_history(mac);
        }
    }

    /// Who a machine is among the members, or will be when it joins.
    pub fn node_id(&self, mac: Mac) -> Option<NodeId> {
        let record = self.record(mac)?;
        // What its certificate says is what its peers see.
        self.certified_id(mac).or(record.node_id).or_else(|| {
            let id = self.id_for(mac, record.uuid.as_deref().unwrap_or_default());
            match self.ids.get(&id) {
                Some(holder) if *holder != mac => Some(NodeId::of_machine("", mac.0)),
                _ => Some(id),
            }
        })
    }

    /// Which machine a member is.
    pub fn mac_of(&self, id: NodeId) -> Option<Mac> {
        self.ids.get(&id).copied()
    }

    /// Gives a boot that said hello its place among the members; `claimed` is the incarnation it has already.
    pub(super) fn assign_boot(
        &mut self,
        now: Now,
        mac: Mac,
        connection: ConnectionId,
        same_boot: bool,
        claimed: Option<u64>,
    ) -> Assigned {
        let id = self.node_id(mac);
        let (Some(id), Some(machine)) = (id, self.machines.get_mut(&mac)) else {
            return Assigned {
                ticket: None,
                again: false,
            };
        };
        let record = &mut machine.record;
        if let Some(old) = record.node_id.replace(id).filter(|old| *old != id) {
            // Another mainboard: another member.
            self.ids.remove(&old);
            machine.member = None;
        }
        let last = record.incarnation;
        let kept = claimed.filter(|claimed| same_boot && last > 0 && (last..last + STEP).contains(claimed));
        // Also after a database was lost, and after a clock that was set back.
        let incarnation = kept.unwrap_or_else(|| now.unix_ms.max(last + STEP));
        record.incarnation = incarnation;
        self.ids.insert(id, mac);
        let boot = Boot { id, incarnation };
        let again = machine.member == Some(boot);
        // A machine that stands in the history does so with its latest boot: its ghost is no news to anybody.
        if machine.member.is_some() {
            machine.member = Some(boot);
        }
        // The group's key goes through TLS to who proved a boot, and to nobody else.
        let proved = self.vouched.contains_key(&connection);
        let ticket = self
            .ticket
            .as_ref()
            .filter(|_| proved)
            .map(|ticket| MemberTicket {
                id: id.to_string(),
                incarnation,
                head_id: ticket.head.id.to_string(),
                head_incarnation: ticket.head.incarnation,
                key: ticket.key.clone(),
            });
        Assigned { ticket, again }
    }

    /// Its peers do not vouch for it at the moment.
    pub(super) fn is_doubted(&self, mac: Mac) -> bool {
        self.record(mac)
            .is_some_and(|record| matches!(record.state, NodeState::Suspect | NodeState::Lost))
    }

    /// A member was heard for the first time, or again: from here on the history says whether it answers.
    pub fn handle_member(&mut self, _now: Now, boot: Boot) {
        let Some(mac) = self.ids.get(&boot.id).copied() else {
            return;
        };
        let Some(machine) = self.machines.get_mut(&mac) else {
            return;
        };
        let last = machine.record.incarnation;
        if machine.member == Some(boot) || !(last..last + STEP).contains(&boot.incarnation) {
            return;
        }
        machine.record.incarnation = boot.incarnation;
        machine.member = Some(boot);
        self.persist(mac);
    }

    /// What the history decided by itself: who does not answer, who does again, who said that it goes.
    pub fn handle_history(&mut self, now: Now, change: &Change) {
        let Some(mac) = self.ids.get(&change.boot.id).copied() else {
            return;
        };
        let Some(machine) = self.machines.get_mut(&mac) else {
            return;
        };
        if machine.member != Some(change.boot) {
            return;
        }
        let leaving = machine.leaving.is_some();
        let told = machine
            .record
            .hold
            .clone()
            .or_else(|| machine.record.boot_again.clone());
        let (held, reason) = (told, change.reason.clone());
        match (change.state, held) {
            (State::Suspect, _) => self.change_state(now, mac, NodeState::Suspect, reason),
            // It was told to go; it has gone.
            (State::Lost, _) if leaving => {
                let reason = self
                    .record(mac)
                    .and_then(|record| record.hold.clone().or_else(|| record.boot_again.clone()))
                    .unwrap_or(reason);
                self.enter_going_home(now, mac, reason);
            }
            (State::Lost, _) => self.change_state(now, mac, NodeState::Lost, reason),
            (State::Up, Some(hold)) if leaving => self.change_state(now, mac, NodeState::Draining, hold),
            (State::Up, Some(hold)) => self.enter_going_home(now, mac, hold),
            (State::Up, None) => self.come_up(now, mac, reason),
            (State::GoingHome, _) => {
                machine.left_unsaid = true;
                let reason = if leaving { "told to go".to_owned() } else { reason };
                self.enter_going_home(now, mac, reason);
            }
            _ => return,
        }
        // Where the registry knows better (a node that answers again drains still), that comes behind it.
        self.persist(mac);
    }

    /// Another group key, at the next moment.
    pub fn rotate_key(&mut self) {
        self.outputs.push_back(Output::Rotate { thrown_out: None });
    }

    /// The group key from here on: every node that is connected is told.
    pub fn issue_key(&mut self, key: &GroupKey, revoked: bool) {
        let spoken = self.spoken(key, revoked);
        if let Some(ticket) = &mut self.ticket {
            ticket.key = node::GroupKey {
                revoked: false,
                ..spoken.clone()
            };
        }
        // A connection that has not said hello gets it with its welcome.
        let proved = self
            .connections
            .keys()
            .filter(|connection| self.vouched.contains_key(connection));
        for connection in proved.copied().collect::<Vec<_>>() {
            let message = ToNode::Key(spoken.clone());
            self.outputs.push_back(Output::Send { connection, message });
        }
    }

    /// A machine is thrown out: its connection ends, its certificate opens nothing, it is refused until `cidctl wake`, and the others
    /// get a key that it does not have.
    pub fn revoke(&mut self, now: Now, mac: Mac, reason: &str) {
        if self.machines.contains_key(&mac) {
            self.throw_out(now, mac, reason);
        }
    }

    fn spoken(&self, key: &GroupKey, revoked: bool) -> node::GroupKey {
        node::GroupKey {
            epoch: key.epoch,
            secret: cid_trust::encode(&key.secret),
            revoked,
            thrown_out: self.thrown_out.iter().map(Fingerprint::to_string).collect(),
        }
    }

    /// Puts what a member is into the history; the same again is no news there.
    pub(super) fn record_in_history(&mut self, mac: Mac) {
        let Some(machine) = self.machines.get(&mac) else {
            return;
        };
        let record = &machine.record;
        let Some(boot) = machine.member else {
            return;
        };
        self.outputs.push_back(Output::Record {
            boot,
            state: state_in_history(record.state),
            name: record.label(),
            reason: record.reason.clone(),
        });
    }
}

fn state_in_history(state: NodeState) -> State {
    match state {
        NodeState::Seen | NodeState::Known => State::Known,
        NodeState::Booting => State::Booting,
        NodeState::Joining => State::Joining,
        NodeState::Up => State::Up,
        NodeState::Suspect => State::Suspect,
        NodeState::Draining => State::Draining,
        NodeState::GoingHome => State::GoingHome,
        NodeState::Home => State::Home,
        NodeState::Lost => State::Lost,
        NodeState::Refused => State::Refused,
    }
}
