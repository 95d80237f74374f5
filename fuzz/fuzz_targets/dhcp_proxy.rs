//! One datagram to either port of the proxy: never an address, never a NAK, and what is overheard is an address.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::net::{Ipv4Addr, SocketAddrV4};

use cid_bootserver::dhcp::packet::{MessageType, Packet, option};
use cid_bootserver::dhcp::proxy::{Door, Output, Proxy};
use cid_bootserver::files::machine_in_path;
use cid_bootserver::policy::{Site, Standing, decide};

fuzz_target!(|bytes: &[u8]| {
    let Some((first, packet)) = bytes.split_first() else { return };
    let door = if first & 1 == 0 { Door::Dhcp } else { Door::BootServer };
    let standing = Standing {
        quirk: (first & 2 != 0).then(|| "pxe10".to_owned()),
        hours: cid_bootserver::policy::Hours::Open,
        ..Standing::default()
    };
    let mut proxy = Proxy::new(Ipv4Addr::new(10, 77, 0, 1));
    let sender = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 50), 4011);
    let _ = proxy.handle_packet(door, sender, packet, &|facts| decide(facts, &standing, &Site::default()));
    while let Some(output) = proxy.poll_output() {
        match output {
            Output::Transmit { bytes, .. } => {
                let answer = Packet::decode(&bytes).expect("our own answers decode");
                assert!(answer.yiaddr.is_unspecified() && answer.option(option::LEASE_TIME).is_none());
                assert!(matches!(answer.message_type, MessageType::Offer | MessageType::Ack));
            }
            Output::Heard(address, _) => assert!(!address.is_unspecified() && !address.is_broadcast()),
            Output::Observe(..) | Output::ServerNamed(_) => {}
        }
    }
    let _ = machine_in_path(&String::from_utf8_lossy(packet));
});
