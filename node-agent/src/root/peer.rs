//! Chunks of other nodes, fetched at their doors. A peer is not believed: who it is shows its certificate, what it gives is checked
//! by whoever asked.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use cid_content::Shape;
use cid_protocol::NODE_PORT;
use cid_protocol::peer::{FromPeer, ToPeer};
use cid_protocol::root::{RootAnswer, RootPeer, RootQuestion};
use cid_trust::Peer;
use cid_trust::rustls::ClientConfig;
use tokio::io::{ReadHalf, WriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::frames;

/// From the dial to the end of the handshake: a busy door lets others wait.
const DIAL_BOUND: Duration = Duration::from_secs(10);
/// A peer that sends no whole answer in this time is left.
const ANSWER_BOUND: Duration = Duration::from_secs(20);

/// From where other nodes are called, and as whom.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// Interface name.
    pub(crate) link: String,
    /// Own address on it.
    pub(crate) from: Ipv4Addr,
    /// Believes nodes of this cluster.
    pub(crate) config: Arc<ClientConfig>,
}

/// What a peer answered.
#[derive(Debug)]
pub(crate) enum Answer {
    /// It has these, as the bytes of a set.
    Have(Vec<u8>),
    /// The bytes it gave for the chunk, not checked, and what it has.
    Chunk(Vec<u8>, Vec<u8>),
    /// It gives as much as it may.
    Busy(Duration),
    /// It does not have it.
    Missing,
}

/// A connection to a peer's door, between questions.
#[derive(Debug)]
pub(crate) struct Visit {
    tree: String,
    shape: Shape,
    reader: frames::Reader<ReadHalf<TlsStream<TcpStream>>>,
    writer: WriteHalf<TlsStream<TcpStream>>,
}

impl Visit {
    /// Dials `peer` and sees that it is who the head named.
    pub(crate) async fn dial(
        caller: &Caller,
        peer: &RootPeer,
        tree: String,
        shape: Shape,
    ) -> io::Result<Self> {
        let dial = async {
            let socket = TcpSocket::new_v4()?;
            socket.bind_device(Some(caller.link.as_bytes()))?;
            socket.bind(SocketAddr::from((caller.from, 0)))?;
            let stream = socket
                .connect(SocketAddr::from((peer.address, NODE_PORT)))
                .await?;
            stream.set_nodelay(true)?;
            let tls = TlsConnector::from(Arc::clone(&caller.config));
            tls.connect(cid_trust::server_name(), stream).await
        };
        let stream = bounded(DIAL_BOUND, dial).await?;
        let found = cid_trust::peer_of(stream.get_ref().1).map_err(io::Error::other)?;
        if found != Peer::node(&peer.id) {
            return Err(io::Error::other("another node answers at its address"));
        }
        let (reader, writer) = tokio::io::split(stream);
        Ok(Self {
            tree,
            shape,
            reader: frames::Reader::new(reader),
            writer,
        })
    }

    /// What it has, once that is more than it said last, or after `wait`.
    pub(crate) async fn have(&mut self, wait: Duration) -> io::Result<Answer> {
        let question = RootQuestion::Have {
            tree: self.tree.clone(),
            wait_ms: u32::try_from(wait.as_millis()).unwrap_or(0),
        };
        self.ask(question).await
    }

    /// One chunk.
    pub(crate) async fn chunk(&mut self, chunk: u32) -> io::Result<Answer> {
        let tree = self.tree.clone();
        self.ask(RootQuestion::Chunk { tree, chunk }).await
    }

    async fn ask(&mut self, question: RootQuestion) -> io::Result<Answer> {
        let asked = match question {
            RootQuestion::Chunk { chunk, .. } => Some(chunk),
            RootQuestion::Have { .. } => None,
        };
        let answer = async {
            frames::write(&mut self.writer, &ToPeer::Root(question)).await?;
            self.answer(asked).await
        };
        bounded(ANSWER_BOUND, answer).await
    }

    async fn answer(&mut self, asked: Option<u32>) -> io::Result<Answer> {
        let answer = match self.reader.next().await? {
            Some(FromPeer::Root(answer)) => answer,
            Some(FromPeer::Refused { reason }) => return Err(io::Error::other(reason)),
            Some(FromPeer::Nodes(_) | FromPeer::Measure(_)) => return Err(nonsense()),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        };
        match answer {
            RootAnswer::Have { have } => Ok(Answer::Have(self.set(&have)?)),
            RootAnswer::Busy { after_ms } => Ok(Answer::Busy(Duration::from_millis(after_ms.into()))),
            RootAnswer::Missing => Ok(Answer::Missing),
            RootAnswer::Chunk { chunk, bytes, have } => {
                let expected = asked
                    .filter(|asked| *asked == chunk)
                    .and_then(|asked| self.shape.range(asked));
                // Bytes of another number are not even read.
                if expected.is_none_or(|(_, length)| length != bytes) {
                    return Err(nonsense());
                }
                let have = self.set(&have)?;
                let length = usize::try_from(bytes).map_err(io::Error::other)?;
                Ok(Answer::Chunk(self.reader.bytes(length).await?, have))
            }
        }
    }

    fn set(&self, text: &str) -> io::Result<Vec<u8>> {
        super::decode_set(text, self.shape).ok_or_else(nonsense)
    }
}

fn nonsense() -> io::Error {
    io::Error::other("it answers what was not asked")
}

async fn bounded<T>(bound: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match timeout(bound, work).await {
        Ok(done) => done,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}
