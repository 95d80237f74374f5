//! The control API: documented JSON over a local Unix socket (see `cid_protocol::api`). Every failure is a
//! `Problem`. Must not change anything but through the registry.

mod hours;
mod images;
mod metrics;
mod rows;
mod top;
mod trace;

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path as UrlPath, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use cid_protocol::api::{
    AdoptRequest, DhcpStatus, DrainRequest, EventList, Explanation, NodeList, Problem, ReleaseRequest,
    RivalRow, Status, UndrainRequest, WakeRequest,
};
use cid_protocol::doctor::Checkup;
use cid_protocol::trace::Trace;
use serde::Deserialize;
use tokio::net::{UnixListener, UnixStream};

use crate::config::Config;
use crate::core::{Core, Pending};
use crate::jobs::door::Caller;
use crate::library::Library;
use crate::mac::Mac;
use crate::registry::{CommandError, Registry};

/// Longest request body, in bytes: an adoption of a few thousand machines.
pub const MAX_BODY: usize = 256 * 1024;
/// Events in one answer.
const MAX_EVENTS: u32 = 1_000;

/// What the API asks the boot server; the head's service implements it.
pub trait BootView: Send + Sync + 'static {
    /// What a machine would be answered now, and why.
    fn explain(&self, mac: Mac) -> Explanation;
    /// Whether DHCP is answered.
    fn dhcp(&self) -> DhcpStatus;
    /// Others who answer DHCP or PXE on our wires.
    fn rivals(&self) -> Vec<RivalRow> {
        Vec::new()
    }
    /// Drops of the boot protocols by reason.
    fn drops(&self) -> BTreeMap<String, u64>;
    /// Answers by decision and reason, as in `boot/adopted`.
    fn decisions(&self) -> BTreeMap<String, u64>;
    /// Leases that have not expired.
    fn leases(&self) -> usize;
    /// What an image can drive; `None` when it is not loaded.
    fn drivers(&self, image: &str) -> Option<Drivers>;
}

/// Network cards that an image can drive.
#[derive(Debug, Clone, Default)]
pub struct Drivers {
    /// Names of drivers.
    pub names: Vec<String>,
    /// PCI vendors and devices, as `8086:15f3`; empty when the image does not say.
    pub ids: Vec<String>,
}

/// What every handler can reach.
pub struct Api {
    /// Registry and database.
    pub core: Arc<Core>,
    /// Boot server.
    pub boot: Arc<dyn BootView>,
    /// Interface served.
    pub interface: String,
    /// Own address there.
    pub address: String,
    /// What it was started with.
    pub config: Config,
    /// Versions of images; `None` where there are none, in tests.
    pub library: Option<Arc<Library>>,
}

/// A failure: status and body.
#[derive(Debug)]
pub struct Failure(StatusCode, Problem);

impl Failure {
    pub(crate) fn new(status: StatusCode, error: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self(
            status,
            Problem {
                error: error.into(),
                remedy: remedy.into(),
            },
        )
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(self.1)).into_response()
    }
}

impl From<CommandError> for Failure {
    fn from(error: CommandError) -> Self {
        let status = match error {
            CommandError::UnknownMachine(_)
            | CommandError::NeverSeen(_)
            | CommandError::NobodySeen
            | CommandError::NoGroup { .. }
            | CommandError::NoGroups => StatusCode::NOT_FOUND,
            CommandError::TooFewNames { .. } => StatusCode::CONFLICT,
            _ => StatusCode::BAD_REQUEST,
        };
        // "what; what to do": the second half is the remedy.
        let text = error.to_string();
        let (error, remedy) = text.split_once("; ").unwrap_or((&text, ""));
        Self::new(status, error, remedy)
    }
}

impl From<JsonRejection> for Failure {
    fn from(rejection: JsonRejection) -> Self {
        let remedy =
            "see the documentation of cid_protocol::api; the body is JSON with Content-Type application/json";
        Self::new(rejection.status(), rejection.body_text(), remedy)
    }
}

impl From<PathRejection> for Failure {
    fn from(rejection: PathRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text(), "")
    }
}

impl From<QueryRejection> for Failure {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text(), "")
    }
}

/// The routes.
pub fn router(api: Arc<Api>) -> Router {
    Router::new()
        .route("/v1/nodes", get(nodes))
        .route("/v1/top", get(top::top))
        .route("/v1/adopt", post(adopt))
        .route("/v1/explain/{mac}", get(explain))
        .route("/v1/doctor", get(doctor))
        .route("/v1/trace/{machine}", get(trace))
        .route("/v1/drain", post(drain))
        .route("/v1/undrain", post(undrain))
        .route("/v1/release", post(release))
        .route("/v1/wake", post(wake))
        .route("/v1/hours", get(hours::show).post(hours::change))
        .route("/v1/images", get(images::list))
        .route("/v1/images/import", post(images::import))
        .route("/v1/images/set", post(images::set))
        .route("/v1/images/rollback", post(images::rollback))
        .route("/v1/images/gc", post(images::collect))
        .route("/v1/images/roll", post(images::roll))
        .route("/v1/images/roll/stop", post(images::stop_roll))
        .route("/v1/events", get(events))
        .route("/v1/status", get(status))
        .route("/v1/run", get(crate::jobs::door::run))
        .route("/metrics", get(metrics::metrics))
        .fallback(async || Failure::new(StatusCode::NOT_FOUND, "there is nothing at this path", ""))
        .method_not_allowed_fallback(async || {
            Failure::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "this path does not take that method",
                "",
            )
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(api)
}

type Shared = State<Arc<Api>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NodesQuery {
    nodeset: Option<String>,
}

/// The machines that a query names, or all.
fn wanted(registry: &Registry, query: &NodesQuery) -> Result<Vec<Mac>, CommandError> {
    match &query.nodeset {
        Some(nodeset) => registry.resolve(nodeset),
        None => Ok(registry.everyone()),
    }
}

async fn nodes(
    State(api): Shared,
    query: Result<Query<NodesQuery>, QueryRejection>,
) -> Result<Json<NodeList>, Failure> {
    let Query(query) = query?;
    let nodes = rows::rows(&api.core, |registry| wanted(registry, &query))?;
    Ok(Json(NodeList { nodes }))
}

/// Waits until a command is on disk: only then may it be acknowledged.
async fn on_disk(pending: Pending) -> Result<(), Failure> {
    pending.done().await.map_err(|error| {
        let remedy = "look at the disk that holds the state folder; then ask again";
        Failure::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string(), remedy)
    })
}

/// Waits until a command is on disk, then shows the machines it changed.
async fn answer(
    api: &Api,
    (result, pending): (Result<Vec<Mac>, CommandError>, Pending),
) -> Result<Json<NodeList>, Failure> {
    let macs = result?;
    on_disk(pending).await?;
    Ok(Json(NodeList {
        nodes: rows::rows(&api.core, |_| Ok(macs))?,
    }))
}

async fn adopt(
    State(api): Shared,
    request: Result<Json<AdoptRequest>, JsonRejection>,
) -> Result<Json<NodeList>, Failure> {
    let Json(request) = request?;
    let input =
        |registry: &mut Registry, now| registry.adopt(now, &request.machines, &request.group, &request.name);
    answer(&api, api.core.act(input)).await
}

async fn release(
    State(api): Shared,
    request: Result<Json<ReleaseRequest>, JsonRejection>,
) -> Result<Json<NodeList>, Failure> {
    let Json(request) = request?;
    answer(
        &api,
        api.core
            .act(|registry, now| registry.release(now, &request.nodeset)),
    )
    .await
}

async fn drain(
    State(api): Shared,
    request: Result<Json<DrainRequest>, JsonRejection>,
) -> Result<Json<NodeList>, Failure> {
    let Json(DrainRequest { nodeset, reason }) = request?;
    answer(
        &api,
        api.core
            .act(|registry, now| registry.drain(now, &nodeset, reason.as_deref())),
    )
    .await
}

async fn undrain(
    State(api): Shared,
    request: Result<Json<UndrainRequest>, JsonRejection>,
) -> Result<Json<NodeList>, Failure> {
    let Json(request) = request?;
    answer(
        &api,
        api.core
            .act(|registry, now| registry.undrain(now, &request.nodeset)),
    )
    .await
}

async fn wake(
    State(api): Shared,
    request: Result<Json<WakeRequest>, JsonRejection>,
) -> Result<Json<NodeList>, Failure> {
    let Json(request) = request?;
    answer(
        &api,
        api.core.act(|registry, now| registry.wake(now, &request.nodeset)),
    )
    .await
}

async fn explain(
    State(api): Shared,
    word: Result<UrlPath<String>, PathRejection>,
) -> Result<Json<Explanation>, Failure> {
    let UrlPath(word) = word?;
    let mac = machine(&api, &word)?;
    let judged = api.core.read(|registry| registry.judged(mac));
    Ok(Json(Explanation {
        judged,
        ..api.boot.explain(mac)
    }))
}

async fn trace(
    State(api): Shared,
    word: Result<UrlPath<String>, PathRejection>,
) -> Result<Json<Trace>, Failure> {
    let UrlPath(word) = word?;
    let mac = machine(&api, &word)?;
    trace::trace(&api, mac).map(Json).ok_or_else(|| {
        let remedy = "switch it on and look at `cidctl nodes`";
        Failure::new(
            StatusCode::NOT_FOUND,
            format!("no machine with MAC {mac} was ever seen"),
            remedy,
        )
    })
}

/// A MAC, or a name.
fn machine(api: &Api, word: &str) -> Result<Mac, Failure> {
    // A name is taken as well as a MAC: people have names at hand.
    word.parse::<Mac>().or_else(|error| {
        let named = api.core.read(|registry| registry.resolve(word));
        match named.as_deref() {
            Ok([mac]) => Ok(*mac),
            _ => Err(Failure::new(
                StatusCode::BAD_REQUEST,
                error.to_string(),
                "`cidctl nodes` lists machines",
            )),
        }
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventsQuery {
    after: Option<u64>,
    limit: Option<u32>,
}

async fn events(
    State(api): Shared,
    query: Result<Query<EventsQuery>, QueryRejection>,
) -> Result<Json<EventList>, Failure> {
    let Query(query) = query?;
    let store = api.core.store().clone();
    let limit = query.limit.unwrap_or(MAX_EVENTS).min(MAX_EVENTS);
    let read = tokio::task::spawn_blocking(move || store.events(query.after, limit)).await;
    let failed = |error: String| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, error, "");
    let events = read
        .map_err(|error| failed(error.to_string()))?
        .map_err(|error| failed(error.to_string()))?;
    Ok(Json(EventList { events }))
}

async fn doctor(State(api): Shared) -> Result<Json<Checkup>, Failure> {
    let examined = tokio::task::spawn_blocking(move || crate::doctor::examine(&api)).await;
    let failed = |error: tokio::task::JoinError| {
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string(), "")
    };
    examined.map(Json).map_err(failed)
}

async fn status(State(api): Shared) -> Json<Status> {
    Json(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        interface: api.interface.clone(),
        address: api.address.clone(),
        dhcp: api.boot.dhcp(),
        rivals: api.boot.rivals(),
        drops: api.drops(),
    })
}

impl Api {
    /// Drops of every door, by reason.
    fn drops(&self) -> BTreeMap<String, u64> {
        let mut drops = self.boot.drops();
        for (reason, count) in self.core.drops.all() {
            *drops.entry(reason.to_owned()).or_default() += count;
        }
        drops
    }
}

/// Why the control socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A head answers on it.
    #[error("a cidhead already listens on {0}; stop it first, or set another `socket` in head.toml")]
    InUse(PathBuf),
    /// Something that is no socket is in the way.
    #[error("{0} is in the way and is no socket; move it, or set another `socket` in head.toml")]
    NoSocket(PathBuf),
    /// The system refuses.
    #[error("cannot listen on {path}: {source}; check the folder's permissions or `socket` in head.toml")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Listens on `path`, for the owner and the group (mode 0660). A socket file that a killed head left is replaced.
///
/// # Errors
/// See [`SocketError`].
pub async fn listen(path: &Path) -> Result<UnixListener, SocketError> {
    let failed = |source| SocketError::Listen {
        path: path.to_owned(),
        source,
    };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NoSocket(path.to_owned())),
        Ok(_) if UnixStream::connect(path).await.is_ok() => return Err(SocketError::InUse(path.to_owned())),
        Ok(_) => std::fs::remove_file(path).map_err(failed)?,
        Err(_) => {}
    }
    // Bound under another name first: nobody can connect before the permissions are right.
    let unready = path.with_extension(format!("new-{}", std::process::id()));
    let _ = std::fs::remove_file(&unready);
    let listener = UnixListener::bind(&unready).map_err(failed)?;
    std::fs::set_permissions(&unready, std::fs::Permissions::from_mode(0o660)).map_err(failed)?;
    std::fs::rename(&unready, path).map_err(failed)?;
    Ok(listener)
}

/// Serves until the future ends the task.
///
/// # Errors
/// The listener failed.
pub async fn serve(api: Arc<Api>, listener: UnixListener) -> std::io::Result<()> {
    let who = router(api).into_make_service_with_connect_info::<Caller>();
    axum::serve(listener, who).await
}

#[cfg(test)]
mod tests;
