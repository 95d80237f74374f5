//! Ways to other nodes: measured through their doors by one that is about to join, answered by those that are in. Must
//! not keep a node from joining: a peer that is slow to answer is left out.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use cid_protocol::NODE_PORT;
use cid_protocol::measure::{Answer, Filler, MAX_ECHOES, MAX_PEER_BULK, PEERS, Path, PeerPath, Probe};
use cid_protocol::peer::{FromPeer, ToPeer};
use cid_trust::rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpSocket;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;

use super::path::{Prober, To};
use super::segments;
use crate::frames;

/// For one peer, from the dial to the last answer.
const PEER_BOUND: Duration = Duration::from_millis(200);
/// For its kernel's counts.
const COUNTS_BOUND: Duration = Duration::from_millis(50);

/// From where peers are called, and as whom.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// Interface name.
    pub(crate) link: String,
    /// Own address on it.
    pub(crate) from: Ipv4Addr,
    /// Believes nodes of this cluster.
    pub(crate) config: Arc<ClientConfig>,
}

/// One after the other: two at a time would measure each other.
pub(crate) async fn ways(caller: &Caller, addresses: &[Ipv4Addr]) -> Vec<PeerPath> {
    let mut ways = Vec::new();
    for address in addresses
        .iter()
        .take(PEERS)
        .filter(|address| **address != caller.from)
    {
        if let Ok(Ok(path)) = timeout(PEER_BOUND, way(caller, *address)).await {
            let address = address.to_string();
            ways.push(PeerPath { address, path });
        }
    }
    ways
}

async fn way(caller: &Caller, address: Ipv4Addr) -> std::io::Result<Path> {
    let socket = TcpSocket::new_v4()?;
    socket.bind_device(Some(caller.link.as_bytes()))?;
    socket.bind(SocketAddr::from((caller.from, 0)))?;
    let stream = socket.connect(SocketAddr::from((address, NODE_PORT))).await?;
    stream.set_nodelay(true)?;
    let socket = stream.as_fd().try_clone_to_owned()?;
    let tls = TlsConnector::from(Arc::clone(&caller.config));
    let stream = tls.connect(cid_trust::server_name(), stream).await?;
    let (reader, mut writer) = tokio::io::split(stream);
    let mut reader = frames::Reader::new(reader);
    let began = Instant::now();
    let mut prober = Prober::new(Duration::ZERO, To::Peer);
    loop {
        while let Some(probe) = prober.poll_output() {
            frames::write(&mut writer, &ToPeer::Measure(probe)).await?;
        }
        let Some(deadline) = prober.next_deadline() else {
            break;
        };
        match timeout_at(began + deadline, next(&mut reader)).await {
            Ok(answer) => prober.handle_answer(began.elapsed(), &answer?),
            Err(_) => prober.handle_deadline(began.elapsed()),
        }
    }
    let mut path = prober.finish();
    path.sent = segments(&socket);
    frames::write(&mut writer, &ToPeer::Measure(Probe::Counts)).await?;
    let counts = async {
        loop {
            if let Answer::Counts(counts) = next(&mut reader).await? {
                return Ok::<_, std::io::Error>(counts);
            }
        }
    };
    if let Ok(Ok(counts)) = timeout(COUNTS_BOUND, counts).await {
        path.received = counts;
    }
    Ok(path)
}

async fn next<R: AsyncRead + Unpin>(reader: &mut frames::Reader<R>) -> std::io::Result<Answer> {
    match reader.next().await? {
        Some(FromPeer::Measure(answer)) => Ok(answer),
        Some(FromPeer::Refused { reason }) => Err(std::io::Error::other(reason)),
        Some(FromPeer::Nodes(_) | FromPeer::Root(_)) | None => Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
}

/// The other side: what one connection has asked of this node.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    echoes: u32,
    given: u32,
}

impl Asked {
    /// Answers one probe; `socket` carries the connection.
    ///
    /// # Errors
    /// The connection's, and for what is more than a peer may ask.
    pub(crate) async fn answer(
        &mut self,
        stream: &mut (impl AsyncWrite + Unpin),
        socket: &OwnedFd,
        probe: Probe,
    ) -> std::io::Result<()> {
        let too_much = || Err(std::io::Error::other("it measures too much"));
        let answer = match probe {
            Probe::Echo { number } => {
                self.echoes += 1;
                if self.echoes > MAX_ECHOES {
                    return too_much();
                }
                Answer::Echo { number }
            }
            Probe::Ask => Answer::Turn { granted: true },
            Probe::Give { bytes } => {
                self.given = self.given.saturating_add(bytes);
                if self.given > MAX_PEER_BULK {
                    return too_much();
                }
                return give(stream, bytes).await;
            }
            Probe::Counts => Answer::Counts(segments(socket)),
            Probe::Done => return Ok(()),
            Probe::Filler(_) | Probe::Peers => return too_much(),
        };
        frames::write(stream, &FromPeer::Measure(answer)).await
    }
}

async fn give(stream: &mut (impl AsyncWrite + Unpin), bytes: u32) -> std::io::Result<()> {
    let mut left = bytes;
    loop {
        let filler = Filler::of(left);
        left = left.saturating_sub(u32::try_from(filler.text.len()).unwrap_or(left));
        let last = filler.last;
        frames::write(stream, &FromPeer::Measure(Answer::Filler(filler))).await?;
        if last {
            return Ok(());
        }
    }
}
