//! `GET /v1/top`: everybody's load out of the membership's book, which holds each node's own words. Reads only.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use cid_discovery::load::LoadVector;
use cid_protocol::api::{NodeRow, TopList, TopRow};

use super::{Api, Failure, NodesQuery, rows, wanted};
use crate::registry::state_word;

/// A load of the book: what, how old.
type Known = Option<(LoadVector, Duration)>;

pub(super) async fn top(
    State(api): State<Arc<Api>>,
    query: Result<Query<NodesQuery>, QueryRejection>,
) -> Result<Json<TopList>, Failure> {
    let Query(query) = query?;
    let rows = rows::look(&api.core, |registry| wanted(registry, &query))?.into_iter();
    let here = rows.filter(|(row, _)| rows::is_here(row.state));
    let nodes = here.map(|(row, sign)| top_row(row, sign.load)).collect();
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
        clock_ahead_us: row.clock_ahead_us,
        clock_error_us: row.clock_error_us,
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
pub(super) mod tests {
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

    /// A row of which nothing is known.
    pub(in crate::api) fn empty() -> NodeRow {
        serde_json::from_str(
            r#"{"name":"","group":"","state":"up","reason":"","since_unix":0,"address":null,"mac":"","uuid":null,"product":null,
            "firmware":null,"cpus":0,"memory_kib":0,"load1":null,"image":null,"door":null,"last_seen_unix":0,"last_decision":null,
            "hardware":null}"#,
        )
        .unwrap()
    }
}
