//! Machines as the API shows them: the registry's rows, with what the membership heard since their last pulse, which members send seldom.
//! Reads only.

use std::time::Duration;

use cid_discovery::NodeId;
use cid_protocol::api::{NodeRow, NodeState};

use crate::core::Core;
use crate::mac::Mac;
use crate::membership::Sign;
use crate::registry::{CommandError, Registry};

/// The rows of these machines, each with the last sign of it among the members, in the API's order.
pub(super) fn look(
    core: &Core,
    macs: impl FnOnce(&Registry) -> Result<Vec<Mac>, CommandError>,
) -> Result<Vec<(NodeRow, Sign)>, CommandError> {
    let rows = core.read(|registry| -> Result<_, CommandError> {
        let macs = macs(registry)?;
        let id_of = |row: &NodeRow| registry.record(row.mac.parse().ok()?)?.node_id;
        let rows = registry.rows(&macs).into_iter();
        Ok(rows.map(|row| (id_of(&row), row)).collect::<Vec<_>>())
    })?;
    let now = core.now();
    let signs = core.members(|members| {
        let sign = |id: Option<NodeId>| {
            id.map(|id| members.sign_of(now.monotonic, id))
                .unwrap_or_default()
        };
        rows.iter().map(|(id, _)| sign(*id)).collect::<Vec<_>>()
    });
    let mut signs = signs.unwrap_or_default().into_iter();
    let rows = rows.into_iter().map(|(_, row)| {
        let sign = signs.next().unwrap_or_default();
        (fresher(row, &sign, now.unix_ms / 1_000), sign)
    });
    Ok(rows.collect())
}

/// Only the rows.
pub(super) fn rows(
    core: &Core,
    macs: impl FnOnce(&Registry) -> Result<Vec<Mac>, CommandError>,
) -> Result<Vec<NodeRow>, CommandError> {
    let rows = look(core, macs)?.into_iter();
    Ok(rows.map(|(row, _)| row).collect())
}

/// Whether it is in the cluster, so that the membership has something to say of it.
pub(super) fn is_here(state: NodeState) -> bool {
    matches!(
        state,
        NodeState::Joining | NodeState::Up | NodeState::Suspect | NodeState::Draining
    )
}

fn fresher(mut row: NodeRow, sign: &Sign, now_unix: u64) -> NodeRow {
    if !is_here(row.state) {
        return row;
    }
    let at = |ago: Duration| now_unix.saturating_sub(ago.as_secs());
    if let Some((load, age)) = sign.load
        && at(age) > row.last_seen_unix
    {
        row.load1 = Some(f32::from(load.runnable_tenths) / 10.0);
    }
    if let Some(ago) = sign.heard {
        row.last_seen_unix = row.last_seen_unix.max(at(ago));
    }
    row
}

#[cfg(test)]
mod tests {
    use cid_discovery::load::LoadVector;

    use super::*;
    use crate::api::top::tests::empty;

    #[test]
    fn what_was_heard_behind_the_pulse_counts_and_what_was_before_does_not() {
        let sign = |heard: u64, measured: u64| Sign {
            heard: Some(Duration::from_secs(heard)),
            load: Some((
                LoadVector {
                    runnable_tenths: 25,
                    ..LoadVector::default()
                },
                Duration::from_secs(measured),
            )),
        };
        let look = |state, sign: &Sign| {
            let row = NodeRow {
                state,
                load1: Some(9.0),
                last_seen_unix: 980,
                ..empty()
            };
            let row = fresher(row, sign, 1_000);
            (row.load1, row.last_seen_unix)
        };
        assert_eq!(look(NodeState::Up, &sign(3, 15)), (Some(2.5), 997));
        assert_eq!(look(NodeState::Up, &sign(3, 30)), (Some(9.0), 997));
        assert_eq!(look(NodeState::Up, &sign(40, 50)), (Some(9.0), 980));
        assert_eq!(look(NodeState::Up, &Sign::default()), (Some(9.0), 980));
        // A machine that is gone was last seen when it was.
        assert_eq!(look(NodeState::Home, &sign(3, 15)), (Some(9.0), 980));
    }
}
