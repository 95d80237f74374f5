//! A member that somebody with the key feeds anything, at any time: it stays bounded and never spins.
#![no_main]

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use cid_discovery::history::replica::Replica;
use cid_discovery::member::{Config, Records};
use cid_discovery::wire::Role;
use cid_discovery::{Boot, Membership, NodeId};
use libfuzzer_sys::fuzz_target;

fn boot(id: u8) -> Boot {
    Boot {
        id: NodeId([id.max(1); 16]),
        incarnation: 1,
    }
}

fn address(id: u8) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, id), 3101)
}

fuzz_target!(|calls: Vec<(u8, u16, Vec<u8>)>| {
    let config = Config {
        me: boot(1),
        role: Role::Node,
        address: address(1),
        head: Some((NodeId([200; 16]), address(200))),
        seeds: Vec::new(),
        bail_out: Duration::from_secs(600),
        capacity: 32,
    };
    let mut now = Duration::ZERO;
    let mut member = Membership::new(config, Records::Node(Replica::default()), 1, now);
    for (from, wait, body) in calls {
        now += Duration::from_millis(u64::from(wait));
        let _ = member.handle_datagram(now, boot(from), address(from), &body);
        member.handle_deadline(now);
        // Whatever came, there is an end to what is said at one moment.
        for round in 0.. {
            assert!(round < 10_000);
            if member.poll_output().is_none() {
                break;
            }
        }
    }
    assert!(member.roster().members().count() <= 32);
});
