//! Boots of real firmware replayed as timed traces against the TFTP core and the HTTP server, in virtual time: what EDK2, the iPXE
//! ROM, shim and GRUB asked for, and what they demand of each answer. The traces are captures (`captures/files/`, each says of
//! which firmware and version); those in this file are made up, and say so.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test fails by panicking, and shares its helpers"
)]

mod common;
#[path = "common/desk.rs"]
mod desk;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use bytes::Bytes;
use cid_bootserver::files::{self, Refusal};
use cid_bootserver::http::{self, ResetOnClose};
use cid_bootserver::policy::Transport;
use cid_bootserver::tftp::server::{Output, Server};
use desk::Room;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// A transfer as its client sees it.
#[derive(Default)]
struct Transfer {
    asked: Vec<String>,
    content: Bytes,
    block_size: usize,
    /// Blocks received, without roll-over.
    blocks: u64,
    complete: bool,
}

struct Replay {
    room: Room,
    /// Lengths of the files that this trace's head has, by the names they are asked for.
    lengths: BTreeMap<String, usize>,
    tftp: Server,
    transfers: BTreeMap<u16, Transfer>,
    http: BTreeMap<u16, DuplexStream>,
    /// Lengths that HEAD told.
    announced: BTreeMap<String, String>,
}

/// Replays a trace: every answer must be the trace's, at the time of its question, and readable for who asked.
async fn check(trace: &str) {
    let mut replay = Replay {
        room: Room::new(),
        lengths: BTreeMap::new(),
        tftp: Server::new(),
        transfers: BTreeMap::new(),
        http: BTreeMap::new(),
        announced: BTreeMap::new(),
    };
    let began = tokio::time::Instant::now();
    let (mut expected, mut told) = (Vec::new(), Vec::new());
    for line in trace
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        if let Some(file) = line.strip_prefix("file ") {
            let (name, length) = file.split_once(' ').unwrap();
            replay.lengths.insert(name.to_owned(), length.parse().unwrap());
            continue;
        }
        let (at, message) = line.split_once(' ').unwrap();
        expected.push(message.to_owned());
        let Some(said) = message.strip_prefix("> ") else {
            continue;
        };
        told.push(message.to_owned());
        let now = Duration::from_secs_f64(at.parse().unwrap());
        tokio::time::sleep_until(began + now).await;
        let (port, words) = said.split_once(' ').unwrap();
        let port = port.parse().unwrap();
        match words.split(' ').next().unwrap() {
            "RRQ" | "ACK" | "ERROR" | "rest" => replay.tftp(now, port, words, &mut told),
            _ => replay.http(port, words, &mut told).await,
        }
    }
    assert_eq!(told, expected);
    assert_eq!(replay.tftp.sizes(), (0, 0), "a transfer was left over");
}

impl Replay {
    fn tftp(&mut self, now: Duration, port: u16, words: &str, told: &mut Vec<String>) {
        // Nothing may be due: every client answered in time.
        self.tftp.handle_deadline(now);
        self.drain(now, told);
        if words == "rest" {
            let quiet = &mut Vec::new();
            while !self.transfers[&port].complete {
                let block = self.transfers[&port].blocks;
                self.acknowledge(now, port, block);
                self.drain(now, quiet);
            }
            let block = self.transfers[&port].blocks;
            self.acknowledge(now, port, block);
            assert!(quiet.iter().all(|line| line.contains(" DATA ")), "{quiet:?}");
            return;
        }
        if words.starts_with("RRQ ") {
            let asked = words.split(' ').skip(3).map(str::to_lowercase).collect();
            let transfer = Transfer {
                asked,
                block_size: 512,
                ..Transfer::default()
            };
            self.transfers.insert(port, transfer);
        }
        self.tftp
            .handle_datagram(now, client(port), &datagram(words))
            .unwrap();
        self.drain(now, told);
    }

    fn acknowledge(&mut self, now: Duration, port: u16, block: u64) {
        let [.., high, low] = block.to_be_bytes();
        let taken = self.tftp.handle_datagram(now, client(port), &[0, 4, high, low]);
        taken.unwrap();
    }

    fn drain(&mut self, now: Duration, told: &mut Vec<String>) {
        while let Some(output) = self.tftp.poll_output() {
            match output {
                Output::Open { client, path } => {
                    let answer = self.content(&path);
                    if let (Ok(content), Some(transfer)) = (&answer, self.transfers.get_mut(&client.port())) {
                        transfer.content = content.clone();
                    }
                    self.tftp.handle_opened(now, client, answer);
                }
                Output::Transmit {
                    client,
                    head,
                    content,
                } => {
                    let transfer = self.transfers.get_mut(&client.port()).unwrap();
                    hear(transfer, client.port(), &head, &content, told);
                }
                Output::Journal(_) => {}
                Output::Lost(client) => panic!("{client} was lost"),
            }
        }
    }

    /// The name must mean something to us exactly where the trace says that there is a file.
    fn content(&self, path: &str) -> Result<Bytes, Refusal> {
        files::parse(path)?;
        let length = self.lengths.get(path).expect("the trace says how long it is");
        Ok((0..*length)
            .map(|at| (at % 251) as u8)
            .collect::<Vec<u8>>()
            .into())
    }

    async fn http(&mut self, port: u16, words: &str, told: &mut Vec<String>) {
        match words {
            "open" => {
                let (near, far) = tokio::io::duplex(65_536);
                let files = self.room.files.at(common::HEAD, Transport::Http);
                tokio::spawn(async move {
                    let peer = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port).into();
                    http::serve_connection(far, &ResetOnClose::default(), peer, &files).await;
                });
                self.http.insert(port, near);
            }
            "close" | "reset" => drop(self.http.remove(&port)),
            _ => {
                let stream = self.http.get_mut(&port).unwrap();
                let request = words.replace(" | ", "\r\n") + "\r\n\r\n";
                stream.write_all(request.as_bytes()).await.unwrap();
                let (answer, closed) = read(stream).await;
                let mut line = words.split(' ');
                let (method, path) = (line.next().unwrap(), line.next().unwrap());
                let summary = self.demands(method, path, &answer);
                told.push(format!(
                    "< {port} {summary}{}",
                    if closed { " closed" } else { "" }
                ));
            }
        }
    }

    /// What firmware and loaders need an answer to be (pxe.md rows 27 to 30); the status and the media type.
    fn demands(&mut self, method: &str, path: &str, answer: &[u8]) -> String {
        let end = answer
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
            .unwrap();
        let (head, body) = (std::str::from_utf8(&answer[..end]).unwrap(), &answer[end + 4..]);
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().strip_prefix("HTTP/1.1 ").unwrap();
        let status = status.split(' ').next().unwrap();
        assert!(!status.starts_with('3'), "a redirect: {head}");
        let fields: BTreeMap<&str, &str> = lines.map(|line| line.split_once(": ").unwrap()).collect();
        for name in fields.keys() {
            let mut parts = name.split('-');
            assert!(
                parts.all(|part| part.starts_with(|first: char| first.is_ascii_uppercase())),
                "{name} is not in title case"
            );
        }
        assert!(!fields.contains_key("Transfer-Encoding"), "chunked: {head}");
        let length = fields
            .get("Content-Length")
            .copied()
            .unwrap_or_default()
            .to_owned();
        if method == "HEAD" {
            assert!(body.is_empty(), "a body after HEAD {path}");
            self.announced.insert(path.to_owned(), length);
        } else {
            assert_eq!(length, body.len().to_string(), "{path}");
            let announced = self.announced.get(path);
            assert!(announced.is_none_or(|announced| *announced == length), "{path}");
        }
        match fields.get("Content-Type") {
            Some(media_type) => format!("{status} {media_type}"),
            None => status.to_owned(),
        }
    }
}

fn client(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 150), port)
}

fn datagram(words: &str) -> Vec<u8> {
    let (kind, rest) = words.split_once(' ').unwrap();
    match kind {
        "RRQ" => [b"\0\x01", rest.replace([' ', '='], "\0").as_bytes(), b"\0"].concat(),
        "ACK" => [&[0, 4][..], &rest.parse::<u16>().unwrap().to_be_bytes()].concat(),
        _ => {
            let (code, text) = rest.split_once(' ').unwrap();
            [&[0, 5, 0, code.parse().unwrap()][..], text.as_bytes(), b"\0"].concat()
        }
    }
}

/// Tells a packet in the trace's words; DATA in one line for a window, after a look at its number and its bytes.
fn hear(transfer: &mut Transfer, port: u16, head: &[u8], content: &[u8], told: &mut Vec<String>) {
    match *head {
        [0, 6, ref options @ ..] => {
            let words: Vec<&str> = std::str::from_utf8(options)
                .unwrap()
                .split_terminator('\0')
                .collect();
            let mut granted: Vec<String> = words.chunks(2).map(|pair| pair.join("=")).collect();
            granted.sort();
            for option in &granted {
                let (name, value) = option.split_once('=').unwrap();
                let asked = transfer.asked.iter().find_map(|asked| asked.strip_prefix(name));
                let asked: usize = asked.expect("no option that nobody asked for")[1..]
                    .parse()
                    .unwrap();
                let value: usize = value.parse().unwrap();
                match name {
                    "tsize" => assert_eq!(value, transfer.content.len()),
                    _ => assert!(value <= asked, "{name} {value} for {asked}"),
                }
                if name == "blksize" {
                    transfer.block_size = value;
                }
            }
            told.push(format!("< {port} OACK {}", granted.join(" ")));
        }
        [0, 3, high, low] => {
            transfer.blocks += 1;
            let number = u16::from_be_bytes([high, low]);
            assert_eq!(u64::from(number), transfer.blocks % 65_536, "0 follows 65535");
            let start = usize::try_from(transfer.blocks - 1).unwrap() * transfer.block_size;
            let end = (start + transfer.block_size).min(transfer.content.len());
            assert!(content == &transfer.content[start..end], "block {number}");
            transfer.complete = content.len() < transfer.block_size;
            let before = format!("< {port} DATA ");
            match told.last_mut().filter(|line| line.starts_with(&before)) {
                Some(line) => {
                    let first = line[before.len()..].split("..").next().unwrap().to_owned();
                    *line = format!("{before}{first}..{number}");
                }
                None => told.push(format!("{before}{number}")),
            }
        }
        [0, 5, 0, code, ..] => told.push(format!("< {port} ERROR {code}")),
        _ => panic!("{head:?}"),
    }
}

/// All that comes before nothing more comes, and whether that was the end.
async fn read(stream: &mut DuplexStream) -> (Vec<u8>, bool) {
    let mut answer = Vec::new();
    loop {
        match tokio::time::timeout(Duration::from_millis(1), stream.read_buf(&mut answer)).await {
            Ok(Ok(0)) => return (answer, true),
            Ok(more) => drop(more.unwrap()),
            Err(_) => return (answer, false),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn edk2_over_pxe_then_shim_and_grub() {
    check(include_str!("captures/files/uefi-pxe.trace")).await;
}

#[tokio::test(start_paused = true)]
async fn the_same_under_secure_boot() {
    check(include_str!("captures/files/uefi-secure-pxe.trace")).await;
}

#[tokio::test(start_paused = true)]
async fn edk2_over_http_then_shim_and_grub() {
    check(include_str!("captures/files/uefi-http.trace")).await;
}

#[tokio::test(start_paused = true)]
async fn ipxe_of_the_card() {
    check(include_str!("captures/files/bios-ipxe.trace")).await;
}

#[tokio::test(start_paused = true)]
async fn a_plain_rom_then_our_ipxe() {
    check(include_str!("captures/files/bios-plain.trace")).await;
}

/// Made up from RFC 2347 (letters of either case), pxe.md row 29 (two slashes), FAT's names, and a file with more blocks than
/// numbers; shim asks for blocks of 512 like this.
#[tokio::test(start_paused = true)]
async fn made_up_what_no_captured_boot_did() {
    check(
        "
        file \\\\EFI\\\\BOOT\\\\GRUBX64.EFI 1000
        file //images//minimal/vmlinuz 36000000
        0.0 > 2000 RRQ \\\\EFI\\\\BOOT\\\\GRUBX64.EFI OCTET BLKSIZE=1024 Unknown=1
        0.1 < 2000 OACK blksize=1024
        0.2 > 2000 ACK 0
        0.2 < 2000 DATA 1
        0.3 > 2000 ACK 1
        0.4 > 2001 RRQ //images//minimal/vmlinuz octet blksize=512 windowsize=64
        0.4 < 2001 OACK blksize=512 windowsize=16
        0.5 > 2001 ACK 0
        0.5 < 2001 DATA 1..16
        0.6 > 2001 rest
        0.7 > 2002 open
        0.7 > 2002 HEAD //EFI//BOOT/ShimX64.EFI HTTP/1.1 | Host: 10.77.0.1
        0.7 < 2002 200 application/efi",
    )
    .await;
}

/// The control: the check sees an answer that is not the trace's.
#[tokio::test(start_paused = true)]
#[should_panic(expected = "ERROR 1")]
async fn an_answer_that_differs_is_seen() {
    let trace = include_str!("captures/files/uefi-pxe.trace");
    check(&trace.replace("< 1333 ERROR 1", "< 1333 ERROR 2")).await;
}
