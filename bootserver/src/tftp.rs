//! TFTP for firmware (RFC 1350, 2347, 2348, 2349, 7440) on `async-tftp`. Read only; files come from [`Files`].

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_tftp::packet;
use async_tftp::server::{Handler, TftpServerBuilder};
use bytes::Bytes;
use futures_lite::io::{AsyncRead, Cursor, Sink};
use socket2::Socket;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::directory::Directory;
use crate::files::{Files, Refusal};
use crate::keep::SocketKeeper;

/// Well-known port.
pub const PORT: u16 = 69;
/// An Ethernet frame's worth (what EDK2 asks for); larger blocks would fragment.
const MAX_BLOCK_SIZE: u16 = 1468;
/// Some clients fail on large windows (u-root pull request 1966).
const MAX_WINDOW_SIZE: u16 = 16;
const TIMEOUT: Duration = Duration::from_secs(1);
const MAX_RETRIES: u32 = 8;
/// Transfers at a time, each with a socket and a window of blocks: a stranger who asks from ever new ports can hold no more
/// than 256 descriptors and 6 MiB, for 9 s. A room of 200 PCs that is powered on at once fits.
pub const MAX_TRANSFERS: usize = 256;

struct Shell<D> {
    files: Files<D>,
    slots: Arc<Semaphore>,
}

/// A file on its way; its slot is free again when the library drops it.
struct Transfer {
    content: Cursor<Bytes>,
    _slot: OwnedSemaphorePermit,
}

impl AsyncRead for Transfer {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.content).poll_read(context, buffer)
    }
}

impl<D: Directory> Handler for Shell<D> {
    type Reader = Transfer;
    type Writer = Sink;

    async fn read_req_open(
        &mut self,
        client: &SocketAddr,
        path: &Path,
    ) -> Result<(Self::Reader, Option<u64>), packet::Error> {
        let (IpAddr::V4(address), Some(path)) = (client.ip(), path.to_str()) else {
            return Err(packet::Error::FileNotFound);
        };
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            self.files.count(&Refusal::TooManyTransfers);
            return Err(packet::Error::Msg("too many transfers; try again".to_owned()));
        };
        match self.files.open(address, path).await {
            Ok(bytes) => {
                let size = bytes.len() as u64;
                let transfer = Transfer {
                    content: Cursor::new(bytes),
                    _slot: slot,
                };
                Ok((transfer, Some(size)))
            }
            // shim takes every other error for fatal and GRUB takes silence for a lost packet: ERROR 1, at once.
            Err(Refusal::NotCommitted) => Err(packet::Error::Msg("try again".to_owned())),
            Err(_) => Err(packet::Error::FileNotFound),
        }
    }

    async fn write_req_open(
        &mut self,
        _client: &SocketAddr,
        _path: &Path,
        _size: Option<u64>,
    ) -> Result<Self::Writer, packet::Error> {
        Err(packet::Error::PermissionDenied)
    }
}

/// A bound server.
pub struct Server(UdpSocket);

impl Server {
    /// Binds the well-known port of one address: a transfer must be answered from the address it was asked at.
    pub fn bind(address: Ipv4Addr, keeper: &dyn SocketKeeper) -> std::io::Result<Self> {
        let bind = || UdpSocket::bind((address, PORT)).map(Socket::from);
        keeper
            .socket(&format!("tftp.{address}"), &bind)
            .map(|socket| Self(socket.into()))
    }

    /// Serves on a socket that somebody else bound; it must be bound to one address (see [`Server::bind`]).
    pub fn from_socket(socket: UdpSocket) -> Self {
        Self(socket)
    }

    /// Serves until the task ends.
    pub async fn serve<D: Directory>(self, files: Files<D>) -> Result<(), async_tftp::Error> {
        let slots = Arc::new(Semaphore::new(MAX_TRANSFERS));
        TftpServerBuilder::with_handler(Shell { files, slots })
            .std_socket(self.0)?
            .block_size_limit(MAX_BLOCK_SIZE)
            .window_size_limit(MAX_WINDOW_SIZE)
            .timeout(TIMEOUT)
            .max_send_retries(MAX_RETRIES)
            // RFC 2349 lets a client ask for 255 s: nine of those would hold a slot for 38 minutes.
            .ignore_client_timeout()
            .build()
            .await?
            .serve()
            .await
    }
}
