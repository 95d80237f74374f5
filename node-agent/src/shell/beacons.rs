//! Beacons: sent until the node is a member.

use std::net::{Ipv4Addr, SocketAddrV4};

use cid_discovery::Destination;
use cid_protocol::{BEACON_GROUP, NODE_PORT};
use tokio::net::UdpSocket;

use super::Shell;
use crate::sockets::udp_socket;

impl Shell {
    pub(super) fn open_beacon_socket(&self, index: u32, address: Ipv4Addr) -> Option<UdpSocket> {
        let name = self.wires.get(&index)?.name.clone();
        let open = || -> std::io::Result<UdpSocket> {
            let socket = udp_socket(&name, SocketAddrV4::new(address, 0))?;
            socket.set_multicast_if_v4(&address)?;
            // One subnet: 239.192/14 never crosses a router here.
            socket.set_multicast_ttl_v4(1)?;
            socket.set_multicast_loop_v4(self.ground.is_shared())?;
            UdpSocket::from_std(socket.into())
        };
        open()
            .inspect_err(|error| log!("cid-agent: {name}: beacon socket: {error}"))
            .ok()
    }

    pub(super) async fn send_beacon(&self, beacon: &cid_discovery::Transmit) {
        let group = SocketAddrV4::new(BEACON_GROUP, NODE_PORT);
        let to = match beacon.destination {
            Destination::Group => Some(group),
            Destination::Head => self.head.map(|head| SocketAddrV4::new(*head.ip(), NODE_PORT)),
        };
        if let (Some(socket), Some(to)) = (&self.beacon_socket, to) {
            // The next beacon makes up for one that is lost here.
            let _ = socket.send_to(&beacon.bytes, to).await;
        }
    }
}
