//! The DHCP shell: sockets on ports 67 and 68 of one interface, clocks, and the order *commit, then send*.

use std::future::{Future, poll_fn};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use crate::addresses::Addresses;
use crate::counters::Counters;
use crate::dhcp::leases::LeaseRecord;
use crate::dhcp::rival::{self, Rival, Watch};
use crate::dhcp::server::{CLIENT_PORT, Output, SERVER_PORT, Server};
use crate::directory::{CommitError, Directory};
use crate::keep::SocketKeeper;

/// Packets taken in before one commit, so that a storm pays for few synchronisations of the disk.
pub(super) const BATCH: usize = 256;
/// Outputs that may wait for the commit before theirs; until there is room again packets wait in the kernel.
const WAITING: usize = 2_048;

/// A commit that is awaited.
type Commit = Pin<Box<dyn Future<Output = Result<(), CommitError>> + Send>>;

/// Sockets of one interface.
pub struct Sockets {
    pub(super) server: UdpSocket,
    pub(super) client: UdpSocket,
}

impl Sockets {
    /// Binds ports 67 and 68 on `interface` alone. Needs CAP_NET_BIND_SERVICE and CAP_NET_RAW.
    pub fn bind(interface: &str, keeper: &dyn SocketKeeper) -> std::io::Result<Self> {
        let kept = |port| {
            let socket = keeper.socket(&format!("dhcp.{port}.{interface}"), &|| bind(interface, port))?;
            UdpSocket::from_std(socket.into())
        };
        Ok(Self {
            server: kept(SERVER_PORT)?,
            client: kept(CLIENT_PORT)?,
        })
    }

    /// Sends a probe for other servers. A failure is logged: the next probe is half a minute away.
    pub(super) async fn probe(&self, bytes: &[u8]) {
        let to = (Ipv4Addr::BROADCAST, SERVER_PORT);
        if let Err(error) = self.client.send_to(bytes, to).await {
            tracing::warn!(%error, "DHCP probe not sent");
        }
    }

    /// Asks the wire for another DHCP server; the first one that answers.
    pub async fn find_rival(&self, watch: &mut Watch) -> std::io::Result<Option<Rival>> {
        let started = Instant::now();
        let mut buffer = [0_u8; 2048];
        // Twice: a switch port that just came up may swallow the first.
        for round in 0..2 {
            watch.handle_deadline(watch.next_deadline());
            while let Some(output) = watch.poll_output() {
                if let rival::Output::Probe(bytes) = output {
                    self.client
                        .send_to(&bytes, (Ipv4Addr::BROADCAST, SERVER_PORT))
                        .await?;
                }
            }
            let until = started + rival::ANSWER_TIME / 2 * (round + 1);
            while let Ok(received) =
                tokio::time::timeout_at(until.into(), self.client.recv_from(&mut buffer)).await
            {
                let (length, _) = received?;
                watch.handle_packet(started.elapsed(), buffer.get(..length).unwrap_or_default());
                if let Some(rival) = watch.rival() {
                    return Ok(Some(rival));
                }
            }
        }
        Ok(None)
    }
}

/// Resolves with the commit that is awaited; never while there is none.
async fn finished(written: &mut Option<(Commit, Vec<Output>)>) -> Result<(), CommitError> {
    match written {
        Some((commit, _)) => commit.await,
        None => std::future::pending().await,
    }
}

fn bind(interface: &str, port: u16) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_broadcast(true)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    // A storm must fit while we commit. Forced, because net.core.rmem_max is 208 KiB, 200 packets, unless somebody raised it;
    // that needs CAP_NET_ADMIN, and without it we take what we get.
    const QUEUE: usize = 4 * 1024 * 1024;
    if setsockopt(&socket, sockopt::RcvBufForce, &QUEUE).is_err() {
        let _ = socket.set_recv_buffer_size(QUEUE);
    }
    Ok(socket)
}

/// Everything one running server needs.
pub struct Shell<D> {
    /// Sockets.
    pub sockets: Sockets,
    /// State machine.
    pub server: Server,
    /// Watch for rivals.
    pub watch: Watch,
    /// The head.
    pub directory: Arc<D>,
    /// Told of every lease.
    pub addresses: Arc<Addresses>,
    /// Told of every drop.
    pub counters: Arc<Counters>,
}

impl<D: Directory> Shell<D> {
    /// Serves until a socket fails. While the disk works on one batch, the next is read and decided: it goes to the disk when
    /// the first is there and was answered, so that outputs leave in their order.
    pub async fn serve(mut self) -> std::io::Result<()> {
        let started = Instant::now();
        self.server.ignore(self.watch.probe_mac());
        let mut from_client = [0_u8; 2048];
        let mut from_server = [0_u8; 2048];
        let mut written: Option<(Commit, Vec<Output>)> = None;
        let mut next: Vec<Output> = Vec::new();
        loop {
            if written.is_none() && !next.is_empty() {
                let outputs = std::mem::take(&mut next);
                match self.commit_of(&outputs) {
                    Some(mut commit) => {
                        // The first poll hands the leases to the disk: not only when the select comes to it.
                        let first = poll_fn(|context| Poll::Ready(commit.as_mut().poll(context))).await;
                        match first {
                            Poll::Ready(result) => self.answer(started.elapsed(), result, outputs).await,
                            Poll::Pending => written = Some((commit, outputs)),
                        }
                    }
                    None => self.carry_out(started.elapsed(), outputs).await,
                }
            }
            let wait = self.watch.next_deadline().saturating_sub(started.elapsed());
            tokio::select! {
                result = finished(&mut written) => {
                    let outputs = written.take().map(|(_, outputs)| outputs).unwrap_or_default();
                    self.answer(started.elapsed(), result, outputs).await;
                }
                received = self.sockets.server.recv_from(&mut from_client), if next.len() < WAITING => {
                    let (length, _) = received?;
                    self.take_batch(&mut from_client, length, &mut next);
                }
                received = self.sockets.client.recv_from(&mut from_server) => {
                    let (length, _) = received?;
                    // Addresses are ours to know in this mode.
                    let _ = self.watch.handle_packet(started.elapsed(), from_server.get(..length).unwrap_or_default());
                }
                () = tokio::time::sleep(wait.max(Duration::from_millis(1))) => {
                    self.watch.handle_deadline(started.elapsed());
                }
            }
            self.follow_watch().await?;
        }
    }

    /// The packet just received and those that wait behind it.
    fn take_batch(&mut self, buffer: &mut [u8; 2048], mut length: usize, outputs: &mut Vec<Output>) {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |elapsed| elapsed.as_secs());
        for _ in 0..BATCH {
            let directory = Arc::clone(&self.directory);
            let bytes = buffer.get(..length).unwrap_or_default();
            if let Err(reason) = self
                .server
                .handle_packet(now, bytes, &|facts| directory.decide(facts))
            {
                tracing::debug!(%reason, length, "DHCP packet dropped");
                self.counters.count(&reason);
            }
            match self.sockets.server.try_recv_from(buffer) {
                Ok((next, _)) => length = next,
                Err(_) => break,
            }
        }
        outputs.extend(std::iter::from_fn(|| self.server.poll_output()));
    }

    /// The commit that these outputs have to wait for, if any of them is to be written.
    fn commit_of(&self, outputs: &[Output]) -> Option<Commit> {
        let leases: Vec<LeaseRecord> = outputs
            .iter()
            .filter_map(|output| {
                if let Output::Persist(record) = output {
                    Some(*record)
                } else {
                    None
                }
            })
            .collect();
        if leases.is_empty() {
            return None;
        }
        let directory = Arc::clone(&self.directory);
        Some(Box::pin(async move { directory.commit_leases(leases).await }))
    }

    /// A batch that could not be committed is not answered: the clients ask again.
    async fn answer(&mut self, now: Duration, result: Result<(), CommitError>, outputs: Vec<Output>) {
        match result {
            Ok(()) => self.carry_out(now, outputs).await,
            Err(error) => {
                tracing::error!(%error, "leases not written: no answer is sent");
                self.counters.count(&"dhcp-not-committed");
            }
        }
    }

    /// Tells and sends what is on disk, or needs not be.
    async fn carry_out(&mut self, now: Duration, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Persist(record) => self.addresses.insert(record),
                Output::Observe(mac, observation) => self.directory.observe(mac, observation),
                Output::RivalNamed(server) => self.watch.handle_named(
                    now,
                    Rival {
                        server,
                        offered: None,
                    },
                ),
                Output::Transmit { bytes, to } => self.send(&bytes, to).await,
            }
        }
    }

    async fn send(&self, bytes: &[u8], to: SocketAddrV4) {
        if let Err(error) = self.sockets.server.send_to(bytes, to).await {
            // A relay or client that is gone; the next one is none the worse.
            tracing::debug!(%to, %error, "DHCP answer not sent");
            self.counters.count(&"dhcp-not-sent");
        }
    }

    async fn follow_watch(&mut self) -> std::io::Result<()> {
        while let Some(output) = self.watch.poll_output() {
            match output {
                rival::Output::Probe(bytes) => self.sockets.probe(&bytes).await,
                rival::Output::Appeared(rival) => {
                    tracing::error!(server = %rival.server, "another DHCP server is on this wire: answers stop until it has gone");
                    self.server.set_suspended(true);
                    self.directory.rival(rival, true);
                }
                rival::Output::Gone(rival) => {
                    tracing::info!(server = %rival.server, "the other DHCP server has gone: answering again");
                    self.server.set_suspended(false);
                    self.directory.rival(rival, false);
                }
                rival::Output::Sighted(sighting) => self.directory.sighted(sighting),
            }
        }
        Ok(())
    }
}
