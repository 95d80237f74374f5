//! The node's own TCP port: an administrator asks who is there, when the head cannot. Read-only; must never do what it is told,
//! nor let a stranger take more than a handshake's worth of time and memory.

use std::collections::BTreeSet;
use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cid_protocol::NODE_PORT;
use cid_protocol::node::{GroupKey, MAX_THROWN_OUT};
use cid_protocol::peer::{FromPeer, MAX_ROWS, PeerNodes, ToPeer};
use cid_protocol::root::{RootAnswer, RootQuestion};
use cid_trust::rustls::ServerConfig;
use cid_trust::{Fingerprint, Peer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::frames;
use crate::measure::peers::Asked;
use crate::member::{Command, Place};
use crate::root::serve::{Offered, Served};

/// Connections at a time; others wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 8;
/// Of nodes that fetch the root image: they stay longer, and take nobody else's place.
const MAX_FETCHING: usize = 16;
/// What a node hears that fetches when there are so many already, in milliseconds.
const FULL_MS: u32 = 2_000;
const BACKLOG: u32 = 16;
/// Between two connections taken: whoever knocks without end costs this node a handshake in such a time.
const PAUSE: Duration = Duration::from_millis(50);
/// A client that does not show its certificate in this time is nobody's.
const HANDSHAKE_BOUND: Duration = Duration::from_secs(5);
/// From question to answer, and between questions.
const QUESTION_BOUND: Duration = Duration::from_secs(10);
/// Questions of one connection.
const MAX_QUESTIONS: usize = 100;
/// Revoked certificates that are remembered in one boot; who revokes more than that has other worries.
const MOST_THROWN_OUT: usize = 16 * MAX_THROWN_OUT;
/// Longest question, in bytes.
const MAX_QUESTION: usize = 256;

/// Certificates of this cluster that open nothing any more, as the head told. Its list is the head's alone to know; a door would take
/// every certificate that the authority signed.
#[derive(Debug, Clone, Default)]
pub(crate) struct ThrownOut(Arc<Mutex<BTreeSet<String>>>);

impl ThrownOut {
    /// The head named these, which are not so many that they would have to be forgotten: it names no more than
    /// [`MAX_THROWN_OUT`], the older ones no longer.
    pub(crate) fn handle_key(&self, key: &GroupKey) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for fingerprint in key.thrown_out.iter().take(MAX_THROWN_OUT) {
            if known.len() < MOST_THROWN_OUT {
                known.insert(fingerprint.clone());
            }
        }
    }

    fn holds(&self, fingerprint: &str) -> bool {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(fingerprint)
    }
}

/// An open door; dropping it closes it.
#[derive(Debug)]
pub(crate) struct Door {
    task: AbortHandle,
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Door {
    /// Listens at `place`; questions go to the member by `commands`, chunks come from what is `offered`.
    pub(crate) fn open(
        place: &Place,
        config: Arc<ServerConfig>,
        commands: mpsc::Sender<Command>,
        thrown_out: ThrownOut,
        offered: Offered,
    ) -> std::io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind_device(Some(place.link.as_bytes()))?;
        socket.bind(SocketAddr::V4(SocketAddrV4::new(place.address, NODE_PORT)))?;
        let listener = socket.listen(BACKLOG)?;
        let task = tokio::spawn(serve(
            listener,
            TlsAcceptor::from(config),
            commands,
            (thrown_out, offered),
        ));
        Ok(Self {
            task: task.abort_handle(),
        })
    }
}

async fn serve(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    commands: mpsc::Sender<Command>,
    (thrown_out, offered): (ThrownOut, Offered),
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let fetching = Arc::new(Semaphore::new(MAX_FETCHING));
    // Ends them all when the door is closed.
    let mut visits = tokio::task::JoinSet::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        if let Ok((stream, _)) = listener.accept().await {
            let (acceptor, fetching) = (acceptor.clone(), fetching.clone());
            let (commands, offered, thrown_out) = (commands.clone(), offered.clone(), thrown_out.clone());
            visits.spawn(async move {
                // Whoever is refused learns it by TLS's alert; there is nobody here to tell.
                let _ = visit(
                    stream,
                    acceptor,
                    place,
                    &thrown_out,
                    (commands, offered, fetching),
                )
                .await;
            });
        }
        while visits.try_join_next().is_some() {}
        sleep(PAUSE).await;
    }
}

async fn visit(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    place: OwnedSemaphorePermit,
    thrown_out: &ThrownOut,
    (commands, offered, fetching): (mpsc::Sender<Command>, Offered, Arc<Semaphore>),
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = stream.as_fd().try_clone_to_owned()?;
    let stream = timeout(HANDSHAKE_BOUND, acceptor.accept(stream)).await??;
    let peer = cid_trust::peer_of(stream.get_ref().1).map_err(std::io::Error::other)?;
    let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let (Some(peer), Some(leaf)) = (peer, leaf) else {
        return Ok(());
    };
    let shown = Fingerprint::of(leaf).to_string();
    let (reader, mut stream) = tokio::io::split(stream);
    let mut reader = frames::Reader::with_limit(reader, MAX_QUESTION);
    let mut measured = Asked::default();
    for _ in 0..MAX_QUESTIONS {
        let question = timeout(QUESTION_BOUND, reader.next()).await??;
        // Before each answer: it may be thrown out between two of them.
        if thrown_out.holds(&shown) {
            let reason = "this certificate was revoked".to_owned();
            return frames::write(&mut stream, &FromPeer::Refused { reason }).await;
        }
        match question {
            Some(ToPeer::Nodes) => timeout(QUESTION_BOUND, answer_nodes(&mut stream, &commands)).await??,
            Some(ToPeer::Measure(probe)) => {
                timeout(QUESTION_BOUND, measured.answer(&mut stream, &socket, probe)).await??;
            }
            Some(ToPeer::Root(question)) if matches!(peer, Peer::Node(_)) => {
                let Ok(_fetching) = fetching.try_acquire_owned() else {
                    let answer = RootAnswer::Busy { after_ms: FULL_MS };
                    return frames::write(&mut stream, &FromPeer::Root(answer)).await;
                };
                drop(place);
                let revoked = || thrown_out.holds(&shown);
                return give(question, &mut reader, &mut stream, (&offered, revoked)).await;
            }
            Some(ToPeer::Root(_)) => {
                let reason = "only nodes are given parts of an image".to_owned();
                return frames::write(&mut stream, &FromPeer::Refused { reason }).await;
            }
            None => return Ok(()),
        }
    }
    let reason = format!("{MAX_QUESTIONS} questions are enough for one connection");
    frames::write(&mut stream, &FromPeer::Refused { reason }).await
}

/// A visit of a node that fetches the root image, from its first question on.
async fn give(
    first: RootQuestion,
    reader: &mut frames::Reader<impl tokio::io::AsyncRead + Unpin>,
    stream: &mut (impl tokio::io::AsyncWrite + Unpin),
    (offered, revoked): (&Offered, impl Fn() -> bool),
) -> std::io::Result<()> {
    let mut served = Served::default();
    served.answer(stream, offered, first).await?;
    loop {
        match timeout(QUESTION_BOUND, reader.next()).await?? {
            Some(ToPeer::Root(question)) if !revoked() => served.answer(stream, offered, question).await?,
            Some(ToPeer::Root(_) | ToPeer::Nodes | ToPeer::Measure(_)) | None => return Ok(()),
        }
    }
}

async fn answer_nodes(
    stream: &mut (impl tokio::io::AsyncWrite + Unpin),
    commands: &mpsc::Sender<Command>,
) -> std::io::Result<()> {
    let (sender, answer) = oneshot::channel();
    let gone = || std::io::Error::other("this node is no member now");
    commands.send(Command::List(sender)).await.map_err(|_| gone())?;
    let (from, rows) = answer.await.map_err(|_| gone())?;
    let mut parts = rows.chunks(MAX_ROWS).peekable();
    loop {
        let nodes = parts.next().unwrap_or_default().to_vec();
        let more = parts.peek().is_some();
        let part = FromPeer::Nodes(PeerNodes {
            from: from.clone(),
            nodes,
            more,
        });
        frames::write(stream, &part).await?;
        if !more {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests;
