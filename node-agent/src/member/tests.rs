//! The loop over real sockets, in a network namespace of its own: nodes and a head that is made of the same membership.

use std::process::Command as Program;
use std::sync::{Arc, Mutex};

use cid_discovery::history::State;
use cid_discovery::history::chronicle::Chronicle;
use cid_discovery::wire::Refusal;
use cid_protocol::node::MemberTicket;

use super::*;

const HEAD: Boot = Boot {
    id: NodeId([9; 16]),
    incarnation: 1,
};
const LIMIT: Duration = Duration::from_secs(60);

/// Whether we are in a namespace in which `lo` has the addresses of a room.
fn in_a_room(test: &str) -> bool {
    if !crate::room::enter(&format!("member::tests::{test}")) {
        return false;
    }
    for last in 1..=4 {
        let address = format!("10.9.0.{last}/24");
        let done = Program::new("ip")
            .args(["address", "add", &address, "dev", "lo"])
            .status();
        assert!(done.expect("ip runs").success(), "{address}");
    }
    true
}

fn place(last: u8) -> Place {
    Place {
        link: "lo".to_owned(),
        address: Ipv4Addr::new(10, 9, 0, last),
        head: SocketAddrV4::new(Ipv4Addr::new(10, 9, 0, 1), NODE_PORT),
        shared: false,
    }
}

fn key(epoch: u32) -> node::GroupKey {
    node::GroupKey {
        epoch,
        secret: cid_trust::encode(&[u8::try_from(epoch).expect("small"); 32]),
        revoked: false,
        thrown_out: Vec::new(),
    }
}

fn seat(last: u8, incarnation: u64) -> Seat {
    let ticket = MemberTicket {
        id: NodeId([last; 16]).to_string(),
        incarnation,
        head_id: HEAD.id.to_string(),
        head_incarnation: HEAD.incarnation,
        key: key(1),
    };
    Seat {
        ticket,
        incarnation,
        name: format!("lab-a0{last}"),
        bail_out_secs: 600,
        peers: Vec::new(),
    }
}

type Heard = Arc<Mutex<Vec<Result<News, String>>>>;

/// A node in the room, and what it told.
fn node_at(last: u8, seat: Seat, folder: &std::path::Path, started: Instant) -> (Handle, Heard) {
    let heard = Heard::default();
    let told = Arc::clone(&heard);
    let news = move |piece| told.lock().expect("not poisoned").push(piece);
    let keep = Keep::new(folder.join(last.to_string()));
    let handle = Handle::start(place(last), seat, keep, started, u64::from(last), news).expect("a member");
    (handle, heard)
}

/// The head, as long as it is not dropped: every boot that appears is put down as up.
async fn head(started: Instant) {
    let me = place(1).head;
    let socket = UdpSocket::from_std(udp_socket("lo", me).expect("a socket").into()).expect("a socket");
    let secret = group_key(&key(1)).expect("a key");
    let (mut sealer, mut opener) = (Sealer::new(HEAD, &secret), Opener::new(secret, 16));
    let config = Config {
        me: HEAD,
        role: Role::Head,
        address: me,
        head: None,
        seeds: Vec::new(),
        bail_out: Duration::from_secs(600),
        capacity: 16,
    };
    let chronicle = Chronicle::new(1, started.elapsed(), 1_000_000);
    let mut core = Membership::new(config, Records::Head(chronicle), 1, started.elapsed());
    let mut buffer = [0; MAX_DATAGRAM];
    loop {
        let now = started.elapsed();
        while core.poll_persist().is_some() {}
        core.handle_persisted(now);
        while let Some(output) = core.poll_output() {
            match output {
                Output::Transmit {
                    to: To::Member(to),
                    body,
                } => {
                    let datagram = sealer.seal(me, Some(to), &body).expect("sealed");
                    let _ = socket.send_to(&datagram, to).await;
                }
                Output::Transmit { to: To::Group, .. } => {}
                Output::Event(Event::Appeared(boot)) => {
                    let name = format!("lab-a0{}", boot.id.0[0]);
                    let _ = core.record(now, boot, State::Up, &name, "joined");
                }
                Output::Event(_) => {}
            }
        }
        while core.poll_persist().is_some() {}
        core.handle_persisted(now);
        let deadline = core.next_deadline(now).unwrap_or(now);
        tokio::select! {
            received = socket.recv_from(&mut buffer) => {
                let Ok((length, SocketAddr::V4(source))) = received else { continue };
                let now = started.elapsed();
                if let Ok((boot, body)) = opener.open(now, source, me, &buffer[..length]) {
                    let _: Result<(), Refusal> = core.handle_datagram(now, boot, source, &body);
                }
            }
            () = sleep_until(started + deadline) => {}
        }
        core.handle_deadline(started.elapsed());
    }
}

/// What a node answers to "who is there", once it is as wanted.
async fn until(node: &Handle, what: &str, wanted: impl Fn(&Teller, &[PeerRow]) -> bool) -> Vec<PeerRow> {
    let begin = Instant::now();
    loop {
        let (sender, answer) = oneshot::channel();
        node.commands()
            .send(Command::List(sender))
            .await
            .expect("a member");
        let (teller, rows) = answer.await.expect("an answer");
        if wanted(&teller, &rows) {
            return rows;
        }
        assert!(begin.elapsed() < LIMIT, "{what}: {teller:?} {rows:#?}");
        // A step of a wait that has its own limit.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn states(rows: &[PeerRow]) -> Vec<(&str, &str, bool)> {
    let cells = rows
        .iter()
        .map(|row| (row.name.as_str(), row.state.as_str(), row.by_head));
    cells.collect()
}

fn block_on(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(future);
}

#[test]
fn nodes_learn_the_history_go_on_without_the_head_and_come_back_as_a_later_boot() {
    if !in_a_room("nodes_learn_the_history_go_on_without_the_head_and_come_back_as_a_later_boot") {
        return;
    }
    block_on(async {
        let folder = tempfile::tempdir().expect("a folder");
        let started = Instant::now();
        let the_head = tokio::spawn(head(started));
        let (second, heard) = node_at(2, seat(2, 10), folder.path(), started);
        let (third, _) = node_at(3, seat(3, 10), folder.path(), started);
        let both = [("lab-a02", "up", true), ("lab-a03", "up", true)];
        for node in [&second, &third] {
            until(node, "both up by the head's word", |teller, rows| {
                states(rows) == both && teller.history_length == 2
            })
            .await;
        }
        let begin = Instant::now();
        while !heard
            .lock()
            .expect("not poisoned")
            .iter()
            .any(|news| matches!(news, Ok(News::HeadHeard(_))))
        {
            assert!(
                begin.elapsed() < LIMIT,
                "the core was told of the head's datagrams"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Kept for an agent after this one.
        let keep = Keep::new(folder.path().join("2"));
        let begin = Instant::now();
        while keep.seat().is_none_or(|seat| seat.peers.is_empty()) {
            assert!(begin.elapsed() < LIMIT, "peers are kept");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }

        // Without the head: the agent of one starts again, and finds the other by what it kept (no multicast here).
        the_head.abort();
        drop(second);
        let kept = keep.seat().expect("a seat");
        let again = Seat {
            incarnation: kept.incarnation + 1,
            ..kept
        };
        let (second, _) = node_at(2, again, folder.path(), started);
        until(
            &second,
            "the other is found, and both are what the head last said",
            |_, rows| {
                let found = |row: &PeerRow| row.name == "lab-a03" && row.address.is_some();
                states(rows) == both && rows.iter().any(found)
            },
        )
        .await;
        until(&third, "the later boot is taken for the node", |_, rows| {
            rows.iter()
                .any(|row| row.name == "lab-a02" && row.address.as_deref() == Some("10.9.0.2"))
        })
        .await;

        // Who leaves is not looked for.
        third.leave().await;
        drop(third);
        let rows = until(&second, "it said that it goes", |_, rows| {
            rows.iter()
                .any(|row| row.name == "lab-a03" && row.state == "going-home")
        })
        .await;
        let gone = rows.iter().find(|row| row.name == "lab-a03").expect("there");
        assert_eq!((gone.by_head, gone.reason.as_str()), (false, "said that it goes"));
    });
}

#[test]
fn a_key_is_rotated_and_a_stranger_changes_nothing() {
    if !in_a_room("a_key_is_rotated_and_a_stranger_changes_nothing") {
        return;
    }
    block_on(async {
        let folder = tempfile::tempdir().expect("a folder");
        let started = Instant::now();
        let mut early = seat(2, 10);
        early.peers = vec![SocketAddrV4::new(Ipv4Addr::new(10, 9, 0, 3), NODE_PORT)];
        let (second, _) = node_at(2, early, folder.path(), started);
        let (third, _) = node_at(3, seat(3, 10), folder.path(), started);
        second.key(key(2)).await;
        third.key(key(2)).await;
        // A stranger has no key that is good: it is in nobody's list, and hears of nobody.
        let mut stranger = seat(4, 10);
        stranger.ticket.key = key(3);
        stranger.peers = vec![SocketAddrV4::new(Ipv4Addr::new(10, 9, 0, 3), NODE_PORT)];
        let (stranger, _) = node_at(4, stranger, folder.path(), started);
        let ids = |rows: &[PeerRow]| rows.iter().map(|row| row.id.clone()).collect::<Vec<_>>();
        let members = [NodeId([2; 16]).to_string(), NodeId([3; 16]).to_string()];
        for node in [&second, &third] {
            let rows = until(node, "two members", |_, rows| rows.len() >= 2).await;
            assert_eq!(
                ids(&rows).iter().filter(|id| members.contains(id)).count(),
                rows.len()
            );
        }
        let rows = until(&stranger, "alone", |_, _| true).await;
        assert_eq!(ids(&rows), [NodeId([4; 16]).to_string()]);
        assert_eq!(
            Keep::new(folder.path().join("3"))
                .seat()
                .map(|seat| seat.ticket.key),
            Some(key(2))
        );
    });
}
