//! `/v1/images`: versions, what groups boot, rolling updates. Must not decide: the library and the registry do.

use std::path::Path;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use cid_protocol::images::{
    CollectRequest, Collected, ImageList, ImportImageRequest, RollRequest, RollbackRequest, SetImageRequest,
    StopRollRequest,
};

use super::{Api, Failure, Shared};
use crate::library::{Library, LibraryError};
use crate::registry::ImageError;
use crate::versions::VersionError;

/// Nodes on their way at once, at the most.
const MOST_AT_A_TIME: u32 = 1_000;
/// Longest time until a node counts as healthy, in seconds.
const LONGEST_CHECK: u64 = 24 * 3_600;

impl From<LibraryError> for Failure {
    fn from(error: LibraryError) -> Self {
        let status = match &error {
            LibraryError::Image(ImageError::Command(error)) => return error.clone().into(),
            LibraryError::Image(ImageError::NoVersion(_) | ImageError::NoImage(_))
            | LibraryError::Version(VersionError::Missing { .. }) => StatusCode::NOT_FOUND,
            LibraryError::Image(_) | LibraryError::Fault(_) => StatusCode::CONFLICT,
            LibraryError::Version(VersionError::Damaged { .. }) => StatusCode::BAD_REQUEST,
            LibraryError::Version(VersionError::Disk { .. })
            | LibraryError::Store(_)
            | LibraryError::Stopping => StatusCode::SERVICE_UNAVAILABLE,
        };
        let text = error.to_string();
        let (error, remedy) = text.split_once("; ").unwrap_or((&text, ""));
        Self::new(status, error, remedy)
    }
}

impl Api {
    fn library(&self) -> Result<&Arc<Library>, Failure> {
        let missing = || Failure::new(StatusCode::NOT_FOUND, "this head keeps no versions", "");
        self.library.as_ref().ok_or_else(missing)
    }
}

type Answer<T> = Result<Json<T>, Failure>;
type Asked<T> = Result<Json<T>, JsonRejection>;

pub(super) async fn list(State(api): Shared) -> Answer<ImageList> {
    Ok(Json(api.library()?.list()))
}

pub(super) async fn import(State(api): Shared, asked: Asked<ImportImageRequest>) -> Answer<ImageList> {
    let Json(asked) = asked?;
    Ok(Json(api.library()?.import(Path::new(&asked.folder)).await?))
}

pub(super) async fn set(State(api): Shared, asked: Asked<SetImageRequest>) -> Answer<ImageList> {
    let Json(asked) = asked?;
    let library = api.library()?;
    Ok(Json(library.set(&asked.group, &asked.image, asked.follow).await?))
}

pub(super) async fn rollback(State(api): Shared, asked: Asked<RollbackRequest>) -> Answer<ImageList> {
    let Json(asked) = asked?;
    Ok(Json(api.library()?.rollback(&asked.group).await?))
}

pub(super) async fn collect(State(api): Shared, asked: Asked<CollectRequest>) -> Answer<Collected> {
    let Json(asked) = asked?;
    Ok(Json(api.library()?.collect(asked.keep, asked.dry_run).await?))
}

pub(super) async fn roll(State(api): Shared, asked: Asked<RollRequest>) -> Answer<ImageList> {
    let Json(mut asked) = asked?;
    asked.at_a_time = asked.at_a_time.clamp(1, MOST_AT_A_TIME);
    asked.healthy_secs = asked.healthy_secs.min(LONGEST_CHECK);
    Ok(Json(api.library()?.roll(asked).await?))
}

pub(super) async fn stop_roll(State(api): Shared, asked: Asked<StopRollRequest>) -> Answer<ImageList> {
    let Json(StopRollRequest {}) = asked?;
    Ok(Json(api.library()?.stop_roll().await?))
}
