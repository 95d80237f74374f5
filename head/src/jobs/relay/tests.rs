//! One client, two nodes, no socket.

use bytes::Bytes;

use super::*;

const NODES: [ConnectionId; 2] = [ConnectionId(1), ConnectionId(2)];

fn stream(rank: u32, channel: Channel) -> StreamId {
    StreamId { rank, channel }
}

/// Ranks 0 and 1 on the first node, 2 on the second.
fn begun() -> (Relay, u32) {
    let mut relay = Relay::default();
    for id in NODES {
        relay.connect(id);
        relay.enable(id);
    }
    let share = |id, name: &str, first, count| Share {
        id,
        name: name.to_owned(),
        first,
        count,
    };
    let program = Program {
        command: String::new(),
        environment: String::new(),
        folder: String::new(),
        umask: 0o22,
    };
    let (number, _) = relay.start(Beginning {
        uid: 1000,
        gid: 1000,
        program,
        shares: vec![share(NODES[0], "a", 0, 2), share(NODES[1], "b", 2, 1)],
    });
    assert!(matches!(told(&mut relay, number)[..], [ToClient::Started { .. }]));
    for id in NODES {
        let Some(Frame {
            kind: Kind::Control(text),
            ..
        }) = relay.poll_node(id)
        else {
            panic!("no order")
        };
        assert!(matches!(serde_json::from_slice(&text), Ok(Order::Start(_))));
    }
    (relay, number)
}

fn told(relay: &mut Relay, number: u32) -> Vec<ToClient> {
    let mut told = Vec::new();
    while let Some(kind) = relay.poll_client(number) {
        if let Kind::Control(text) = kind {
            told.push(serde_json::from_slice(&text).expect("ours"));
        }
    }
    told
}

fn from_node(relay: &mut Relay, id: ConnectionId, job: u32, kind: Kind) -> Result<(), Overrun> {
    relay.handle_node(id, Frame { job, kind })
}

fn report(report: &Report) -> Kind {
    Kind::Control(text(report).into())
}

fn data(rank: u32, length: usize) -> Kind {
    Kind::Data(stream(rank, Channel::Stdout), Bytes::from(vec![7; length]))
}

#[test]
fn a_job_from_start_to_end() {
    let (mut relay, number) = begun();
    assert_eq!((relay.used(NODES[0]), relay.used(NODES[1])), (Some(2), Some(1)));
    from_node(&mut relay, NODES[0], number, data(1, 5)).expect("allowed");
    assert!(matches!(relay.poll_client(number), Some(Kind::Data(id, _)) if id.rank == 1));
    let stdin = stream(2, Channel::Stdin);
    let typed = Kind::Data(stdin, Bytes::from_static(b"typed"));
    relay.handle_client(number, typed.clone()).expect("allowed");
    assert_eq!(relay.poll_node(NODES[0]), None);
    assert_eq!(
        relay.poll_node(NODES[1]),
        Some(Frame {
            job: number,
            kind: typed
        })
    );
    let interrupt = text(&FromClient::Signal { signal: 2 });
    relay
        .handle_client(number, Kind::Control(interrupt.into()))
        .expect("allowed");
    for id in NODES {
        assert!(matches!(
            relay.poll_node(id),
            Some(Frame {
                kind: Kind::Control(_),
                ..
            })
        ));
    }
    let outcome = Outcome::Exited { status: 3 };
    for (id, rank) in [(NODES[0], 0), (NODES[0], 1), (NODES[1], 2)] {
        let ended = Report::Ended {
            rank,
            outcome: outcome.clone(),
        };
        from_node(&mut relay, id, number, report(&ended)).expect("allowed");
        // Said twice, counted once.
        from_node(&mut relay, id, number, report(&ended)).expect("allowed");
    }
    assert_eq!(told(&mut relay, number).len(), 3);
    assert_eq!((relay.used(NODES[0]), relay.used(NODES[1])), (Some(0), Some(0)));
    for id in NODES {
        from_node(&mut relay, id, number, report(&Report::Over)).expect("allowed");
    }
    relay.client_gone(number);
    assert_eq!(relay.counts(), (0, 0));
}

#[test]
fn a_client_that_does_not_read_is_bounded_and_stops_no_other_rank() {
    let (mut relay, number) = begun();
    let most = window(3) as usize;
    let mut sent = 0;
    while from_node(&mut relay, NODES[0], number, data(0, 16_000)).is_ok() {
        sent += 16_000;
        // What is sent to the client is not consumed by it: no credit comes back.
        while relay.poll_client(number).is_some() {}
        while let Some(frame) = relay.poll_node(NODES[0]) {
            assert!(matches!(frame.kind, Kind::Credit(..)));
        }
        assert!(sent <= 2 * most, "{sent}");
        if sent > most + most / 2 {
            break;
        }
    }
    assert!(
        sent >= most && relay.waiting() <= most,
        "{sent} {}",
        relay.waiting()
    );
    from_node(&mut relay, NODES[0], number, data(1, 10)).expect("another rank");
    assert!(matches!(relay.poll_client(number), Some(Kind::Data(id, _)) if id.rank == 1));
}

#[test]
fn a_lost_node_is_reported_and_a_lost_client_ends_the_job() {
    let (mut relay, number) = begun();
    relay.disconnect(NODES[1]);
    let told = told(&mut relay, number);
    assert!(
        matches!(&told[..], [ToClient::Ended { rank: 2, outcome: Outcome::Lost { why } }] if why == "b is lost"),
        "{told:?}"
    );
    relay.client_gone(number);
    let Some(Frame {
        kind: Kind::Control(text),
        ..
    }) = relay.poll_node(NODES[0])
    else {
        panic!("no order")
    };
    assert!(matches!(serde_json::from_slice(&text), Ok(Order::End)));
    // What it still says is dropped, and paid for.
    for _ in 0..100 {
        from_node(&mut relay, NODES[0], number, data(0, 16_000)).expect("credit comes back");
        while relay.poll_node(NODES[0]).is_some() {}
    }
    from_node(&mut relay, NODES[0], number, report(&Report::Over)).expect("allowed");
    assert_eq!(relay.counts(), (0, 0));
}

#[test]
fn a_node_speaks_for_its_own_ranks_only() {
    let (mut relay, number) = begun();
    assert_eq!(
        from_node(&mut relay, NODES[1], number, data(0, 1)),
        Err(Overrun::Rank)
    );
    let ended = Report::Ended {
        rank: 0,
        outcome: Outcome::Exited { status: 0 },
    };
    from_node(&mut relay, NODES[1], number, report(&ended)).expect("ignored");
    assert!(told(&mut relay, number).is_empty());
    from_node(&mut relay, NODES[1], number + 1, data(2, 1)).expect("of no job: ignored");
}
