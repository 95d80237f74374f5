//! A TFTP server's life: datagrams of a few clients, files that are found or not, time that passes. Whatever comes, the tables stay
//! bounded, and every transfer ends once nobody says anything any more.
#![no_main]

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use bytes::Bytes;
use cid_bootserver::files::Refusal;
use cid_bootserver::tftp::server::{MAX_TRANSFERS, Output, Server};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|steps: Vec<(u8, u16, Vec<u8>)>| {
    let file = Bytes::from(vec![7; 40_000]);
    let mut server = Server::new();
    let mut now = Duration::ZERO;
    for (client, pause, bytes) in steps {
        now += Duration::from_millis(pause.into());
        let client = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, client % 4), 2_000);
        let _ = server.handle_datagram(now, client, &bytes);
        server.handle_deadline(now);
        while let Some(output) = server.poll_output() {
            if let Output::Open { client, path } = output {
                let found = !path.is_empty();
                server.handle_opened(now, client, if found { Ok(file.clone()) } else { Err(Refusal::UnknownName) });
            }
        }
        assert!(server.sizes().0 <= MAX_TRANSFERS);
    }
    for _ in 0..1_000 {
        let Some(deadline) = server.next_deadline() else { return };
        server.handle_deadline(now.max(deadline));
        while server.poll_output().is_some() {}
    }
    panic!("a transfer that never ends");
});
