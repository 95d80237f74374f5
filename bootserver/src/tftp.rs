//! TFTP for firmware (RFC 1350, 2347, 2348, 2349, 7440): the socket, the clock and the journal around [`server::Server`]. Read
//! only; files come from [`Files`]. Why it is our own: docs/decisions/0004-own-tftp.md.
//!
//! One thread receives and sends with blocking calls: in lock step every block waits for a system call, and two of
//! them (receive, send) are the fewest there can be.

pub mod journal;
pub mod packet;
pub mod server;
pub mod transfer;

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::Socket;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use self::journal::Journal;
use self::server::Output;
pub use self::server::{MAX_TRANSFERS, MAX_TRANSFERS_PER_CLIENT};
use crate::directory::Directory;
use crate::files::{Files, Refusal};
use crate::keep::SocketKeeper;

/// Well-known port.
pub const PORT: u16 = 69;
/// How often deadlines are looked at while a transfer is under way; a quarter of the shortest of them.
const TICK: Duration = Duration::from_millis(50);
/// How long a stop takes while nothing is under way, milliseconds.
const IDLE_MS: u16 = 500;

/// A bound server.
pub struct Server {
    socket: UdpSocket,
    journal: Option<PathBuf>,
}

impl Server {
    /// Binds the well-known port of one address: a transfer must be answered from the address it was asked at.
    pub fn bind(address: Ipv4Addr, keeper: &dyn SocketKeeper) -> io::Result<Self> {
        let bind = || UdpSocket::bind((address, PORT)).map(Socket::from);
        let socket = keeper.socket(&format!("tftp.{address}"), &bind)?;
        // A room that asks at once must fit while one of them is looked up.
        let _ = socket.set_recv_buffer_size(4 * 1024 * 1024);
        Ok(Self::from_socket(socket.into()))
    }

    /// Serves on a socket that somebody else bound; it must be bound to one address (see [`Server::bind`]).
    pub fn from_socket(socket: UdpSocket) -> Self {
        Self {
            socket,
            journal: None,
        }
    }

    /// Keeps a journal in this file, and goes on with the transfers of the process that kept it before: on the same socket
    /// (see [`SocketKeeper`]) a client notices nothing.
    #[must_use]
    pub fn journal(mut self, path: PathBuf) -> Self {
        self.journal = Some(path);
        self
    }

    /// Serves until the future is dropped.
    ///
    /// # Errors
    /// The socket or the thread fails.
    pub async fn serve<D: Directory>(self, files: Files<D>) -> io::Result<()> {
        // A kept socket may come from a process that used it otherwise.
        self.socket.set_nonblocking(false)?;
        let shared = Arc::new(Shared {
            socket: self.socket,
            state: Mutex::default(),
            files,
            started: Instant::now(),
            runtime: Handle::current(),
            stopped: AtomicBool::new(false),
        });
        if let Some(path) = self.journal {
            shared.take_over(path).await;
        }
        let (ended, end) = oneshot::channel();
        let worker = Arc::clone(&shared);
        let _stop = Stop(&shared.stopped);
        std::thread::Builder::new()
            .name("tftp".to_owned())
            .spawn(move || ended.send(worker.run()))?;
        end.await
            .unwrap_or_else(|_| Err(io::Error::other("the TFTP thread ended")))
    }
}

/// Ends the thread when its server is dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The core, and where its transfers are written down.
#[derive(Default)]
struct State {
    server: server::Server,
    journal: Option<Journal>,
}

struct Shared<D> {
    socket: UdpSocket,
    state: Mutex<State>,
    files: Files<D>,
    started: Instant,
    runtime: Handle,
    stopped: AtomicBool,
}

impl<D: Directory> Shared<D> {
    /// Goes on where another process stopped; before the first datagram is read.
    async fn take_over(&self, path: PathBuf) {
        let (journal, live) = match Journal::open(&path) {
            Ok(opened) => opened,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "no TFTP journal: transfers do not outlive a restart");
                return;
            }
        };
        let mut contents = Vec::new();
        for (client, record) in live {
            let content = match record.content.clone() {
                Some(content) => Ok(content),
                None => self.files.open(*client.ip(), &record.path).await,
            };
            contents.push((client, record, content));
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.journal = Some(journal);
        for (client, record, content) in contents {
            if let Some(content) = content
                .ok()
                .filter(|content| journal::mark(content) == record.mark)
            {
                tracing::info!(%client, path = record.path, "goes on with a transfer from before");
                let sizes = (record.block_size, record.window_size);
                let now = self.started.elapsed();
                state
                    .server
                    .resume(now, client, content, sizes, record.acknowledged);
            }
        }
    }

    fn run(self: &Arc<Self>) -> io::Result<()> {
        let mut buffer = [0; 2048];
        self.socket.set_read_timeout(Some(TICK))?;
        while !self.stopped.load(Ordering::Relaxed) {
            let busy = self.with(|state| state.server.sizes() != (0, 0));
            if !busy && !self.readable()? {
                continue;
            }
            match self.socket.recv_from(&mut buffer) {
                Ok((length, SocketAddr::V4(client))) => {
                    let bytes = buffer.get(..length).unwrap_or_default();
                    self.act(|server, now| {
                        if let Err(reason) = server.handle_datagram(now, client, bytes) {
                            tracing::debug!(%client, %reason, "TFTP datagram dropped");
                            self.files.count(&reason);
                        }
                    });
                }
                Ok((_, SocketAddr::V6(_))) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) =>
                {
                    self.act(|_, _| ());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits for a datagram, for [`IDLE_MS`] at most.
    fn readable(&self) -> io::Result<bool> {
        let mut socket = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut socket, PollTimeout::from(IDLE_MS)) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::EINTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Gives the core an input, and what is due; does what it wants. Datagrams leave in the core's order: under its lock.
    fn act(self: &Arc<Self>, input: impl FnOnce(&mut server::Server, Duration)) {
        self.with(|state| {
            let now = self.started.elapsed();
            input(&mut state.server, now);
            if state
                .server
                .next_deadline()
                .is_some_and(|deadline| deadline <= now)
            {
                state.server.handle_deadline(now);
            }
            let mut datagram = Vec::new();
            while let Some(output) = state.server.poll_output() {
                match output {
                    Output::Transmit {
                        client,
                        head,
                        content,
                    } => self.send(client, &head, &content, &mut datagram),
                    Output::Open { client, path } => self.open(client, path),
                    Output::Journal(entry) => {
                        if let Some(journal) = &mut state.journal {
                            journal.append(&entry);
                        }
                    }
                    Output::Lost(client) => {
                        tracing::debug!(%client, "TFTP client fell silent");
                        self.files.count(&"tftp-client-silent");
                    }
                }
            }
        });
    }

    fn open(self: &Arc<Self>, client: SocketAddrV4, path: String) {
        let shared = Arc::clone(self);
        self.runtime.spawn(async move {
            let answer: Result<Bytes, Refusal> = shared.files.open(*client.ip(), &path).await;
            shared.act(|server, now| server.handle_opened(now, client, answer));
        });
    }

    fn send(&self, client: SocketAddrV4, head: &[u8], content: &[u8], datagram: &mut Vec<u8>) {
        datagram.clear();
        datagram.extend_from_slice(head);
        datagram.extend_from_slice(content);
        if let Err(error) = self.socket.send_to(datagram, client) {
            // A client that is gone, or one without a route; the retransmission tries again.
            tracing::debug!(%client, %error, "TFTP datagram not sent");
            self.files.count(&"tftp-not-sent");
        }
    }
}
