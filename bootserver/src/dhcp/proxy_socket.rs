//! The proxyDHCP shell of one interface: sockets on ports 67, 68 and 4011. Must not judge: the core says what leaves.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use crate::addresses::Addresses;
use crate::counters::Counters;
use crate::dhcp::proxy::{BOOT_SERVER_PORT, Door, Output, Proxy};
use crate::dhcp::rival::{self, Rival, Watch};
use crate::dhcp::socket::{BATCH, Sockets};
use crate::directory::Directory;
use crate::keep::SocketKeeper;

/// Binds port 4011 of one of our addresses: requests to it are unicast, and an answer must come from where it was asked.
///
/// # Errors
/// What the kernel says.
pub fn bind_boot_server(address: Ipv4Addr, keeper: &dyn SocketKeeper) -> std::io::Result<UdpSocket> {
    let socket = keeper.socket(&format!("pxe.{BOOT_SERVER_PORT}.{address}"), &|| {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::from((address, BOOT_SERVER_PORT)).into())?;
        Ok(socket)
    })?;
    UdpSocket::from_std(socket.into())
}

/// Everything one running proxy needs.
pub struct ProxyShell<D> {
    /// Ports 67 and 68.
    pub sockets: Sockets,
    /// Port 4011.
    pub boot_server: UdpSocket,
    /// State machine.
    pub proxy: Proxy,
    /// Watch for other servers: they are reported, and change nothing.
    pub watch: Watch,
    /// The head.
    pub directory: Arc<D>,
    /// Told of every address that is overheard.
    pub addresses: Arc<Addresses>,
    /// Told of every drop.
    pub counters: Arc<Counters>,
}

impl<D: Directory> ProxyShell<D> {
    /// Serves until a socket fails.
    ///
    /// # Errors
    /// What the socket said.
    pub async fn serve(mut self) -> std::io::Result<()> {
        let started = Instant::now();
        self.proxy.ignore(self.watch.probe_mac());
        let mut from_client = [0_u8; 2048];
        let mut from_firmware = [0_u8; 2048];
        let mut from_server = [0_u8; 2048];
        loop {
            let wait = self.watch.next_deadline().saturating_sub(started.elapsed());
            tokio::select! {
                received = self.sockets.server.recv_from(&mut from_client) => {
                    let (length, sender) = received?;
                    self.take_batch(Door::Dhcp, &mut from_client, length, sender);
                }
                received = self.boot_server.recv_from(&mut from_firmware) => {
                    let (length, sender) = received?;
                    self.take_batch(Door::BootServer, &mut from_firmware, length, sender);
                }
                received = self.sockets.client.recv_from(&mut from_server) => {
                    let (length, _) = received?;
                    let bytes = from_server.get(..length).unwrap_or_default();
                    if let Some((address, mac)) = self.watch.handle_packet(started.elapsed(), bytes) {
                        self.addresses.hear(address, mac);
                    }
                }
                () = tokio::time::sleep(wait.max(Duration::from_millis(1))) => {
                    self.watch.handle_deadline(started.elapsed());
                }
            }
            self.carry_out(started.elapsed()).await;
        }
    }

    /// The packet just received and those that wait behind it.
    fn take_batch(&mut self, door: Door, buffer: &mut [u8; 2048], mut length: usize, mut sender: SocketAddr) {
        let directory = Arc::clone(&self.directory);
        for _ in 0..BATCH {
            let bytes = buffer.get(..length).unwrap_or_default();
            if let SocketAddr::V4(sender) = sender
                && let Err(reason) = self
                    .proxy
                    .handle_packet(door, sender, bytes, &|facts| directory.decide(facts))
            {
                tracing::debug!(%reason, length, "DHCP packet not answered");
                self.counters.count(&reason);
            }
            match self.socket(door).try_recv_from(buffer) {
                Ok(next) => (length, sender) = next,
                Err(_) => break,
            }
        }
    }

    fn socket(&self, door: Door) -> &UdpSocket {
        match door {
            Door::Dhcp => &self.sockets.server,
            Door::BootServer => &self.boot_server,
        }
    }

    async fn carry_out(&mut self, now: Duration) {
        while let Some(output) = self.proxy.poll_output() {
            match output {
                Output::Observe(mac, observation) => self.directory.observe(mac, observation),
                Output::Heard(address, mac) => self.addresses.hear(address, mac),
                Output::ServerNamed(server) => {
                    let offered = None;
                    self.watch.handle_named(now, Rival { server, offered });
                }
                Output::Transmit { from, bytes, to } => self.send(from, &bytes, to).await,
            }
        }
        while let Some(output) = self.watch.poll_output() {
            match output {
                rival::Output::Probe(bytes) => self.sockets.probe(&bytes).await,
                rival::Output::Sighted(sighting) => self.directory.sighted(sighting),
                // The site's own server: without it nobody gets an address.
                rival::Output::Appeared(server) => {
                    tracing::info!(server = %server.server, "this wire's DHCP server is there");
                }
                rival::Output::Gone(server) => {
                    tracing::warn!(server = %server.server, "this wire's DHCP server is silent");
                }
            }
        }
    }

    async fn send(&self, from: Door, bytes: &[u8], to: SocketAddrV4) {
        if let Err(error) = self.socket(from).send_to(bytes, to).await {
            tracing::debug!(%to, %error, "DHCP answer not sent");
            self.counters.count(&"dhcp-not-sent");
        }
    }
}
