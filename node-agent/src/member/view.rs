//! Who is there, for an administrator who asks this node: the head's history as far as it is known here, and what this node sees
//! itself. Must never call a node anything that neither says.

use std::collections::BTreeSet;
use std::time::Duration;

use cid_discovery::history::State;
use cid_discovery::member::Membership;
use cid_discovery::roster::Member;
use cid_discovery::wire::{Liveness, Role};
use cid_discovery::{Boot, NodeId};
use cid_protocol::node::INCARNATION_STEP;
use cid_protocol::peer::PeerRow;

/// Every machine of the history, and every member that is in none; by name, then id. `me` is this node, which is in no roster of its own.
pub(super) fn rows(
    core: &Membership,
    me: Boot,
    my_address: String,
    now: Duration,
    unix_ms: u64,
) -> Vec<PeerRow> {
    let members: Vec<&Member> = core
        .roster()
        .members()
        .filter(|member| member.role == Role::Node)
        .collect();
    let ids: BTreeSet<NodeId> = core
        .table()
        .keys()
        .copied()
        .chain(members.iter().map(|member| member.boot.id))
        .chain([me.id])
        .collect();
    let mut rows: Vec<PeerRow> = ids
        .into_iter()
        .map(|id| {
            let mut row = row(core, id, now, unix_ms, id == me.id);
            if id == me.id {
                row.address = Some(my_address.clone());
            }
            row
        })
        .collect();
    rows.sort_by(|a, b| (a.name.is_empty(), &a.name, &a.id).cmp(&(b.name.is_empty(), &b.name, &b.id)));
    rows
}

fn row(core: &Membership, id: NodeId, now: Duration, unix_ms: u64, is_me: bool) -> PeerRow {
    let member = core.roster().member(id);
    let told = core.table().get(&id);
    let mut row = PeerRow {
        id: id.to_string(),
        address: member.map(|member| member.address.ip().to_string()),
        ..PeerRow::default()
    };
    if let Some(change) = told {
        row.name.clone_from(&change.name);
        row.state = change.state.to_string();
        row.reason.clone_from(&change.reason);
        row.since_unix_ms = Some(change.at_unix_ms);
        row.by_head = true;
    }
    let at = |since: Duration| {
        let ago = u64::try_from(now.saturating_sub(since).as_millis()).unwrap_or(0);
        Some(unix_ms.saturating_sub(ago))
    };
    let said = told.map(|change| (change.state, change.boot));
    // What this node sees itself counts where the history does not say it yet, or cannot while the head is down.
    let seen = match member {
        Some(member) => own_eyes(member, said).map(|(state, reason)| (state, reason, at(member.since()))),
        None if is_me && said.is_none() => Some((State::Joining, "the history does not name it yet", None)),
        None => None,
    };
    if let Some((state, reason, since)) = seen {
        row.state = state.to_string();
        row.reason = reason.to_owned();
        row.since_unix_ms = since;
        row.by_head = false;
    }
    row
}

fn own_eyes(member: &Member, said: Option<(State, Boot)>) -> Option<(State, &'static str)> {
    // An agent that was started again without the head took one of the next incarnations itself: the PC is the one of which the
    // history speaks.
    let spoken_of = |boot: &Boot| member.boot.incarnation < boot.incarnation.saturating_add(INCARNATION_STEP);
    let named = said.filter(|(_, boot)| spoken_of(boot));
    let present = named.is_none_or(|(state, _)| state.is_present());
    match member.liveness {
        Liveness::Alive if named.is_none() => {
            Some((State::Joining, "answers; the history does not name this boot yet"))
        }
        Liveness::Alive => None,
        Liveness::Suspect if present => Some((State::Suspect, "does not answer its peers")),
        Liveness::Dead if present => Some((State::Lost, "does not answer its peers")),
        Liveness::Left if present => Some((State::GoingHome, "said that it goes")),
        Liveness::Suspect | Liveness::Dead | Liveness::Left => None,
    }
}
