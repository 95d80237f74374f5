//! `/v1/hours`: when groups compute, and exceptions from it. Must not read a time: that is the registry's.

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Query, State};
use cid_protocol::api::{HoursList, HoursRequest};
use serde::Deserialize;

use super::{Api, Failure, Shared, on_disk};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HoursQuery {
    group: Option<String>,
}

pub(super) async fn show(
    State(api): Shared,
    query: Result<Query<HoursQuery>, QueryRejection>,
) -> Result<Json<HoursList>, Failure> {
    let Query(query) = query?;
    list(&api, query.group.as_deref())
}

pub(super) async fn change(
    State(api): Shared,
    request: Result<Json<HoursRequest>, JsonRejection>,
) -> Result<Json<HoursList>, Failure> {
    let Json(HoursRequest { group, change, until }) = request?;
    let (changed, pending) = api
        .core
        .act(|registry, now| registry.change_hours(now, &group, change, until.as_deref()));
    changed?;
    on_disk(pending).await?;
    list(&api, Some(&group))
}

fn list(api: &Api, only: Option<&str>) -> Result<Json<HoursList>, Failure> {
    let now = api.core.now();
    let groups = api.core.read(|registry| registry.group_hours(now, only))?;
    let now_unix = now.unix_ms / 1_000;
    Ok(Json(HoursList { now_unix, groups }))
}
