//! Answers a node that measures its way to the head before its hello: echoes, and bursts of filler each way for the few whose
//! turn it is. Bounds what a node can ask for. Must not judge what the node makes of it.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cid_protocol::measure::{Answer, Filler, MAX_BULK, MAX_BURST, MAX_ECHOES, PEERS, Probe, Segments};
use cid_protocol::node::{FromNode, ToNode};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::server::TlsStream;

use crate::nodes::{Ended, HELLO_TIMEOUT, WRITE_TIMEOUT, frame, read_message};

/// Nodes that measure bandwidth at the same time. One: two would measure each other, and a turn takes a quarter of a second at
/// the most, so that a room that boots at once gives a turn to some and holds up nobody.
const TURNS: usize = 1;
/// How long a node waits for its turn before it goes on without.
const TURN_WAIT: Duration = Duration::from_millis(100);
/// When a turn ends whatever the node does.
const TURN_BOUND: Duration = Duration::from_millis(600);

/// What carries a node connection.
pub trait Transport: AsyncRead + AsyncWrite + Send + Unpin + 'static {
    /// What the kernel sent over it so far; nothing where it does not say.
    fn segments(&self) -> Segments;
}

impl Transport for TcpStream {
    fn segments(&self) -> Segments {
        let info = cid_sys::tcp::info(self).unwrap_or_default();
        Segments {
            all: info.data_segments,
            again: info.retransmitted,
        }
    }
}

impl<S: Transport> Transport for TlsStream<S> {
    fn segments(&self) -> Segments {
        self.get_ref().0.segments()
    }
}

/// In memory nothing is lost.
impl Transport for tokio::io::DuplexStream {
    fn segments(&self) -> Segments {
        Segments::default()
    }
}

/// Who may measure bandwidth.
#[derive(Debug)]
pub struct Turns {
    free: Arc<Semaphore>,
    /// Who is named next as a peer to measure the way to: all in turn, so that nobody serves a whole room.
    next_peer: AtomicUsize,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            free: Arc::new(Semaphore::new(TURNS)),
            next_peer: AtomicUsize::new(0),
        }
    }
}

/// A turn; it ends when this is dropped, or by itself.
struct Turn {
    _end: oneshot::Sender<()>,
}

impl Turns {
    fn some_of(&self, addresses: &[Ipv4Addr]) -> Vec<Ipv4Addr> {
        let count = addresses.len().min(PEERS);
        let first = self.next_peer.fetch_add(count, Ordering::Relaxed);
        let from_first = addresses
            .iter()
            .cycle()
            .skip(first.checked_rem(addresses.len()).unwrap_or(0));
        from_first.take(count).copied().collect()
    }

    async fn take(&self) -> Option<Turn> {
        let permit = timeout(TURN_WAIT, Arc::clone(&self.free).acquire_owned())
            .await
            .ok()?
            .ok()?;
        let (end, ended) = oneshot::channel::<()>();
        tokio::spawn(async move {
            let _ = timeout(TURN_BOUND, ended).await;
            drop(permit);
        });
        Some(Turn { _end: end })
    }
}

/// What one connection has asked for so far.
#[derive(Default)]
struct Session {
    echoes: u32,
    asked: bool,
    asked_peers: bool,
    turn: Option<Turn>,
    given: u32,
    taken: u32,
    /// Of the burst that is coming in.
    burst: u32,
}

/// Answers measurements until another message comes, and returns that.
///
/// # Errors
/// The connection's, and [`Ended::MeasuresTooMuch`] for a node that asks for more than it may; all of it together has
/// [`HELLO_TIMEOUT`].
///
/// `peers` tells the addresses of nodes that are in.
pub async fn answer<S: Transport>(
    stream: &mut S,
    turns: &Turns,
    peers: impl Fn() -> Vec<Ipv4Addr> + Send + Sync,
) -> Result<FromNode, Ended> {
    let deadline = Instant::now() + HELLO_TIMEOUT;
    let mut session = Session::default();
    loop {
        let message = timeout_at(deadline, read_message(stream)).await;
        match message.map_err(|_| Ended::Silent)?? {
            FromNode::Measure(Probe::Peers) => {
                if std::mem::replace(&mut session.asked_peers, true) {
                    return Err(Ended::MeasuresTooMuch);
                }
                let addresses = turns.some_of(&peers());
                let sent = timeout(WRITE_TIMEOUT, send(stream, Answer::Peers { addresses })).await;
                sent.map_err(|_| Ended::Silent)??;
            }
            FromNode::Measure(probe) => {
                let sent = timeout(WRITE_TIMEOUT, session.handle(stream, turns, probe)).await;
                sent.map_err(|_| Ended::Silent)??;
            }
            other => return Ok(other),
        }
    }
}

impl Session {
    async fn handle<S: Transport>(
        &mut self,
        stream: &mut S,
        turns: &Turns,
        probe: Probe,
    ) -> Result<(), Ended> {
        match probe {
            Probe::Echo { number } => {
                self.echoes += 1;
                within(self.echoes, MAX_ECHOES)?;
                send(stream, Answer::Echo { number }).await
            }
            Probe::Ask => {
                if std::mem::replace(&mut self.asked, true) {
                    return Err(Ended::MeasuresTooMuch);
                }
                self.turn = turns.take().await;
                let granted = self.turn.is_some();
                send(stream, Answer::Turn { granted }).await
            }
            Probe::Give { bytes } if self.turn.is_some() => {
                within(bytes, MAX_BURST)?;
                self.given += bytes;
                within(self.given, MAX_BULK)?;
                let mut left = bytes;
                loop {
                    let filler = Filler::of(left);
                    left = left.saturating_sub(u32::try_from(filler.text.len()).unwrap_or(left));
                    let last = filler.last;
                    send(stream, Answer::Filler(filler)).await?;
                    if last {
                        return Ok(());
                    }
                }
            }
            Probe::Filler(filler) if self.turn.is_some() => {
                // A frame's own bound keeps this small.
                let length = u32::try_from(filler.text.len()).unwrap_or(MAX_BURST);
                self.burst += length;
                self.taken += length;
                within(self.taken, MAX_BULK)?;
                if !filler.last {
                    return Ok(());
                }
                let bytes = std::mem::take(&mut self.burst);
                send(stream, Answer::Took { bytes }).await
            }
            Probe::Counts => {
                self.echoes += 1;
                within(self.echoes, MAX_ECHOES)?;
                let counts = stream.segments();
                send(stream, Answer::Counts(counts)).await
            }
            // The second is answered before it comes here.
            Probe::Give { .. } | Probe::Filler(_) | Probe::Peers => Err(Ended::MeasuresTooMuch),
            Probe::Done => {
                self.turn = None;
                Ok(())
            }
        }
    }
}

fn within(asked: u32, most: u32) -> Result<(), Ended> {
    if asked <= most {
        Ok(())
    } else {
        Err(Ended::MeasuresTooMuch)
    }
}

async fn send<S: Transport>(stream: &mut S, answer: Answer) -> Result<(), Ended> {
    let Some(bytes) = frame(&ToNode::Measure(answer)) else {
        return Ok(());
    };
    stream.write_all(&bytes).await?;
    stream.flush().await?;
    Ok(())
}

#[cfg(test)]
mod tests;
