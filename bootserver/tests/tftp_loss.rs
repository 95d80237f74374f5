//! TFTP over a line that loses one packet in twenty each way, in virtual time: the file arrives whole, whatever the window, and
//! the transfer ends. What a client does about a gap is RFC 7440 section 4's: it acknowledges what it has.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use bytes::Bytes;
use cid_bootserver::tftp::server::{Output, Server};
use sha2::{Digest, Sha256};

const CLIENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 100), 1317);
const DELAY: Duration = Duration::from_millis(5);
/// How long a client waits before it says again what it said last.
const PATIENCE: Duration = Duration::from_secs(2);
const BLOCK: usize = 1468;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum To {
    Server,
    Client,
}

/// A packet stays on it for [`DELAY`], unless it is lost.
struct Line {
    packets: BTreeMap<(Duration, u64, To), Vec<u8>>,
    sent: u64,
    lost: u64,
    lost_of_100: u64,
    random: u64,
}

impl Line {
    fn send(&mut self, now: Duration, to: To, bytes: Vec<u8>) {
        self.sent += 1;
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        if (self.random >> 33) % 100 < self.lost_of_100 {
            self.lost += 1;
        } else {
            self.packets.insert((now + DELAY, self.sent, to), bytes);
        }
    }
}

struct Client {
    window: u16,
    received: Vec<u8>,
    blocks: u16,
    in_window: u16,
    gap_told: bool,
    complete: bool,
    last_said: Vec<u8>,
}

impl Client {
    fn acknowledge(&mut self) -> Option<Vec<u8>> {
        self.in_window = 0;
        let [high, low] = self.blocks.to_be_bytes();
        Some(vec![0, 4, high, low])
    }

    fn hear(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        let (number, data) = match packet {
            [0, 6, ..] => return self.acknowledge(),
            [0, 3, high, low, data @ ..] => (u16::from_be_bytes([*high, *low]), data),
            other => panic!("refused: {}", other.escape_ascii()),
        };
        if number != self.blocks.wrapping_add(1) {
            if number == self.blocks || !self.gap_told {
                self.gap_told = number != self.blocks;
                return self.acknowledge();
            }
            return None;
        }
        self.gap_told = false;
        self.received.extend_from_slice(data);
        self.blocks = number;
        self.in_window += 1;
        self.complete = data.len() < BLOCK;
        if self.complete || self.in_window == self.window {
            return self.acknowledge();
        }
        None
    }
}

/// Digest of what came, how long it took, and packets lost of how many.
fn fetch(content: &Bytes, window: u16, lost_of_100: u64) -> (Vec<u8>, Duration, (u64, u64)) {
    let mut server = Server::new();
    let mut line = Line {
        packets: BTreeMap::new(),
        sent: 0,
        lost: 0,
        lost_of_100,
        random: u64::from(window),
    };
    let request = format!("\0\x01shimx64.efi\0octet\0blksize\0{BLOCK}\0windowsize\0{window}\0").into_bytes();
    let mut client = Client {
        window,
        received: Vec::new(),
        blocks: 0,
        in_window: 0,
        gap_told: false,
        complete: false,
        last_said: request.clone(),
    };
    let (mut now, mut finished) = (Duration::ZERO, None);
    let mut again = PATIENCE;
    line.send(now, To::Server, request);
    loop {
        while let Some(output) = server.poll_output() {
            match output {
                Output::Open { client, .. } => server.handle_opened(now, client, Ok(content.clone())),
                Output::Transmit { head, content, .. } => {
                    line.send(now, To::Client, [&head[..], &content[..]].concat());
                }
                Output::Journal(_) => {}
                // Only the last acknowledgement may be missing.
                Output::Lost(_) => assert!(client.complete, "the server gave up"),
            }
        }
        if client.complete && server.sizes() == (0, 0) {
            let took = finished.unwrap_or(now);
            return (
                Sha256::digest(&client.received).to_vec(),
                took,
                (line.lost, line.sent),
            );
        }
        let patience = (!client.complete).then_some(again);
        let packet = line.packets.first_key_value().map(|((at, ..), _)| *at);
        let next = [packet, server.next_deadline(), patience];
        now = now.max(next.into_iter().flatten().min().unwrap());
        assert!(now < Duration::from_secs(600), "it takes too long");
        if packet.is_some_and(|at| at <= now) {
            let ((_, _, to), bytes) = line.packets.pop_first().unwrap();
            if to == To::Server {
                // A late or repeated acknowledgement leads to nothing, which is not this test's concern.
                let _ = server.handle_datagram(now, CLIENT, &bytes);
            } else if let Some(said) = client.hear(&bytes) {
                client.last_said.clone_from(&said);
                again = now + PATIENCE;
                line.send(now, To::Server, said);
            } else {
                again = now + PATIENCE;
            }
        } else if !client.complete && again <= now {
            again = now + PATIENCE;
            let said = client.last_said.clone();
            line.send(now, To::Server, said);
        }
        if client.complete {
            finished.get_or_insert(now);
        }
        server.handle_deadline(now);
    }
}

#[test]
fn five_in_a_hundred_lost_and_every_byte_arrives() {
    let content: Bytes = (0..1_000_000_u32)
        .map(|at| (at % 251) as u8)
        .collect::<Vec<u8>>()
        .into();
    let digest = Sha256::digest(&content).to_vec();
    for window in [1, 4, 16] {
        let (got, took, (lost, sent)) = fetch(&content, window, 5);
        println!("windowsize {window}: {took:.1?}, {lost} of {sent} packets lost");
        assert!(got == digest, "other bytes with windowsize {window}");
        assert!(lost * 100 > sent * 3, "the line lost hardly anything");
    }
}

#[test]
fn without_loss_a_window_of_four_is_three_times_as_fast() {
    let content = Bytes::from(vec![7; 1_000_000]);
    let [one, four, sixteen] = [1, 4, 16].map(|window| fetch(&content, window, 0).1);
    println!("{one:.1?}, {four:.1?}, {sixteen:.1?}");
    assert!(four * 3 < one && sixteen * 10 < one);
}
