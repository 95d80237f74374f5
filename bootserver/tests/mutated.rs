//! 100,000 mutated valid inputs: DHCP messages, TFTP requests, HTTP requests. Nothing panics, no table grows beyond its
//! bound, every input has one outcome that is counted, and at least half get as far as the policy.
//!
//! Everything is the real thing: TFTP and HTTP inputs travel over the loopback to the shells' own servers.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test fails by panicking, and shares its helpers"
)]

mod common;
#[path = "common/desk.rs"]
mod desk;
#[path = "common/mutation.rs"]
mod mutation;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cid_bootserver::dhcp::leases::MAX_OFFERS;
use cid_bootserver::dhcp::packet::{MessageType, Packet, option};
use cid_bootserver::dhcp::proxy::{self, Door, Proxy};
use cid_bootserver::dhcp::server::{Output, Server};
use cid_bootserver::{http, tftp};
use common::{HEAD, Message, NOW, adopted, decide, drain, mac, settings, unhex};
use desk::Room;
use mutation::{Alphabet, Random};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// Stated here and nowhere else; change it to look elsewhere.
const SEED: u64 = 20_260_729;
const DHCP_INPUTS: usize = 90_000;
const PROXY_INPUTS: usize = 30_000;
const TFTP_INPUTS: usize = 5_000;
const HTTP_INPUTS: usize = 5_000;
/// Memory that the second half of the DHCP inputs may add: what the allocator and the neighbouring tests move.
const GROWTH_KIB: u64 = 4 * 1024;

/// What became of each input of one protocol.
#[derive(Debug, Default)]
struct Tally {
    inputs: u64,
    to_policy: u64,
    outcomes: BTreeMap<String, u64>,
}

impl Tally {
    fn count(&mut self, outcome: impl ToString) {
        self.inputs += 1;
        *self.outcomes.entry(outcome.to_string()).or_default() += 1;
    }

    fn check(&self, protocol: &str) {
        println!(
            "{protocol}: {} inputs, {} to the policy; {:?}",
            self.inputs, self.to_policy, self.outcomes
        );
        assert_eq!(
            self.outcomes.values().sum::<u64>(),
            self.inputs,
            "{protocol}: every input has one outcome"
        );
        assert!(
            self.to_policy * 2 >= self.inputs,
            "{protocol}: {} of {}",
            self.to_policy,
            self.inputs
        );
    }
}

/// Resident memory of this process (`VmRSS`, proc(5)), in KiB.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn dhcp_seeds() -> Vec<Vec<u8>> {
    let address = Ipv4Addr::new(10, 77, 0, 120);
    let message = |kind| Message::new(kind, mac(3));
    vec![
        unhex(common::OVMF_DISCOVER),
        unhex(common::OVMF_REQUEST),
        unhex(common::IPXE_DISCOVER),
        message(MessageType::Discover).ipxe().bytes(),
        message(MessageType::Request)
            .pxe(7)
            .requested(address)
            .server(HEAD)
            .bytes(),
        message(MessageType::Discover)
            .requested(address)
            .option(option::HOST_NAME, b"PC-17")
            .bytes(),
        message(MessageType::Request).ciaddr(address).bytes(),
        message(MessageType::Discover)
            .pxe(7)
            .giaddr(Ipv4Addr::new(10, 77, 0, 254))
            .option(option::RELAY_AGENT, b"\x01\x04abcd")
            .bytes(),
        message(MessageType::Release).ciaddr(address).bytes(),
        message(MessageType::Decline)
            .requested(address)
            .server(HEAD)
            .bytes(),
        message(MessageType::Inform).ciaddr(address).bytes(),
    ]
}

#[test]
fn dhcp() {
    let mut random = Random::new(SEED);
    let seeds = dhcp_seeds();
    let mut server = Server::new(settings(), &[]);
    let mut tally = Tally::default();
    let asked = AtomicU64::new(0);
    let policy = decide(adopted());
    let mut half_way = 0;
    for number in 0..DHCP_INPUTS {
        if number == DHCP_INPUTS / 2 {
            half_way = resident_kib();
        }
        // The messages that no policy is asked about come last and less often.
        let kinds = if random.below(8) == 0 { seeds.len() } else { 8 };
        let mut bytes = seeds[random.below(kinds)].clone();
        // Most inputs keep the fixed part, or that and the message type, whole, so that the options are what is tried.
        let start = [0, 12, 240, 243, 243, 243, 243, 243][random.below(8)];
        let length = bytes.len();
        random.mutate(&mut bytes, start..length, Alphabet::Bytes);
        let before = asked.load(Ordering::Relaxed);
        // Time passes, so that leases and offers come and go.
        let result = server.handle_packet(NOW + number as u64, &bytes, &|facts| {
            asked.fetch_add(1, Ordering::Relaxed);
            policy(facts)
        });
        tally.to_policy += u64::from(asked.load(Ordering::Relaxed) > before);
        match result {
            Ok(()) => tally.count("taken"),
            Err(reason) => tally.count(reason),
        }
        let outputs = drain(&mut server);
        assert!(outputs.len() <= 8, "{} outputs for one packet", outputs.len());
        if outputs
            .iter()
            .any(|output| matches!(output, Output::Transmit { .. }))
        {
            common::answer(&outputs).unwrap();
        }
        let (leases, offers, quarantine) = server.leases().sizes();
        let range = 151;
        assert!(leases <= range && offers <= range.min(MAX_OFFERS) && quarantine <= range);
    }
    assert_eq!(tally.inputs, DHCP_INPUTS as u64);
    let growth = resident_kib().saturating_sub(half_way);
    println!("DHCP: {half_way} KiB resident half-way, {growth} KiB more at the end");
    // 45,000 inputs that each left a lease's worth behind would be 10 MiB; the other tests of this process run beside.
    assert!(growth < GROWTH_KIB, "{growth} KiB");
    tally.check("DHCP");
}

/// Neither an address nor a NAK leaves a proxy, whatever comes in on either of its ports.
#[test]
fn proxy() {
    let mut random = Random::new(SEED);
    let mut seeds = dhcp_seeds();
    let address = Ipv4Addr::new(10, 77, 0, 120);
    let requests = [0, 7].map(|arch| {
        Message::new(MessageType::Request, mac(3))
            .pxe(arch)
            .ciaddr(address)
    });
    seeds.splice(0..0, requests.iter().map(Message::bytes));
    let mut proxy = Proxy::new(HEAD);
    let mut tally = Tally::default();
    let asked = AtomicU64::new(0);
    let policy = decide(adopted());
    for _ in 0..PROXY_INPUTS {
        let (door, kinds) = [
            (Door::Dhcp, 2..6),
            (Door::BootServer, 0..2),
            (Door::Dhcp, 0..seeds.len()),
        ][[0, 0, 0, 1, 1, 1, 1, 2][random.below(8)]]
        .clone();
        let mut bytes = seeds[kinds.start + random.below(kinds.len())].clone();
        let start = [0, 12, 240, 243, 243, 243, 243, 243][random.below(8)];
        let length = bytes.len();
        random.mutate(&mut bytes, start..length, Alphabet::Bytes);
        let sender = SocketAddrV4::new(address, 4011);
        let before = asked.load(Ordering::Relaxed);
        let result = proxy.handle_packet(door, sender, &bytes, &|facts| {
            asked.fetch_add(1, Ordering::Relaxed);
            policy(facts)
        });
        tally.to_policy += u64::from(asked.load(Ordering::Relaxed) > before);
        match result {
            Ok(()) => tally.count("taken"),
            Err(reason) => tally.count(reason),
        }
        let outputs: Vec<proxy::Output> = std::iter::from_fn(|| proxy.poll_output()).collect();
        assert!(outputs.len() <= 8, "{} outputs for one packet", outputs.len());
        for output in outputs {
            if let proxy::Output::Transmit { from, bytes, .. } = output {
                let packet = Packet::decode(&bytes).expect("our own answers decode");
                assert_eq!(from, door);
                assert!(packet.yiaddr.is_unspecified() && packet.option(option::LEASE_TIME).is_none());
                assert!(matches!(
                    packet.message_type,
                    MessageType::Offer | MessageType::Ack
                ));
            }
        }
    }
    tally.check("proxy DHCP");
}

/// A path, and the part of it that may be anything without meaning another file.
const PATHS: [(&str, std::ops::Range<usize>); 8] = [
    ("/efi/debian/boot/boot.ipxe", 1..15),
    ("/some/folder/shimx64.efi", 1..12),
    ("/x86_64-efi/signed/grubx64.efi", 1..18),
    ("/grub/x86_64-efi/grub.cfg", 1..16),
    ("/grub/grub.cfg-01-52-54-00-00-00-01", 15..35),
    ("/grub.cfg-0A4D0064", 10..18),
    ("/EFI/debian/mmx64.efi", 1..11),
    ("/images/minimal/vmlinuz", 0..0),
];

/// A client that takes what it is sent, so that no transfer of the server lives on.
async fn fetch(port: &UdpSocket, first: &[u8], from: SocketAddr) {
    let mut block_size = 512;
    let mut packet = first.to_vec();
    loop {
        match packet.as_slice() {
            [0, 6, options @ ..] => {
                let text = String::from_utf8_lossy(options).to_lowercase();
                let mut words = text.split('\0');
                while let (Some(name), Some(value)) = (words.next(), words.next()) {
                    if name == "blksize" {
                        block_size = value.parse().unwrap();
                    }
                }
                port.send_to(&[0, 4, 0, 0], from).await.unwrap();
            }
            [0, 3, high, low, data @ ..] => {
                port.send_to(&[0, 4, *high, *low], from).await.unwrap();
                if data.len() < block_size {
                    return;
                }
            }
            _ => return,
        }
        let mut buffer = [0; 2_048];
        // A block of a window that came in another order was not acknowledged last: the server's time-out mends it.
        let Ok(received) = tokio::time::timeout(Duration::from_secs(10), port.recv_from(&mut buffer)).await
        else {
            return;
        };
        packet = buffer[..received.unwrap().0].to_vec();
    }
}

/// The name is spared in most inputs: then the options are what is tried.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tftp() {
    let room = Room::new();
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let server = socket.local_addr().unwrap();
    tokio::spawn(tftp::Server::from_socket(socket).serve(room.files.clone()));
    let mut random = Random::new(SEED + 1);
    let mut tally = Tally::default();
    let marker = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for _ in 0..TFTP_INPUTS {
        let (path, free) = PATHS[random.below(PATHS.len())].clone();
        let options = b"\0octet\0blksize\x001468\0windowsize\x004\0tsize\x000\0";
        let mut bytes = [&[0, 1][..], path.as_bytes(), options].concat();
        let whole = 0..bytes.len();
        let range = match random.below(8) {
            0 => whole,
            1 => 2 + path.len()..whole.end,
            _ => 2 + free.start..2 + free.end,
        };
        random.mutate(&mut bytes, range, Alphabet::MostlyText);
        let asked = room.asked();
        let port = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        port.send_to(&bytes, server).await.unwrap();
        // A request whose answer is known, behind it: when that is here, the one before has been looked at.
        marker
            .send_to(b"\0\x01no-such-file\0octet\0", server)
            .await
            .unwrap();
        let (mut buffer, mut mark) = ([0; 2_048], [0; 512]);
        let patience = Duration::from_secs(10);
        tokio::time::timeout(patience, marker.recv_from(&mut mark))
            .await
            .unwrap()
            .unwrap();
        let late = Duration::from_millis(3);
        match tokio::time::timeout(late, port.recv_from(&mut buffer)).await {
            Ok(received) => {
                let (length, transfer) = received.unwrap();
                tally.count(match buffer[1] {
                    5 => "refused",
                    3 | 6 => "served",
                    _ => panic!("neither DATA, ERROR nor OACK: {:?}", &buffer[..length]),
                });
                fetch(&port, &buffer[..length], transfer).await;
            }
            Err(_) => tally.count("silence: no read request"),
        }
        tally.to_policy += u64::from(room.asked() > asked);
    }
    tally.check("TFTP");
    // The head's own books say the same: every input was handed over, or dropped or refused for a reason.
    let dropped: u64 = room.drops().values().sum();
    println!("TFTP: {} served, drops {:?}", room.served(), room.drops());
    assert!(
        room.served() + dropped >= 2 * TFTP_INPUTS as u64,
        "an input that nobody counted"
    );
    assert!(
        !room.drops().contains_key("tftp-too-many-transfers"),
        "transfers were left behind: {:?}",
        room.drops()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http() {
    let room = Room::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap();
    tokio::spawn(http::serve(listener, room.files.clone()));
    let mut random = Random::new(SEED + 2);
    let mut tally = Tally::default();
    for _ in 0..HTTP_INPUTS {
        let (path, free) = PATHS[random.below(PATHS.len())].clone();
        let method = ["GET", "HEAD"][random.below(2)];
        let agent = "UefiHttpBoot/1.0 (of some firmware or other)";
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: 10.77.0.1\r\nConnection: close\r\nRange: bytes=");
        let mut bytes = format!("{head}0-99\r\nUser-Agent: {agent}\r\n\r\n").into_bytes();
        let whole = 0..bytes.len();
        let range = match random.below(8) {
            0 => whole,
            1 => method.len() + 1 + free.start..method.len() + 1 + free.end,
            2 | 3 => head.len()..head.len() + 4,
            _ => whole.end - agent.len() - 4..whole.end - 4,
        };
        random.mutate(&mut bytes, range, Alphabet::MostlyText);
        let asked = room.asked();
        let mut stream = TcpStream::connect(server).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        if !bytes.windows(4).any(|window| window == b"\r\n\r\n") {
            // Nothing more comes: a head that was cut short is not waited for.
            let _ = stream.shutdown().await;
        }
        let mut answer = Vec::new();
        // `Connection: close` may be what was mutated: then the server waits for the next request, and we do not.
        let _ = tokio::time::timeout(Duration::from_millis(100), stream.read_to_end(&mut answer)).await;
        tally.to_policy += u64::from(room.asked() > asked);
        let status = answer
            .get(..12)
            .map_or("closed".into(), |line| String::from_utf8_lossy(line).into_owned());
        tally.count(status);
    }
    tally.check("HTTP");
    println!("HTTP: {} served, drops {:?}", room.served(), room.drops());
    let counted: u64 = room.drops().values().sum();
    assert!(
        room.served() + counted >= tally.inputs,
        "an input that nobody counted"
    );
}
