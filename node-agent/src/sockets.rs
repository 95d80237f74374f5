//! UDP sockets tied to one link.

use std::net::{Ipv4Addr, SocketAddrV4};

use tokio::net::UdpSocket;

/// The DHCP client's socket of a link: port 68, may broadcast.
pub(crate) fn dhcp_socket(link: &str) -> std::io::Result<UdpSocket> {
    let socket = udp_socket(link, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68))?;
    socket.set_broadcast(true)?;
    UdpSocket::from_std(socket.into())
}

/// A non-blocking UDP socket that sends and hears on one link only.
pub(crate) fn udp_socket(link: &str, address: SocketAddrV4) -> std::io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind_device(Some(link.as_bytes()))?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}
