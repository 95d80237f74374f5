//! `GET /v1/run`, upgraded: who asks is told by the kernel, what is asked by the first frame. Bounds what a client can hold.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::StatusCode;
use axum::http::header::{CONNECTION, UPGRADE};
use axum::response::{IntoResponse, Response};
use axum::serve::IncomingStream;
use cid_protocol::work::{
    FromClient, MAX_CONTROL, MAX_RANKS, NOBODY, RunRequest, ToClient, UPGRADE as PROTOCOL, WORK_VERSION,
};
use cid_streams::{Frame, Kind};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::place::{Candidate, NoPlace, place};
use super::relay::Beginning;
use crate::api::{Api, Failure};
use crate::core::Core;
use crate::registry::{CommandError, ConnectionId};

/// From the upgrade to the first frame.
const FIRST_FRAME: Duration = Duration::from_secs(10);

/// Who is at the other end of the control socket.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    /// User and group; `None` when the kernel does not say.
    pub ids: Option<(u32, u32)>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        let credentials = stream.io().peer_cred().ok();
        Self {
            ids: credentials.map(|it| (it.uid(), it.gid())),
        }
    }
}

/// Why nothing is run. Each is counted by its word.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Not a request of this version.
    #[error("this is no request to run something; use the cidctl of this head's version")]
    NoRequest,
    /// The kernel does not say who asks.
    #[error("the kernel does not say who asks; use the head's socket on the head itself")]
    Nobody,
    /// Somebody who is not root named a user.
    #[error("only root may name a user for its programs; leave --user out")]
    OtherUser,
    /// Root's programs as root.
    #[error("nothing runs as root on a node; name another user with --user")]
    AsRoot,
    /// Not between 1 and [`MAX_RANKS`].
    #[error("{0} ranks; a job has 1 to {MAX_RANKS}")]
    Ranks(u32),
    /// The node set.
    #[error("{0}")]
    NodeSet(#[from] CommandError),
    /// No room.
    #[error("{0}")]
    NoPlace(#[from] NoPlace),
}

impl Refusal {
    /// The word it is counted by.
    #[must_use]
    pub fn drop_reason(&self) -> &'static str {
        match self {
            Self::NoRequest => "run-no-request",
            Self::Nobody => "run-nobody",
            Self::OtherUser => "run-other-user",
            Self::AsRoot => "run-as-root",
            Self::Ranks(_) => "run-ranks",
            Self::NodeSet(_) => "run-node-set",
            Self::NoPlace(NoPlace::Nobody) => "run-no-node",
            Self::NoPlace(NoPlace::Full { .. }) => "run-full",
        }
    }
}

/// The route.
pub async fn run(State(api): State<Arc<Api>>, mut request: Request) -> Response {
    let asks = request
        .headers()
        .get(UPGRADE)
        .is_some_and(|value| value.as_bytes() == PROTOCOL.as_bytes());
    if !asks {
        let remedy = "`cidctl run` does; this path speaks no JSON";
        return Failure::new(
            StatusCode::UPGRADE_REQUIRED,
            "ask for an upgrade to cid-run",
            remedy,
        )
        .into_response();
    }
    let Ok(place) = Arc::clone(&api.core.work.clients).try_acquire_owned() else {
        api.core.drops.count("run-too-many-clients");
        let error = format!("{} clients run something already", super::MAX_CLIENTS);
        return Failure::new(
            StatusCode::SERVICE_UNAVAILABLE,
            error,
            "wait for one of them to end",
        )
        .into_response();
    };
    let info = request.extensions().get::<ConnectInfo<Caller>>();
    let ids = info.and_then(|info| info.0.ids);
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            let (reader, writer) = tokio::io::split(TokioIo::new(upgraded));
            serve(&api.core, ids, reader, writer).await;
        }
        drop(place);
    });
    let headers = [(CONNECTION, "upgrade"), (UPGRADE, PROTOCOL)];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

/// Speaks with one client until either end is done.
async fn serve<R, W>(core: &Arc<Core>, ids: Option<(u32, u32)>, mut reader: R, mut writer: W)
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let first = timeout(FIRST_FRAME, read(&mut reader)).await.ok().flatten();
    let (number, wake) = match first
        .ok_or(Refusal::NoRequest)
        .and_then(|kind| begin(core, ids, kind))
    {
        Ok(begun) => begun,
        Err(refusal) => {
            core.drops.count(refusal.drop_reason());
            let text = refusal.to_string();
            let (error, remedy) = text.split_once("; ").unwrap_or((&text, ""));
            let message = ToClient::Refused {
                error: error.to_owned(),
                remedy: remedy.to_owned(),
            };
            let kind = Kind::Control(serde_json::to_vec(&message).unwrap_or_default().into());
            let _ = writer.write_all(&Frame { job: 0, kind }.encode()).await;
            let _ = writer.shutdown().await;
            return;
        }
    };
    let sending = tokio::spawn(send(Arc::clone(core), number, wake, writer));
    while let Some(kind) = read(&mut reader).await {
        if core.work.relay().handle_client(number, kind).is_err() {
            core.drops.count("run-overrun");
            break;
        }
    }
    core.work.relay().client_gone(number);
    sending.abort();
}

fn begin(core: &Core, ids: Option<(u32, u32)>, kind: Kind) -> Result<(u32, Arc<Notify>), Refusal> {
    let Kind::Control(text) = kind else {
        return Err(Refusal::NoRequest);
    };
    let request = match serde_json::from_slice(&text) {
        Ok(FromClient::Run(request)) if request.version == WORK_VERSION => *request,
        _ => return Err(Refusal::NoRequest),
    };
    let (uid, gid) = user(ids.ok_or(Refusal::Nobody)?, request.user)?;
    if !(1..=MAX_RANKS).contains(&request.ranks) {
        return Err(Refusal::Ranks(request.ranks));
    }
    let workers = candidates(core, &request)?;
    // From the choice to the start under one lock: nobody else is given the same CPUs.
    let mut relay = core.work.relay();
    let workers = workers.into_iter().filter_map(|mut worker| {
        worker.used = relay.used(worker.id)?;
        Some(worker)
    });
    let shares = place(
        request.ranks,
        request.per_node,
        request.oversubscribe,
        workers.collect(),
    )?;
    Ok(relay.start(Beginning {
        uid,
        gid,
        program: request.program,
        shares,
    }))
}

fn candidates(core: &Core, request: &RunRequest) -> Result<Vec<Candidate<ConnectionId>>, CommandError> {
    core.read(|registry| {
        let macs = match &request.nodes {
            Some(nodes) => registry.resolve(nodes)?,
            None => registry.everyone(),
        };
        Ok(registry.workers(&macs))
    })
}

/// Who programs run as. Never root.
fn user((uid, gid): (u32, u32), named: Option<(u32, u32)>) -> Result<(u32, u32), Refusal> {
    let (uid, gid) = match (uid, named) {
        (0, Some(named)) => named,
        (0, None) => (NOBODY, NOBODY),
        (_, Some(_)) => return Err(Refusal::OtherUser),
        // A group of root's that a user is in here would open root's files there.
        (uid, None) => (uid, if gid == 0 { NOBODY } else { gid }),
    };
    if uid == 0 || gid == 0 {
        return Err(Refusal::AsRoot);
    }
    Ok((uid, gid))
}

async fn send(core: Arc<Core>, number: u32, wake: Arc<Notify>, mut writer: impl AsyncWrite + Unpin) {
    loop {
        let next = core.work.relay().poll_client(number);
        let Some(kind) = next else {
            wake.notified().await;
            continue;
        };
        if writer.write_all(&Frame { job: 0, kind }.encode()).await.is_err() {
            return;
        }
    }
}

/// The next frame; `None` at the end, and for what is none.
async fn read(reader: &mut (impl AsyncRead + Unpin)) -> Option<Kind> {
    let length = reader.read_u32().await.ok()? as usize;
    if length > MAX_CONTROL {
        return None;
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).await.ok()?;
    Frame::decode(&body).ok().map(|frame| frame.kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_root_and_only_root_is_somebody_else() {
        assert!(matches!(user((0, 0), None), Ok((NOBODY, NOBODY))));
        assert!(matches!(user((0, 0), Some((1000, 100))), Ok((1000, 100))));
        assert!(matches!(user((0, 0), Some((0, 100))), Err(Refusal::AsRoot)));
        assert!(matches!(user((0, 0), Some((1000, 0))), Err(Refusal::AsRoot)));
        assert!(matches!(user((1000, 100), None), Ok((1000, 100))));
        assert!(matches!(user((1000, 0), None), Ok((1000, NOBODY))));
        assert!(matches!(
            user((1000, 100), Some((1001, 100))),
            Err(Refusal::OtherUser)
        ));
    }
}
