//! Hears beacons on UDP 3101: the socket around `cid-discovery`'s listener. Must not answer anybody.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use cid_bootserver::keep::SocketKeeper;
use cid_discovery::{Listener, MAX_BEACON, NodeState};
use cid_protocol::{BEACON_GROUP, NODE_PORT};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use crate::core::Core;
use crate::interface::Interface;

/// Nodes in the table.
const CAPACITY: usize = 8_192;

/// Joins the group on the interface given.
///
/// # Errors
/// The port is taken, or the interface cannot do multicast.
pub fn bind(interface: &Interface, keeper: &dyn SocketKeeper) -> std::io::Result<UdpSocket> {
    let socket = keeper.socket(&format!("beacons.{}", interface.name), &|| join(interface))?;
    UdpSocket::from_std(socket.into())
}

fn join(interface: &Interface) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    // Only what comes from the lab: the same group may live on other interfaces.
    socket.bind_device(Some(interface.name.as_bytes()))?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, NODE_PORT).into())?;
    socket.join_multicast_v4_n(&BEACON_GROUP, &InterfaceIndexOrAddress::Index(interface.index))?;
    Ok(socket)
}

/// Listens for ever.
pub async fn serve(core: Arc<Core>, socket: UdpSocket) {
    let mut listener = Listener::new(CAPACITY);
    // One byte more than allowed, so that too long is seen as too long.
    let mut buffer = [0; MAX_BEACON + 1];
    loop {
        let (length, source) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "no beacon");
                continue;
            }
        };
        let IpAddr::V4(source) = source.ip() else { continue };
        let now = core.now().monotonic;
        while listener.handle_deadline(now).is_some() {}
        match listener.handle_datagram(now, source, &buffer[..length]) {
            Ok((id, _)) => {
                let heard = listener.node(id).map(|heard| &heard.beacon);
                if let Some(beacon) = heard.filter(|beacon| beacon.state == NodeState::Up) {
                    core.act(|registry, now| registry.handle_beacon(now, source, &beacon.name))
                        .1
                        .unacknowledged();
                }
            }
            // Every beacon comes twice, by group and by unicast.
            Err(cid_discovery::Reject::Stale) => {}
            Err(reason) => core.drops.count(reason.name()),
        }
    }
}
