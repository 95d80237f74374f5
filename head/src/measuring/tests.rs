//! Conversations over in-memory streams and loopback: what is answered, and where it ends.

use cid_protocol::measure::FILLER;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;

async fn say(stream: &mut (impl AsyncWrite + Unpin), probe: Probe) {
    let body = serde_json::to_vec(&FromNode::Measure(probe)).unwrap();
    stream
        .write_u32(u32::try_from(body.len()).unwrap())
        .await
        .unwrap();
    stream.write_all(&body).await.unwrap();
}

async fn hear(stream: &mut (impl AsyncRead + Unpin)) -> Answer {
    let length = stream.read_u32().await.unwrap();
    let mut body = vec![0; length as usize];
    stream.read_exact(&mut body).await.unwrap();
    match serde_json::from_slice(&body).unwrap() {
        ToNode::Measure(answer) => answer,
        other => panic!("{other:?}"),
    }
}

/// Three nodes are in.
fn room() -> Vec<Ipv4Addr> {
    (1..=3).map(|number| Ipv4Addr::new(10, 0, 0, number)).collect()
}

#[tokio::test]
async fn peers_are_named_in_turn_and_once() {
    let turns = Arc::new(Turns::default());
    let mut named = Vec::new();
    for _ in 0..3 {
        let (mut node, _answering) = dial(&turns);
        say(&mut node, Probe::Peers).await;
        let Answer::Peers { addresses } = hear(&mut node).await else {
            panic!("no peers")
        };
        assert!(addresses.len() == 2 && addresses[0] != addresses[1]);
        named.extend(addresses);
    }
    named.sort();
    assert_eq!(
        named,
        [room(), room()]
            .concat()
            .into_iter()
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .flat_map(|one| [one, one])
            .collect::<Vec<_>>()
    );
    assert_eq!(turns.some_of(&[]), Vec::<Ipv4Addr>::new());
    assert_eq!(turns.some_of(&room()[..1]), room()[..1]);
}

type Answering = JoinHandle<Result<FromNode, Ended>>;

fn dial(turns: &Arc<Turns>) -> (tokio::io::DuplexStream, Answering) {
    let (near, mut far) = tokio::io::duplex(256 * 1024);
    let turns = Arc::clone(turns);
    (
        near,
        tokio::spawn(async move { answer(&mut far, &turns, room).await }),
    )
}

async fn burst_in(stream: &mut (impl AsyncRead + Unpin)) -> u32 {
    let mut bytes = 0;
    loop {
        let Answer::Filler(filler) = hear(stream).await else {
            panic!("no filler")
        };
        bytes += u32::try_from(filler.text.len()).unwrap();
        if filler.last {
            return bytes;
        }
    }
}

async fn burst_out(stream: &mut (impl AsyncWrite + Unpin), bytes: u32) {
    let mut left = bytes;
    while left > 0 {
        let filler = Filler::of(left);
        left -= u32::try_from(filler.text.len()).unwrap();
        say(stream, Probe::Filler(filler)).await;
    }
}

#[tokio::test]
async fn echoes_bursts_and_the_next_message() {
    let turns = Arc::new(Turns::default());
    let (mut node, answering) = dial(&turns);
    for number in [0, 7] {
        say(&mut node, Probe::Echo { number }).await;
        assert_eq!(hear(&mut node).await, Answer::Echo { number });
    }
    say(&mut node, Probe::Ask).await;
    assert_eq!(hear(&mut node).await, Answer::Turn { granted: true });
    say(&mut node, Probe::Give { bytes: 20_000 }).await;
    assert_eq!(burst_in(&mut node).await, 20_000);
    for bytes in [FILLER, 3 * FILLER + 1] {
        burst_out(&mut node, bytes).await;
        assert_eq!(hear(&mut node).await, Answer::Took { bytes });
    }
    say(&mut node, Probe::Done).await;
    let pulse = FromNode::Pulse(cid_protocol::node::Load::default());
    let body = serde_json::to_vec(&pulse).unwrap();
    node.write_u32(u32::try_from(body.len()).unwrap()).await.unwrap();
    node.write_all(&body).await.unwrap();
    assert_eq!(answering.await.unwrap().unwrap(), pulse);
}

#[tokio::test(start_paused = true)]
async fn one_at_a_time_and_nobody_keeps_a_turn() {
    let turns = Arc::new(Turns::default());
    let (mut first, _first) = dial(&turns);
    say(&mut first, Probe::Ask).await;
    assert_eq!(hear(&mut first).await, Answer::Turn { granted: true });
    let (mut second, _second) = dial(&turns);
    let asked = Instant::now();
    say(&mut second, Probe::Ask).await;
    assert_eq!(hear(&mut second).await, Answer::Turn { granted: false });
    assert!((TURN_WAIT..TURN_WAIT * 2).contains(&asked.elapsed()));
    // The first one says nothing more; its turn is over all the same.
    tokio::time::sleep(TURN_BOUND).await;
    let (mut third, _third) = dial(&turns);
    say(&mut third, Probe::Ask).await;
    assert_eq!(hear(&mut third).await, Answer::Turn { granted: true });
    say(&mut third, Probe::Done).await;
    let (mut fourth, _fourth) = dial(&turns);
    say(&mut fourth, Probe::Ask).await;
    assert_eq!(hear(&mut fourth).await, Answer::Turn { granted: true });
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_more_than_it_may_is_cut_off() {
    let too_much = async |probes: Vec<Probe>| {
        let (mut node, answering) = dial(&Arc::new(Turns::default()));
        for probe in probes {
            say(&mut node, probe).await;
        }
        // What was answered until then is read, so that nothing waits for room.
        let mut rest = Vec::new();
        node.read_to_end(&mut rest).await.unwrap();
        let ended = answering.await.unwrap().unwrap_err();
        assert_eq!(ended.drop_reason(), Some("node-measures-too-much"));
    };
    too_much((0..=MAX_ECHOES).map(|number| Probe::Echo { number }).collect()).await;
    too_much(vec![Probe::Ask, Probe::Ask]).await;
    too_much(vec![Probe::Peers, Probe::Peers]).await;
    too_much(vec![Probe::Give { bytes: 1 }]).await;
    too_much(vec![Probe::Filler(Filler::of(1))]).await;
    too_much(vec![Probe::Ask, Probe::Give { bytes: MAX_BURST + 1 }]).await;
    too_much(vec![Probe::Ask, Probe::Give { bytes: u32::MAX }]).await;
    too_much(vec![
        Probe::Ask,
        Probe::Give { bytes: MAX_BURST },
        Probe::Give { bytes: MAX_BURST },
        Probe::Give { bytes: 1 },
    ])
    .await;
    let (mut node, answering) = dial(&Arc::new(Turns::default()));
    say(&mut node, Probe::Ask).await;
    hear(&mut node).await;
    burst_out(&mut node, MAX_BULK).await;
    hear(&mut node).await;
    say(&mut node, Probe::Filler(Filler::of(1))).await;
    assert!(matches!(answering.await.unwrap(), Err(Ended::MeasuresTooMuch)));
    // And who measures for ever.
    let (mut node, answering) = dial(&Arc::new(Turns::default()));
    say(&mut node, Probe::Echo { number: 0 }).await;
    hear(&mut node).await;
    assert!(matches!(answering.await.unwrap(), Err(Ended::Silent)));
}

#[tokio::test]
async fn the_kernel_counts_what_was_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut node = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (mut stream, _) = listener.accept().await.unwrap();
    let answering = tokio::spawn(async move {
        let ended = answer(&mut stream, &Turns::default(), room).await;
        (ended, stream.segments())
    });
    for number in 0..10 {
        say(&mut node, Probe::Echo { number }).await;
        hear(&mut node).await;
    }
    drop(node);
    let (_, segments) = answering.await.unwrap();
    assert_eq!(segments, Segments { all: 10, again: 0 });
}
