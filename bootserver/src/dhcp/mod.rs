//! DHCP: packets, who asks, who holds which address, what is answered; the shell that owns the socket.

pub mod classify;
pub mod leases;
pub mod packet;
pub mod reply;
pub mod rival;
pub mod server;
pub mod socket;
