//! `GET /v1/top`: everybody's load out of the membership's book, which holds each node's own words. Reads only.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use cid_discovery::NodeId;
use cid_discovery::load::LoadVector;
use cid_protocol::api::{NodeRow, NodeState, TopList, TopRow};

use super::{Api, Failure, NodesQuery};
use crate::registry::{CommandError, state_word};

/// A load of the book: what, how old.
type Known = Option<(LoadVector, Duration)>;

pub(super) async fn top(
    State(api): State<Arc<Api>>,
    query: Result<Query<NodesQuery>, QueryRejection>,
) -> Result<Json<TopList>, Failure> {
    let Query(query) = query?;
    let rows = api.core.read(|registry| -> Result<_, CommandError> {
        let macs = match &query.nodeset {
            Some(nodeset) => registry.resolve(nodeset)?,
            None => registry.everyone(),
        };
        let rows = registry.rows(&macs).into_iter();
        let id_of = |row: &NodeRow| registry.record(row.mac.parse().ok()?)?.node_id;
        Ok(rows.map(|row| (id_of(&row), row)).collect::<Vec<_>>())
    })?;
    let now = api.core.now().monotonic;
    let here = rows.into_iter().filter(|(_, row)| {
        matches!(
            row.state,
            NodeState::Joining | NodeState::Up | NodeState::Suspect | NodeState::Draining
        )
    });
    let here: Vec<(Option<NodeId>, NodeRow)> = here.collect();
    let known: Option<Vec<Known>> = api.core.members(|members| {
        let loads = members.membership().loads();
        let known = here.iter().map(|(id, _)| loads.load_of(now, (*id)?));
        known.collect()
    });
    let mut known = known.unwrap_or_default().into_iter();
    let nodes = here
        .into_iter()
        .map(|(_, row)| top_row(row, known.next().flatten()))
        .collect();
    Ok(Json(TopList { nodes }))
}

fn top_row(row: NodeRow, known: Known) -> TopRow {
    let plain = TopRow {
        name: row.name,
        mac: row.mac,
        state: state_word(row.state).to_owned(),
        cpus: row.cpus,
        runnable: row.load1,
        memory_kib: row.memory_kib,
        ..TopRow::default()
    };
    let Some((load, age)) = known else {
        return plain;
    };
    TopRow {
        runnable: Some(f32::from(load.runnable_tenths) / 10.0),
        pressure_percent: Some(load.pressure_percent),
        memory_available_kib: Some(u64::from(load.memory_available_16mib) * 16 * 1024),
        speed: (load.speed > 0).then(|| f32::from(load.speed) / 1000.0),
        link_mbit: (load.link_log2_mbit > 0).then(|| 1_u64 << load.link_log2_mbit.min(40)),
        age_ms: u64::try_from(age.as_millis()).ok(),
        ..plain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_measured_is_absent() {
        let load = LoadVector {
            runnable_tenths: 25,
            pressure_percent: 7,
            memory_available_16mib: 64,
            speed: 0,
            link_log2_mbit: 10,
        };
        let row = TopRow {
            runnable: Some(2.5),
            pressure_percent: Some(7),
            memory_available_kib: Some(1024 * 1024),
            link_mbit: Some(1024),
            age_ms: Some(1_500),
            ..TopRow::default()
        };
        let known = Some((load, Duration::from_millis(1_500)));
        let node = NodeRow {
            load1: Some(9.0),
            ..empty()
        };
        let found = top_row(node, known);
        assert_eq!(
            TopRow {
                state: "up".into(),
                ..row
            },
            found
        );
        assert_eq!(top_row(empty(), None).age_ms, None);
    }

    fn empty() -> NodeRow {
        serde_json::from_str(
            r#"{"name":"","group":"","state":"up","reason":"","since_unix":0,"address":null,"mac":"","uuid":null,"product":null,
            "firmware":null,"cpus":0,"memory_kib":0,"load1":null,"image":null,"door":null,"last_seen_unix":0,"last_decision":null,
            "hardware":null}"#,
        )
        .unwrap()
    }
}
