//! One datagram from port 67: decoding, facts, and an answer to it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use cid_bootserver::dhcp::classify::classify;
use cid_bootserver::dhcp::packet::{MessageType, Packet};
use cid_bootserver::dhcp::reply::{Body, encode};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(packet) = Packet::decode(bytes) {
        let _ = format!("{:?}", classify(&packet));
        if let Ok(answer) = encode(&packet, MessageType::Ack, [10, 77, 0, 1].into(), &Body::default()) {
            let again = Packet::decode(&answer).expect("our own answers decode");
            assert_eq!((again.xid, again.mac), (packet.xid, packet.mac));
        }
    }
});
