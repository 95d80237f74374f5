//! The two ends that `ci/bench-tftp` measures: the TFTP server over a head small enough for a benchmark, and a client that
//! negotiates windows (RFC 7440), which curl and tftp-hpa do not.
//!
//! `tftp_bench serve ADDRESS FILE` | `tftp_bench fetch SERVER PATH BLOCK_SIZE WINDOW COUNT [EXPECTED]` |
//! `tftp_bench relay LISTEN SERVER DELAY_MS LOST_OF_1000`, a slow link for one client where the kernel has no netem.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a benchmark fails by panicking, and shares the tests' helpers"
)]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/common/desk.rs"]
mod desk;

use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use cid_bootserver::tftp;
use desk::Room;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["serve", address, file] => serve(address, file),
        ["fetch", server, path, block_size, window, count] => {
            fetch_many(server, path, block_size, window, count, None);
        }
        ["fetch", server, path, block_size, window, count, expected] => {
            let expected = std::fs::read(expected).unwrap();
            fetch_many(server, path, block_size, window, count, Some(expected));
        }
        ["relay", listen, server, delay_ms, lost_of_1000] => {
            relay(
                listen,
                server,
                delay_ms.parse().unwrap(),
                lost_of_1000.parse().unwrap(),
            );
        }
        _ => {
            eprintln!(
                "usage: tftp_bench serve ADDRESS FILE | fetch SERVER PATH BLOCK_SIZE WINDOW COUNT [EXPECTED] | relay LISTEN SERVER DELAY_MS LOST_OF_1000"
            );
            std::process::exit(2);
        }
    }
}

/// The file is `/images/minimal/vmlinuz`.
fn serve(address: &str, file: &str) {
    let room = Room::with_kernel(&std::fs::read(file).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let server = tftp::Server::from_socket(UdpSocket::bind(address).unwrap())
        .journal(folder.path().join("tftp.journal"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime
        .unwrap()
        .block_on(server.serve(room.files.clone()))
        .unwrap();
}

/// Both ways later by `delay_ms`, but for some.
fn relay(listen: &str, server: &str, delay_ms: u64, lost_of_1000: u64) {
    let front = Arc::new(UdpSocket::bind(listen).unwrap());
    let back = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
    back.connect(server).unwrap();
    let client = Arc::new(Mutex::new(None));
    let (asked, answered) = (mpsc::channel(), mpsc::channel());
    let delay = Duration::from_millis(delay_ms);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            hear(&front, delay, lost_of_1000, 1, &asked.0, |from| {
                *client.lock().unwrap() = Some(from);
            })
        });
        scope.spawn(|| hear(&back, delay, lost_of_1000, 2, &answered.0, |_| {}));
        let (to_server, to_client) = (asked.1, answered.1);
        scope.spawn(|| say(to_server, |bytes| drop(back.send(bytes))));
        scope.spawn(|| {
            say(to_client, |bytes| {
                let to = *client.lock().unwrap();
                let _ = front.send_to(bytes, to.unwrap());
            })
        });
    });
}

type Late = (Instant, Vec<u8>);

fn hear(
    socket: &UdpSocket,
    delay: Duration,
    lost_of_1000: u64,
    seed: u64,
    to: &mpsc::Sender<Late>,
    note: impl Fn(SocketAddr),
) {
    let (mut buffer, mut random) = ([0; 2048], seed);
    loop {
        // A client that has gone is a refusal here: the next one is heard all the same.
        let Ok((length, from)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        note(from);
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        if (random >> 33) % 1000 >= lost_of_1000 {
            to.send((Instant::now() + delay, buffer[..length].to_vec()))
                .unwrap();
        }
    }
}

fn say(from: mpsc::Receiver<Late>, send: impl Fn(&[u8])) {
    for (at, bytes) in from {
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        send(&bytes);
    }
}

/// Prints the seconds that `count` clients at a time needed.
fn fetch_many(
    server: &str,
    path: &str,
    block_size: &str,
    window: &str,
    count: &str,
    expected: Option<Vec<u8>>,
) {
    let server: SocketAddr = server.parse().unwrap();
    let (block_size, window) = (block_size.parse().unwrap(), window.parse().unwrap());
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..count.parse::<usize>().unwrap() {
            scope.spawn(|| {
                let mut client = Client::ask(server, path, block_size, window, expected.as_deref());
                while !client.step() {}
            });
        }
    });
    println!("{:.3}", began.elapsed().as_secs_f64());
}

/// Asks again what was lost, after this long.
const PATIENCE: Duration = Duration::from_secs(2);

/// Compares instead of keeping, so that a thousand of them fit.
struct Client<'a> {
    socket: UdpSocket,
    server: SocketAddr,
    block_size: usize,
    window: u16,
    expected: Option<&'a [u8]>,
    received: usize,
    blocks: u16,
    in_window: u16,
    gap_told: bool,
    attempts: u32,
    request: Vec<u8>,
}

impl<'a> Client<'a> {
    fn ask(
        server: SocketAddr,
        path: &str,
        block_size: usize,
        window: u16,
        expected: Option<&'a [u8]>,
    ) -> Self {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let request =
            format!("\0\x01{path}\0octet\0blksize\0{block_size}\0tsize\x000\0windowsize\0{window}\0")
                .into_bytes();
        socket.send_to(&request, server).unwrap();
        Self {
            socket,
            server,
            block_size,
            window,
            expected,
            received: 0,
            blocks: 0,
            in_window: 0,
            gap_told: false,
            attempts: 0,
            request,
        }
    }

    fn acknowledge(&mut self) {
        self.in_window = 0;
        let [high, low] = self.blocks.to_be_bytes();
        self.socket.send_to(&[0, 4, high, low], self.server).unwrap();
    }

    /// One datagram; `true` after the last.
    fn step(&mut self) -> bool {
        let mut buffer = [0; 2048];
        let Ok((length, _)) = self.socket.recv_from(&mut buffer) else {
            self.attempts += 1;
            assert!(self.attempts < 30, "no answer from {}", self.server);
            if self.received == 0 && self.blocks == 0 {
                self.socket.send_to(&self.request, self.server).unwrap();
            } else {
                self.acknowledge();
            }
            return false;
        };
        self.attempts = 0;
        match &buffer[..length] {
            [0, 6, ..] => self.acknowledge(),
            [0, 3, high, low, data @ ..] => return self.block(u16::from_be_bytes([*high, *low]), data),
            other => panic!("refused: {}", other.escape_ascii()),
        }
        false
    }

    fn block(&mut self, number: u16, data: &[u8]) -> bool {
        if number != self.blocks.wrapping_add(1) {
            // The last block again: its acknowledgement was lost. After a gap: what is missing is said once.
            if number == self.blocks || !self.gap_told {
                self.gap_told = number != self.blocks;
                self.acknowledge();
            }
            return false;
        }
        if let Some(expected) = self.expected {
            assert_eq!(
                expected.get(self.received..self.received + data.len()),
                Some(data),
                "other bytes"
            );
        }
        self.gap_told = false;
        self.received += data.len();
        self.blocks = number;
        self.in_window += 1;
        let last = data.len() < self.block_size;
        if last || self.in_window >= self.window {
            self.acknowledge();
        }
        if last {
            assert!(
                self.expected
                    .is_none_or(|expected| expected.len() == self.received),
                "too short"
            );
        }
        last
    }
}
