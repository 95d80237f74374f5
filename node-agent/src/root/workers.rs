//! Those who ask: one for the head's HTTP server, one for each other node, one question at a time each. They check nothing and decide
//! nothing; what came of a question goes back to whoever gave it to them.

use std::io;
use std::net::SocketAddrV4;
use std::time::Duration;

use cid_content::Shape;
use cid_content::download::Name;
use cid_protocol::root::{RootPeer, chunks_path};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use super::http::{self, Connection, Failure};
use super::peer::{Answer, Visit};
use super::task::Way;

/// Questions that wait for the one before; more are never given.
const QUEUE: usize = 32;

/// What came of a question.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The head gave these bytes for the chunk, or why not.
    Head {
        chunk: u32,
        bytes: Result<Vec<u8>, Failure>,
    },
    /// The peer of this name is there.
    Met { name: Name },
    /// It answered, or its connection is gone. `asked` is the chunk; `None`: what it has.
    Peer {
        name: Name,
        asked: Option<u32>,
        answer: io::Result<Answer>,
    },
}

/// What a peer is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// What it has, after this time at the latest.
    Have(Duration),
    /// A chunk.
    Chunk(u32),
}

/// A worker; dropping it ends it.
#[derive(Debug)]
pub(super) struct Worker<Q> {
    questions: mpsc::Sender<Q>,
    task: AbortHandle,
}

impl<Q> Drop for Worker<Q> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<Q> Worker<Q> {
    /// Gives it a question. `false`: it has too many, or is gone.
    pub(super) fn ask(&self, question: Q) -> bool {
        self.questions.try_send(question).is_ok()
    }
}

/// For the head; `ways` may change while it works.
pub(super) fn head(
    tree: &str,
    shape: Shape,
    ways: watch::Receiver<Option<Way>>,
    outcomes: mpsc::Sender<Outcome>,
) -> Worker<u32> {
    let (questions, mut inbox) = mpsc::channel(QUEUE);
    let path = chunks_path(tree);
    let task = tokio::spawn(async move {
        let mut connection = None;
        while let Some(chunk) = inbox.recv().await {
            let bytes = from_head(&mut connection, &ways, &path, shape, chunk).await;
            if matches!(bytes, Err(Failure::Broken(_))) {
                connection = None;
            }
            if outcomes.send(Outcome::Head { chunk, bytes }).await.is_err() {
                return;
            }
        }
    });
    Worker {
        questions,
        task: task.abort_handle(),
    }
}

async fn from_head(
    connection: &mut Option<Connection<TcpStream>>,
    ways: &watch::Receiver<Option<Way>>,
    path: &str,
    shape: Shape,
    chunk: u32,
) -> Result<Vec<u8>, Failure> {
    let (at, length) = shape
        .range(chunk)
        .ok_or_else(|| io::Error::other("there is no such chunk"))?;
    // A connection that stood idle may have been closed by the head: that is no failure, one more dial tells.
    for idle in [true, false] {
        let fresh = connection.is_none();
        if fresh {
            let way = ways.borrow().clone();
            let way = way.ok_or_else(|| io::Error::other("there is no link to the head"))?;
            let to = SocketAddrV4::new(way.head, super::HEAD_HTTP_PORT);
            *connection = Some(http::dial(&way.caller.link, way.caller.from, to).await?);
        }
        let Some(open) = connection.as_mut() else {
            break;
        };
        match open.part(path, at..at + u64::from(length)).await {
            Err(Failure::Broken(_)) if idle && !fresh => *connection = None,
            done => return done,
        }
    }
    Err(io::Error::other("its connection does not hold").into())
}

/// For another node. It is called at once; the worker ends with the connection.
pub(super) fn peer(
    name: Name,
    peer: RootPeer,
    (tree, shape): (String, Shape),
    ways: watch::Receiver<Option<Way>>,
    outcomes: mpsc::Sender<Outcome>,
) -> Worker<Ask> {
    let (questions, mut inbox) = mpsc::channel(QUEUE);
    let task = tokio::spawn(async move {
        let outcome = |asked, answer| Outcome::Peer {
            name: name.clone(),
            asked,
            answer,
        };
        let mut visit = match call(&peer, tree, shape, &ways).await {
            Ok(visit) => visit,
            Err(error) => {
                let _ = outcomes.send(outcome(None, Err(error))).await;
                return;
            }
        };
        let met = Outcome::Met { name: name.clone() };
        let _ = outcomes.send(met).await;
        while let Some(ask) = inbox.recv().await {
            let (asked, answer) = match ask {
                Ask::Have(wait) => (None, visit.have(wait).await),
                Ask::Chunk(chunk) => (Some(chunk), visit.chunk(chunk).await),
            };
            let over = answer.is_err();
            if outcomes.send(outcome(asked, answer)).await.is_err() || over {
                return;
            }
        }
    });
    Worker {
        questions,
        task: task.abort_handle(),
    }
}

async fn call(
    peer: &RootPeer,
    tree: String,
    shape: Shape,
    ways: &watch::Receiver<Option<Way>>,
) -> io::Result<Visit> {
    let way = ways.borrow().clone();
    let way = way.ok_or_else(|| io::Error::other("there is no link"))?;
    Visit::dial(&way.caller, peer, tree, shape).await
}
