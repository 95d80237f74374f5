//! TFTP for firmware (RFC 1350, 2347, 2348, 2349, 7440) on `async-tftp`. Read only; files come from [`Files`].

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use async_tftp::packet;
use async_tftp::server::{Handler, TftpServerBuilder};
use bytes::Bytes;
use futures_lite::io::{Cursor, Sink};

use crate::directory::Directory;
use crate::files::{Files, Refusal};

/// Well-known port.
pub const PORT: u16 = 69;
/// An Ethernet frame's worth (what EDK2 asks for); larger blocks would fragment.
const MAX_BLOCK_SIZE: u16 = 1468;
/// Some clients fail on large windows (u-root pull request 1966).
const MAX_WINDOW_SIZE: u16 = 16;
const TIMEOUT: Duration = Duration::from_secs(1);
const MAX_RETRIES: u32 = 8;

struct Shell<D> {
    files: Files<D>,
}

impl<D: Directory> Handler for Shell<D> {
    type Reader = Cursor<Bytes>;
    type Writer = Sink;

    async fn read_req_open(
        &mut self,
        client: &SocketAddr,
        path: &Path,
    ) -> Result<(Self::Reader, Option<u64>), packet::Error> {
        let (IpAddr::V4(address), Some(path)) = (client.ip(), path.to_str()) else {
            return Err(packet::Error::FileNotFound);
        };
        match self.files.open(address, path).await {
            Ok(bytes) => {
                let size = bytes.len() as u64;
                Ok((Cursor::new(bytes), Some(size)))
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
    pub fn bind(address: Ipv4Addr) -> std::io::Result<Self> {
        UdpSocket::bind((address, PORT)).map(Self)
    }

    /// Serves until the task ends.
    pub async fn serve<D: Directory>(self, files: Files<D>) -> Result<(), async_tftp::Error> {
        TftpServerBuilder::with_handler(Shell { files })
            .std_socket(self.0)?
            .block_size_limit(MAX_BLOCK_SIZE)
            .window_size_limit(MAX_WINDOW_SIZE)
            .timeout(TIMEOUT)
            .max_send_retries(MAX_RETRIES)
            .build()
            .await?
            .serve()
            .await
    }
}
