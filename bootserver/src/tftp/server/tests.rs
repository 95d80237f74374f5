//! Traces: what comes in, at which time, and what goes out.

use super::*;

const CLIENT: SocketAddrV4 = SocketAddrV4::new(std::net::Ipv4Addr::new(10, 77, 0, 100), 1317);
const OVMF: &str = "shimx64.efi\0octet\0tsize\x000\0blksize\x001468\0windowsize\x004\0";

fn ms(time: u64) -> Duration {
    Duration::from_millis(time)
}

fn rrq(text: &str) -> Vec<u8> {
    [&[0, 1], text.as_bytes()].concat()
}

fn ack(block: u16) -> [u8; 4] {
    let [high, low] = block.to_be_bytes();
    [0, 4, high, low]
}

fn file(length: usize) -> Bytes {
    (0..length).map(|at| (at % 251) as u8).collect::<Vec<u8>>().into()
}

/// What went out: block numbers, `OACK ...`, `ERROR n`, `open PATH`, `lost`; journal entries are left out.
fn out(server: &mut Server) -> Vec<String> {
    let mut told = Vec::new();
    while let Some(output) = server.poll_output() {
        match output {
            Output::Open { path, .. } => told.push(format!("open {path}")),
            Output::Lost(_) => told.push("lost".to_owned()),
            Output::Journal(_) => {}
            Output::Transmit { head, content, .. } => told.push(match (head[1], content.len()) {
                (3, _) => u16::from_be_bytes([head[2], head[3]]).to_string(),
                (5, 0) => format!("ERROR {}", head[3]),
                (6, 0) => format!(
                    "OACK {}",
                    String::from_utf8_lossy(&head[2..]).replace('\0', " ").trim()
                ),
                other => panic!("{other:?}"),
            }),
        }
    }
    told
}

fn serving(request: &str, content: Bytes) -> Server {
    let mut server = Server::new();
    assert_eq!(server.handle_datagram(ms(0), CLIENT, &rrq(request)), Ok(()));
    assert_eq!(out(&mut server).len(), 1);
    server.handle_opened(ms(1), CLIENT, Ok(content));
    server
}

#[test]
fn edk2_asks_for_the_size_breaks_off_and_asks_again() {
    let mut server = serving(OVMF, file(10_000));
    assert_eq!(out(&mut server), ["OACK blksize 1468 tsize 10000 windowsize 4"]);
    assert_eq!(
        server.handle_datagram(ms(2), CLIENT, b"\0\x05\0\x08User aborted the transfer\0"),
        Ok(())
    );
    assert_eq!(server.sizes(), (0, 0));
    // From the same port or another: nobody remembers the first.
    let again = rrq("shimx64.efi\0octet\0blksize\x001468\0windowsize\x004\0");
    assert_eq!(server.handle_datagram(ms(3), CLIENT, &again), Ok(()));
    assert_eq!(out(&mut server), ["open shimx64.efi"]);
    server.handle_opened(ms(4), CLIENT, Ok(file(10_000)));
    assert_eq!(out(&mut server), ["OACK blksize 1468 windowsize 4"]);
    server.handle_datagram(ms(5), CLIENT, &ack(0)).expect("taken");
    assert_eq!(out(&mut server), ["1", "2", "3", "4"]);
    server.handle_datagram(ms(6), CLIENT, &ack(4)).expect("taken");
    assert_eq!(out(&mut server), ["5", "6", "7"]);
    server.handle_datagram(ms(7), CLIENT, &ack(7)).expect("taken");
    assert_eq!((out(&mut server), server.sizes()), (vec![], (0, 0)));
    assert_eq!(server.next_deadline(), None);
}

#[test]
fn a_client_without_options_gets_data_at_once_in_blocks_of_512() {
    let mut server = serving("f\0octet\0", file(1024));
    assert_eq!(out(&mut server), ["1"]);
    server.handle_datagram(ms(2), CLIENT, &ack(1)).expect("taken");
    assert_eq!(out(&mut server), ["2"]);
    server.handle_datagram(ms(3), CLIENT, &ack(2)).expect("taken");
    // A file of whole blocks ends with an empty one.
    assert_eq!(out(&mut server), ["3"]);
    server.handle_datagram(ms(4), CLIENT, &ack(3)).expect("taken");
    assert_eq!(server.sizes(), (0, 0));
}

#[test]
fn a_missing_file_is_error_1_at_once_and_leaves_nothing_behind() {
    let mut server = Server::new();
    server
        .handle_datagram(ms(0), CLIENT, &rrq("revocations.efi\0octet\0"))
        .expect("taken");
    out(&mut server);
    server.handle_opened(ms(1), CLIENT, Err(Refusal::UnknownName));
    assert_eq!(
        (out(&mut server), server.sizes()),
        (vec!["ERROR 1".to_owned()], (0, 0))
    );
}

#[test]
fn duplicates_are_not_answered_with_duplicates() {
    let mut server = serving("f\0octet\0", file(5_000));
    for block in 1..=3 {
        server
            .handle_datagram(ms(10 + u64::from(block)), CLIENT, &ack(block))
            .expect("taken");
        assert_eq!(
            server.handle_datagram(ms(10), CLIENT, &ack(block)),
            Err(Dropped::Stale)
        );
    }
    assert_eq!(out(&mut server), ["1", "2", "3", "4"]);
    assert_eq!(
        server.handle_datagram(ms(20), CLIENT, &ack(9)),
        Err(Dropped::Stale),
        "never sent"
    );
}

#[test]
fn a_gap_in_a_window_is_mended_from_where_it_began() {
    let mut server = serving("f\0octet\0windowsize\x004\0", file(5_000));
    server.handle_datagram(ms(2), CLIENT, &ack(0)).expect("taken");
    assert_eq!(out(&mut server)[1..], ["1", "2", "3", "4"]);
    // Block 3 was lost.
    server.handle_datagram(ms(3), CLIENT, &ack(2)).expect("taken");
    assert_eq!(out(&mut server), ["3", "4", "5", "6"]);
    // A repetition that is here before an answer can be answers what was sent before.
    assert_eq!(
        server.handle_datagram(ms(3), CLIENT, &ack(2)),
        Err(Dropped::Stale)
    );
    // The first of the window was lost: its predecessor is acknowledged again, which is believed once.
    server.handle_datagram(ms(4), CLIENT, &ack(2)).expect("taken");
    assert_eq!(out(&mut server), ["3", "4", "5", "6"]);
    assert_eq!(
        server.handle_datagram(ms(5), CLIENT, &ack(2)),
        Err(Dropped::Stale)
    );
}

#[test]
fn silence_is_met_with_retransmissions_that_thin_out_and_end() {
    let mut server = serving("f\0octet\0blksize\x001468\0", file(100));
    assert_eq!(out(&mut server).len(), 1);
    let (mut sent, mut now) = (0, ms(1));
    while let Some(deadline) = server.next_deadline() {
        assert!(deadline > now, "time goes on");
        now = deadline;
        server.handle_deadline(now);
        let told = out(&mut server);
        sent += told.iter().filter(|line| line.starts_with("OACK")).count();
        if told.contains(&"lost".to_owned()) {
            break;
        }
    }
    assert!((5..12).contains(&sent), "{sent} times");
    assert!(now < ms(30_000) && server.sizes() == (0, 0), "{now:?}");
}

#[test]
fn a_repeated_request_repeats_the_first_answer() {
    let mut server = serving(OVMF, file(100));
    out(&mut server);
    server.handle_datagram(ms(9), CLIENT, &rrq(OVMF)).expect("taken");
    assert_eq!(out(&mut server), ["OACK blksize 1468 tsize 100 windowsize 4"]);
    let mut slow = Server::new();
    slow.handle_datagram(ms(0), CLIENT, &rrq(OVMF)).expect("taken");
    assert_eq!(
        slow.handle_datagram(ms(1), CLIENT, &rrq(OVMF)),
        Err(Dropped::Repeated)
    );
}

#[test]
fn after_block_65535_comes_0() {
    let length = 70_000 * 8;
    let mut server = serving("f\0octet\0blksize\x008\0windowsize\x0016\0", file(length));
    server.handle_datagram(ms(1), CLIENT, &ack(0)).expect("taken");
    let (mut received, mut expected) = (0_usize, 1_u16);
    while server.sizes().0 > 0 {
        let mut last = 0;
        while let Some(output) = server.poll_output() {
            let Output::Transmit { head, content, .. } = output else {
                continue;
            };
            if head[1] != 3 {
                continue;
            }
            last = u16::from_be_bytes([head[2], head[3]]);
            assert_eq!(last, expected);
            expected = expected.wrapping_add(1);
            received += content.len();
        }
        server.handle_datagram(ms(2), CLIENT, &ack(last)).expect("taken");
    }
    assert_eq!(received, length);
}

#[test]
fn strangers_are_bounded_and_refused_in_so_many_words() {
    let mut server = Server::new();
    assert_eq!(
        server.handle_datagram(ms(0), CLIENT, &ack(7)),
        Err(Dropped::UnknownTransfer)
    );
    assert_eq!(
        server.handle_datagram(ms(0), CLIENT, b"\0\x02f\0octet\0"),
        Err(Dropped::Malformed(Malformed::WriteRequest))
    );
    assert_eq!(
        server.handle_datagram(ms(0), CLIENT, b"\0\x01f\0netascii\0"),
        Err(Dropped::Malformed(Malformed::Mode))
    );
    assert_eq!(out(&mut server), ["ERROR 5", "ERROR 2", "ERROR 4"]);
    let mut refused = 0;
    for port in 1..2_000 {
        let stranger = SocketAddrV4::new(*CLIENT.ip(), port);
        refused += usize::from(
            server
                .handle_datagram(ms(1), stranger, &rrq("f\0octet\0"))
                .is_err(),
        );
    }
    assert_eq!(
        (server.sizes().1, refused),
        (MAX_TRANSFERS_PER_CLIENT, 1_999 - MAX_TRANSFERS_PER_CLIENT)
    );
}

#[test]
fn another_life_goes_on_at_the_next_acknowledgement() {
    let content = file(2_000_000);
    let mut server = Server::new();
    // 512-octet blocks: the journal said 0, the client is at block 1200.
    server.resume(ms(0), CLIENT, content.clone(), (512, 4), 0);
    assert_eq!(
        out(&mut server),
        Vec::<String>::new(),
        "nobody knows yet what to send"
    );
    server.handle_datagram(ms(5), CLIENT, &ack(1200)).expect("taken");
    assert_eq!(out(&mut server), ["1201", "1202", "1203", "1204"]);
    server.handle_datagram(ms(6), CLIENT, &ack(1204)).expect("taken");
    assert_eq!(out(&mut server)[0], "1205");
    // Beyond the file there is nothing to go on with.
    let mut server = Server::new();
    server.resume(ms(0), CLIENT, content, (512, 4), 0);
    assert_eq!(
        server.handle_datagram(ms(5), CLIENT, &ack(60_000)),
        Err(Dropped::Stale)
    );
    // A client that waits silently is shown an old block, so that it says where it stands.
    server.handle_deadline(ms(1_000));
    assert_eq!(out(&mut server), ["1", "2", "3", "4"]);
    server
        .handle_datagram(ms(1_001), CLIENT, &ack(1200))
        .expect("taken");
    assert_eq!(out(&mut server)[0], "1201");
    let (mut now, mut lost) = (ms(5), false);
    while let Some(deadline) = server.next_deadline() {
        now = now.max(deadline);
        server.handle_deadline(now);
        lost |= out(&mut server).contains(&"lost".to_owned());
    }
    assert!(lost, "a client that says no more is let go");
}
