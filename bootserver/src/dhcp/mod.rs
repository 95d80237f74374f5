//! DHCP: packets, who asks, who holds which address, what is answered; the shell that owns the socket.

pub mod boot;
pub mod classify;
pub mod leases;
pub mod packet;
pub mod proxy;
pub mod proxy_socket;
pub mod reply;
pub mod rival;
pub mod server;
pub mod socket;
