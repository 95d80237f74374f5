//! What this node measures before it joins: its CPU, and the way to the head over the connection that will carry its hello.
//! Must not judge: the head does. Must add no more than about half a second to a boot.

pub(crate) mod cpu;
pub(crate) mod path;
pub(crate) mod peers;

use std::net::Ipv4Addr;
use std::time::Duration;

use cid_protocol::measure::{Answer, Measured, Path, Probe, Segments};
use cid_protocol::node::{FromNode, ToNode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, timeout, timeout_at};

use crate::frames;
use path::{Prober, To};
use peers::Caller;

/// How long a hello waits for the CPU's figure, which is begun long before.
const CPU_WAIT: Duration = Duration::from_millis(300);

/// How long the head may take to name peers.
const PEERS_WAIT: Duration = Duration::from_millis(250);

/// What was measured last, and what is being measured.
#[derive(Debug)]
pub(crate) struct Measurements {
    /// Kept for the hellos after the one it was made for, until the head refuses this node.
    last: Option<Measured>,
    /// For the next measurement, begun with the agent: it is done before there is an address.
    cpu: Option<JoinHandle<f32>>,
    /// Nothing is measured: the head is told nothing of it.
    #[cfg(feature = "crowd")]
    never: bool,
}

impl Measurements {
    /// Begins with the CPU, on a thread of its own.
    pub(crate) fn begin() -> Self {
        Self {
            last: None,
            cpu: Some(spawn_blocking(cpu::speed)),
            #[cfg(feature = "crowd")]
            never: false,
        }
    }

    /// Of one among many on one machine, whose figures would be the crowd's.
    #[cfg(feature = "crowd")]
    pub(crate) fn never() -> Self {
        Self {
            last: None,
            cpu: None,
            never: true,
        }
    }

    /// For the connection that is dialled now: the CPU's figure if it is to measure. A node that was measured must not load
    /// the head again when the whole room comes back to it.
    pub(crate) fn for_connection(&mut self) -> Option<JoinHandle<f32>> {
        #[cfg(feature = "crowd")]
        if self.never {
            return None;
        }
        if self.last.is_some() {
            return None;
        }
        Some(self.cpu.take().unwrap_or_else(|| spawn_blocking(cpu::speed)))
    }

    /// A connection is up, and was measured if it was to be.
    pub(crate) fn handle_measured(&mut self, measured: Option<Measured>) {
        self.last = measured.or(self.last.take());
    }

    /// The head refused this node: before it asks again, all of it is measured anew.
    pub(crate) fn handle_refused(&mut self) {
        self.last = None;
    }

    /// Speed of one CPU, once it was measured for a hello.
    pub(crate) fn cpu_speed(&self) -> Option<f32> {
        self.last.as_ref()?.cpu_speed
    }

    /// For a hello.
    pub(crate) fn last(&self) -> Option<Measured> {
        self.last.clone()
    }
}

/// Measures the way at the other end of `reader` and `writer`, and adds the CPU's speed.
///
/// # Errors
/// The connection's. What could not be measured is left out, and is no error.
pub(crate) async fn run<R, W>(
    reader: &mut frames::Reader<R>,
    writer: &mut W,
    cpu: JoinHandle<f32>,
    caller: Option<&Caller>,
) -> std::io::Result<Measured>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let began = Instant::now();
    let head = way(reader, writer).await?;
    let mut peers = Vec::new();
    if let Some(caller) = caller {
        peers = peers::ways(caller, &named(reader, writer).await?).await;
    }
    let cpu_speed = timeout(CPU_WAIT, cpu).await.ok().and_then(Result::ok);
    Ok(Measured {
        cpu_speed,
        head,
        peers,
        took_ms: u32::try_from(began.elapsed().as_millis()).unwrap_or(u32::MAX),
    })
}

/// What the kernel sent over a connection; nothing where it does not say.
pub(crate) fn segments(socket: &impl std::os::fd::AsFd) -> Segments {
    let info = cid_sys::tcp::info(socket).unwrap_or_default();
    Segments {
        all: info.data_segments,
        again: info.retransmitted,
    }
}

/// Peers that the head names; none when it does not answer in time.
async fn named<R, W>(reader: &mut frames::Reader<R>, writer: &mut W) -> std::io::Result<Vec<Ipv4Addr>>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    frames::write(writer, &FromNode::Measure(Probe::Peers)).await?;
    let deadline = Instant::now() + PEERS_WAIT;
    loop {
        match timeout_at(deadline, reader.next()).await {
            Ok(Ok(Some(ToNode::Measure(Answer::Peers { addresses })))) => return Ok(addresses),
            Ok(Ok(Some(_))) => {}
            Ok(Ok(None)) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Ok(Vec::new()),
        }
    }
}

/// Echoes and bursts until the prober has enough.
async fn way<R, W>(reader: &mut frames::Reader<R>, writer: &mut W) -> std::io::Result<Path>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let began = Instant::now();
    let mut prober = Prober::new(Duration::ZERO, To::Head);
    loop {
        while let Some(probe) = prober.poll_output() {
            frames::write(writer, &FromNode::Measure(probe)).await?;
        }
        let Some(deadline) = prober.next_deadline() else {
            return Ok(prober.finish());
        };
        match timeout_at(began + deadline, reader.next()).await {
            Ok(Ok(Some(ToNode::Measure(answer)))) => prober.handle_answer(began.elapsed(), &answer),
            // Nothing else is due before the hello.
            Ok(Ok(Some(_))) => {}
            Ok(Ok(None)) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(Err(error)) => return Err(error),
            Err(_) => prober.handle_deadline(began.elapsed()),
        }
    }
}

#[cfg(test)]
mod tests;
