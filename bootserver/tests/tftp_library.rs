//! What `async-tftp` does with a client that breaks off, measured against the library itself over the loopback: the
//! facts behind docs/decisions/0002-tftp.md. When one of these fails after an update, read that page again.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use async_tftp::packet;
use async_tftp::server::{Handler, TftpServerBuilder};
use futures_lite::io::{Cursor, Sink};

const TIMEOUT: Duration = Duration::from_millis(100);
const RETRIES: u32 = 3;

/// One file of 3,000 bytes.
struct OneFile;

impl Handler for OneFile {
    type Reader = Cursor<Vec<u8>>;
    type Writer = Sink;

    async fn read_req_open(
        &mut self,
        _client: &SocketAddr,
        path: &Path,
    ) -> Result<(Self::Reader, Option<u64>), packet::Error> {
        if path == Path::new("shimx64.efi") {
            Ok((Cursor::new(vec![7; 3_000]), Some(3_000)))
        } else {
            Err(packet::Error::FileNotFound)
        }
    }

    async fn write_req_open(
        &mut self,
        _client: &SocketAddr,
        _path: &Path,
        _size: Option<u64>,
    ) -> Result<Self::Writer, packet::Error> {
        Err(packet::Error::PermissionDenied)
    }
}

/// A server of its own; its thread ends with the test process.
fn server() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        futures_lite::future::block_on(async {
            let server = TftpServerBuilder::with_handler(OneFile)
                .std_socket(socket)
                .unwrap();
            server
                .timeout(TIMEOUT)
                .max_send_retries(RETRIES)
                .build()
                .await
                .unwrap()
                .serve()
                .await
                .unwrap();
        });
    });
    address
}

/// A client with its own port, as firmware opens one per request.
struct Client(UdpSocket);

impl Client {
    fn new() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(TIMEOUT * 8)).unwrap();
        Self(socket)
    }

    fn ask(&self, server: SocketAddr, name: &str, options: &[(&str, &str)]) {
        let mut bytes = [&[0, 1][..], name.as_bytes(), b"\0octet\0"].concat();
        for (option, value) in options {
            bytes.extend([option.as_bytes(), &[0], value.as_bytes(), &[0]].concat());
        }
        self.0.send_to(&bytes, server).unwrap();
    }

    /// The next packet's operation code, its bytes and its sender; `None` when none comes.
    fn hear(&self) -> Option<(u8, Vec<u8>, SocketAddr)> {
        let mut buffer = [0; 2_048];
        match self.0.recv_from(&mut buffer) {
            Ok((length, from)) => Some((buffer[1], buffer[..length].to_vec(), from)),
            Err(error) => {
                assert!(
                    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
                    "{error}"
                );
                None
            }
        }
    }

    /// As EDK2 learns a size: RRQ with `tsize`, OACK, ERROR 8.
    fn probe_size_and_break_off(&self, server: SocketAddr) {
        self.ask(
            server,
            "shimx64.efi",
            &[("tsize", "0"), ("blksize", "1468"), ("windowsize", "4")],
        );
        let (code, bytes, transfer) = self.hear().unwrap();
        assert_eq!(code, OACK);
        assert!(
            bytes.windows(11).any(|window| window == b"tsize\x003000\0"),
            "{bytes:?}"
        );
        self.0
            .send_to(b"\0\x05\0\x08User aborted the transfer\0", transfer)
            .unwrap();
    }
}

const DATA: u8 = 3;
const ERROR: u8 = 5;
const OACK: u8 = 6;

/// The trap: the transfer goes on although the client has ended it, until the retries are used up.
#[test]
fn a_client_that_breaks_off_is_sent_its_oack_again_until_the_retries_end() {
    let (server, client) = (server(), Client::new());
    client.probe_size_and_break_off(server);
    let began = Instant::now();
    let mut stray = 0;
    while let Some((code, ..)) = client.hear() {
        if code == ERROR {
            break;
        }
        assert_eq!(code, OACK);
        stray += 1;
    }
    assert_eq!(stray, RETRIES);
    // Bounded: nothing is left when the retries are over.
    assert!(began.elapsed() < TIMEOUT * (RETRIES + 6));
}

/// What it would cost: a second request from the same port is not heard while the ghost lives.
#[test]
fn a_second_request_from_the_same_port_waits_for_the_first_to_die() {
    let (server, client) = (server(), Client::new());
    client.probe_size_and_break_off(server);
    client.ask(server, "shimx64.efi", &[]);
    let (code, ..) = client.hear().unwrap();
    assert_ne!(code, DATA, "the trap is gone");
}

/// Why it costs nothing: OVMF, shim and GRUB open a new port for every request.
#[test]
fn a_second_request_from_a_new_port_is_served_at_once() {
    let server = server();
    Client::new().probe_size_and_break_off(server);
    let began = Instant::now();
    let client = Client::new();
    client.ask(server, "shimx64.efi", &[("blksize", "1468"), ("windowsize", "4")]);
    let (code, ..) = client.hear().unwrap();
    assert_eq!(code, OACK);
    assert!(began.elapsed() < TIMEOUT, "{:?}", began.elapsed());
}

/// shim takes any other code for fatal, and GRUB takes silence for loss: 31 s per name.
#[test]
fn a_missing_file_is_error_1_at_once_with_or_without_options() {
    let server = server();
    for options in [&[][..], &[("blksize", "1024"), ("tsize", "0")][..]] {
        let client = Client::new();
        client.ask(server, "revocations_sku.efi", options);
        let (code, bytes, _) = client.hear().unwrap();
        assert_eq!((code, &bytes[2..4]), (ERROR, &[0, 1][..]));
    }
}

/// Option names are compared without regard to case (RFC 2347).
#[test]
fn options_in_capitals_are_understood() {
    let (server, client) = (server(), Client::new());
    client.ask(server, "shimx64.efi", &[("BLKSIZE", "1024"), ("TSize", "0")]);
    let (code, bytes, _) = client.hear().unwrap();
    assert_eq!(code, OACK, "{bytes:?}");
}
