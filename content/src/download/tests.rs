//! Single rules of a download as traces; whole swarms are in `tests/swarm.rs`.

use super::*;
use crate::{Shape, TreeBuilder};

const T0: Duration = Duration::ZERO;
const CHUNK: usize = 4096;

fn image() -> Vec<u8> {
    (0..4 * CHUNK)
        .map(|at| (at / CHUNK * 31 + at % 251) as u8)
        .collect()
}

fn chunk(number: u32) -> Vec<u8> {
    image()[number as usize * CHUNK..][..CHUNK].to_vec()
}

fn download() -> Download {
    let mut builder = TreeBuilder::new(Shape::new(4 * CHUNK as u64, CHUNK as u32).unwrap());
    builder.update(&image()).unwrap();
    Download::new(T0, Arc::new(builder.finish().unwrap()), None, 7)
}

fn outputs(download: &mut Download) -> Vec<Output> {
    std::iter::from_fn(|| download.poll_output()).collect()
}

fn name() -> Name {
    Arc::from("lab-a02")
}

/// With a peer that has everything, and was asked for a chunk.
fn with_peer() -> (Download, u32) {
    let mut download = download();
    download.handle_peers(T0, &[name()]);
    assert_eq!(outputs(&mut download), [Output::Connect(name())]);
    download.handle_connected(T0, "lab-a02");
    let ask = Output::AskHave {
        peer: name(),
        wait: T0,
    };
    assert_eq!(outputs(&mut download), [ask]);
    download.handle_have(T0, "lab-a02", &[0xf0]);
    match &outputs(&mut download)[..] {
        [Output::AskPeer { chunk, .. }] => (download, *chunk),
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_is_asked_of_the_head_without_a_ticket() {
    let mut download = download();
    assert_eq!(outputs(&mut download), []);
    download.handle_head(T0);
    let wish = |starving| Output::Wish {
        tickets: TICKETS,
        peers: PEERS as u32,
        starving,
        using: vec![],
    };
    assert_eq!(outputs(&mut download), [wish(false)]);
    download.handle_tickets(T0, &[2, 0, 9], Duration::from_secs(30));
    assert_eq!(
        outputs(&mut download),
        [Output::AskHead(2), Output::AskHead(0)],
        "9 does not exist"
    );
    assert!(download.handle_chunk(T0, &Source::Head, 2, &chunk(2), None));
    assert!(
        !download.handle_chunk(T0, &Source::Head, 0, &chunk(1), None),
        "another chunk"
    );
    assert_eq!(download.bytes(), CHUNK as u64);
    // Its one wish came with the first chunk, then the word of the wrong one; the next wish is later, not at once.
    let wrong = Output::WrongFromHead(ChunkError::Hash { chunk: 0 });
    let said = outputs(&mut download);
    assert!(said.len() == 2 && said[1] == wrong, "{said:?}");
    let mut now = T0;
    while outputs(&mut download).is_empty() {
        now = download.next_deadline().unwrap();
        download.handle_deadline(now);
    }
    assert!(now > T0);
}

#[test]
fn who_gives_a_wrong_chunk_is_named_and_never_asked_again() {
    let (mut download, asked) = with_peer();
    let mut wrong = chunk(asked);
    wrong[17] ^= 1;
    assert!(!download.handle_chunk(T0, &Source::Peer(name()), asked, &wrong, None));
    let bad = Output::BadPeer {
        peer: name(),
        error: ChunkError::Hash { chunk: asked },
    };
    assert_eq!(outputs(&mut download), [Output::Disconnect(name()), bad]);
    download.handle_peers(T0, &[name()]);
    assert_eq!(
        outputs(&mut download),
        [],
        "not even when the head names it again"
    );
    assert_eq!(download.have().count(), 0);
    assert!(download.liars().eq([&name()]));
}

#[test]
fn what_nobody_asked_for_is_not_taken() {
    let (mut download, asked) = with_peer();
    let other = (asked + 1) % 4;
    assert!(!download.handle_chunk(T0, &Source::Peer(name()), other, &chunk(other), None));
    assert!(!download.handle_chunk(
        T0,
        &Source::Peer(Arc::from("stranger")),
        asked,
        &chunk(asked),
        None
    ));
    assert!(download.handle_chunk(T0, &Source::Peer(name()), asked, &chunk(asked), None));
    assert_eq!(download.counters().wrong, 1);
}

#[test]
fn a_peer_that_is_gone_or_stuck_gives_its_chunk_back() {
    let (mut download, asked) = with_peer();
    download.handle_lost(T0, "lab-a02");
    download.handle_head(T0);
    download.handle_tickets(T0, &[asked], Duration::from_secs(30));
    assert!(outputs(&mut download).contains(&Output::AskHead(asked)));
    let (mut stuck, _) = with_peer();
    stuck.handle_deadline(PEER_BOUND);
    assert!(outputs(&mut stuck).contains(&Output::Disconnect(name())));
}

#[test]
fn it_goes_on_from_what_was_checked() {
    let tree = Arc::clone(download().tree());
    let mut have = Bitmap::all(4);
    have.remove(3);
    let mut download = Download::new(T0, tree, Some(have), 7);
    download.handle_head(T0);
    download.handle_tickets(T0, &[0, 3], Duration::from_secs(30));
    let asked: Vec<_> = outputs(&mut download)
        .into_iter()
        .filter(|output| matches!(output, Output::AskHead(_)))
        .collect();
    assert_eq!(asked, [Output::AskHead(3)]);
    assert!(download.handle_chunk(T0, &Source::Head, 3, &chunk(3), None));
    assert_eq!(outputs(&mut download), [Output::Done]);
    assert!(download.is_done() && download.next_deadline().is_none());
}

/// The head gives chunk 1 wrong `times` times: after how many this node first said that it cannot run the image, and
/// when the last came.
fn wrong_from_the_head(download: &mut Download, times: u32) -> (Option<u32>, Duration) {
    download.handle_head(T0);
    let mut now = T0;
    let mut refused = None;
    for time in 1..=times {
        download.handle_tickets(now, &[1], Duration::from_secs(30));
        let mut asked = outputs(download);
        while !asked.contains(&Output::AskHead(1)) {
            now = download.next_deadline().unwrap().max(now);
            download.handle_deadline(now);
            download.handle_tickets(now, &[1], Duration::from_secs(30));
            asked = outputs(download);
        }
        download.handle_chunk(now, &Source::Head, 1, &chunk(2), None);
        let said = outputs(download);
        let error = ChunkError::Hash { chunk: 1 };
        assert!(
            said.contains(&Output::WrongFromHead(error)),
            "each time: {said:?}"
        );
        if said.contains(&Output::BadHead(error)) {
            refused = refused.or(Some(time));
        }
    }
    (refused, now)
}

#[test]
fn a_head_that_gives_wrong_bytes_is_reported_and_asked_again() {
    let (refused, last) = wrong_from_the_head(&mut download(), 5);
    assert_eq!(refused, Some(3));
    assert!(
        last < Duration::from_secs(60),
        "it waits for a time, not for ever: {last:?}"
    );
}

#[test]
fn a_peer_that_may_have_it_right_gets_its_time() {
    let mut with_peer = download();
    with_peer.handle_peers(T0, &[Name::from("slow")]);
    with_peer.handle_connected(T0, "slow");
    let (refused, last) = wrong_from_the_head(&mut with_peer, 12);
    assert_eq!(refused, Some(10));
    assert!(last > Duration::from_secs(20), "{last:?}");
}

#[test]
fn more_peers_than_are_asked_wait_without_waking_anybody() {
    let mut download = download();
    let names: Vec<Name> = (0..IN_USE + 3)
        .map(|number| Name::from(format!("n{number}")))
        .collect();
    download.handle_peers(T0, &names);
    let called = outputs(&mut download).into_iter();
    let called = called
        .filter(|output| matches!(output, Output::Connect(_)))
        .count();
    assert_eq!(called, IN_USE);
    assert!(download.next_deadline().is_some_and(|at| at > T0));
    // One is lost: the next is called at once.
    download.handle_lost(T0, "n0");
    assert!(matches!(outputs(&mut download)[..], [Output::Connect(_)]));
}
