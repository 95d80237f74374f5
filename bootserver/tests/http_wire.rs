//! HTTP as it stands on the wire: firmware compares bytes, not meanings (docs pxe.md rows 27, 28 and 30).

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test fails by panicking, and shares its helpers"
)]

mod common;
#[path = "common/desk.rs"]
mod desk;

use std::net::SocketAddr;
use std::time::Duration;

use cid_bootserver::http;
use desk::Room;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

async fn start(room: &Room) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(http::serve(listener, room.files.clone()));
    address
}

/// The whole answer to one request, head and body apart.
async fn ask(server: SocketAddr, line: &str, more: &str) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(server).await.unwrap();
    let request = format!("{line} HTTP/1.1\r\nHost: 10.77.0.1\r\nConnection: close\r\n{more}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer))
        .await
        .unwrap()
        .unwrap();
    let end = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .unwrap();
    (
        String::from_utf8(answer[..end].to_vec()).unwrap(),
        answer[end + 4..].to_vec(),
    )
}

#[tokio::test]
async fn header_names_have_capitals_and_nothing_is_chunked_or_redirected() {
    let room = Room::new();
    let server = start(&room).await;
    for path in [
        "/images/minimal/vmlinuz",
        "//grubx64.efi",
        "/shimx64.efi",
        "/boot.ipxe",
        "/grub/grub.cfg",
    ] {
        let (head, body) = ask(server, &format!("GET {path}"), "").await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{path}: {head}");
        assert!(
            head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())),
            "{path}: {head}"
        );
        assert!(
            !head.to_lowercase().contains("transfer-encoding"),
            "{path}: {head}"
        );
        assert!(!body.is_empty());
    }
    let (head, _) = ask(server, "GET /shimx64.efi", "").await;
    assert!(head.contains("Content-Type: application/efi"), "{head}");
}

#[tokio::test]
async fn head_gives_the_length_and_range_gives_the_part() {
    let room = Room::new();
    let server = start(&room).await;
    let (head, body) = ask(server, "HEAD /images/minimal/initrd.img", "").await;
    assert!(head.contains("\r\nContent-Length: 100\r\n"), "{head}");
    assert!(body.is_empty());
    let (head, body) = ask(server, "GET /images/minimal/initrd.img", "Range: bytes=90-\r\n").await;
    assert!(head.starts_with("HTTP/1.1 206 "), "{head}");
    assert!(head.contains("\r\nContent-Range: bytes 90-99/100\r\n"), "{head}");
    assert_eq!(body.len(), 10);
    let (head, _) = ask(server, "GET /images/minimal/initrd.img", "Range: bytes=100-\r\n").await;
    assert!(head.starts_with("HTTP/1.1 416 "), "{head}");
}

/// iPXE asks for `small%401` where its script says `small@1`.
#[tokio::test]
async fn percent_encoded_names_are_what_they_stand_for() {
    let room = Room::new();
    let server = start(&room).await;
    for (path, status) in [
        ("/images/%6dinimal/vmlinuz", "200"),
        ("/images/minimal%40/vmlinuz", "404"),
        ("/%2e%2e/etc/passwd", "400"),
        ("/images%2f..%2fx", "400"),
        ("/%ff", "400"),
    ] {
        let (head, _) = ask(server, &format!("GET {path}"), "").await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {head}");
    }
    assert_eq!(room.drops().get("file-bad-path"), Some(&3));
}

#[tokio::test]
async fn what_is_not_there_says_so_and_is_counted() {
    let room = Room::new();
    let server = start(&room).await;
    for (line, status) in [
        ("GET /images/minimal/manifest.json", "404"),
        ("GET /images/other/vmlinuz", "404"),
        ("GET /../etc/passwd", "400"),
        ("POST /boot.ipxe", "405"),
    ] {
        let (head, _) = ask(server, line, "").await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{line}: {head}");
    }
    let drops = room.drops();
    for reason in [
        "file-unknown-name",
        "file-not-in-image",
        "file-bad-path",
        "http-method-not-allowed",
    ] {
        assert_eq!(drops.get(reason), Some(&1), "{reason}: {drops:?}");
    }
}

#[tokio::test]
async fn one_address_cannot_hold_every_connection() {
    let room = Room::new();
    let server = start(&room).await;
    let mut held = Vec::new();
    for _ in 0..16 {
        held.push(TcpStream::connect(server).await.unwrap());
    }
    let mut refused = TcpStream::connect(server).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), refused.read_to_end(&mut answer))
        .await
        .unwrap();
    assert!(read.is_err() || answer.is_empty());
    assert_eq!(room.drops().get("http-too-many-connections"), Some(&1));
    // And it is served again when it lets go.
    held.clear();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(server).await.unwrap();
        stream
            .write_all(b"GET /boot.ipxe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        if answer.starts_with(b"HTTP/1.1 200") {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("not served again");
}

/// GRUB does not notice a FIN in a transfer. What ends in good order ends with one all the same (`ask` reads to the end).
#[test]
fn who_is_cut_off_by_the_end_of_the_head_is_told_by_a_reset() {
    let room = Room::new();
    let head = tokio::runtime::Runtime::new().unwrap();
    let server = head.block_on(start(&room));
    let loader = tokio::runtime::Runtime::new().unwrap();
    let mut stream = loader.block_on(async {
        let mut stream = TcpStream::connect(server).await.unwrap();
        let request = b"GET /images/minimal/vmlinuz HTTP/1.1\r\nHost: 10.77.0.1\r\n\r\n";
        stream.write_all(request).await.unwrap();
        // The answer has begun.
        stream.readable().await.unwrap();
        stream
    });
    drop(head);
    let ended = loader.block_on(stream.read_to_end(&mut Vec::new())).unwrap_err();
    assert_eq!(ended.kind(), std::io::ErrorKind::ConnectionReset);
    let (_, body) = loader.block_on(async {
        let server = start(&room).await;
        ask(server, "GET /images/minimal/vmlinuz", "").await
    });
    assert_eq!(body.len(), 100);
}
