//! TFTP over the loopback: a server that dies is continued by the next one, on the same socket.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test fails by panicking, and shares its helpers"
)]

mod common;
#[path = "common/desk.rs"]
mod desk;

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use cid_bootserver::tftp;
use desk::Room;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

/// A server on a copy of `socket`, as a service manager hands it over.
fn serve(
    runtime: &Runtime,
    room: &Room,
    socket: &UdpSocket,
    journal: &std::path::Path,
) -> JoinHandle<std::io::Result<()>> {
    let server = tftp::Server::from_socket(socket.try_clone().unwrap()).journal(journal.to_owned());
    runtime.spawn(server.serve(room.files.clone()))
}

/// A client that goes at its own pace.
struct Client(UdpSocket);

impl Client {
    fn new() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Self(socket)
    }

    fn say(&self, server: SocketAddr, bytes: &[u8]) {
        self.0.send_to(bytes, server).unwrap();
    }

    fn hear(&self) -> Vec<u8> {
        let mut buffer = [0; 2_048];
        let length = self.0.recv(&mut buffer).unwrap();
        buffer[..length].to_vec()
    }
}

/// Reads 100 octets in blocks of 8; the server dies after block 5. What the client then has, or the ERROR's code.
fn read_over_a_death(server: SocketAddr, kill_and_restart: impl FnOnce()) -> Result<Vec<u8>, u8> {
    let client = Client::new();
    client.say(server, b"\0\x01shimx64.efi\0octet\0blksize\x008\0");
    assert_eq!(client.hear(), b"\0\x06blksize\x008\0");
    client.say(server, &[0, 4, 0, 0]);
    let mut content = Vec::new();
    let mut restart = Some(kill_and_restart);
    loop {
        let packet = client.hear();
        if packet[1] == 5 {
            return Err(packet[3]);
        }
        content.extend_from_slice(&packet[4..]);
        if packet[3] == 5
            && let Some(restart) = restart.take()
        {
            restart();
        }
        client.say(server, &[0, 4, packet[2], packet[3]]);
        if packet.len() < 4 + 8 {
            return Ok(content);
        }
    }
}

fn over_a_death(forget: bool) -> (Result<Vec<u8>, u8>, Room) {
    let room = Room::new();
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("tftp.journal");
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let runtime = Runtime::new().unwrap();
    let first = serve(&runtime, &room, &socket, &journal);
    let result = read_over_a_death(socket.local_addr().unwrap(), || {
        first.abort();
        assert!(runtime.block_on(first).unwrap_err().is_cancelled());
        // Its thread is told by the abort and looks up after its next receive; the next one reads the same socket.
        std::thread::sleep(Duration::from_millis(700));
        if forget {
            std::fs::write(&journal, "not a journal").unwrap();
        }
        drop(serve(&runtime, &room, &socket, &journal));
    });
    (result, room)
}

#[test]
fn a_transfer_outlives_its_server() {
    let (result, room) = over_a_death(false);
    assert_eq!(result.unwrap(), [b'x'; 100]);
    assert_eq!(room.drops(), std::collections::BTreeMap::new());
}

#[test]
fn without_its_journal_it_ends_at_once_with_an_error() {
    let (result, room) = over_a_death(true);
    assert_eq!(result.unwrap_err(), 5, "unknown transfer ID");
    assert_eq!(room.drops()["tftp-unknown-transfer"], 1);
}
