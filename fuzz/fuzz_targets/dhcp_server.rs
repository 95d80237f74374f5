//! A sequence of datagrams to the DHCP server: a length byte, a byte of time, then that many bytes each.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::net::Ipv4Addr;

use cid_bootserver::dhcp::packet::Packet;
use cid_bootserver::dhcp::server::{Output, Server, Settings};
use cid_bootserver::policy::{Site, Standing, decide};

fuzz_target!(|bytes: &[u8]| {
    let settings = Settings {
        address: Ipv4Addr::new(10, 77, 0, 1),
        prefix: 24,
        first: Ipv4Addr::new(10, 77, 0, 100),
        last: Ipv4Addr::new(10, 77, 0, 103),
        lease_secs: 600,
        router: None,
        dns: vec![],
        domain: None,
    };
    let mut server = Server::new(settings, &[]);
    let mut now = 1_800_000_000;
    let mut rest = bytes;
    while let [length, time, tail @ ..] = rest {
        now += u64::from(*time);
        // 240 bytes of fixed part are the least that a message has.
        let (message, behind) = tail.split_at((240 + usize::from(*length)).min(tail.len()));
        let _ = server.handle_packet(now, message, &|facts| decide(facts, &Standing::default(), &Site::default()));
        while let Some(output) = server.poll_output() {
            if let Output::Transmit { bytes, .. } = output {
                assert!((300..=1472).contains(&bytes.len()));
                Packet::decode(&bytes).expect("our own answers decode");
            }
        }
        assert!(server.leases().sizes().0 <= 4);
        rest = behind;
    }
});
