//! The node's own TCP port: an administrator asks who is there, when the head cannot. Read-only; must never do what it is told,
//! nor let a stranger take more than a handshake's worth of time and memory.

use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use cid_protocol::NODE_PORT;
use cid_protocol::peer::{FromPeer, MAX_ROWS, PeerNodes, ToPeer};
use cid_protocol::root::RootAnswer;
use cid_trust::rustls::ServerConfig;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::frames;
use crate::measure::peers::Asked;
use crate::member::{Command, Place};

/// Connections at a time; others wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 8;
const BACKLOG: u32 = 16;
/// Between two connections taken: whoever knocks without end costs this node a handshake in such a time.
const PAUSE: Duration = Duration::from_millis(50);
/// A client that does not show its certificate in this time is nobody's.
const HANDSHAKE_BOUND: Duration = Duration::from_secs(5);
/// From question to answer, and between questions.
const QUESTION_BOUND: Duration = Duration::from_secs(10);
/// Questions of one connection.
const MAX_QUESTIONS: usize = 100;
/// Longest question, in bytes.
const MAX_QUESTION: usize = 256;

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
    /// Listens at `place`; questions go to the member by `commands`.
    pub(crate) fn open(
        place: &Place,
        config: Arc<ServerConfig>,
        commands: mpsc::Sender<Command>,
    ) -> std::io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind_device(Some(place.link.as_bytes()))?;
        socket.bind(SocketAddr::V4(SocketAddrV4::new(place.address, NODE_PORT)))?;
        let listener = socket.listen(BACKLOG)?;
        let task = tokio::spawn(serve(listener, TlsAcceptor::from(config), commands));
        Ok(Self {
            task: task.abort_handle(),
        })
    }
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, commands: mpsc::Sender<Command>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // Ends them all when the door is closed.
    let mut visits = tokio::task::JoinSet::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        if let Ok((stream, _)) = listener.accept().await {
            let (acceptor, commands) = (acceptor.clone(), commands.clone());
            visits.spawn(async move {
                // Whoever is refused learns it by TLS's alert; there is nobody here to tell.
                let _ = visit(stream, acceptor, commands).await;
                drop(place);
            });
        }
        while visits.try_join_next().is_some() {}
        sleep(PAUSE).await;
    }
}

async fn visit(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    commands: mpsc::Sender<Command>,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = stream.as_fd().try_clone_to_owned()?;
    let stream = timeout(HANDSHAKE_BOUND, acceptor.accept(stream)).await??;
    let peer = cid_trust::peer_of(stream.get_ref().1).map_err(std::io::Error::other)?;
    if peer.is_none() {
        return Ok(());
    }
    let (reader, mut stream) = tokio::io::split(stream);
    let mut reader = frames::Reader::with_limit(reader, MAX_QUESTION);
    let mut measured = Asked::default();
    for _ in 0..MAX_QUESTIONS {
        match timeout(QUESTION_BOUND, reader.next()).await?? {
            Some(ToPeer::Nodes) => timeout(QUESTION_BOUND, answer_nodes(&mut stream, &commands)).await??,
            Some(ToPeer::Measure(probe)) => {
                timeout(QUESTION_BOUND, measured.answer(&mut stream, &socket, probe)).await??;
            }
            // It has no root image.
            Some(ToPeer::Root(_)) => frames::write(&mut stream, &FromPeer::Root(RootAnswer::Missing)).await?,
            None => return Ok(()),
        }
    }
    let reason = format!("{MAX_QUESTIONS} questions are enough for one connection");
    frames::write(&mut stream, &FromPeer::Refused { reason }).await
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
